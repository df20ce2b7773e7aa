"""width_conv2d of bfloat16 by Winograd's F(6 x 6, 3 x 3)."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lcs_kernels import width_conv2d
from lcs_kernels.formats import WidthWeight
from lcs_kernels.ops._winograd import WIDE_POINTS, WIDE_TILES, rounding_bound, transforms

from . import winograd_cases
from .sparse_cases import DTYPES
from .test_width_conv2d import FORMATS
from .winograd_cases import SQUARE, assert_a_norm_behind_changes_no_bit, pair

CASES = SQUARE | {
    "several blocks": ((9, 40, 20, 15), (33, 40), 33, 1),
    "several chunks": ((1, 150, 8, 11), (70, 160), 50, 1),
    "few channels": ((2, 5, 19, 16), (20, 9), 17, 1),
}
pytestmark = pytest.mark.usefixtures("pairs")
OP = torch.ops.lcs.width_conv2d.default
assert_within_bound = partial(winograd_cases.assert_within_bound, bound=rounding_bound)


def run(x, weight, out, padding, scale=None, bias=None, relu=False, winograd=True):
    packed = weight.prepack(pairs=True)
    return OP(x, weight.weight, out, scale, bias, [1, 1], pair(padding), [1, 1], 1, relu, packed, winograd)


def case(name, layout, dtype=torch.bfloat16, fill=torch.randn):
    shape, (full, inputs), out, padding = CASES[name]
    x, w = fill(*shape).bfloat16().to(memory_format=layout), fill(full, inputs, 3, 3).to(dtype)
    return x, w[:out, : shape[1]], WidthWeight.pack(w), out, padding


@pytest.mark.parametrize("results", WIDE_TILES)
def test_transforms_are_those_of_a_correlation(results):
    torch.manual_seed(0)
    a, g, b = transforms(results, points=WIDE_POINTS)
    x, w = torch.randn(5, results + 2, results + 2).double(), torch.randn(3, 5, 3, 3).double()
    y = a @ ((g @ w @ g.T) * (b @ x @ b.T)).sum(1) @ a.T
    torch.testing.assert_close(y, F.conv2d(x[None], w)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_rounds_as_often_as_it_must(isa, name, layout, dtype):
    torch.manual_seed(1)
    x, block, weight, out, padding = case(name, layout, dtype)
    scale, bias = torch.randn(weight.shape[0]), torch.randn(weight.shape[0])
    for affine in ((), (scale, bias), (scale, bias, True)):
        y = run(x, weight, out, padding, *affine)
        assert_within_bound(y, x, block, padding, *affine)
        direct = run(x, weight, out, padding, *affine, winograd=False)
        assert y.stride() == direct.stride() and y.dtype == torch.bfloat16


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_every_size_of_an_image(isa, layout):
    """Tiles of 6, 4 and 2 results, of which an image uses all or fewer, on either side."""
    torch.manual_seed(2)
    weight = WidthWeight.pack(torch.randn(19, 17, 3, 3).bfloat16())
    for height in range(1, 14):
        for width in range(1, 14):
            x = torch.randn(2, 17, height, width).bfloat16().to(memory_format=layout)
            assert_within_bound(run(x, weight, 18, 1), x, weight.weight[:18], 1)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_integers_stay_nearest(isa, name, layout):
    """Products so small that no result is rounded to another integer."""
    torch.manual_seed(3)
    x, block, weight, out, padding = case(name, layout, fill=lambda *shape: torch.randint(-1, 2, shape).float())
    x, block = x[:, :20], block[:, :20]
    x = x.contiguous(memory_format=layout)
    limit = assert_within_bound(y := run(x, weight, out, padding), x, block, padding)
    expected = F.conv2d(x.float(), block.float(), padding=padding)
    assert limit.max() < 0.25 and expected.abs().max() <= 64  # where bfloat16 holds halves
    assert torch.equal(y.float().round(), expected)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_every_width(isa, layout):
    """Prefixes that cut blocks anywhere, of one packed weight: the bits of a weight of these channels alone."""
    torch.manual_seed(4)
    x, weight = torch.randn(2, 75, 9, 8).bfloat16(), WidthWeight.pack(torch.randn(50, 75, 3, 3).bfloat16())
    packed = weight.prepack(pairs=True)
    for out in (1, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 50):
        inputs = 1 + out * 7 % 75
        part = x[:, :inputs].contiguous(memory_format=layout)
        y = run(part, weight, out, 1)
        assert torch.equal(y, run(part, WidthWeight.pack(weight.weight[:out, :inputs]), out, 1))
    assert weight.prepack(pairs=True) is packed and weight.prepacked_nbytes == packed.nbytes


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_threads_change_nothing(isa, name, layout, threads):
    torch.manual_seed(5)
    x, _, weight, out, padding = case(name, layout)
    y = run(x, weight, out, padding)
    torch.set_num_threads(1)
    assert torch.equal(run(x, weight, out, padding), y)


@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays_in_the_tiles_that_read_it(isa, relu):
    torch.manual_seed(6)
    x, weight = torch.randn(1, 33, 20, 20).bfloat16(), WidthWeight.pack(torch.randn(40, 33, 3, 3).bfloat16())
    for row in range(20):
        x[0, 1, row, 11] = torch.nan
        found, read = run(x, weight, 40, 1, relu=relu).isnan(), F.conv2d(x, weight.weight, padding=1).isnan()
        assert found[read].all()
        read = F.pad(read, (0, 4, 0, 4)).unfold(2, 6, 6).unfold(3, 6, 6).flatten(4).any(4)
        assert not found[~read.repeat_interleave(6, 2).repeat_interleave(6, 3)[..., :20, :20]].any()
        x[0, 1, row, 11] = 0.0


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 28, 26), (9, 64, 14, 14), (50, 64, 12, 12)], ids=str)
def test_is_chosen_for_many_pixels_with_and_without_a_norm(isa, shape, layout):
    torch.manual_seed(7)
    x, weight = (
        torch.randn(shape).bfloat16().to(memory_format=layout),
        WidthWeight.pack(torch.randn(64, 64, 3, 3).bfloat16()),
    )
    y = width_conv2d(x, weight, 60, padding=1)
    assert torch.equal(y, run(x, weight, 60, 1)) and not torch.equal(y, run(x, weight, 60, 1, winograd=False))
    packed, residual = weight.prepack(pairs=True), torch.randn_like(y)
    assert_a_norm_behind_changes_no_bit(x, weight, 60, packed, 1, 1, residual)


def test_few_pixels_of_many_channels_are_multiplied_directly(isa):
    torch.manual_seed(8)
    x, weight = torch.randn(1, 64, 3, 3).bfloat16(), WidthWeight.pack(torch.randn(64, 64, 3, 3).bfloat16())
    assert torch.equal(width_conv2d(x, weight, padding=1), run(x, weight, 64, 1, winograd=False))
