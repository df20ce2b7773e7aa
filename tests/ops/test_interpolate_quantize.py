import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import lcs_kernels
from lcs_kernels import interpolate_quantize, quantize
from lcs_kernels.ops.interpolate_prune import blend
from lcs_kernels.ops.interpolate_quantize import in_groups, reference, reference_backward

from ..conftest import as_it_is
from .prune_cases import KINDS, SIZES, assert_same

OP = torch.ops.lcs.interpolate_quantize.default
BACKWARD = torch.ops.lcs.interpolate_quantize_backward.default
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def scalars(alpha, bits):
    return torch.tensor(alpha), torch.tensor(bits)


def check(w0, w1, alpha, bits, *rest, isas=as_it_is):
    expected = reference(w0, w1, *scalars(alpha, bits), *rest)
    for _ in isas():
        found = OP(w0, w1, *scalars(alpha, bits), *rest)
        assert_same(found, expected)
    return found


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_reference(isas, kind, n):
    torch.manual_seed(n)
    w0, w1 = KINDS[kind](n)
    for bits in (2, 3, 5, 8):
        for nested in (False, True):
            check(w0, w1, 0.3, bits, 0, nested, isas=isas)
    check(w0, None, 0.3, 4, isas=isas)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_dtypes(isas, source, dtype, kind):
    torch.manual_seed(1)
    w0, w1 = (w.to(source) for w in KINDS[kind](20_011))
    check(w0, w1, 0.7, 4, 0, False, dtype, isas=isas)
    check(w0, None, 0.7, 4, 0, True, dtype, isas=isas)


@pytest.mark.parametrize("kind", ["normal", "nonfinite", "zeros", "half_range"])
@pytest.mark.parametrize("shape", [(7, 50, 3), (3, 33_000), (1, 5), (40,), (5, 0, 3), (0, 4)], ids=str)
def test_groups_of_any_size(isas, kind, shape):
    torch.manual_seed(2)
    w0, w1 = (w.view(shape) for w in KINDS[kind](torch.Size(shape).numel()))
    for size in (1, 5, 16, 32, 149, 150, 151, 16_383, 16_385, 2**40):
        for nested in (False, True):
            check(w0, w1, 0.4, 3, size, nested, isas=isas)


@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_of_eight_mebibytes_and_more(isas, dtype, per_channel):
    """They are written past the caches."""
    torch.manual_seed(3)
    columns = 20_011
    w0, w1 = torch.randn(2, (8 << 20) // dtype.itemsize // columns + 1, columns).unbind()
    check(w0, w1, 0.3, 4, columns if per_channel else 0, False, dtype, isas=isas)


@pytest.mark.parametrize("group_size", [0, 100, 30_000])
def test_threads_change_nothing(threads, group_size):
    torch.manual_seed(4)
    w0, w1 = torch.randn(2, 5, 60_001).unbind()
    check(w0, w1, 0.25, 3, group_size)


def test_a_group_is_quantised_by_its_own_range():
    torch.manual_seed(5)
    w0, w1 = torch.randn(2, 6, 4, 3, 3).unbind()
    w = blend(w0, w1, torch.tensor(0.3))
    whole = interpolate_quantize(w0, w1, 0.3, 4)
    assert torch.equal(whole, quantize(w, w.min(), w.max(), 4))
    channels = interpolate_quantize(w0, w1, 0.3, 4, per_channel=True)
    assert torch.equal(channels, torch.stack([quantize(c, c.min(), c.max(), 4) for c in w]))
    groups = interpolate_quantize(w0, w1, 0.3, 4, group_size=25)  # of 36: one of 25 and one of 11
    parts = [quantize(part, part.min(), part.max(), 4) for c in w for part in c.flatten().split(25)]
    assert torch.equal(groups.flatten(), torch.cat(parts))


@pytest.mark.parametrize("bits", range(2, 9))
def test_nested_values_are_read_from_one_8_bit_code(isa, bits):
    """By integers: the code's leading bits, half of what they leave open, the 8-bit zero point and scale."""
    torch.manual_seed(bits)
    w = torch.randn(1000) + 0.3
    scale = (w.max().double() - w.min().double()) / 255
    zero = (-w.min().double() / scale).round()
    code = ((w * (1 / scale).float()).round() + zero.float()).clamp(0, 255).to(torch.int64)
    left = 8 - bits
    value = (((code >> left) << left).float() + (2**left - 1) / 2 - zero.float()) * scale.float()
    assert torch.equal(interpolate_quantize(w, None, 0.0, bits, nested=True), value)


def test_nested_8_bits_is_the_unsigned_form_of_8_bits():
    torch.manual_seed(6)
    w = torch.randn(1000)
    assert torch.equal(
        interpolate_quantize(w, None, 0.0, 8, nested=True), interpolate_quantize(w, None, 0.0, 8, nested=False)
    )


def test_groups_hold_whole_rows():
    w = torch.arange(14.0).view(2, 7)
    assert in_groups(w, 0).shape == (1, 1, 14) and in_groups(w, 99).shape == (2, 1, 7)
    assert torch.equal(in_groups(w, 4)[1], torch.tensor([[7.0, 8, 9, 10], [11, 12, 13, 0]]))


def test_what_is_not_finite_spoils_its_group_alone(isa):
    w = torch.randn(3, 70)
    w[1, 69], w[2, 3] = float("nan"), float("inf")
    found = interpolate_quantize(w, None, 0.0, 4, per_channel=True)
    assert found[0].isfinite().all() and found[1:].isnan().all()


def test_zeros_stay():
    for nested in (False, True):
        assert not interpolate_quantize(torch.zeros(70), -torch.zeros(70), 0.5, 3, nested=nested).any()


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.t(),
        lambda w: w[1::2, 3:-2],
        lambda w: w[:1].expand(40, 60),
        lambda w: w.reshape(8, 5, 6, 10).to(memory_format=torch.channels_last),
        lambda w: w[:0],
        lambda w: w[3, 7],
    ],
    ids=["transposed", "strided", "expanded", "channels_last", "empty", "scalar"],
)
def test_any_shape_and_stride(view):
    torch.manual_seed(7)
    w0, w1 = view(torch.randn(40, 60)), view(torch.randn(40, 60))
    assert check(w0, w1, 0.5, 3).is_contiguous()
    if w0.dim():
        assert check(w0, w1, 0.5, 3, 7).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 33, 16_385, 70_001])
def test_backward_matches_reference(isa, n, source, dtype):
    torch.manual_seed(8)
    w0, w1, grad = (t.to(kind) for t, kind in zip(torch.randn(3, n), (source, source, dtype), strict=True))
    args = (grad, w0, w1, torch.tensor(0.3), source)
    actual, expected = BACKWARD(*args), reference_backward(*args)
    assert_same(actual[0], expected[0])
    assert_same(actual[1], expected[1])
    terms = (grad.double() * (w1.double() - w0.double())).abs().sum()
    # 16 running sums of at most 1024 float32 terms a chunk, each term rounded twice, then one rounding of the total
    assert abs(float(actual[2].double() - expected[2].double())) <= float(terms) * (1024 + 3) * 2**-24
    assert BACKWARD(grad, None, None, *args[3:])[2].shape == (0,)


def test_alpha_gradient_is_the_same_on_every_instruction_set_and_thread_count():
    torch.manual_seed(9)
    w0, w1, grad = torch.randn(3, 100_003).unbind()
    found = set()
    for name, threads in itertools.product(["scalar", "avx2", "avx512"], [1, 2, 5]):
        lcs_kernels.isa.set_max(name)
        torch.set_num_threads(threads)
        found.add(float(BACKWARD(grad, w0, w1, torch.tensor(0.4), torch.float32)[2]))
    lcs_kernels.isa.set_max("amx")
    torch.set_num_threads(2)
    assert len(found) == 1


def test_alpha_gradient_may_be_beyond_float32():
    w0, w1, grad = torch.tensor([[-1e20], [1e20], [1e30]]).expand(3, 40)
    arguments = (grad, w0, w1, torch.tensor(0.3), torch.float32)
    assert BACKWARD(*arguments)[2] == reference_backward(*arguments)[2] == torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bits", [2, 8])
def test_gradients_are_those_of_the_blend(bits, dtype):
    """Straight through, so also where a weight was clipped."""
    torch.manual_seed(10)
    parts = [*torch.randn(2, 6, 50, dtype=dtype).unbind(), torch.tensor(0.3, dtype=dtype)]
    parts = [p.clone().requires_grad_() for p in parts]
    probe = torch.randn(6, 50, dtype=dtype)
    actual = torch.autograd.grad(interpolate_quantize(*parts, bits), parts, probe)
    expected = torch.autograd.grad(blend(*parts), parts, probe)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    unit = torch.finfo(dtype).eps
    size = (probe * (parts[1] - parts[0])).abs().sum()
    assert abs(float((actual[2] - expected[2]).detach())) <= float(size.detach()) * 304 * unit
    assert torch.autograd.gradcheck(blend, [p.detach().double().requires_grad_() for p in parts])


def test_a_points_gradient_is_the_results():
    w, probe = torch.randn(70, requires_grad=True), torch.randn(70)
    assert torch.equal(torch.autograd.grad(interpolate_quantize(w, None, 0.0, 3), w, probe)[0], probe)


def test_no_second_derivative():
    w0, w1 = (torch.randn(9, requires_grad=True) for _ in range(2))
    (grad,) = torch.autograd.grad(interpolate_quantize(w0, w1, 0.5, 3).square().sum(), w0, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    w0, w1 = torch.randn(2, 5, 9).unbind()
    for end, size, nested in ((w1, 0, False), (None, 4, True)):
        opcheck(OP, (w0, end, *scalars(0.3, 4), size, nested, dtype))
    opcheck(BACKWARD, (torch.randn(5, 9), w0, w1, torch.tensor(0.3), torch.float32))
    opcheck(BACKWARD, (torch.randn(5, 9), None, None, torch.tensor(0.3), torch.float32))


@pytest.mark.parametrize("options", [{}, {"per_channel": True, "nested": True}], ids=str)
def test_compiles_once_for_every_level(options):
    graphs = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=graphs)
    def step(w0, w1, alpha, bits):
        return interpolate_quantize(w0, w1, alpha, bits, **options).square().sum()

    w0, w1 = (torch.randn(6, 50, requires_grad=True) for _ in range(2))
    for bits, alpha in itertools.product(range(2, 9), (0.0, 0.3, 1.0)):
        level = scalars(alpha, bits)
        step(w0, w1, *level).backward()
        assert torch.equal(step(w0, w1, *level), interpolate_quantize(w0, w1, *level, **options).square().sum())
    assert graphs.frame_count <= 2


def test_autocast_gives_its_own_dtype_and_float32_gradients():
    w0, w1 = (torch.randn(100, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        w = interpolate_quantize(w0, w1, 0.5, 4)
        kept = interpolate_quantize(w0, w1, 0.5, 4, dtype=torch.float32)
    assert w.dtype == torch.bfloat16 and kept.dtype == torch.float32
    w.sum().backward()
    assert w0.grad.dtype == torch.float32 and torch.equal(w0.grad, torch.full((100,), 0.5))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"bits": 1}, ValueError, r"bits must be a whole number in \[2, 8\], got 1"),
        ({"alpha": -0.1}, ValueError, "alpha must lie in .*extrapolate"),
        ({"alpha": torch.tensor(0.5, device="meta")}, ValueError, "alpha is on meta, the tensor it is for on cpu"),
        ({"bits": torch.tensor(4, device="meta")}, ValueError, "bits is on meta"),
        ({"group_size": 0}, ValueError, "group_size must be at least 1, got 0"),
        ({"group_size": 4, "per_channel": True}, ValueError, "per_channel or group_size, got both"),
        ({"w0": torch.tensor(1.0), "w1": None, "per_channel": True}, ValueError, "no channels"),
        ({"w1": torch.randn(9)}, ValueError, r"w1 .*\(9,\).*\(10,\)"),
        ({"w1": torch.randn(10, dtype=torch.bfloat16)}, TypeError, "w1 .*bfloat16"),
        ({"w0": torch.arange(10), "w1": None}, TypeError, "w0 .*int64"),
        ({"dtype": torch.int8}, TypeError, "dtype .*int8"),
        ({"w0": torch.tensor([float("nan")] * 10), "check_finite": True}, ValueError, "w0 holds 10 values"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"w0": torch.randn(10), "w1": torch.randn(10), "alpha": 0.5, "bits": 4} | change
    with pytest.raises(error, match=words):
        interpolate_quantize(**arguments)


def test_extrapolates_on_request():
    w0, w1 = torch.randn(2, 50).unbind()
    assert torch.equal(interpolate_quantize(w0, w1, 2.0, 4, extrapolate=True), reference(w0, w1, *scalars(2.0, 4)))


def test_meta_tensors_give_shapes():
    w = torch.ones(3, 4, device="meta")
    assert interpolate_quantize(w, w, 0.5, 4).is_meta
