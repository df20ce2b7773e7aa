"""Every launch of a Triton kernel compiles, as on a GPU, to code that neither contracts the blend nor spills."""

import re
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from lcs_kernels.triton_kernels import (
    _common,
    interpolate_prune,
    interpolate_quantize,
    line_norm,
    packed_conv2d,
    packed_linear,
    quantize,
    width_conv2d,
)
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from lcs_kernels._triton import kernel
from lcs_kernels.ops._library import pack_bits

from ..ops.packed_cases import fields, nested_weight

INTERPRET = False
ARCHITECTURES = [80, 90, 100]
ALPHA, BITS = torch.tensor(0.3), torch.tensor(4)


class NoDevice:
    """Stands in for a GPU of the given architecture: enough to compile a launch, not to run it."""

    def __init__(self, architecture):
        self.architecture = architecture

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self):
        return self.architecture  # Triton keeps what it compiled by device

    def get_current_stream(self, device):
        return 0


def line():
    w0, w1 = torch.randn(2, 4096).unbind()
    kernel("interpolate_prune", "interpolate_prune")(w0, w1, ALPHA, torch.tensor(5))


def odd_layers_together():
    w0s, w1s = ([torch.randn(99).bfloat16(), torch.randn(7).bfloat16()] for _ in range(2))
    kernel("interpolate_prune_foreach", "interpolate_prune_foreach")(w0s, w1s, ALPHA, torch.tensor(5))


def backward():
    w0, w1, grad = torch.randn(3, 4096).unbind()
    args = (grad.bfloat16(), w0, w1, ALPHA, pack_bits(w0 > 0), True, torch.float32)
    kernel("interpolate_prune", "interpolate_prune_backward")(*args)


def backward_of_a_point():
    args = (torch.randn(99), None, None, ALPHA, torch.zeros(4, dtype=torch.int32), False, torch.float32)
    kernel("interpolate_prune", "interpolate_prune_backward")(*args)


def quantized_line():
    w0, w1 = torch.randn(2, 64, 64).unbind()
    kernel("interpolate_quantize", "interpolate_quantize")(w0, w1, ALPHA, BITS, 0, False)


def nested_groups_of_a_point():
    w0 = torch.randn(9, 11).bfloat16()
    kernel("interpolate_quantize", "interpolate_quantize")(w0, None, ALPHA, BITS, 7, True, torch.float16)


def quantized_backward():
    args = (torch.randn(4096).bfloat16(), None, None, ALPHA, torch.float32)
    kernel("interpolate_quantize", "interpolate_quantize_backward")(*args)


def activations():
    kernel("quantize", "quantize")(torch.randn(4096), ALPHA - 1, ALPHA, BITS)


def convolve(inputs, outputs, dtype, groups=1):
    one, weight = [1, 1], torch.randn(64, 1 if groups > 1 else 64, 3, 3).to(dtype)
    vector, x = torch.randn(64), torch.randn(2, inputs, 14, 14).to(dtype)
    kernel("width_conv2d", "width_conv2d")(x, weight, outputs, vector, vector, one, one, one, groups, True)


def convolution():
    convolve(64, 64, torch.float32)


def convolution_of_bfloat16():
    convolve(64, 64, torch.bfloat16)


def depthwise_convolution():
    convolve(64, 64, torch.float32, groups=64)


def packed_layer(rows, bits, dtype=torch.float32, exact=False, shape=(96, 256), group=256, bias=True):
    weight, x = nested_weight(shape, "group", group), torch.randn(rows, shape[1]).to(dtype)
    bias = torch.randn(shape[0]) if bias else None
    arguments = (x, *fields(weight), shape[0], group, bits, bias, True, exact, weight.prepack())
    kernel("packed_linear", "packed_linear")(*arguments)


def packed_layer_of_one_row():
    packed_layer(1, 4)


def packed_layer_of_groups():
    packed_layer(64, 8, torch.bfloat16, group=32, bias=False)


def exact_packed_layer():
    packed_layer(64, 4, exact=True)


def packed_images(bits, dtype, ranged=False, exact=False, channels=64, size=14, groups=1, codes=False):
    """`codes`: of x and of the result, with a residual."""
    weight, x = nested_weight((64, channels // groups, 3, 3)), torch.ones(2, channels, size, size).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last if ranged else torch.contiguous_format)
    one, ends, prepack = [1, 1], (-ALPHA, ALPHA) if ranged else (None, None), weight.prepack(9, groups)
    arguments = (x, *fields(weight), weight.shape, bits, None, one, one, one, groups, *ends, 8, True, exact, prepack)
    more = (torch.ones(2, 64, size, size), *ends, 8) if codes else ()
    kernel("packed_conv2d", "packed_conv2d")(*arguments, *more)


def packed_convolution():
    packed_images(8, torch.float32)


def packed_convolution_over_a_range():
    packed_images(4, torch.bfloat16, ranged=True)


def packed_convolution_of_codes():
    packed_images(4, torch.int8, ranged=True, codes=True)


def exact_packed_convolution():
    packed_images(8, torch.bfloat16, exact=True)


def norm(channels, groups, dtype, layout=torch.contiguous_format):
    x = torch.randn(2, channels, 14, 14).to(dtype).contiguous(memory_format=layout)
    ends, statistics = torch.randn(4, 64).unbind(), torch.ones(2, 2, groups)
    kernel("line_norm", "line_norm")(x, *ends, ALPHA, None, None, x, groups, 1e-5, True)
    kernel("line_norm", "line_norm_backward")(x, x, *ends, ALPHA, None, None, statistics, groups, 1e-5, True)


def group_norm():
    norm(64, 32, torch.float32)


def group_norm_of_channels_last():
    norm(64, 32, torch.bfloat16, torch.channels_last)


def batch_norm():
    x, one = torch.randn(2, 64, 14, 14), torch.ones(64)
    kernel("line_norm", "line_norm")(x, one, None, one, None, None, one, one, None, 1, 1e-5, False)
    kernel("line_norm", "line_norm_backward")(x, x, one, None, one, None, None, one, one, ALPHA, 1, 1e-5, False)


CALLS = (
    line,
    odd_layers_together,
    backward,
    backward_of_a_point,
    quantized_line,
    nested_groups_of_a_point,
    quantized_backward,
    activations,
    convolution,
    convolution_of_bfloat16,
    depthwise_convolution,
    packed_layer_of_one_row,
    packed_layer_of_groups,
    exact_packed_layer,
    packed_convolution,
    packed_convolution_over_a_range,
    packed_convolution_of_codes,
    exact_packed_convolution,
    group_norm,
    group_norm_of_channels_last,
    batch_norm,
)


def compile_launches(architecture, *calls):
    """[(call, kernel's name, binary)] of all that the calls launch; nothing runs."""
    found, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        found.append((call.__name__, self.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(driver, "_active", NoDevice(architecture))
        for call in calls:
            call()
    return found


@pytest.fixture(scope="module", params=ARCHITECTURES)
def launches_and_log(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as log:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
        found = compile_launches(request.param, *CALLS)
    return found, log.getvalue()


@pytest.fixture
def launches(launches_and_log):
    return launches_and_log[0]


def has(binary, instruction):
    """Whether an instruction of the machine code begins with this name: FFMA also finds the paired FFMA2 of sm_100."""
    return re.search(rf"[;\s]{instruction}[A-Z0-9.]*[\s;]", binary.asm["sass"]) is not None


def test_no_kernel_spills(launches_and_log):
    launches, log = launches_and_log
    assert all(binary.asm["cubin"][:4] == b"\x7fELF" for _, _, binary in launches)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) >= len({id(binary) for _, _, binary in launches}) and set(spills) == {("0", "0")}


def test_products_and_sums_round_apart(launches):
    """Other kernels of the prune hold no float arithmetic at all."""
    for call, name, binary in launches:
        arithmetic = set(re.findall(r"\b(?:mul|add|sub|fma|mad)\.\S*f(?:32|64)", binary.asm["ptx"]))
        if name in ("range_kernel", "write_kernel", "quantize_kernel"):
            assert arithmetic and not any("fma" in a or "mad" in a for a in arithmetic), arithmetic
        elif name in ("blend_kernel", "backward_kernel") and not call.endswith("of_a_point"):
            sums = set() if call == "quantized_backward" else {"add.rn.f32"}  # which has no gradient to alpha
            assert arithmetic == {"mul.rn.f32", "sub.rn.f32"} | sums
            assert has(binary, "FMUL") and has(binary, "FADD") and not has(binary, "FFMA"), name
        elif name.startswith(("norm_", "packed_", "quantize_")) and not call.startswith("exact_"):
            assert arithmetic and not any("fma" in a or "mad" in a for a in arithmetic), arithmetic
        elif name not in ("convolve_kernel", "packed_linear_kernel", "packed_conv2d_kernel"):
            assert not arithmetic, name


def test_quotients_and_roots_are_rounded_to_the_nearest(launches):
    """`/` of float32 is not, on a GPU: in Triton's interpreter, where it is, no other test can tell."""
    for call, name, binary in launches:
        assert not re.findall(r"\S*(?:div\.full|approx)\S*", binary.asm["ptx"]), (call, name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contraction_would_be_seen(monkeypatch, architecture):
    monkeypatch.setattr(interpolate_prune, "OPTIONS", {"num_warps": 8, "enable_fp_fusion": True})
    assert has(compile_launches(architecture, line)[1][2], "FFMA")


def test_aligned_layers_are_read_16_bytes_at_a_time(launches):
    for call, name, binary in launches:
        if name in ("blend_kernel", "count_kernel", "tie_kernel", "prune_kernel", "backward_kernel"):
            aligned = call in ("line", "backward", "quantized_backward")
            assert ("ld.global.v4.b32" in binary.asm["ptx"]) == aligned, (call, name)


def test_a_new_level_or_size_compiles_nothing_new():
    before = {id(binary) for _, _, binary in compile_launches(90, line, odd_layers_together)}

    def other_level():
        w0s, w1s = ([torch.randn(101).bfloat16(), torch.randn(1).bfloat16()] for _ in range(2))
        run = kernel("interpolate_prune_foreach", "interpolate_prune_foreach")
        run(w0s, w1s, torch.tensor(0.9), torch.tensor(77))

    assert {id(binary) for _, _, binary in compile_launches(90, other_level)} <= before


def test_a_new_width_compiles_nothing_new():
    before = {id(binary) for _, _, binary in compile_launches(90, convolution, convolution_of_bfloat16)}

    def other_widths():
        for dtype in (torch.float32, torch.bfloat16):
            for inputs, outputs in ((1, 1), (16, 48), (33, 7)):
                convolve(inputs, outputs, dtype)

    assert {id(binary) for _, _, binary in compile_launches(90, other_widths)} <= before


def test_other_channels_and_groups_compile_nothing_new():
    before = {id(binary) for _, _, binary in compile_launches(90, group_norm, group_norm_of_channels_last)}

    def other_widths():
        for channels, groups in ((16, 16), (2, 1), (33, 11)):
            norm(channels, groups, torch.float32)
            norm(channels, groups, torch.bfloat16, torch.channels_last)

    assert {id(binary) for _, _, binary in compile_launches(90, other_widths)} <= before


def test_other_sizes_of_a_packed_weight_compile_nothing_new():
    before = {id(binary) for _, _, binary in compile_launches(90, packed_layer_of_one_row, packed_convolution)}

    def other_sizes():
        packed_layer(2, 4, shape=(33, 200), group=200)
        packed_layer(16, 4, shape=(7, 255), group=255)
        packed_images(8, torch.float32, channels=48, size=6)
        packed_images(8, torch.float32, channels=128, size=4, groups=2)

    assert {id(binary) for _, _, binary in compile_launches(90, other_sizes)} <= before


def test_bfloat16_is_multiplied_by_the_matrix_units(launches):
    for call, _, binary in launches:
        if call == "convolution_of_bfloat16":
            assert re.search(r"(?:mma|wgmma)\S*tf32|tcgen05", binary.asm["ptx"])


def test_integers_are_multiplied_by_the_matrix_units(launches):
    for call, name, binary in launches:
        if name in ("packed_linear_kernel", "packed_conv2d_kernel") and not call.startswith("exact_"):
            assert re.search(r"mma\S*s32\.s8\.s8|tcgen05\.mma\S*i8", binary.asm["ptx"]), call


def test_planes_of_a_weight_are_read_ahead_and_8_bytes_at_a_time(launches):
    for call, name, binary in launches:
        if call == "packed_layer_of_one_row" and name == "packed_linear_kernel":
            copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], 0x(\w+)", binary.asm["ptx"])
            assert len(copies) > 4 and set(copies) == {"8", "10"}  # 16 of x


def test_every_kernel_is_launched(launches):
    modules = (_common, interpolate_prune, interpolate_quantize, line_norm, packed_conv2d, packed_linear, quantize)
    modules += (width_conv2d,)
    kernels = {k for module in modules for k in vars(module) if k.endswith("_kernel")}
    assert kernels == {name for _, name, _ in launches}
