"""The Triton kernels in Triton's interpreter, against the reference; large tiles make for fewer steps to interpret."""

import pytest
import torch
from lcs_kernels.triton_kernels import packed_conv2d as module
from torch.nn import functional as F

from lcs_kernels._triton import kernel
from lcs_kernels.formats import NestedWeight
from lcs_kernels.ops.packed_conv2d import MAX_RANGED_TERMS, MAX_TERMS, codes_on, reference

from ..ops.packed_cases import DTYPES, WIDTHS, assert_within_roundings, fields, nested_weight
from ..ops.packed_conv2d_cases import NONE, RANGES, ends
from ..ops.test_sparse_conv2d import FORMATS, GEOMETRIES, settings

INTERPRET = True
LARGE = {"several bands", "many panels", "7x7 strided", "one result, many images", "one row", "one column", "depthwise"}

run = kernel("packed_conv2d", "packed_conv2d")


@pytest.fixture
def large_tiles(quick_sizes):
    large = {"OUTPUTS": 32, "POSITIONS": 1024, "INPUTS": 32}
    quick_sizes(module, PIXELS=512, TILE=large, EXACT_TILE=large)


def check(x, weight, bits, geometry, x_range=NONE, bias=None, relu=False):
    arguments = (x, *fields(weight), weight.shape, bits, bias, *settings(geometry), *ends(x_range, x), x_range[2], relu)
    prepack = weight.prepack(weight.shape[2] * weight.shape[3], geometry[-1])
    y, expected = (f(*arguments, False, prepack) for f in (run, reference))
    assert y.dtype == x.dtype and torch.equal(y.nan_to_num(123.0), expected.nan_to_num(123.0))
    assert all(y.is_contiguous(memory_format=f) == expected.is_contiguous(memory_format=f) for f in FORMATS)
    return y


@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.parametrize("name", sorted(GEOMETRIES.keys() - LARGE))
def test_matches_reference(large_tiles, name, ranged):
    torch.manual_seed(0)
    geometry, i = GEOMETRIES[name], sorted(GEOMETRIES).index(name) + 3 * ranged
    x = torch.randn(geometry[0]).to(DTYPES[i % 2]).to(memory_format=FORMATS[i // 2 % 2])
    weight, bias = nested_weight(geometry[1], ("channel", "tensor")[i % 3 == 0]), torch.randn(geometry[1][0])
    check(x, weight, WIDTHS[i % 7], geometry, RANGES[1 + i % 3] if ranged else NONE, bias if i % 2 else None, i % 4 < 2)


@pytest.mark.parametrize("bits", WIDTHS)
def test_widths_over_several_tiles(bits):
    torch.manual_seed(bits)
    geometry = ((2, 70, 5, 9), (66, 70, 1, 1), 1, 0, 1, 1)
    x = torch.randn(geometry[0]).to(memory_format=FORMATS[bits % 2])
    check(x, nested_weight(geometry[1]), bits, geometry, RANGES[bits % 4], torch.randn(66), True)


@pytest.mark.parametrize("depth", [2, 5])
def test_codes_of_fewer_bits(large_tiles, depth):
    geometry = GEOMETRIES["3x3 strided"]
    for bits in {2, depth}:
        check(torch.randn(geometry[0]), nested_weight(geometry[1], depth=depth), bits, geometry, (-0.5, 2.0, bits))


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("x_range", [NONE, (0.0, 255.0, 8), (-255.0, 0.0, 8)], ids=str)
def test_the_largest_sums_fit(quick_sizes, x_range, bits):
    """Every code and every value as large as it can be, of one sign or of the other, in as many terms as allowed."""
    quick_sizes(module, TILE={"OUTPUTS": 32, "POSITIONS": 2, "INPUTS": 4096}, CHANNELS=8192)
    terms = (MAX_TERMS if x_range[0] is None else MAX_RANGED_TERMS) // 2
    geometry = (2, terms, 2, 1), (3, terms, 2, 1), 1, 0, 1, 1
    x = torch.full(geometry[0], 255.0)
    x[1] *= -1
    for code, zero in ((255, 0), (0, 255)):
        codes = torch.full(geometry[1], code, dtype=torch.uint8)
        weight = NestedWeight.from_codes(codes, torch.ones(3), torch.full((3,), zero, dtype=torch.uint8))
        check(x, weight, bits, geometry, x_range)


@pytest.mark.parametrize("x_range", RANGES[:2], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_what_is_not_finite_spoils_its_image_alone(large_tiles, layout, x_range):
    """Over a given range infinity is clipped."""
    geometry = (4, 6, 9, 8), (9, 2, 2, 1), 1, 1, 1, 3
    x = torch.randn(geometry[0]).to(memory_format=layout)
    x[0, 5, 4, 5], x[1, 1, 0, 0], x[3, 2, 8, 7] = float("inf"), float("nan"), -float("inf")
    y = check(x, nested_weight(geometry[1]), 4, geometry, x_range, relu=True)
    assert [bool(image.isnan().all()) for image in y] == [x_range is NONE, True, False, x_range is NONE]


@pytest.mark.parametrize("x_range", [(0.0, 0.0, 8), (-1e-45, 1e-44, 4), (-float("inf"), 1.0, 8)], ids=str)
def test_ranges_without_a_step_or_an_end(large_tiles, x_range):
    geometry = (2, 3, 4, 5), (4, 3, 2, 2), 1, 1, 1, 1
    check(torch.randn(geometry[0]), nested_weight(geometry[1]), 8, geometry, x_range)


@pytest.mark.parametrize("name", ["3x3 strided", "groups", "one result"])
def test_codes_in_and_out_and_a_residual(large_tiles, name):
    torch.manual_seed(2)
    geometry, (low, high) = GEOMETRIES[name], (torch.tensor(-1.0), torch.tensor(2.0))
    weight, x = nested_weight(geometry[1]), torch.randn(geometry[0])
    given = (*fields(weight), weight.shape, 8, None, *settings(geometry), low, high, 5, True, False, [])
    for taken in (x, codes_on(x, low, high, 5)):
        plain = reference(taken, *given)
        added = torch.randn(plain.shape)
        added[0, 0, 0, 0] = float("nan")
        for more in ((added,), (None, low * 0.01, high * 3, 8), (added, low, high, 3)):
            y, expected = (f(taken, *given, *more) for f in (run, reference))
            assert y.dtype == expected.dtype and torch.equal(
                y.float().nan_to_num(99.0), expected.float().nan_to_num(99.0)
            )
            assert all(y.is_contiguous(memory_format=f) == expected.is_contiguous(memory_format=f) for f in FORMATS)


@pytest.mark.parametrize("y_range", [(0.0, 0.0), (-float("inf"), 1.0)], ids=str)
def test_codes_over_a_range_without_a_step_or_an_end(large_tiles, y_range):
    geometry = (2, 3, 4, 5), (4, 3, 2, 2), 1, 1, 1, 1
    weight, ends_of_y = nested_weight(geometry[1]), [torch.tensor(end) for end in y_range]
    given = (*fields(weight), weight.shape, 8, None, *settings(geometry), None, None, 8, False, False, [], None)
    x = torch.randn(geometry[0])
    assert torch.equal(run(x, *given, *ends_of_y, 8), reference(x, *given, *ends_of_y, 8))


def test_without_outputs_channels_or_pixels():
    one = [1, 1]
    for x, kernel_shape in (
        (torch.ones(2, 3, 5, 5), (0, 3, 3, 3)),
        (torch.ones(2, 3, 0, 4), (5, 3, 1, 1)),
        (torch.ones(2, 0, 2, 6), (5, 0, 3, 3)),
    ):
        weight, bias = NestedWeight.pack(torch.ones(kernel_shape)), torch.randn(kernel_shape[0])
        for low in (None, torch.tensor(-1.0)):
            given = (weight.shape, 5, bias, one, one, one, 1, low, None if low is None else -low, 8, False, False, [])
            y = run(x, *fields(weight), *given)
            assert torch.equal(y, bias[:, None, None].expand(y.shape)) and y.shape[:2] == (2, kernel_shape[0])


def test_views_of_x_and_a_weight_that_was_not_prepacked(large_tiles):
    x, weight, one = torch.randn(2, 9, 6, 7)[:, 2:7, 1:], nested_weight((12, 5, 2, 2)), [1, 1]
    given = (*fields(weight), weight.shape, 4, None, one, one, one, 1, None, None, 8, False, False, [])
    assert torch.equal(run(x, *given), reference(x, *given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["3x3", "groups", "1x1 strided"])
def test_exact_sums_round_as_often_as_they_must(large_tiles, name, dtype):
    torch.manual_seed(1)
    geometry, bits = GEOMETRIES[name], {"3x3": 2, "groups": 8, "1x1 strided": 5}[name]
    weight, bias = nested_weight(geometry[1]), torch.randn(geometry[1][0])
    x = torch.randn(geometry[0]).to(dtype).to(memory_format=FORMATS[bits % 2])
    w, wide = weight.unpack(bits).double(), x.double()
    exact = F.conv2d(wide, w, bias.double(), *geometry[2:])
    magnitude = F.conv2d(wide.abs(), w.abs(), bias.double().abs(), *geometry[2:])
    given = (x, *fields(weight), weight.shape, bits, bias, *settings(geometry), None, None, 8)
    y = run(*given, False, True, [])
    assert y.dtype == dtype
    assert_within_roundings(y, exact, magnitude, weight.columns)
    assert torch.equal(run(*given, True, True, []), y.relu())


WEIGHT = nested_weight((5, 4, 3, 3))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(4, 6, 6)}, ValueError, r"x must be \(n, c, h, w\), got shape \(4, 6, 6\)"),
        ({"x": torch.ones(1, 4, 6, 6).half()}, TypeError, "x must be float32 or bfloat16"),
        ({"x": torch.ones(1, 3, 6, 6)}, ValueError, "x has 3 channels, a weight of 5 x 4 in 1 groups takes 4"),
        ({"weight_shape": [5, 4, 0, 3]}, ValueError, "a kernel of 0 x 3 has no taps"),
        ({"weight_shape": [5, 4, 3, 5]}, ValueError, r"planes must have shape \(8, 10\)"),
        ({"scales": torch.ones(4, 1)}, ValueError, r"scales must have shape \(5, 1\)"),
        ({"bits": 9}, ValueError, r"bits must lie in \[2, 8\], got 9"),
        ({"low": torch.tensor(0.0)}, ValueError, "give both ends of x's range, or none"),
        ({"low": torch.tensor(0.0), "high": torch.ones(1)}, ValueError, r"high must have shape \(\)"),
        ({"x_bits": 1}, ValueError, r"x_bits must lie in \[2, 8\], got 1"),
        ({"x": torch.ones(1, 4, 6, 6).char()}, ValueError, r"x holds codes \(int8\): give their range"),
        ({"residual": torch.ones(1, 5, 4, 3)}, ValueError, r"residual must have shape \(1, 5, 4, 4\)"),
        ({"y_low": torch.tensor(1.0)}, ValueError, "give both ends of y's range, or none"),
        ({"groups": 0}, ValueError, "in 0 groups"),
        ({"bias": torch.ones(5).double()}, TypeError, "bias must be torch.float32"),
        ({"prepack": WEIGHT.prepack()}, ValueError, "prepack must have shape"),
        (
            {"weight_shape": [1, 32769, 1, 1], "x": torch.ones(1, 32769, 1, 1)},
            ValueError,
            "sums of 32769 products run by",
        ),
    ],
    ids=lambda part: ",".join(part) if isinstance(part, dict) else str(part),
)
def test_bad_arguments(change, error, words):
    given = {"x": torch.ones(1, 4, 6, 6), "planes": WEIGHT.planes, "scales": WEIGHT.scales}
    given |= {"zero_points": WEIGHT.zero_points, "weight_shape": list(WEIGHT.shape), "bits": 4, "bias": None}
    given |= {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "low": None, "high": None}
    given |= {"x_bits": 8, "relu": False, "exact": False, "prepack": [], "residual": None}
    given |= {"y_low": None, "y_high": None, "y_bits": 8}
    with pytest.raises(error, match=f"packed_conv2d: .*{words}"):
        run(*(given | change).values())


def test_more_than_32_bits_count():
    x = torch.zeros(1, 1, 1, 1).expand(1 << 15, 8, 1 << 8, 1 << 8)
    with pytest.raises(ValueError, match="packed_conv2d: 2,147,483,648 positions of all images are more than"):
        check(x, nested_weight((4, 8, 1, 1)), 4, ((), (), 1, 0, 1, 1))
