"""The Triton kernels in Triton's interpreter, against the reference; blocks are small so that there are many tiles."""

import pytest
import torch

from lcs_kernels import keep_count
from lcs_kernels._triton import kernel
from lcs_kernels.ops._library import pack_bits
from lcs_kernels.ops.interpolate_prune import fake_backward, reference, reference_backward

from ..ops.prune_cases import KINDS, assert_same

INTERPRET = True
BLOCK = 256
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

prune = kernel("interpolate_prune", "interpolate_prune")
prune_backward = kernel("interpolate_prune", "interpolate_prune_backward")


def scalars(alpha, keep):
    return torch.tensor(alpha), torch.tensor(keep)


def check(w0, w1, alpha, keep, dtype=None, block=BLOCK):
    w, mask_bits = prune(w0, w1, *scalars(alpha, keep), dtype, block=block)
    expected, expected_bits = reference(w0, w1, *scalars(alpha, keep), dtype)
    assert w.is_contiguous()
    assert_same(w, expected)
    assert torch.equal(mask_bits, expected_bits)


@pytest.mark.parametrize(("kind", "n"), [("normal", 1), ("normal", BLOCK), *((kind, 1000) for kind in KINDS)])
def test_matches_reference(kind, n):
    torch.manual_seed(n)
    w0, w1 = KINDS[kind](n)
    for density in (0.0, 0.4, 1.0):
        check(w0, w1, 0.3, keep_count(density, n))


@pytest.mark.parametrize("kind", ["nonfinite", "half_range"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_dtypes(source, dtype, kind):
    torch.manual_seed(1)
    w0, w1 = (w.to(source) for w in KINDS[kind](600))
    check(w0, w1, 0.7, 200, dtype)
    check(w0, None, 0.7, 200, dtype)


@pytest.mark.parametrize("n", [96, 97])
def test_counts_among_ties(n):
    torch.manual_seed(2)
    w0, w1 = KINDS["two_values"](n)
    for keep in range(0, n + 1, 16):
        check(w0, w1, 0.5, keep, block=32)


@pytest.mark.parametrize("block", [32, 128, 4096])
def test_tile_size_changes_nothing(block):
    torch.manual_seed(3)
    check(*KINDS["integers"](1111), 0.25, 345, block=block)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.7])
def test_ends_of_the_line_and_beyond(alpha):
    torch.manual_seed(4)
    w0, w1 = torch.randn(2, 300).unbind()
    check(w0, w1, alpha, 300)
    check(w0, w1, alpha, 77)


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.t(),
        lambda w: w[1::2, 3:-2],
        lambda w: w.flatten()[1:],
        lambda w: w[:1].expand(8, 60),
        lambda w: w.reshape(2, 5, 6, 10).to(memory_format=torch.channels_last),
        lambda w: w[:0],
        lambda w: w[3, 7],
    ],
    ids=["transposed", "strided", "misaligned", "expanded", "channels_last", "empty", "scalar"],
)
def test_any_shape_and_stride(view):
    torch.manual_seed(5)
    w0, w1 = view(torch.randn(10, 60)), view(torch.randint(-2, 3, (10, 60)).float())
    check(w0, w1, 0.5, keep_count(0.3, w0.numel()))


@pytest.mark.parametrize("keep", [2**40, 99, -3, -(2**40)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keep_out_of_range_is_clamped(keep, dtype):
    check(torch.randn(10), None, 0.0, keep, dtype)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16], ids=str)
def test_nans_of_every_payload_tie(dtype):
    bits, infinity = torch.iinfo(dtype).max, {torch.int32: 0x7F800000, torch.int16: 0x7F80}[dtype]
    w = torch.tensor([bits, infinity + 1, -1, infinity, bits - 5, infinity + 3], dtype=dtype)
    w = w.view({torch.int32: torch.float32, torch.int16: torch.bfloat16}[dtype])
    for keep in range(7):
        mask_bits = prune(w, None, *scalars(0.0, keep))[1]
        assert torch.equal(mask_bits, reference(w, None, *scalars(0.0, keep))[1])


@pytest.mark.parametrize("line", [True, False], ids=["line", "point"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 33, 1000])
def test_backward_matches_reference(n, source, dtype, line):
    torch.manual_seed(6)
    w0, w1 = torch.randn(2, n).to(source).unbind()
    grad, mask_bits = torch.randn(n).to(dtype), pack_bits(torch.rand(n) < 0.4)
    args = (grad, w0 if line else None, w1 if line else None, torch.tensor(0.3), mask_bits, line, source)
    actual, expected = prune_backward(*args, block=BLOCK), reference_backward(*args)
    assert_same(actual[0], expected[0])
    assert_same(actual[1], expected[1])
    assert actual[2].shape == expected[2].shape
    if line:
        kept = torch.where(prune_bits(mask_bits, n), grad.float(), 0)
        terms = (kept * (w1.float() - w0.float())).double().abs().sum()
        # a sum of at most BLOCK float32 terms a tile, each rounded twice, then one rounding of the total
        assert abs(float(actual[2].double() - expected[2].double())) <= float(terms) * (BLOCK + 3) * 2**-24


def prune_bits(mask_bits, n):
    return (mask_bits[torch.arange(n) // 32] >> (torch.arange(n) % 32)) & 1 == 1


@pytest.mark.parametrize("ends", [True, False], ids=["alpha", "no_alpha"])
def test_backward_gives_what_the_schema_says(ends):
    w0, w1, grad = torch.randn(3, 6, 7).unbind()
    args = (grad, w0 if ends else None, w1 if ends else None, torch.tensor(0.3), pack_bits(torch.rand(42) < 0.5), True)
    actual, expected = prune_backward(*args, torch.float32), fake_backward(*args, torch.float32)
    assert [(t.shape, t.dtype) for t in actual] == [(t.shape, t.dtype) for t in expected]


def test_backward_of_a_slice_of_the_gradient():
    torch.manual_seed(7)
    grad, mask_bits = torch.randn(30, 20).t()[:, ::2], pack_bits(torch.rand(300) < 0.5)
    args = (grad, None, None, torch.tensor(0.3), mask_bits, True, torch.float32)
    for actual, expected in zip(prune_backward(*args, block=32), reference_backward(*args), strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"w0": torch.randn(9).double(), "w1": None}, TypeError, "w0 must be float32, .*float64"),
        ({"dtype": torch.float64}, TypeError, "dtype must be float32, .*float64"),
        ({"w1": torch.randn(8)}, ValueError, r"w1 of layer 0 must have shape \(9,\), got \(8,\)"),
        ({"alpha": torch.tensor(0.5).double()}, TypeError, "alpha must be torch.float32, got torch.float64"),
        ({"alpha": torch.tensor([0.5])}, ValueError, r"alpha must have shape \(\), got \(1,\)"),
        ({"keep": torch.tensor(3, device="meta")}, ValueError, r"keep must be on \S+, got meta"),
    ],
    ids=["float64", "to_float64", "shape", "alpha_dtype", "alpha_shape", "device"],
)
def test_bad_arguments(change, error, words):
    arguments = {"w0": torch.randn(9), "w1": torch.randn(9), "alpha": torch.tensor(0.5), "keep": torch.tensor(3)}
    with pytest.raises(error, match="interpolate_prune: " + words):
        prune(**arguments | change)


def test_bad_mask_bits():
    with pytest.raises(ValueError, match=r"mask_bits of layer 0 must have shape \(2,\), got \(1,\)"):
        prune_backward(
            torch.randn(33), None, None, torch.tensor(0.5), torch.zeros(1, dtype=torch.int32), False, torch.float32
        )
