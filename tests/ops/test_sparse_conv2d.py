import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.nn import functional as F

from lcs_kernels import sparse_conv2d
from lcs_kernels.formats import NestedWeight, SparseWeight
from lcs_kernels.isa import set_max
from lcs_kernels.ops.replay import Recorder
from lcs_kernels.ops.sparse_conv2d import block_for, reference

from .sparse_cases import DTYPES, assert_within_roundings, float_weight, integer_weight, integers, stored

OP = torch.ops.lcs.sparse_conv2d.default
FORMATS = [torch.contiguous_format, torch.channels_last]
# x, weight, then stride, padding, dilation, groups
GEOMETRIES = {
    "1x1": ((2, 5, 7, 9), (6, 5, 1, 1), 1, 0, 1, 1),
    "1x1 strided": ((2, 5, 7, 9), (6, 5, 1, 1), 3, 0, 1, 1),
    "3x3": ((2, 19, 15, 17), (21, 19, 3, 3), 1, 1, 1, 1),
    "3x3 strided": ((2, 7, 16, 17), (9, 7, 3, 3), 2, 1, 1, 1),
    "7x7 strided": ((1, 3, 45, 43), (8, 3, 7, 7), 2, 3, 1, 1),
    "5x3": ((3, 4, 9, 12), (5, 4, 5, 3), (3, 2), (2, 0), (1, 2), 1),
    "padding beyond the kernel": ((2, 3, 6, 5), (4, 3, 3, 3), 1, (5, 4), 1, 1),
    "strided padding": ((2, 3, 6, 5), (4, 3, 2, 2), (4, 3), 7, 1, 1),
    "dilated": ((2, 3, 14, 15), (4, 3, 3, 3), 1, 2, (2, 3), 1),
    "dilated and strided": ((2, 3, 21, 20), (4, 3, 3, 4), (2, 3), (4, 1), (3, 2), 1),
    "groups": ((2, 12, 9, 8), (9, 4, 3, 3), 1, 1, 1, 3),
    "depthwise": ((3, 10, 8, 11), (10, 1, 3, 3), 1, 1, 1, 10),
    "depthwise, several each": ((1, 5, 8, 11), (15, 1, 3, 3), 2, 1, 1, 5),
    "one pixel": ((5, 6, 1, 1), (7, 6, 3, 3), 1, 1, 1, 1),
    "one result": ((19, 6, 3, 3), (7, 6, 3, 3), 1, 0, 1, 1),
    "one result, many images": ((130, 6, 2, 2), (7, 6, 2, 2), 1, 0, 1, 1),
    "tiny images": ((33, 6, 2, 3), (7, 6, 3, 3), 1, 1, 1, 1),
    "tiny strided images": ((33, 6, 4, 4), (7, 6, 3, 3), 2, 1, 1, 1),
    "one row": ((2, 3, 1, 400), (5, 3, 3, 3), 1, 1, 1, 1),
    "one column": ((2, 3, 400, 1), (5, 3, 3, 3), 1, 1, 1, 1),
    "several bands": ((1, 64, 70, 66), (6, 64, 3, 3), 1, 1, 1, 1),
    "many panels": ((11, 5, 20, 19), (6, 5, 3, 3), 1, 1, 1, 1),
    "rows of few images": ((3, 6, 7, 7), (9, 6, 3, 3), 1, 1, 1, 1),
    "rows of a strided image": ((1, 6, 15, 13), (9, 6, 3, 3), 2, 1, 1, 1),
    "rows far apart": ((1, 6, 8, 8), (9, 6, 3, 3), (1, 2), (5, 3), (4, 2), 1),
    "blocks of an image": ((1, 24, 28, 27), (40, 24, 3, 3), 1, 1, 1, 1),
    "blocks of several images": ((9, 40, 14, 13), (48, 40, 3, 3), 1, 1, 1, 1),
    "blocks of a strided image": ((1, 16, 31, 30), (40, 16, 3, 3), 2, 1, 1, 1),
    "blocks in groups": ((2, 24, 15, 14), (36, 8, 3, 3), 1, 1, 1, 3),
    "one channel": ((2, 1, 9, 10), (1, 1, 3, 3), 1, 1, 1, 1),
    "no images": ((0, 3, 9, 10), (4, 3, 3, 3), 1, 1, 1, 1),
}


def pair(value):
    return list(value) if isinstance(value, tuple) else [value, value]


def settings(geometry):
    return (*map(pair, geometry[2:5]), geometry[5])


def check(x, weight, bias, geometry, relu=False, **scaled):
    y = sparse_conv2d(x, weight, bias, *geometry[2:], relu=relu, **scaled)
    fields = (weight.mask_bits, weight.values, weight.shape)
    expected = reference(x, *fields, bias, *settings(geometry), relu, 1, [], **scaled)
    assert y.dtype == x.dtype and torch.equal(y, expected)
    for layout in FORMATS:
        assert y.is_contiguous(memory_format=layout) == expected.is_contiguous(memory_format=layout)
    return y


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_integers_are_exact(isa, name, layout):
    torch.manual_seed(0)
    geometry = GEOMETRIES[name]
    for dtype, w_dtype, density in [(*DTYPES, 0.1), (*reversed(DTYPES), 1), (DTYPES[0], DTYPES[0], 0.4)]:
        x = integers(*geometry[0], dtype=dtype).to(memory_format=layout)
        weight = integer_weight(geometry[1], density, w_dtype)
        check(x, weight, integers(geometry[1][0]), geometry, relu=True)
        check(x, weight, None, geometry)
        y = check(x, weight, integers(geometry[1][0]), geometry, True, scale=integers(geometry[1][0]), cap=6.0)
        residual = integers(*y.shape, dtype=dtype).to(memory_format=layout)
        check(x, weight, integers(geometry[1][0]), geometry, True, residual=residual)
        check(x, weight, None, geometry, True, scale=integers(geometry[1][0]), residual=residual, cap=6.0)
        check(x, weight, None, geometry, residual=residual)
    check(x, weight, None, geometry, scale=integers(geometry[1][0]))
    check(x, integer_weight(geometry[1], 0), integers(geometry[1][0]), geometry)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 5), (7, 7), (9, 9)], ids=str)
def test_batches(isa, size, layout):
    torch.manual_seed(1)
    weight = integer_weight((11, 9, 3, 3))
    for dtype in DTYPES:
        x = integers(17, 9, *size, dtype=dtype).to(memory_format=layout)
        expected = check(x, weight, None, (x.shape, weight.shape, 1, 1, 1, 1))
        for n in range(1, 17):
            assert torch.equal(sparse_conv2d(x[:n], weight, padding=1), expected[:n])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 64, 80), (9, 8, 31, 32), (1, 8, 127, 128), (2, 8, 9, 512)], ids=str)
def test_results_larger_than_the_caches(isa, shape, dtype):
    """Of which the aligned ones are written past them."""
    torch.manual_seed(4)
    channels = (8 << 20) // (shape[0] * shape[2] * shape[3] * dtype.itemsize) + 1
    for density in (0.1, 0.9):
        weight = integer_weight((channels, 8, 1, 3), density)
        for x in (integers(*shape, dtype=dtype), integers(shape[0] + 1, *shape[1:], dtype=dtype)[1:]):
            y = check(x, weight, integers(channels), (x.shape, weight.shape, 1, (0, 1), 1, 1))
            check(x, weight, None, (x.shape, weight.shape, 1, (0, 1), 1, 1), True, residual=y)


@pytest.mark.parametrize("threads", [1, 2, 3, 8], indirect=True)
@pytest.mark.parametrize("name", ["3x3", "groups", "tiny images", "many panels", "one result", "rows of few images"])
def test_blocks_and_threads_change_no_integer(isa, threads, name):
    torch.manual_seed(2)
    geometry = GEOMETRIES[name]
    weight, out = integer_weight(geometry[1]), geometry[1][0]
    taps, channels = geometry[1][2] * geometry[1][3], geometry[1][1]
    for layout in FORMATS:
        x = integers(*geometry[0]).to(memory_format=layout)
        for block in {1, 2, 3, channels, channels + 2}:
            args = (x, weight.mask_bits, weight.values, weight.shape, integers(out), *settings(geometry), 1)
            args = (*args[:-1], True, block * taps, [])
            assert torch.equal(OP(*args), reference(*args))


def test_more_taps_than_an_index_can_tell_apart():
    geometry = (1, 1, 3, 4), (2, 1, 257, 257), 1, 130, 1, 1
    check(integers(*geometry[0]), integer_weight(geometry[1]), integers(2), geometry)


def test_without_outputs_channels_or_pixels(isa):
    """Where torch's own convolution refuses, or forgets the bias."""
    assert sparse_conv2d(integers(2, 3, 5, 5), integer_weight((0, 3, 3, 3))).shape == (2, 0, 3, 3)
    for x, kernel in [(torch.ones(2, 3, 0, 4), (5, 3, 1, 1)), (torch.ones(2, 0, 2, 6), (5, 0, 3, 3))]:
        y = sparse_conv2d(x, integer_weight(kernel), torch.arange(5.0), padding=1)
        assert y.shape == (2, 5, 2, 6) and torch.equal(y, torch.arange(5.0)[:, None, None].expand_as(y))
        check(x, integer_weight(kernel), torch.arange(5.0), (x.shape, kernel, 1, 1, 1, 1), relu=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_of_no_channels(dtype):
    x, bias = torch.ones(2, 0, 5, 5, dtype=dtype, requires_grad=True), torch.arange(6.0, dtype=dtype).requires_grad_()
    weight = integer_weight((6, 0, 3, 3))
    y = sparse_conv2d(x, weight, bias, padding=1)
    assert torch.equal(y, bias[:, None, None].expand(2, 6, 5, 5)) and not sparse_conv2d(x, weight, padding=1).any()
    y.sum().backward()
    assert x.grad.shape == x.shape and torch.equal(bias.grad, torch.full_like(bias, 50))


def copies_of(call):
    """What a call copies, by name."""
    with torch.profiler.profile() as profile:
        call()
    return [event.name for event in profile.events() if event.name in ("aten::clone", "aten::copy_")]


def test_no_layout_is_copied_but_those_of_other_strides():
    x, weight = integers(2, 3, 8, 9), integer_weight((4, 3, 3, 3))
    sparse_conv2d(x, weight)
    strided, last = x.transpose(2, 3), x.to(memory_format=torch.channels_last)
    assert not copies_of(lambda: sparse_conv2d(x, weight)) and not copies_of(lambda: sparse_conv2d(last, weight))
    assert copies_of(lambda: sparse_conv2d(strided, weight))
    assert torch.equal(sparse_conv2d(strided, weight), sparse_conv2d(strided.contiguous(), weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["3x3", "7x7 strided", "tiny images", "groups", "several bands"])
def test_sums_round_as_often_as_they_must(isa, name, dtype):
    torch.manual_seed(3)
    geometry = GEOMETRIES[name]
    x, weight = torch.randn(geometry[0]).to(dtype), float_weight(geometry[1], 0.4, dtype)
    bias, wide, w = torch.randn(geometry[1][0]), x.double(), weight.unpack().double()
    exact = F.conv2d(wide, w, bias.double(), *geometry[2:])
    magnitude = F.conv2d(wide.abs(), w.abs(), bias.double().abs(), *geometry[2:])
    terms = stored(weight).sum((1, 2, 3))[:, None, None]
    assert_within_roundings(sparse_conv2d(x, weight, bias, *geometry[2:]), exact, magnitude, terms)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_threads_change_nothing(isa, name):
    torch.manual_seed(4)
    geometry = GEOMETRIES[name]
    x, weight, before = torch.randn(geometry[0]), float_weight(geometry[1]), torch.get_num_threads()
    results = []
    for n in (1, 2, 3, 8):
        torch.set_num_threads(n)
        results.append(sparse_conv2d(x, weight, None, *geometry[2:]))
    torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name != "no images"])
def test_what_is_not_finite_reaches_only_the_weights_that_are_stored(isa, name, layout, value):
    torch.manual_seed(5)
    geometry = GEOMETRIES[name]
    x, weight = torch.randn(geometry[0]).to(memory_format=layout), float_weight(geometry[1], 0.2)
    at = tuple(int(torch.randint(size, ())) for size in geometry[0])
    spot = torch.zeros(geometry[0])
    spot[at] = 1
    touched = F.conv2d(spot, stored(weight), None, *geometry[2:]) != 0
    clean = sparse_conv2d(x, weight, None, *geometry[2:])
    x[at] = value
    y = sparse_conv2d(x, weight, None, *geometry[2:])
    assert torch.equal(y[~touched], clean[~touched]) and not y[touched].isfinite().any()
    assert sparse_conv2d(x, weight, None, *geometry[2:], relu=True)[touched].isnan().sum() == y.isnan().sum()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", ["3x3", "5x3", "groups", "dilated and strided"])
def test_gradients_equal_the_dense_convolutions(name, layout, dtype, relu):
    torch.manual_seed(6)
    geometry = GEOMETRIES[name]
    weight = integer_weight(geometry[1])
    x, bias = integers(*geometry[0], dtype=dtype).to(memory_format=layout), integers(geometry[1][0])
    leaves = [[t.clone().requires_grad_() for t in (x, bias)] for _ in range(2)]
    y = sparse_conv2d(leaves[0][0], weight, leaves[0][1], *geometry[2:], relu=relu)
    plain = F.conv2d(leaves[1][0].float(), weight.unpack(), leaves[1][1], *geometry[2:])
    grad = integers(*y.shape, dtype=dtype)
    y.backward(grad)
    (plain.relu() if relu else plain).to(dtype).backward(grad)
    for a, b in zip(*leaves, strict=True):
        assert a.grad.dtype == b.grad.dtype and torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu):
    torch.manual_seed(7)
    x, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 2, 3, 2), (2,)))
    weight = float_weight((2, 1, 3, 2), 0.5)
    assert torch.autograd.gradcheck(
        lambda x, b: sparse_conv2d(x, weight, b, (1, 2), (2, 1), 1, 2, relu=relu), (x, bias)
    )


def test_gradcheck_of_what_is_scaled_and_capped():
    torch.manual_seed(9)
    shapes = ((2, 2, 3, 2), (2,), (2,), (2, 2, 5, 2))
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    weight = float_weight((2, 1, 3, 2), 0.5)

    def run(x, scale, bias, residual):
        return sparse_conv2d(x, weight, bias, (1, 2), (2, 1), 1, 2, scale=scale, residual=residual, relu=True, cap=0.7)

    assert (run(*leaves) == 0.7).any() and torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradcheck(
        lambda x, r: sparse_conv2d(x, weight, None, (1, 2), (2, 1), 1, 2, residual=r), leaves[::3]
    )


def test_what_is_scaled_rounds_once_with_gradients_too():
    x, weight = integers(2, 4, 6, 5, dtype=torch.bfloat16), integer_weight((6, 4, 3, 2), 1, torch.bfloat16)
    scale, bias = integers(6) + 0.5, integers(6)
    exact = F.conv2d(x.float(), weight.unpack().float()) * scale[:, None, None] + bias[:, None, None]
    residual = (integers(*exact.shape) + 0.25).bfloat16()
    for settings, result in (({}, exact), ({"residual": residual}, exact + residual)):
        expected, settings = result.clamp(0, 40).bfloat16(), settings | {"scale": scale, "relu": True, "cap": 40.0}
        assert torch.equal(sparse_conv2d(x.detach(), weight, bias, **settings), expected)
        assert torch.equal(sparse_conv2d(x.requires_grad_(), weight, bias, **settings), expected)


def test_a_residual_in_another_layout_is_copied(isa):
    weight = integer_weight((7, 6, 3, 3))
    for layout in FORMATS:
        x = integers(9, 6, 5, 7).to(memory_format=layout)
        for other in FORMATS:
            residual = integers(9, 7, 3, 5).to(memory_format=other)
            y = sparse_conv2d(x, weight, residual=residual)
            assert torch.equal(y, sparse_conv2d(x, weight) + residual) and y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("dtype", "layout"), list(zip(DTYPES, FORMATS, strict=True)), ids=str)
def test_opcheck(dtype, layout):
    x, weight = integers(2, 4, 6, 5, dtype=dtype).to(memory_format=layout), integer_weight((6, 2, 3, 2), dtype=dtype)
    fields = (weight.mask_bits, weight.values, weight.shape)
    opcheck(OP, (x, *fields, None, [1, 2], [2, 1], [1, 1], 2, False, 6, []))
    opcheck(OP, (x, *fields, integers(6), [1, 1], [0, 0], [1, 1], 2, True, 12, weight.prepack(12)))
    residual = integers(2, 6, 4, 4, dtype=dtype).to(memory_format=layout)
    opcheck(OP, (x, *fields, integers(6), [1, 1], [0, 0], [1, 1], 2, True, 12, [], integers(6), 6.0, residual))


@pytest.mark.parametrize("grad", [False, True])
def test_compiles(grad):
    graphs = CompileCounterWithBackend("aot_eager")
    weight, bias = integer_weight((5, 4, 3, 3)), integers(5)
    run = torch.compile(lambda x: sparse_conv2d(x, weight, bias, padding=1, relu=True), fullgraph=True, backend=graphs)
    for n, size in ((2, 8), (2, 8), (3, 9), (5, 11)):
        x = integers(n, 4, size, size + 1).requires_grad_(grad)
        y = run(x)
        assert torch.equal(y, F.conv2d(x, weight.unpack(), bias, padding=1).relu())
        if grad:
            y.sum().backward()
            assert torch.equal(x.grad, torch.nn.grad.conv2d_input(x.shape, weight.unpack(), (y > 0).float(), padding=1))
    assert graphs.frame_count <= 2


@pytest.mark.parametrize("channels", [64, 512])
def test_blocks_are_the_instruction_sets(isa, channels):
    block = block_for(channels, 9, 0.2)
    assert block == 9 * {64: 16 if isa == "avx2" else 22, 512: 25}[channels]


def test_recordings_and_graphs_hold_no_other_op(isa):
    """Nor one that tells the instruction set, by which blocks are chosen; and these may change after they are made."""
    x, weight = integers(2, 64, 8, 9), integer_weight((64, 64, 3, 3))
    y = sparse_conv2d(x, weight, padding=1)
    with Recorder() as recorder:
        sparse_conv2d(x, weight, padding=1)
    assert [call.name for call in recorder.calls] == ["sparse_conv2d"]
    traced = make_fx(lambda x: sparse_conv2d(x, weight, padding=1))(x)
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [OP]
    compiled = torch.compile(lambda x: sparse_conv2d(x, weight, padding=1), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), y)
    set_max("scalar")
    assert torch.equal(compiled(x), y) and torch.equal(traced(x), y)
    assert torch.equal(sparse_conv2d(x, weight, padding=1), y)


def test_meta_tensors_give_shapes():
    x = torch.ones(2, 4, 8, 9, device="meta").to(memory_format=torch.channels_last)
    y = sparse_conv2d(x, integer_weight((5, 4, 3, 3)).to("meta"), stride=2)
    assert y.is_meta and y.shape == (2, 5, 3, 4) and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 5, 6, 6)}, ValueError, r"x has shape \(2, 5, 6, 6\), which does not fit .* in 1 groups"),
        ({"x": torch.ones(4, 6, 6)}, ValueError, r"x has shape \(4, 6, 6\)"),
        ({"x": torch.ones(2, 4, 6, 6).half()}, TypeError, "x must be float32 or bfloat16 .*float16"),
        ({"x": torch.ones(2, 4, 6, 6, device="meta")}, ValueError, "x is on meta, the weight on cpu"),
        ({"x": torch.ones(2, 8, 6, 6), "groups": 2}, ValueError, "in 2 groups"),
        ({"groups": 0}, ValueError, "in 0 groups"),
        ({"weight": integer_weight((5, 4))}, ValueError, r"weight must be .*got shape \(5, 4\)"),
        ({"weight": integer_weight((5, 4, 0, 3))}, ValueError, "a kernel of 0"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must be \(5,\) on cpu, got \(4,\) on cpu"),
        ({"bias": torch.ones(5).double()}, TypeError, "bias must be float32"),
        ({"scale": torch.ones(4)}, ValueError, r"scale must be \(5,\) on cpu, got \(4,\) on cpu"),
        (
            {"residual": torch.ones(2, 5, 6, 6)},
            ValueError,
            r"residual must be \(2, 5, 4, 4\) torch.float32 on cpu, got",
        ),
        ({"residual": torch.ones(2, 5, 4, 4).double()}, ValueError, "residual must be .*, got .* torch.float64 on cpu"),
        ({"cap": 6.0}, ValueError, "cap must be above 0 and needs relu=True, got 6.0 and relu=False"),
        ({"cap": float("nan"), "relu": True}, ValueError, "cap must be above 0"),
        ({"stride": 0}, ValueError, "stride must be one number or two, 1 or more, got 0"),
        ({"padding": (1, -1)}, ValueError, r"padding must be one number or two, 0 or more, got \(1, -1\)"),
        ({"dilation": (1, 1, 1)}, ValueError, r"dilation must be one number or two, 1 or more, got \(1, 1, 1\)"),
        ({"dilation": (1, 3)}, ValueError, "a kernel of 3, dilated by 3, does not fit an input of 6, padded by 0"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"x": torch.ones(2, 4, 6, 6), "weight": integer_weight((5, 4, 3, 3)), "bias": None} | change
    with pytest.raises(error, match=f"sparse_conv2d: .*{words}"):
        sparse_conv2d(**arguments)


WEIGHT = integer_weight((5, 4, 3, 3), 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(4, 6, 6)}, r"x must be \(n, c, h, w\), got shape \(4, 6, 6\)"),
        ({"x": torch.ones(1, 4, 6, 6).half()}, "x must be float32 or bfloat16"),
        ({"x": torch.ones(1, 3, 6, 6)}, "x has 3 channels, a weight of 5 x 4 in 1 groups takes 4"),
        ({"weight_shape": [5, 4, -1, -1]}, "a kernel of -1 is out of range"),
        ({"weight_shape": [5, 4, 3, 300]}, "is not whole channels of 900 taps"),
        ({"stride": [1]}, "stride, padding and dilation must hold 2 numbers each"),
        ({"stride": [1, 0]}, "stride 0, padding 0 or dilation 1 is out of range"),
        ({"padding": [-1, 0]}, "padding -1"),
        ({"dilation": [3, 1]}, "the kernel of 3 does not fit the padded input of 6"),
        ({"groups": 0}, "in 0 groups"),
        ({"bias": torch.ones(4)}, r"bias must be a contiguous float32 vector of 5, got shape \(4\)"),
        ({"scale": torch.ones(4)}, r"scale must be a contiguous float32 vector of 5, got shape \(4\)"),
        ({"cap": 6.0}, "cap must be above 0, and needs relu"),
        ({"residual": torch.ones(1, 5, 6, 6)}, r"residual must be laid out as the result, of shape \(1, 5, 4, 4\)"),
        ({"residual": torch.ones(1, 5, 4, 4).transpose(2, 3)}, "residual must be laid out as the result"),
        ({"block": 10}, "block 10 is not whole channels of 9 taps"),
        ({"values": WEIGHT.values[1:]}, "values must be a contiguous vector"),
        ({"prepack": WEIGHT.prepack(9)}, "prepack is not what sparse_prepack makes of this weight with block 18"),
        ({"prepack": integer_weight((5, 4, 3, 3), 0).prepack(18)}, "prepack is not what"),
    ],
    ids=str,
)
def test_the_op_refuses(change, words):
    fields = {"x": torch.ones(1, 4, 6, 6), "mask_bits": WEIGHT.mask_bits, "values": WEIGHT.values}
    fields |= {"weight_shape": list(WEIGHT.shape), "bias": None, "stride": [1, 1], "padding": [0, 0]}
    arguments = fields | {"dilation": [1, 1], "groups": 1, "relu": False, "block": 18, "prepack": []}
    arguments = arguments | {"scale": None, "cap": None, "residual": None} | change
    with pytest.raises(RuntimeError, match=f"sparse_conv2d: .*{words}"):
        OP(*arguments.values())


def test_another_weight_is_named():
    w = torch.ones(5, 7, 1, 1)
    for weight, kind in ((w, "a dense tensor"), (NestedWeight.pack(w), "a NestedWeight")):
        with pytest.raises(TypeError, match=f"sparse_conv2d: weight must be a SparseWeight, got {kind}; Sparse"):
            sparse_conv2d(torch.ones(2, 7, 3, 3), weight)


@pytest.mark.parametrize("after", [{}, {"scale": torch.ones(4)}, {"relu": True, "cap": 6.0}], ids=str)
def test_a_gradient_does_not_change_how_the_result_lies(after):
    gaps = torch.randn(2, 3, 3, 5).bfloat16()[..., :3].permute(0, 3, 1, 2)  # neither of the two layouts
    weight, bias = SparseWeight.pack(torch.randn(4, 3, 1, 1)), torch.zeros(4)
    expected = sparse_conv2d(gaps, weight, bias, **after)
    found = sparse_conv2d(gaps, weight, bias.clone().requires_grad_(), **after)
    assert found.stride() == expected.stride() and torch.equal(found, expected)
