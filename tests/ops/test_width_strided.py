"""width_conv2d of 7 x 7 or 8 x 8 taps at stride 2 by Winograd's F(4 x 4, 4 x 4)."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lcs_kernels import width_conv2d
from lcs_kernels.formats import WidthWeight
from lcs_kernels.ops._winograd import TILE, split, strided_rounding_bound, transforms

from . import winograd_cases
from .sparse_cases import DTYPES
from .test_width_conv2d import FORMATS
from .winograd_cases import assert_a_norm_behind_changes_no_bit

# x, weight's channels and taps, channels of the result, padding
CASES = {
    "as networks begin": ((2, 3, 64, 60), (64, 3, 7, 7), 64, (3, 3)),
    "one channel": ((3, 1, 40, 30), (20, 1, 7, 7), 20, (3, 3)),
    "the most channels": ((1, 8, 29, 37), (33, 12, 8, 8), 31, (3, 2)),
    "a width of both": ((1, 3, 35, 70), (70, 40, 7, 8), 49, (2, 5)),
    "no padding": ((2, 5, 50, 41), (17, 5, 8, 7), 17, (0, 0)),
    "more padding than taps": ((1, 2, 9, 6), (16, 2, 7, 7), 16, (9, 12)),
    "smaller than a tile": ((2, 4, 5, 3), (16, 4, 7, 7), 16, (2, 3)),
    "no images": ((0, 3, 40, 40), (16, 3, 7, 7), 16, (3, 3)),
}
OP = torch.ops.lcs.width_conv2d.default
assert_within_bound = partial(winograd_cases.assert_within_bound, bound=strided_rounding_bound, stride=2)


def run(x, weight, out, padding, scale=None, bias=None, relu=False, winograd=True, cap=None):
    packed = weight.prepack()
    return OP(x, weight.weight, out, scale, bias, [2, 2], list(padding), [1, 1], 1, relu, packed, winograd, cap)


def case(name, layout, dtype=torch.float32, fill=torch.randn):
    shape, full, out, padding = CASES[name]
    x, w = fill(*shape).to(dtype).to(memory_format=layout), fill(*full)
    return x, w[:out, : shape[1]], WidthWeight.pack(w), out, padding


def test_transforms_are_those_of_a_correlation():
    torch.manual_seed(0)
    a, g, b = transforms(TILE, 4)
    x, w = torch.randn(1, 5, 14, 14).double(), torch.randn(3, 5, 7, 7).double()
    y = a @ ((g @ split(w, (0, 0)) @ g.T) * (b @ split(x, (0, 0)) @ b.T)).sum(1) @ a.T
    torch.testing.assert_close(y, F.conv2d(x, w, stride=2)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_rounds_as_often_as_it_must(isa, name, layout, dtype):
    torch.manual_seed(1)
    x, block, weight, out, padding = case(name, layout, dtype)
    scale, bias = torch.randn(weight.shape[0]), torch.randn(weight.shape[0])
    for affine in ((), (scale, bias), (scale, bias, True)):
        y = run(x, weight, out, padding, *affine)
        limit = assert_within_bound(y, x, block, padding, *affine)
        direct = run(x, weight, out, padding, *affine, winograd=False)
        assert y.stride() == direct.stride() and y.dtype == dtype
    if x.numel():
        c, limit = x.shape[1], limit / scale[:out, None, None].abs()
        bound = (4 * c + 30) * 21700 * c * 2.0**-24 * block.abs().max() * x.abs().max()
        assert (limit - 2.0**-23 * (bias / scale)[:out, None, None].abs() <= bound * 1.01).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_of_no_columns_there_is_padding_alone(isa, layout, dtype):
    x, bias = torch.zeros(2, 3, 100, 0, dtype=dtype).contiguous(memory_format=layout), torch.randn(33)
    y = run(x, WidthWeight.pack(torch.randn(33, 3, 7, 7)), 33, (3, 5), bias=bias)
    assert torch.equal(y, bias.to(dtype)[:, None, None].expand(2, 33, 50, 2))


def test_every_size_of_an_image(isa):
    """Tiles of which an image uses all or a part, on either side, in lines of one block or more."""
    torch.manual_seed(2)
    weight = WidthWeight.pack(torch.randn(19, 2, 7, 7))
    for height in range(1, 20):
        for width in (*range(1, 20), 150, 163):
            x = torch.randn(1, 2, height, width)
            assert_within_bound(run(x, weight, 18, (3, 3)), x, weight.weight[:18], (3, 3))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_integers_stay_nearest(isa, name, layout):
    torch.manual_seed(3)
    x, block, weight, out, padding = case(name, layout, fill=lambda *shape: torch.randint(-1, 2, shape).float())
    y = run(x, weight, out, padding)
    assert x.numel() == 0 or assert_within_bound(y, x, block, padding).max() < 0.5
    assert torch.equal(y.round(), F.conv2d(x, block, None, 2, padding))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_threads_and_batches_change_nothing(isa, name, layout, threads):
    torch.manual_seed(4)
    x, _, weight, out, padding = case(name, layout)
    y = run(x, weight, out, padding)
    torch.set_num_threads(1)
    assert torch.equal(run(x, weight, out, padding), y)
    for i in range(len(x)):
        assert torch.equal(run(x[i : i + 1], weight, out, padding), y[i : i + 1])


def test_nan_stays_in_the_tiles_that_read_it(isa):
    torch.manual_seed(5)
    x, weight = torch.randn(1, 3, 40, 40), WidthWeight.pack(torch.randn(16, 3, 7, 7))
    for row in range(0, 40, 3):
        x[0, 1, row, 11] = torch.nan
        found = run(x, weight, 16, (3, 3)).isnan()
        read = F.conv2d(x, weight.weight, None, 2, 3).isnan()
        assert found[read].all()
        tiles = F.pad(x.isnan().any(1, keepdim=True).float(), (3, 11, 3, 11)).unfold(2, 14, 8).unfold(3, 14, 8)
        near = tiles.flatten(4).amax(4).repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :20, :20]
        assert not found[(near == 0).expand_as(found)].any()
        x[0, 1, row, 11] = 0.0


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_a_cap_and_relu(isa, layout):
    torch.manual_seed(6)
    x, _, weight, out, padding = case("as networks begin", layout)
    y = run(x, weight, out, padding)
    assert torch.equal(run(x, weight, out, padding, relu=True), y.relu())
    assert torch.equal(run(x, weight, out, padding, relu=True, cap=3.0), y.clamp(0, 3.0)) and y.max() > 3


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_is_chosen_for_first_layers_with_and_without_a_norm(isa, layout):
    torch.manual_seed(7)
    x, weight = torch.randn(9, 3, 64, 64).to(memory_format=layout), WidthWeight.pack(torch.randn(64, 3, 7, 7))
    y = width_conv2d(x, weight, 60, stride=2, padding=3)
    assert torch.equal(y, run(x, weight, 60, (3, 3))) and not torch.equal(y, run(x, weight, 60, (3, 3), winograd=False))
    assert_a_norm_behind_changes_no_bit(x, weight, 60, weight.prepack(), 2, 3, images=(1,))


def test_others_are_multiplied_directly(isa):
    torch.manual_seed(8)
    x, weight = torch.randn(1, 3, 64, 64), WidthWeight.pack(torch.randn(64, 3, 7, 7))
    for size, out, winograd in ((24, 64, False), (25, 64, True), (64, 31, False), (64, 32, True)):
        part = x[..., :size, :size].contiguous()
        y = width_conv2d(part, weight, out, stride=2, padding=3)
        assert torch.equal(y, run(part, weight, out, (3, 3), winograd=winograd))
        assert not torch.equal(y, run(part, weight, out, (3, 3), winograd=not winograd))
    for settings in ({"stride": 1}, {"stride": (2, 1)}, {"stride": 2, "dilation": 2}, {"stride": 2, "groups": 3}):
        whole = torch.randint(-3, 4, (48, 3 // settings.get("groups", 1), 7, 7)).float()
        data = torch.randint(-3, 4, x.shape).float()
        y = width_conv2d(data, WidthWeight.pack(whole), padding=3, **settings)
        assert torch.equal(y, F.conv2d(data, whole, padding=3, **settings))
