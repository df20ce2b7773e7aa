import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import lcs_kernels
from lcs_kernels import quantize
from lcs_kernels.ops.quantize import on_grid, reference

from .prune_cases import KINDS, SIZES, assert_same

OP = torch.ops.lcs.quantize.default
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RANGES = [(-0.3, 1.0), (0.5, 2.0), (-4.0, -1.0), (-1e-3, 70.0), (0.0, 0.0), (-3e38, 3e38), (0.0, 1e-40), (0.0, 3e-37)]
BITS = [2, 3, 4, 6, 8]
BROKEN = [(-float("inf"), 1.0), (-1.0, float("nan"))]


def scalars(low, high, bits):
    return torch.tensor(low), torch.tensor(high), torch.tensor(bits)


def by_hand(x: float, low: float, high: float, bits: int) -> float:
    """One value in Python's float64 arithmetic; round() is half to even."""
    low, high = min(low, 0.0), max(high, 0.0)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (high - low) / (highest - lowest)
    zero = min(max(round(lowest - low / scale), lowest), highest)
    return (min(max(round(x / scale) + zero, lowest), highest) - zero) * scale


@pytest.mark.parametrize("bits", range(2, 9))
def test_definition(bits):
    """On codes that are not near a tie, float32 elements round as float64 ones do."""
    torch.manual_seed(bits)
    low, high = -0.3125, 1.0
    for x in (torch.rand(200) * 2 - 0.7).tolist():
        position = x * (2**bits - 1) / (high - low)
        if abs(position % 1 - 0.5) > 1e-4:
            assert float(quantize(torch.tensor(x), low, high, bits)) == pytest.approx(by_hand(x, low, high, bits), 1e-6)


def test_the_range_shifts_to_make_zero_a_value():
    scale = torch.tensor(1.3 / 7)
    found = quantize(torch.tensor([-1.0, -0.3, 0.0, 1.0, 9.0]), -0.3, 1.0, 3)
    assert torch.equal(found, torch.tensor([-2.0, -2.0, 0.0, 5.0, 5.0]) * scale)


def test_ties_go_to_even():
    assert quantize(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5]), -8.0, 7.0, 4).tolist() == [-2, 0, 0, 2, 2]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_reference(isas, kind, bits):
    """Every range at every size and every number of bits; at two sizes in turn, half of them each."""
    for i, n in enumerate(SIZES):
        torch.manual_seed(n)
        x = KINDS[kind](n)[0]
        for low, high in (RANGES + BROKEN)[(i + BITS.index(bits)) % 2 :: 2]:
            expected = reference(x, *scalars(low, high, bits))
            for _ in isas():
                assert_same(OP(x, *scalars(low, high, bits)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(isas, dtype, kind):
    torch.manual_seed(1)
    x = KINDS[kind](20_011)[0].to(dtype)
    for low, high in RANGES:
        expected = reference(x, *scalars(low, high, 5))
        for _ in isas():
            assert_same(OP(x, *scalars(low, high, 5)), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_of_eight_mebibytes_and_more(isa, dtype):
    """They are written past the caches."""
    torch.manual_seed(2)
    x = torch.randn((8 << 20) // dtype.itemsize + 20_011).to(dtype)
    assert_same(OP(x, *scalars(-1.0, 2.0, 4)), reference(x, *scalars(-1.0, 2.0, 4)))


def test_threads_change_nothing(threads):
    torch.manual_seed(3)
    x = torch.randn(300_007)
    assert_same(OP(x, *scalars(-1.0, 2.0, 3)), reference(x, *scalars(-1.0, 2.0, 3)))


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_value_is_a_fixed_point_and_their_number_is_the_codes(isa, bits):
    values = quantize(torch.linspace(-2, 2, 5001), -1.0, 1.0, bits).unique()
    assert len(values) == 2**bits and 0.0 in values
    assert torch.equal(quantize(values, -1.0, 1.0, bits), values)


def test_what_is_not_finite(isa):
    nan, infinity = float("nan"), float("inf")
    x = torch.tensor([nan, infinity, -infinity, 0.5]).repeat(9)
    found = quantize(x, -1.0, 1.0, 8)[:4]
    assert found[0].isnan() and torch.equal(found[1:3], quantize(torch.tensor([9.0, -9.0]), -1.0, 1.0, 8))
    assert quantize(x, -1.0, infinity, 8).isnan().all()
    assert not quantize(torch.randn(40), 0.0, 0.0, 3).any()


def test_a_tensor_of_bits_is_clamped():
    x = torch.randn(50)
    for given, used in ((1, 2), (-5, 2), (9, 8), (99, 8)):
        assert torch.equal(quantize(x, -1.0, 1.0, torch.tensor(given)), quantize(x, -1.0, 1.0, used))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[1::2, 3:-2],
        lambda x: x[:1].expand(40, 60),
        lambda x: x.reshape(8, 5, 6, 10).to(memory_format=torch.channels_last),
        lambda x: x.reshape(8, 5, 6, 10).to(memory_format=torch.channels_last)[:, :, 1:],
        lambda x: x[:0],
        lambda x: x[3, 7],
    ],
    ids=["transposed", "strided", "expanded", "channels_last", "gaps", "empty", "scalar"],
)
def test_any_shape_and_stride(view):
    torch.manual_seed(4)
    x = view(torch.randn(40, 60))
    found = OP(x, *scalars(-1.0, 2.0, 3))
    assert_same(found.contiguous(), reference(x.contiguous(), *scalars(-1.0, 2.0, 3)))
    assert found.stride() == torch.empty_like(x).stride() == reference(x, *scalars(-1.0, 2.0, 3)).stride()


def test_gradient_passes_clipped_values_too():
    x = torch.linspace(-3, 3, 41, requires_grad=True)
    probe = torch.randn(41)
    for dtype in (torch.float32, torch.float64):
        (grad,) = torch.autograd.grad(quantize(x.to(dtype), -1.0, 1.0, 3).float(), x, probe)
        assert torch.equal(grad, probe)


def test_float64_runs_the_reference():
    x = torch.randn(99, dtype=torch.float64)
    low, high = torch.tensor([-1.0, 2.0], dtype=torch.float64).unbind()
    assert torch.equal(quantize(x, -1.0, 2.0, 4), on_grid(x, low, high, torch.tensor(4)))


def test_opcheck():
    opcheck(OP, (torch.randn(5, 9), *scalars(-1.0, 2.0, 3)))
    opcheck(OP, (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), *scalars(-1.0, 2.0, 3)))


def test_compiles_once_for_every_width_and_range():
    graphs = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=graphs)
    def step(x, low, high, bits):
        return quantize(x, low, high, bits).square().sum()

    x = torch.randn(300, requires_grad=True)
    for bits, high in itertools.product(range(2, 9), (0.5, 1.0, 3.0)):
        given = scalars(-1.0, high, bits)
        step(x, *given).backward()
        assert torch.equal(step(x, *given), quantize(x, *given).square().sum())
    assert graphs.frame_count <= 2


def test_same_on_every_instruction_set():
    x, found = torch.randn(10_007), []
    for name in ("scalar", "avx2", "avx512"):
        lcs_kernels.isa.set_max(name)
        found.append(quantize(x, -1.0, 2.0, 5))
    lcs_kernels.isa.set_max("amx")
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"bits": 1}, ValueError, r"quantize: bits must be a whole number in \[2, 8\], got 1"),
        ({"bits": 9}, ValueError, "got 9"),
        ({"bits": 3.5}, ValueError, "got 3.5"),
        ({"bits": torch.ones(2)}, ValueError, r"bits must be a number or a 0-d tensor, got shape \(2,\)"),
        (
            {"bits": torch.tensor(4, device="meta")},
            ValueError,
            "quantize: bits is on meta, the tensor it is for on cpu",
        ),
        ({"low": torch.tensor(0.0, device="meta")}, ValueError, "low is on meta"),
        ({"low": 2.0}, ValueError, "low must not lie above high, got low=2.0, high=1.0"),
        ({"high": float("nan")}, ValueError, "high=nan"),
        ({"low": torch.zeros(1)}, ValueError, r"low must be a number or a 0-d tensor, got shape \(1,\)"),
        ({"x": torch.arange(4)}, TypeError, "x must be float32.*int64"),
        ({"x": torch.tensor([1.0, float("nan")]), "check_finite": True}, ValueError, "x holds 1 values"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"x": torch.randn(10), "low": -1.0, "high": 1.0, "bits": 4} | change
    with pytest.raises(error, match=words):
        quantize(**arguments)
