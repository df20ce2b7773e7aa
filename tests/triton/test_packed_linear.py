"""The Triton kernels in Triton's interpreter, against the reference; tiles are small so that there are several."""

import pytest
import torch
from lcs_kernels.triton_kernels import packed_linear as module

from lcs_kernels._triton import kernel
from lcs_kernels.formats import NestedWeight
from lcs_kernels.ops.packed_linear import MAX_COLUMNS, reference

from ..ops.packed_cases import DTYPES, WIDTHS, assert_within_roundings, fields, nested_weight

INTERPRET = True

run = kernel("packed_linear", "packed_linear")


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "FEW", 2)
    monkeypatch.setattr(module, "TILE", {"OUTPUTS": 64, "POSITIONS": 4, "INPUTS": 64})
    monkeypatch.setattr(module, "TILE_OF_FEW", {"OUTPUTS": 32, "POSITIONS": 2, "INPUTS": 128})
    monkeypatch.setattr(module, "EXACT_TILE", {"OUTPUTS": 64, "POSITIONS": 4, "INPUTS": 128})


def check(x, weight, bits, bias=None, relu=False):
    arguments = (x, *fields(weight), weight.shape[0], weight.group, bits, bias, relu, False, weight.prepack())
    y, expected = run(*arguments), reference(*arguments)
    assert y.dtype == x.dtype and torch.equal(y.nan_to_num(123.0), expected.nan_to_num(123.0))
    return y


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    ("shape", "per", "group"),
    [((33, 129), "channel", None), ((5, 70), "group", 9), ((37, 150), "group", 64), ((70, 100), "tensor", None)],
    ids=str,
)
def test_matches_reference(small_tiles, shape, per, group, bits):
    torch.manual_seed(bits)
    weight, dtype = nested_weight(shape, per, group), DTYPES[bits % 2]
    check(torch.randn(1 + bits % 2, shape[1]).to(dtype), weight, bits, torch.randn(shape[0]))
    check(torch.randn(5, shape[1]).to(dtype), weight, bits, relu=True)


@pytest.mark.parametrize("rows", [2, 18])
@pytest.mark.parametrize(("bits", "group"), [(4, None), (8, 40)])
def test_the_tiles_of_a_gpu(rows, bits, group):
    torch.manual_seed(1)
    check(torch.randn(rows, 300), nested_weight((70, 300), "group" if group else "channel", group), bits)


@pytest.mark.parametrize("depth", [2, 5])
def test_codes_of_fewer_bits(small_tiles, depth):
    for bits in {2, depth}:
        check(torch.randn(3, 61), nested_weight((37, 61), depth=depth), bits)


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (5, 0), (1, 70), (65, 1)], ids=str)
def test_extreme_shapes(shape):
    for rows in (0, 1, 3):
        check(torch.randn(rows, shape[1]), nested_weight(shape), 8, torch.randn(2 * shape[0])[::2])


@pytest.mark.parametrize(
    "x", [torch.ones(7), torch.randn(2, 3, 7), torch.randn(7, 4).t(), torch.randn(6, 14)[::2, ::2]]
)
def test_any_shape_and_stride(small_tiles, x):
    check(x, nested_weight((5, 7)), 3, torch.randn(5))


def test_a_weight_that_was_not_prepacked():
    x, weight = torch.randn(2, 70), nested_weight((40, 70), "group", 30)
    given = (x, *fields(weight), 40, 30, 4, None, False, False)
    assert torch.equal(run(*given, []), run(*given, weight.prepack()))


@pytest.mark.parametrize("bits", [2, 7, 8])
def test_the_largest_sums_fit(quick_sizes, bits):
    """Every code and every value as large as it can be, of one sign or of the other, in as many columns as allowed."""
    quick_sizes(module, BLOCK=32768, TILE_OF_FEW={"OUTPUTS": 32, "POSITIONS": 2, "INPUTS": 8192})
    x = torch.full((2, MAX_COLUMNS), 127.0)
    x[1] *= -1
    for code, zero in ((255, 0), (0, 255)):
        codes = torch.full((3, MAX_COLUMNS), code, dtype=torch.uint8)
        weight = NestedWeight.from_codes(codes, torch.ones(3), torch.full((3,), zero, dtype=torch.uint8))
        check(x, weight, bits)


def test_rows_of_any_size(small_tiles):
    torch.manual_seed(2)
    x = torch.randn(10, 50) * torch.tensor([1e-44, 1e-38, 1e-25, 1e37, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])[:, None]
    x[6, 20], x[7, 3], x[8, 49] = float("nan"), float("inf"), -float("inf")
    for relu in (False, True):
        y = check(x, nested_weight((9, 50)), 6, torch.randn(9), relu)
        assert y[6:9].isnan().all() and y[[0, 1, 2, 3, 4, 5, 9]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_exact_sums_round_as_often_as_they_must(small_tiles, rows, dtype):
    torch.manual_seed(rows)
    for shape, per, group in (((33, 129), "channel", None), ((40, 70), "group", 9)):
        weight, x, bias = nested_weight(shape, per, group), torch.randn(rows, shape[1]).to(dtype), torch.randn(shape[0])
        for bits in (2, 8):
            w, wide = weight.unpack(bits).double(), x.double()
            given = (x, *fields(weight), shape[0], weight.group, bits, bias)
            y = run(*given, False, True, weight.prepack())
            magnitude = wide.abs() @ w.abs().t() + bias.abs()
            assert y.dtype == dtype
            assert_within_roundings(y, wide @ w.t() + bias, magnitude, shape[1] + -(-shape[1] // weight.group))
            assert torch.equal(run(*given, True, True, weight.prepack()), y.relu())


WEIGHT = nested_weight((5, 7))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.tensor(1.0)}, ValueError, r"x must have a last dimension of in_features, got shape \(\)"),
        ({"x": torch.ones(2, 7).half()}, TypeError, "x must be float32 or bfloat16"),
        ({"planes": WEIGHT.planes[:1]}, ValueError, "planes must be 2 to 8, got 1"),
        ({"planes": WEIGHT.planes.float()}, TypeError, "planes must be torch.int32"),
        ({"planes": WEIGHT.planes[:3]}, ValueError, r"bits must lie in \[2, 3\], got 4"),
        ({"bits": 9}, ValueError, r"bits must lie in \[2, 8\], got 9"),
        ({"scales": torch.ones(4, 1)}, ValueError, r"scales must have shape \(5, 1\), got \(4, 1\)"),
        ({"zero_points": WEIGHT.zero_points.int()}, TypeError, "zero_points must be torch.uint8"),
        ({"zero_points": WEIGHT.zero_points[:1]}, ValueError, r"zero_points must have shape \(5, 1\)"),
        ({"scales": torch.ones(5, 2)[:, :1]}, ValueError, "scales and zero_points must be contiguous"),
        ({"group": 0}, ValueError, "do not fit a group of 0 columns"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must have shape \(5,\)"),
        ({"prepack": nested_weight((5, 70)).prepack()}, ValueError, "prepack must have shape"),
        (
            {"prepack": [*WEIGHT.prepack(), *WEIGHT.prepack()]},
            ValueError,
            "prepack must hold what nested_prepack makes",
        ),
        ({"x": torch.ones(1, 32769), "group": 32769}, ValueError, "groups of 32769 columns run by the reference"),
    ],
    ids=lambda part: ",".join(part) if isinstance(part, dict) else str(part),
)
def test_bad_arguments(change, error, words):
    given = {"x": torch.ones(2, 7), "planes": WEIGHT.planes, "scales": WEIGHT.scales}
    given |= {"zero_points": WEIGHT.zero_points, "out_features": 5, "group": 7, "bits": 4, "bias": None}
    with pytest.raises(error, match=f"packed_linear: .*{words}"):
        run(*(given | {"relu": False, "exact": False, "prepack": []} | change).values())
