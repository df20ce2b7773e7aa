"""The Triton kernels in Triton's interpreter, against the reference; blocks are small so that there are many tiles."""

import pytest
import torch

from lcs_kernels._triton import kernel
from lcs_kernels.ops.interpolate_quantize import fake_backward, reference, reference_backward

from ..ops.prune_cases import KINDS, assert_same

INTERPRET = True
BLOCK = 128
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

quantize = kernel("interpolate_quantize", "interpolate_quantize")
quantize_backward = kernel("interpolate_quantize", "interpolate_quantize_backward")


def check(w0, w1, alpha, bits, *rest):
    args = (w0, w1, torch.tensor(alpha), torch.tensor(bits), *rest)
    found = quantize(*args, block=BLOCK)
    assert found.is_contiguous()
    assert_same(found, reference(*args))


@pytest.mark.parametrize("nested", [False, True], ids=["paper", "nested"])
@pytest.mark.parametrize(("kind", "n"), [("normal", 1), ("normal", BLOCK), *((kind, 500) for kind in KINDS)])
def test_matches_reference(kind, n, nested):
    torch.manual_seed(n)
    w0, w1 = KINDS[kind](n)
    for bits in (1, 2, 3, 8, 9):
        check(w0, w1, 0.3, bits, 0, nested)


@pytest.mark.parametrize("kind", ["nonfinite", "half_range"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_dtypes(source, dtype, kind):
    torch.manual_seed(1)
    w0, w1 = (w.to(source) for w in KINDS[kind](300))
    check(w0, w1, 0.7, 4, 0, False, dtype)
    check(w0, None, 0.7, 4, 0, True, dtype)


@pytest.mark.parametrize("kind", ["normal", "nonfinite"])
@pytest.mark.parametrize("shape", [(5, 30, 3), (2, 300), (1, 5), (40,), (5, 0, 3), (0, 4)], ids=str)
def test_groups_of_any_size(kind, shape):
    torch.manual_seed(2)
    w0, w1 = (w.view(shape) for w in KINDS[kind](torch.Size(shape).numel()))
    for i, size in enumerate((7, 32, 89, 90, 91, 2**40)):
        check(w0, w1, 0.4, 3, size, i % 2 == 1)


@pytest.mark.parametrize(
    "view",
    [lambda w: w.t(), lambda w: w[1::2, 3:-2], lambda w: w[:1].expand(8, 60), lambda w: w[:0], lambda w: w[3, 7]],
    ids=["transposed", "strided", "expanded", "empty", "scalar"],
)
def test_any_shape_and_stride(view):
    torch.manual_seed(3)
    check(view(torch.randn(10, 60)), view(torch.randn(10, 60)), 0.5, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_backward_matches_reference(source, dtype):
    torch.manual_seed(4)
    w0, w1, grad = (t.to(kind) for t, kind in zip(torch.randn(3, 1000), (source, source, dtype), strict=True))
    args = (grad, w0, w1, torch.tensor(0.3), source)
    actual, expected = quantize_backward(*args, block=BLOCK), reference_backward(*args)
    assert_same(actual[0], expected[0])
    assert_same(actual[1], expected[1])
    terms = (grad.float() * (w1.float() - w0.float())).double().abs().sum()
    # a sum of at most BLOCK float32 terms a tile, each rounded twice, then one rounding of the total
    assert abs(float(actual[2].double() - expected[2].double())) <= float(terms) * (BLOCK + 3) * 2**-24


@pytest.mark.parametrize("ends", [True, False], ids=["alpha", "no_alpha"])
def test_backward_gives_what_the_schema_says(ends):
    w0, w1, grad = torch.randn(3, 6, 7).unbind()
    args = (grad, w0 if ends else None, w1 if ends else None, torch.tensor(0.3), torch.float32)
    actual, expected = quantize_backward(*args), fake_backward(*args)
    assert [(t.shape, t.dtype) for t in actual] == [(t.shape, t.dtype) for t in expected]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"w0": torch.randn(9).double(), "w1": None}, TypeError, "w0 must be float32, .*float64"),
        ({"dtype": torch.float64}, TypeError, "dtype must be float32, .*float64"),
        ({"w1": torch.randn(8)}, ValueError, r"w1 must have shape \(9,\), got \(8,\)"),
        ({"alpha": torch.tensor(0.5).double()}, TypeError, "alpha must be torch.float32, got torch.float64"),
        ({"bits": torch.tensor(3, device="meta")}, ValueError, r"bits must be on \S+, got meta"),
    ],
    ids=["float64", "to_float64", "shape", "alpha_dtype", "device"],
)
def test_bad_arguments(change, error, words):
    arguments = {"w0": torch.randn(9), "w1": torch.randn(9), "alpha": torch.tensor(0.5), "bits": torch.tensor(3)}
    with pytest.raises(error, match="interpolate_quantize: " + words):
        quantize(**arguments | change)
