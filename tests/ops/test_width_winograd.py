"""width_conv2d of float32 by Winograd's F(4 x 4, 3 x 3)."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lcs_kernels import width_conv2d
from lcs_kernels.formats import WidthWeight
from lcs_kernels.ops._winograd import TILE, rounding_bound, transforms

from . import winograd_cases
from .sparse_cases import integers
from .test_width_conv2d import FORMATS
from .winograd_cases import SQUARE, assert_a_norm_behind_changes_no_bit, pair

CASES = SQUARE | {
    "several blocks": ((9, 40, 40, 36), (33, 40), 33, 1),
    "several chunks": ((1, 150, 8, 11), (70, 160), 50, 1),
    "one span": ((2, 24, 30, 29), (16, 24), 16, 1),
    "no images": ((0, 33, 9, 8), (32, 33), 32, 1),
}
OP = torch.ops.lcs.width_conv2d.default
assert_within_bound = partial(winograd_cases.assert_within_bound, bound=rounding_bound)


def run(x, weight, out, padding, scale=None, bias=None, relu=False, winograd=True, cap=None):
    packed = weight.prepack()
    return OP(x, weight.weight, out, scale, bias, [1, 1], pair(padding), [1, 1], 1, relu, packed, winograd, cap)


def case(name, layout, fill=torch.randn):
    shape, (full, inputs), out, padding = CASES[name]
    x, w = fill(*shape).to(memory_format=layout), fill(full, inputs, 3, 3)
    return x, w[:out, : shape[1]], WidthWeight.pack(w), out, padding


def test_transforms_are_those_of_a_correlation():
    torch.manual_seed(0)
    a, g, b = transforms(TILE)
    x, w = torch.randn(5, TILE + 2, TILE + 2).double(), torch.randn(3, 5, 3, 3).double()
    y = a @ ((g @ w @ g.T) * (b @ x @ b.T)).sum(1) @ a.T
    torch.testing.assert_close(y, F.conv2d(x[None], w)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_rounds_as_often_as_it_must(isa, name, layout):
    torch.manual_seed(1)
    x, block, weight, out, padding = case(name, layout)
    scale, bias = torch.randn(weight.shape[0]), torch.randn(weight.shape[0])
    for affine in ((), (scale, bias), (scale, bias, True)):
        y = run(x, weight, out, padding, *affine)
        limit = assert_within_bound(y, x, block, padding, *affine)
        direct = run(x, weight, out, padding, *affine, winograd=False)
        assert y.stride() == direct.stride() and y.dtype == torch.float32
        if x.numel() and not affine:
            c = x.shape[1]
            assert limit.max() <= (c + 25) * 880 * c * 2.0**-24 * block.abs().max() * x.abs().max()


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_every_size_of_an_image(isa, layout):
    """Tiles of which an image uses all or a part, on either side, in parts of lines and several lines."""
    torch.manual_seed(2)
    weight = WidthWeight.pack(torch.randn(19, 17, 3, 3))
    for height in range(1, 10):
        for width in (*range(1, 10), 40, 41):
            x = torch.randn(2, 17, height, width).to(memory_format=layout)
            assert_within_bound(run(x, weight, 18, 1), x, weight.weight[:18], 1)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_integers_stay_nearest(isa, name, layout):
    torch.manual_seed(3)
    x, block, weight, out, padding = case(name, layout, integers)
    y = run(x, weight, out, padding)
    expected = F.conv2d(x, block, padding=padding)
    assert torch.equal(y.round(), expected) and ((y - expected).abs() < 0.1).all()


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_every_width(isa, layout):
    """Prefixes that cut blocks anywhere, of one packed weight: the bits of a weight of these channels alone."""
    torch.manual_seed(4)
    x, weight = torch.randn(2, 75, 9, 8), WidthWeight.pack(torch.randn(70, 75, 3, 3))
    packed = weight.prepack()
    for out in (1, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 70):
        inputs = 1 + out * 7 % 75
        part = x[:, :inputs].contiguous(memory_format=layout)
        y = run(part, weight, out, 1)
        assert torch.equal(y, run(part, WidthWeight.pack(weight.weight[:out, :inputs]), out, 1))
    assert weight.prepack() is packed and weight.prepacked_nbytes == packed.nbytes


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_threads_and_batches_change_nothing(isa, name, layout, threads):
    torch.manual_seed(5)
    x, _, weight, out, padding = case(name, layout)
    y = run(x, weight, out, padding)
    torch.set_num_threads(1)
    assert torch.equal(run(x, weight, out, padding), y)
    for i in range(min(len(x), 3)):
        assert torch.equal(run(x[i : i + 1], weight, out, padding), y[i : i + 1])


@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays_in_the_tiles_that_read_it(isa, relu):
    torch.manual_seed(6)
    x, weight = torch.randn(1, 33, 17, 20), WidthWeight.pack(torch.randn(40, 33, 3, 3))
    for row in range(17):
        x[0, 1, row, 11] = torch.nan
        found, read = run(x, weight, 40, 1, relu=relu).isnan(), F.conv2d(x, weight.weight, padding=1).isnan()
        assert found[read].all()
        tiles = F.pad(read, (0, 0, 0, 3)).unfold(2, TILE, TILE).unfold(3, TILE, TILE).flatten(4).any(4)
        assert not found[~tiles.repeat_interleave(TILE, 2).repeat_interleave(TILE, 3)[..., :17, :20]].any()
        x[0, 1, row, 11] = 0.0


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_a_cap_and_relu(isa, layout):
    torch.manual_seed(7)
    x, _, weight, out, padding = case("odd", layout)
    y = run(x, weight, out, padding)
    assert torch.equal(run(x, weight, out, padding, relu=True), y.relu())
    assert torch.equal(run(x, weight, out, padding, relu=True, cap=3.0), y.clamp(0, 3.0)) and y.max() > 3


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 40, 12, 13), (9, 40, 12, 12), (1, 40, 30, 31)], ids=str)
def test_is_chosen_for_many_pixels_with_and_without_a_norm(isa, shape, layout):
    torch.manual_seed(8)
    x, weight = torch.randn(shape).to(memory_format=layout), WidthWeight.pack(torch.randn(50, 40, 3, 3))
    y = width_conv2d(x, weight, 48, padding=1)
    assert torch.equal(y, run(x, weight, 48, 1)) and not torch.equal(y, run(x, weight, 48, 1, winograd=False))
    packed, residual = weight.prepack(), torch.randn_like(y)
    assert_a_norm_behind_changes_no_bit(x, weight, 48, packed, 1, 1, residual, images=(1,))
    assert weight.prepacked_nbytes == packed.nbytes


def test_others_are_multiplied_directly(isa):
    torch.manual_seed(9)
    x, w = integers(1, 32, 20, 20), integers(64, 32, 3, 3)
    for settings in ({"stride": 2}, {"dilation": 2}, {"groups": 2}, {"stride": (1, 2)}):
        weight = WidthWeight.pack(w[:, : 16 if "groups" in settings else 32])
        y = width_conv2d(x, weight, padding=1, **settings)
        assert torch.equal(y, F.conv2d(x, weight.weight, padding=1, **settings))
    for size, channels, winograd in ((4, 32, False), (12, 32, True), (20, 1, False)):
        part, weight = torch.randn(1, channels, size, size), WidthWeight.pack(torch.randn(64, channels, 3, 3))
        y = width_conv2d(part, weight, padding=1)
        assert torch.equal(y, run(part, weight, 64, 1, winograd=winograd))
        assert not torch.equal(y, run(part, weight, 64, 1, winograd=not winograd))
    part = torch.randn(1, 32, 12, 12)  # a tensor is packed in each call, for direct products
    assert torch.equal(width_conv2d(part, w, padding=1), run(part, WidthWeight.pack(w), 64, 1, winograd=False))


def test_gradients_are_the_direct_ones():
    x, weight = integers(2, 32, 15, 16).requires_grad_(), WidthWeight.pack(integers(32, 32, 3, 3))
    y = width_conv2d(x, weight, 30, padding=1)
    expected = F.conv2d(x, weight.weight[:30], padding=1)
    grad = integers(*y.shape)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(expected, x, grad)[0])


@pytest.mark.parametrize("first", [False, True], ids=["traced", "packed first"])
def test_compiles(first):
    torch.manual_seed(10)
    x, weight = torch.randn(2, 40, 15, 16), WidthWeight.pack(torch.randn(48, 64, 3, 3))
    y = run(x, WidthWeight.pack(weight.weight), 33, 1)
    if first:
        width_conv2d(x, weight, 33, padding=1)
    compiled = torch.compile(
        lambda x, out: width_conv2d(x, weight, out, padding=1), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x, 33), y)
