from itertools import product

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.nn import functional as F

from lcs_kernels import width_conv2d
from lcs_kernels.formats import WidthWeight
from lcs_kernels.ops.width_conv2d import reference, reference_pack

from .sparse_cases import DTYPES, assert_within_roundings, integers

pytestmark = pytest.mark.usefixtures("pairs")
OP = torch.ops.lcs.width_conv2d.default
BACKWARD = torch.ops.lcs.width_conv2d_backward.default
PACK = torch.ops.lcs.width_conv2d_pack.default
FORMATS = [torch.contiguous_format, torch.channels_last]
# x, full weight, out_channels, then stride, padding, dilation, groups of the full width
GEOMETRIES = {
    "1x1": ((2, 5, 7, 9), (40, 8, 1, 1), 19, 1, 0, 1, 1),
    "1x1 strided": ((2, 5, 7, 9), (6, 5, 1, 1), 6, 3, 0, 1, 1),
    "1x1 strided, padded": ((2, 5, 7, 9), (6, 6, 1, 1), 5, (3, 2), (2, 5), 1, 1),
    "3x3": ((2, 19, 15, 17), (37, 21, 3, 3), 33, 1, 1, 1, 1),
    "3x3, one channel of many": ((2, 1, 9, 10), (37, 21, 3, 3), 1, 1, 1, 1, 1),
    "3x3, half a block": ((1, 4, 9, 10), (64, 8, 3, 3), 40, 1, 1, 1, 1),
    "3x3, several chunks": ((1, 100, 6, 7), (20, 120, 3, 3), 18, 1, 1, 1, 1),
    "3x3 strided": ((2, 7, 16, 17), (18, 9, 3, 3), 17, 2, 1, 1, 1),
    "3x3 unpadded": ((2, 7, 9, 8), (18, 9, 3, 3), 17, 1, 0, 1, 1),
    "7x7 strided": ((1, 3, 45, 43), (8, 3, 7, 7), 5, 2, 3, 1, 1),
    "5x3": ((3, 4, 9, 12), (5, 6, 5, 3), 4, (3, 2), (2, 0), (1, 2), 1),
    "padding beyond the kernel": ((2, 3, 6, 5), (4, 3, 3, 3), 4, 1, (5, 4), 1, 1),
    "strided padding": ((2, 3, 6, 5), (4, 3, 2, 2), 3, (4, 3), 7, 1, 1),
    "dilated and strided": ((2, 3, 21, 20), (4, 3, 3, 4), 3, (2, 3), (4, 1), (3, 2), 1),
    "groups": ((2, 6, 9, 8), (42, 3, 3, 3), 30, 1, 1, 1, 3),
    "groups of whole blocks": ((2, 6, 9, 8), (96, 4, 3, 3), 64, 1, 1, 1, 2),
    "depthwise": ((3, 21, 8, 11), (40, 1, 3, 3), 21, 1, 1, 1, 40),
    "depthwise, strided": ((2, 33, 9, 11), (33, 1, 5, 3), 33, 2, 1, 1, 33),
    "depthwise, several each": ((1, 5, 8, 11), (24, 1, 3, 3), 15, 2, 1, 1, 8),
    "depthwise, one channel": ((2, 1, 8, 11), (24, 1, 3, 3), 1, 1, 1, 1, 24),
    "one pixel": ((5, 6, 1, 1), (17, 6, 3, 3), 17, 1, 1, 1, 1),
    "tiny images": ((33, 6, 2, 3), (7, 9, 3, 3), 6, 1, 1, 1, 1),
    "tiny strided images": ((90, 6, 4, 4), (7, 6, 3, 3), 7, 2, 1, 1, 1),
    "one row": ((2, 3, 1, 400), (5, 3, 3, 3), 5, 1, 1, 1, 1),
    "several bands": ((1, 64, 70, 66), (6, 64, 3, 3), 6, 1, 1, 1, 1),
    "many panels": ((11, 5, 30, 29), (6, 5, 3, 3), 6, 1, 1, 1, 1),
    "no images": ((0, 3, 9, 10), (4, 3, 3, 3), 4, 1, 1, 1, 1),
}


def pair(value):
    return list(value) if isinstance(value, tuple) else [value, value]


def call_arguments(geometry):
    """As the op takes them: out_channels, then what comes behind bias, depthwise groups being those of x."""
    x_shape, w_shape, out, *settings, groups = geometry
    return out, [*map(pair, settings), x_shape[1] if groups > 1 and w_shape[1] == 1 else groups]


def check(x, w, geometry, scale=None, bias=None, relu=False):
    """A tensor and the packed forms, against the reference."""
    out, settings = call_arguments(geometry)
    expected = reference(x, w, out, scale, bias, *settings, relu, None)
    results = [
        width_conv2d(x, w, out, bias, *geometry[3:], scale=scale, relu=relu),
        OP(x, w, out, scale, bias, *settings, relu, PACK(w, False), False),
    ]
    if x.dtype == w.dtype == torch.bfloat16:  # pairs of few input channels, too
        results.append(OP(x, w, out, scale, bias, *settings, relu, PACK(w, True), False))
    for y in results:
        assert y.dtype == x.dtype and torch.equal(y, expected)
        for layout in FORMATS:
            assert y.is_contiguous(memory_format=layout) == expected.is_contiguous(memory_format=layout)
    return y


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_integers_are_exact(isa, name, layout):
    torch.manual_seed(0)
    geometry = GEOMETRIES[name]
    scale, bias = integers(geometry[1][0]), integers(geometry[1][0])
    for dtype, w_dtype in (DTYPES, DTYPES[::-1], DTYPES[:1] * 2, DTYPES[1:] * 2):
        x, w = integers(*geometry[0], dtype=dtype).to(memory_format=layout), integers(*geometry[1], dtype=w_dtype)
        check(x, w, geometry)
        check(x, w, geometry, scale, bias, relu=True)
        check(x, w, geometry, bias=bias)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("channels", [3, 19])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_depthwise_planes_of_any_shape(isa, dtype, channels, layout):
    """Rows narrower than a vector and than the kernel, of several tiles, planes of several bands; small planes of many
    channels, which are lanes, as channels last always are."""
    torch.manual_seed(8)
    before = torch.get_num_threads()
    sizes = [(1, 1), (2, 3), (7, 7), (5, 17), (9, 33), (3, 150), (90, 70)]
    kernels = [(1, 1), (1, 4), (3, 1), (3, 3), (2, 3), (5, 5), (7, 7)]
    for i, (size, kernel) in enumerate(product(sizes, kernels)):
        stride, dilation = (1 + i % 3, 1 + i % 4 % 3), (1 + i % 2, 1 + i % 5 // 3)
        padding = tuple(d * (k - 1) // 2 + (i + 1) % 3 for k, d in zip(kernel, dilation, strict=True))
        stride, dilation = ((1, 1), (1, 1)) if i % 3 == 0 else (stride, dilation)
        padding = tuple(max(p, d * (k - 1)) for p, k, d in zip(padding, kernel, dilation, strict=True))
        x = integers(2, channels, *size, dtype=dtype).to(memory_format=layout)
        w = integers(25, 1, *kernel, dtype=DTYPES[i % 2])
        scale, bias, settings = integers(25), integers(25), (stride, padding, dilation)
        cap = None if i % 4 == 0 else 6.0
        expected = reference(x, w, channels, scale, bias, *settings, channels, cap is not None, None, cap=cap)
        for threads, weight in (1, w), (2, WidthWeight.pack(w)):
            torch.set_num_threads(threads)
            y = width_conv2d(x, weight, channels, bias, *settings, 25, scale=scale, relu=cap is not None, cap=cap)
            assert torch.equal(y, expected), (size, kernel, settings)
            assert y.is_contiguous() == expected.is_contiguous()
        assert weight.prepacked_nbytes == 0  # which no kernel reads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_depthwise_results_depend_neither_on_other_channels_nor_on_the_layout(isa, dtype):
    torch.manual_seed(10)
    for size, kernel, *settings in (((14, 11), (3, 3), 1, 1, 1), ((15, 9), (5, 3), 2, 1, 1), ((8, 9), (2, 4), 1, 3, 2)):
        x, w, scale, bias = torch.randn(3, 21, *size).to(dtype), torch.randn(21, 1, *kernel), *torch.randn(2, 21)
        after = {"scale": scale, "relu": True}
        y = width_conv2d(x, w, 21, bias, *settings, 21, **after)
        assert torch.equal(y[:, :5], width_conv2d(x[:, :5], w, 5, bias, *settings, 21, **after))
        last = x.to(memory_format=torch.channels_last)
        assert torch.equal(y, width_conv2d(last, w, 21, bias, *settings, 21, **after))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", ["3x3", "groups", "depthwise", "depthwise, strided", "several bands"])
def test_a_cap(isa, name, layout):
    torch.manual_seed(9)
    geometry = GEOMETRIES[name]
    out = geometry[2]
    for dtype in DTYPES:
        x, w = integers(*geometry[0], dtype=dtype).to(memory_format=layout), integers(*geometry[1], dtype=dtype)
        x[0, 0, 2, 2:4] = torch.tensor([torch.nan, torch.inf])
        weight = WidthWeight.pack(w)
        for cap in (6.0, 7.3):
            y = width_conv2d(x, weight, out, None, *geometry[3:], relu=True, cap=cap)
            expected = width_conv2d(x, weight, out, None, *geometry[3:], relu=True).float().clamp(max=cap).to(dtype)
            assert torch.equal(y.nan_to_num(-1), expected.nan_to_num(-1)) and y.isnan().any() and y.max() != 0


# Of several groups of images that go together, and by each of Winograd's products.
MANY = {
    "images in groups": ((33, 6, 9, 8), (18, 6, 3, 3), 17, 1, 1, 1, 1),
    "winograd": ((9, 64, 32, 30), (48, 64, 3, 3), 40, 1, 1, 1, 1),
    "first layer": ((2, 3, 64, 60), (64, 3, 7, 7), 64, 2, 3, 1, 1),
}


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", GEOMETRIES | MANY)
def test_a_residual(isa, name, layout):
    torch.manual_seed(11)
    geometry = (GEOMETRIES | MANY)[name]
    for dtype in DTYPES:
        x, w = torch.randn(geometry[0]).to(dtype, memory_format=layout), torch.randn(geometry[1]).to(dtype)
        weight, scale, bias = WidthWeight.pack(w), torch.randn(geometry[1][0]), torch.randn(geometry[1][0])
        y = width_conv2d(x, weight, geometry[2], bias, *geometry[3:], scale=scale)
        residual = torch.randn(y.shape).to(dtype, memory_format=layout)
        other = residual.to(memory_format=FORMATS[layout == FORMATS[0]])
        for added, after in ((residual, {}), (other, {"relu": True}), (residual, {"relu": True, "cap": 0.7})):
            found = width_conv2d(x, weight, geometry[2], bias, *geometry[3:], scale=scale, residual=added, **after)
            total = (y + residual).clamp(0 if after else None, after.get("cap")) if after else y + residual
            assert torch.equal(found, total) and found.stride() == y.stride()


def test_nan_and_infinity_pass_a_residual(isa):
    x, w = torch.ones(1, 1, 1, 18), torch.ones(1, 1, 1, 1)
    x[..., 1], x[..., 2], x[..., 17] = torch.nan, torch.inf, -torch.inf
    residual = torch.zeros_like(x)
    residual[..., 2], residual[..., 3] = -torch.inf, torch.nan
    y = width_conv2d(x, w, relu=True, cap=6.0, residual=residual)
    assert y.isnan().nonzero()[:, 3].tolist() == [1, 2, 3] and y[..., 17] == 0 and y[..., 0] == 1


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_width(isa, dtype, layout):
    """Prefixes that cut blocks anywhere, of one packed weight."""
    torch.manual_seed(1)
    x, w = integers(2, 75, 5, 6, dtype=dtype).to(memory_format=layout), integers(50, 75, 3, 3, dtype=dtype)
    weight = WidthWeight.pack(w)
    packed = weight.prepack(pairs=True)
    for out in range(1, 51):
        inputs = 1 + out * 7 % 75
        part = x[:, :inputs].contiguous(memory_format=layout)
        y = width_conv2d(part, weight, out, padding=1)
        assert torch.equal(y, F.conv2d(part.float(), w[:out, :inputs].float(), padding=1).to(dtype))
    assert weight.prepack(pairs=True) is packed


@pytest.mark.parametrize("n", [1, 2, 5, 17, 64])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 9), (14, 14)], ids=str)
def test_batches(isa, n, size):
    torch.manual_seed(2)
    w = integers(21, 9, 3, 3)
    for layout in FORMATS:
        x = integers(n, 9, *size).to(memory_format=layout)
        check(x, w, (x.shape, w.shape, 20, 1, 1, 1, 1))


def test_pairs_that_do_not_begin_at_a_float(isa):
    torch.manual_seed(7)
    x, w = integers(1 + 2 * 6 * 5 * 8, dtype=torch.bfloat16), integers(20, 9, 3, 3, dtype=torch.bfloat16)
    x = x[1:].view(2, 6, 5, 8).permute(0, 3, 1, 2)
    assert x.data_ptr() % 4 == 2 and x.is_contiguous(memory_format=torch.channels_last)
    check(x, w, (x.shape, w.shape, 17, 1, 1, 1, 1))


def test_without_channels_or_pixels(isa):
    """Where torch's own convolution refuses."""
    for x in (torch.ones(2, 3, 0, 4), torch.ones(2, 0, 2, 6)):
        y = width_conv2d(x, integers(5, 3, 1, 3), 4, torch.arange(5.0), padding=1)
        assert torch.equal(y, torch.arange(4.0)[:, None, None].expand(y.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_of_no_channels(dtype):
    x, bias = torch.ones(2, 0, 5, 5, dtype=dtype, requires_grad=True), torch.arange(6.0, dtype=dtype).requires_grad_()
    w = torch.ones(6, 3, 3, 3, dtype=dtype, requires_grad=True)
    y = width_conv2d(x, w, 6, bias, padding=1)
    expected = bias[:, None, None].expand(2, 6, 5, 5)
    assert torch.equal(y, expected) and not width_conv2d(x, w, 6, padding=1).any()
    assert torch.equal(reference(x, w, 6, None, bias, [1, 1], [1, 1], [1, 1], 1, False, None), expected)
    y.sum().backward()
    assert x.grad.shape == x.shape and not w.grad.any() and torch.equal(bias.grad, torch.full_like(bias, 50))


def test_the_packed_form(isa):
    for shape in ((1, 1, 1, 1), (16, 3, 3, 3), (37, 5, 2, 3), (20, 33, 2, 1), (0, 3, 1, 1)):
        for dtype in DTYPES:
            w = torch.randn(shape).to(dtype)
            for pairs in (False, True)[: 1 + (dtype == torch.bfloat16)]:
                assert torch.equal(PACK(w, pairs), reference_pack(w, pairs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["3x3", "3x3, several chunks", "7x7 strided", "depthwise", "groups", "several bands"])
def test_sums_round_as_often_as_they_must(isa, name, dtype):
    torch.manual_seed(3)
    geometry = GEOMETRIES[name]
    out, settings = call_arguments(geometry)
    x, w, bias = torch.randn(geometry[0]).to(dtype), torch.randn(geometry[1]).to(dtype), torch.randn(geometry[1][0])
    block = w[:out, : x.shape[1] // settings[-1]].double()
    exact = F.conv2d(x.double(), block, bias[:out].double(), *settings)
    magnitude = F.conv2d(x.double().abs(), block.abs(), bias[:out].double().abs(), *settings)
    results = [
        width_conv2d(x, w, out, bias, *geometry[3:]),
        OP(x, w, out, None, bias, *settings, False, PACK(w, False), False),
    ]
    if dtype == torch.bfloat16:  # a pair's two products are rounded into the sum one by one
        results.append(OP(x, w, out, None, bias.float(), *settings, False, PACK(w, True), False))
    for y in results:
        assert_within_roundings(y, exact, magnitude, torch.tensor(block[0].numel()))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_threads_change_nothing(isa, name, layout):
    torch.manual_seed(4)
    geometry, before = GEOMETRIES[name], torch.get_num_threads()
    x, w = torch.randn(geometry[0]).to(memory_format=layout), torch.randn(geometry[1])
    results = []
    for n in (1, 2, 3, 8):
        torch.set_num_threads(n)
        results.append(width_conv2d(x, w, geometry[2], None, *geometry[3:]))
    torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays(isa, relu):
    x, w = torch.randn(1, 3, 6, 5), torch.randn(20, 3, 3, 3)
    x[0, 1, 2, 2] = float("nan")
    expected = F.conv2d(x, w[:18], padding=1).isnan()
    assert torch.equal(width_conv2d(x, w, 18, padding=1, relu=relu).isnan(), expected)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["3x3", "5x3", "groups", "depthwise", "1x1 strided"])
def test_gradients_equal_the_sliced_convolutions(name, dtype, relu, scaled):
    torch.manual_seed(5)
    geometry = GEOMETRIES[name]
    out, settings = call_arguments(geometry)
    x, w, scale, bias = (integers(*shape, dtype=dtype) for shape in (*geometry[:2], *[geometry[1][:1]] * 2))
    scale, bias = scale.float(), bias.float()
    leaves = [[t.clone().requires_grad_() for t in (x, w, scale, bias)] for _ in range(2)]
    x, w, scale, bias = leaves[0]
    y = width_conv2d(x, w, out, bias, *geometry[3:], scale=scale if scaled else None, relu=relu)
    grad = integers(*y.shape, dtype=dtype)
    y.backward(grad)
    x, w, scale, bias = leaves[1]
    reference(x, w, out, scale if scaled else None, bias, *settings, relu, None).backward(grad)
    for a, b in zip(*leaves, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert a.grad.dtype == b.grad.dtype and torch.equal(a.grad, b.grad) and a.grad.is_contiguous()


def test_gradients_only_where_they_are_wanted():
    x, w, bias = integers(2, 3, 5, 5), integers(6, 4, 3, 3), integers(6)
    for wanted in (x, w, bias):
        wanted.requires_grad_()
        width_conv2d(x, w, 5, bias).sum().backward()
        assert [t.grad is not None for t in (x, w, bias)] == [t is wanted for t in (x, w, bias)]
        wanted.requires_grad_(False).grad = None
    x.requires_grad_()
    width_conv2d(x, WidthWeight.pack(w), 5, bias).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_gradients_below_a_cap_equal_relu6s(dtype):
    torch.manual_seed(10)
    x, w = integers(2, 4, 7, 6, dtype=dtype), integers(4, 1, 3, 3, dtype=dtype)
    leaves = [[t.clone().requires_grad_() for t in (x, w)] for _ in range(2)]
    ys = [
        width_conv2d(*leaves[0], 4, padding=1, groups=4, relu=True, cap=6),
        F.relu6(F.conv2d(*(t.double() for t in leaves[1]), padding=1, groups=4)).to(dtype),
    ]
    grad = integers(*ys[0].shape, dtype=dtype)
    for y in ys:
        y.backward(grad)
    assert torch.equal(*ys) and (ys[0] == 6).any()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(*leaves, strict=True))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu, groups):
    torch.manual_seed(6)
    shapes = (2, 2, 3, 2), (6, 2, 3, 2), (6,), (6,), (2, 4, 5, 2)
    x, w, scale, bias, residual = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)

    def run(x, w, scale, bias, residual=None):
        geometry = (1, 2), (2, 1), 1, groups
        return width_conv2d(x, w, 4, bias, *geometry, scale=scale, relu=relu, residual=residual)

    assert torch.autograd.gradcheck(run, (x, w, scale, bias))
    assert torch.autograd.gradcheck(run, (x, w, scale, bias, residual))


@pytest.mark.parametrize(("dtype", "layout"), list(zip(DTYPES, FORMATS, strict=True)), ids=str)
def test_opcheck(dtype, layout):
    x, w = integers(2, 4, 6, 5, dtype=dtype).to(memory_format=layout), integers(6, 3, 3, 2, dtype=dtype)
    opcheck(OP, (x, w, 4, None, integers(6), [1, 2], [2, 1], [1, 1], 2, False, None))
    opcheck(OP, (x, integers(6, 5, 3, 2), 5, integers(6), None, [1, 1], [0, 0], [1, 1], 1, True, None))
    opcheck(OP, (x, w, 4, None, None, [1, 1], [0, 0], [1, 1], 2, True, PACK(w, False)))
    opcheck(OP, (x, w, 4, None, None, [1, 1], [0, 0], [1, 1], 2, True, None, None, 6.0))
    residual = integers(2, 4, 4, 4, dtype=dtype).to(memory_format=layout)
    opcheck(OP, (x, w, 4, None, None, [1, 1], [0, 0], [1, 1], 2, True, None, None, None, residual))
    opcheck(PACK, (w, dtype == torch.bfloat16))
    grad, geometry = integers(2, 4, 6, 6, dtype=dtype), ([1, 1], [1, 1], [1, 1], 2)
    opcheck(BACKWARD, (grad, x, w, integers(6), grad.clone(), *geometry, [True] * 4))
    opcheck(BACKWARD, (grad, x, w, None, None, *geometry, [False, True, False, True]))
    opcheck(BACKWARD, (grad, x, w, None, grad.clone(), *geometry, [True, True, False, True], 2.0))


WIDTHS = [(16, 16), (4, 4), (12, 12), (7, 9), (16, 3), (5, 13)]


@pytest.mark.parametrize("depthwise", [False, True], ids=["full", "depthwise"])
@pytest.mark.parametrize("grad", [False, True])
def test_compiles_to_two_graphs_for_all_widths(grad, depthwise):
    graphs = CompileCounterWithBackend("aot_eager")
    w, bias, groups = integers(16, 1 if depthwise else 16, 3, 3), integers(16), 16 if depthwise else 1
    w.requires_grad_(grad)

    def run(x, out):
        return width_conv2d(x, w, out, bias, padding=1, groups=groups, relu=True)

    compiled = torch.compile(run, fullgraph=True, backend=graphs)
    for inputs, out in WIDTHS:
        x = integers(2, inputs, 8, 9).requires_grad_(grad)
        out = inputs if depthwise else out
        y = compiled(x, out)
        assert torch.equal(y, run(x, out))
        if grad:
            found, expected = (torch.autograd.grad(z.sum(), (x, w)) for z in (y, run(x, out)))
            assert all(map(torch.equal, found, expected))
    assert graphs.frame_count <= 2


def test_meta_tensors_give_shapes():
    x = torch.ones(2, 4, 8, 9, device="meta").to(memory_format=torch.channels_last)
    y = width_conv2d(x, WidthWeight.pack(torch.ones(5, 6, 3, 3)).to("meta"), 3, stride=2)
    assert y.is_meta and y.shape == (2, 3, 3, 4) and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 5, 6, 6)}, ValueError, r"x has 5 channels and out_channels is 5; .* up to 4 and 1 to 5"),
        ({"x": torch.ones(4, 6, 6)}, ValueError, r"x must have 4 dimensions, got shape \(4, 6, 6\)"),
        ({"x": torch.ones(2, 4, 6, 6).half()}, TypeError, "x must be float32 or bfloat16 .*float16"),
        (
            {"x": torch.ones(2, 4, 6, 6).double()},
            TypeError,
            "x is torch.float64, the weight torch.float32; .* float64 weight tensor",
        ),
        (
            {"x": torch.ones(2, 4, 6, 6).double(), "weight": WidthWeight.pack(torch.ones(5, 4, 3, 3))},
            TypeError,
            r"the weight torch.float32; float64 x takes a float64 weight tensor \(a WidthWeight holds none\)",
        ),
        ({"x": torch.ones(2, 4, 6, 6, device="meta")}, ValueError, "x is on meta, the weight on cpu"),
        ({"out_channels": 6}, ValueError, "out_channels is 6; .* 1 to 5"),
        ({"out_channels": 0}, ValueError, "out_channels is 0"),
        ({"groups": 2}, ValueError, "a weight of 5 output channels does not have 2 groups"),
        ({"groups": 0}, ValueError, "does not have 0 groups"),
        ({"weight": torch.ones(6, 4, 3, 3), "groups": 2, "out_channels": 5}, ValueError, "multiples of the 2 groups"),
        (
            {"weight": torch.ones(6, 4, 3, 3), "groups": 3, "out_channels": 3},
            ValueError,
            "4 channels of x and 3 ",
        ),
        (
            {"weight": torch.ones(6, 1, 3, 3), "groups": 6, "out_channels": 5},
            ValueError,
            "must be 4 where",
        ),
        ({"weight": torch.ones(5, 4)}, ValueError, r"weight must have 4 dimensions, got shape \(5, 4\)"),
        ({"weight": torch.ones(5, 4, 3, 3).half()}, TypeError, "weight must be float32"),
        ({"weight": torch.ones(5, 4, 0, 3)}, ValueError, "a kernel of 0"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must be \(5,\) on cpu, got \(4,\) on cpu"),
        ({"scale": torch.ones(4)}, ValueError, r"scale must be \(5,\)"),
        ({"bias": torch.ones(5).double()}, TypeError, "bias must be float32"),
        ({"cap": 6}, ValueError, "cap must be above 0 and needs relu=True, got 6 and relu=False"),
        ({"cap": 0.0, "relu": True}, ValueError, "cap must be above 0"),
        ({"cap": float("nan"), "relu": True}, ValueError, "cap must be above 0"),
        (
            {"residual": torch.ones(2, 5, 6, 6)},
            ValueError,
            r"residual must be \(2, 5, 4, 4\) torch.float32 on cpu, got",
        ),
        (
            {"residual": torch.ones(2, 5, 4, 4).bfloat16()},
            ValueError,
            "residual must be .*, got .* torch.bfloat16 on cpu",
        ),
        ({"padding": 0.5}, ValueError, "padding must be one number or two, 0 or more, got 0.5"),
        ({"stride": 0}, ValueError, "stride must be one number or two, 1 or more, got 0"),
        ({"dilation": (1, 3)}, ValueError, "a kernel of 3, dilated by 3, does not fit an input of 6, padded by 0"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"x": torch.ones(2, 4, 6, 6), "weight": torch.ones(5, 4, 3, 3)} | change
    with pytest.raises(error, match=f"width_conv2d: .*{words}"):
        width_conv2d(**arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(4, 6, 6)}, "x and weight must have 4 dimensions"),
        ({"x": torch.ones(1, 4, 6, 6).half()}, "x must be float32 or bfloat16"),
        ({"x": torch.ones(1, 5, 6, 6)}, "1 groups do not share 5 channels of x and 4 of the result, or .* weight's 4"),
        ({"groups": 3}, "3 groups do not share"),
        ({"weight": torch.ones(5, 4, 3, 3).half()}, "weight must be float32 or bfloat16"),
        ({"weight": torch.ones(5, 3, 3, 4).transpose(1, 3)}, "weight must be contiguous"),
        ({"out_channels": 6}, "out_channels 6 of a weight of 5"),
        ({"stride": [1]}, "stride, padding and dilation must hold 2 numbers each"),
        ({"dilation": [3, 1]}, "the kernel of 3 does not fit the padded input of 6"),
        ({"scale": torch.ones(4)}, r"scale must be a contiguous float32 vector of 5, got shape \(4\)"),
        ({"bias": torch.ones(5).double()}, "bias must be a contiguous float32 vector of 5"),
        ({"packed": None, "winograd": None, "cap": 6.0}, "cap must be above 0, and needs relu"),
        ({"residual": torch.ones(1, 5, 4, 4)}, r"residual must be laid out as the result, of shape \(1, 4, 4, 4\)"),
        ({"residual": torch.ones(1, 4, 4, 4).transpose(2, 3)}, "residual must be laid out as the result"),
        ({"packed": torch.ones(1, 36, 15)}, "packed is not what width_conv2d_pack makes of this weight"),
        ({"packed": torch.ones(1 + 4 * 9 * 16)[1:].view(1, 36, 16)}, "packed must begin at a cache line"),
    ],
    ids=str,
)
def test_the_op_refuses(change, words):
    fields = {"x": torch.ones(1, 4, 6, 6), "weight": torch.ones(5, 4, 3, 3), "out_channels": 4, "scale": None}
    fields |= {"bias": None, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "relu": False}
    fields |= {"packed": None, "winograd": None, "cap": None, "residual": None}
    with pytest.raises(RuntimeError, match=f"width_conv2d: .*{words}"):
        OP(*(fields | change).values())
