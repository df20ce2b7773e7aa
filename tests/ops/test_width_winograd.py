"""width_conv2d where Winograd's products are the faster ones."""

import pytest
import torch
from torch.nn import functional as F

from lcs_kernels import width_conv2d, width_conv2d_norm
from lcs_kernels.formats import WidthWeight
from lcs_kernels.ops.width_conv2d import reference, transformed
from lcs_kernels.ops.width_conv2d_norm import reference as apart

from .sparse_cases import integers
from .test_width_conv2d import FORMATS

# n, channels, height, width of x, full weight, out_channels, padding
SQUARE = {
    "whole": ((2, 64, 14, 16), (64, 64), 64, 1),
    "odd": ((2, 36, 13, 15), (70, 40), 70, 1),
    "no padding": ((1, 32, 17, 12), (128, 32), 96, 0),
    "wide padding": ((2, 50, 5, 9), (50, 51), 50, (2, 1)),
    "padding beyond the kernel": ((2, 33, 3, 2), (32, 33), 32, (5, 4)),
    "few of many channels": ((3, 3, 9, 10), (64, 64), 5, 1),
    "one channel of many": ((1, 1, 8, 7), (64, 33), 1, 1),
    "one pixel": ((5, 40, 1, 1), (37, 40), 37, 1),
    "tiny images": ((70, 32, 2, 3), (33, 32), 33, 1),
    "one row": ((2, 32, 1, 300), (40, 32), 40, 1),
    "one column": ((1, 33, 99, 1), (32, 33), 17, 1),
    "many channels": ((1, 500, 4, 5), (32, 500), 32, 1),
}


def case(name, layout, fill):
    shape, (full, inputs), out, padding = SQUARE[name]
    x, w = fill(*shape).to(memory_format=layout), fill(full, inputs, 3, 3)
    weight = WidthWeight.pack(w)
    width_conv2d(x, weight, out, padding=padding)
    assert weight.prepacked_nbytes == (full + 15) // 16 * inputs * 16 * 16 * 4  # that form alone
    return x, w, weight, out, padding


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", SQUARE)
def test_integers_are_exact(isa, name, layout):
    torch.manual_seed(0)
    x, w, weight, out, padding = case(name, layout, integers)
    scale, bias = integers(w.shape[0]), integers(w.shape[0])
    pair = [padding] * 2 if isinstance(padding, int) else list(padding)
    for relu, factor, shift in ((False, None, None), (True, scale, bias), (True, None, bias)):
        y = width_conv2d(x, weight, out, shift, padding=padding, scale=factor, relu=relu)
        expected = reference(x, w, out, factor, shift, [1, 1], pair, [1, 1], 1, relu, None)
        assert torch.equal(y, expected)
        for other in FORMATS:
            assert y.is_contiguous(memory_format=other) == expected.is_contiguous(memory_format=other)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_every_width(isa, layout):
    """Prefixes that cut blocks anywhere, of one transformed weight: the bits of a weight of these channels alone."""
    torch.manual_seed(1)
    x, w = torch.randn(2, 37, 5, 6).to(memory_format=layout), torch.randn(70, 37, 3, 3)
    weight = WidthWeight.pack(w)
    packed = weight.prepack(winograd=True)
    for out in (1, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 70):
        inputs = 1 + out * 7 % 37
        part = x[:, :inputs].contiguous(memory_format=layout)
        y = width_conv2d(part, weight, out, padding=1)
        if inputs >= 32 and out >= 32:
            assert torch.equal(y, width_conv2d(part, WidthWeight.pack(w[:out, :inputs]), padding=1))
        assert (y - F.conv2d(part, w[:out, :inputs], padding=1)).abs().max() < bound(part, w[:out, :inputs], 1).max()
    assert weight.prepack(winograd=True) is packed and weight.prepacked_nbytes == packed.nbytes


def bound(x, w, padding):
    """What float32 results may be off by, to first order.

    With A, B and G of `width_winograd_kernels.h`, an element of B^T x B is rounded in 2 additions, one of G w G^T once,
    each sum of products at most as often as there are channels, and A^T m A in 4 additions: with the last fma 8
    roundings of 2^-24 beside those of the sum. Magnitudes go through |A|, |B| and |G|; of the window, a result at
    (i, j) of its tile takes its own 3 x 3 pixels alone, by position 0, 1, 2 or 1, 2, 3 of each axis.
    """
    spread = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    taken = torch.tensor([[[1, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 0, 1]]])
    x, w = x.double().abs(), spread @ w.double().abs() @ spread.T
    parts = [[F.conv2d(x, a.T @ w @ b, padding=padding) for b in taken.double()] for a in taken.double()]
    y = parts[0][0].clone()
    for i in range(2):
        for j in range(2):
            y[..., i::2, j::2] = parts[i][j][..., i::2, j::2]
    return (x.shape[1] + 8) * 2.0**-24 * y


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", SQUARE)
def test_sums_round_as_often_as_they_must(isa, name, layout):
    torch.manual_seed(2)
    x, w, weight, out, padding = case(name, layout, torch.randn)
    block = w[:out, : x.shape[1]]
    exact = F.conv2d(x.double(), block.double(), padding=padding)
    y = width_conv2d(x, weight, out, padding=padding)
    limit = bound(x, block, padding)
    assert ((y - exact).abs() <= limit * (1 + 2.0**-10)).all()  # what is not of first order, and float64's own
    if x.numel():
        c = x.shape[1]
        assert limit.max() <= (c + 8) * 64 * c * 2.0**-24 * block.abs().max() * x.abs().max()


def test_transforms_are_winograds():
    """A^T [(G w G^T) * (B^T x B)] A in float64, of the transformed weight."""
    torch.manual_seed(3)
    x, w = torch.randn(5, 4, 4, dtype=torch.float64), torch.randn(3, 5, 3, 3, dtype=torch.float64)
    b = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=torch.float64)
    a = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=torch.float64)
    y = a @ (transformed(w) * (b @ x @ b.T)).sum(1) @ a.T
    torch.testing.assert_close(y, F.conv2d(x[None], w)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", SQUARE)
def test_threads_change_nothing(isa, name, layout, threads):
    torch.manual_seed(4)
    x, _, weight, out, padding = case(name, layout, torch.randn)
    y = width_conv2d(x, weight, out, padding=padding)
    torch.set_num_threads(1)
    assert torch.equal(width_conv2d(x, weight, out, padding=padding), y)


@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays_where_it_is_read(isa, relu):
    x, w = torch.randn(1, 33, 7, 6), torch.randn(40, 33, 3, 3)
    for row in range(7):
        x[0, 1, row, 2] = torch.nan
        expected = F.conv2d(x, w, padding=1).isnan()
        assert torch.equal(width_conv2d(x, WidthWeight.pack(w), padding=1, relu=relu).isnan(), expected)
        x[0, 1, row, 2] = 0.0


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 40, 9, 7), (9, 40, 5, 6), (1, 3, 30, 31)], ids=str)
def test_norm_and_pooling_behind_give_the_same_bits(isa, shape, layout, threads):
    torch.manual_seed(5)
    x, weight = torch.randn(shape).to(memory_format=layout), WidthWeight.pack(torch.randn(50, 40, 3, 3))
    packed, norm = weight.prepack(winograd=True), (torch.randn(50), None, None, None, None)
    y = width_conv2d(x, weight, 48, padding=1)
    residual = torch.randn_like(y)
    conv = ([1, 1], [1, 1], [1, 1], 1)
    for pool in ([], [3, 3, 2, 2, 1, 1]):
        arguments = (48, None, *conv, packed, *norm, residual, 48, 1e-5, True, pool, None, None)
        expected = torch.ops.lcs.width_conv2d_norm(x, weight.weight, *arguments)
        options = {"residual": residual, "relu": True, "max_pool": (3, 2, 1) if pool else None}
        found = width_conv2d_norm(x, weight, 48, norm, stride=(1, 1), padding=(1, 1), dilation=(1, 1), **options)
        assert torch.equal(found, expected)
        assert torch.equal(found, apart(x, weight.weight, *arguments))
    assert weight.prepacked_nbytes == packed.nbytes


def test_where_it_is_not_faster_weights_are_not_transformed(isa):
    torch.manual_seed(6)
    x, w = integers(1, 32, 9, 9), integers(64, 32, 3, 3)
    for settings in ({"stride": 2}, {"dilation": 2}, {"groups": 2}, {"stride": (1, 2)}):
        weight = WidthWeight.pack(w[:, : 16 if "groups" in settings else 32])
        y = width_conv2d(x, weight, padding=1, **settings)
        assert torch.equal(y, F.conv2d(x, weight.weight, padding=1, **settings))
        assert weight.prepacked_nbytes == weight.nbytes
    weight = WidthWeight.pack(w)
    width_conv2d(x.bfloat16(), weight, padding=1)
    assert weight.prepacked_nbytes == weight.nbytes


def test_gradients_are_the_direct_ones():
    x, weight = integers(2, 32, 5, 6).requires_grad_(), WidthWeight.pack(integers(32, 32, 3, 3))
    y = width_conv2d(x, weight, 30, padding=1)
    expected = F.conv2d(x, weight.weight[:30], padding=1)
    grad = integers(*y.shape)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(expected, x, grad)[0])


@pytest.mark.parametrize("first", [False, True], ids=["traced", "packed first"])
def test_compiles(first):
    x, weight = integers(2, 40, 5, 6), WidthWeight.pack(integers(48, 64, 3, 3))
    y = F.conv2d(x, weight.weight[:33, :40], padding=1)
    if first:
        width_conv2d(x, weight, 33, padding=1)
    compiled = torch.compile(
        lambda x, out: width_conv2d(x, weight, out, padding=1), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x, 33), y)
