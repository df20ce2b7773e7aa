"""The Triton kernel in Triton's interpreter, against the reference."""

import pytest
import torch

from lcs_kernels._triton import kernel
from lcs_kernels.ops.quantize import reference

from ..ops.prune_cases import KINDS, assert_same

INTERPRET = True
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RANGES = [(-0.3, 1.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0), (-3e38, 3e38), (0.0, 1e-40), (-float("inf"), 1.0)]

quantize = kernel("quantize", "quantize")


def check(x, low, high, bits, block=256):
    args = (x, torch.tensor(low), torch.tensor(high), torch.tensor(bits))
    found, expected = quantize(*args, block=block), reference(*args)
    assert_same(found, expected)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_matches_reference(kind, bits):
    torch.manual_seed(0)
    for low, high in RANGES:
        check(KINDS[kind](700)[0], low, high, bits)


@pytest.mark.parametrize("kind", ["normal", "nonfinite", "half_range"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, kind):
    torch.manual_seed(1)
    check(KINDS[kind](600)[0].to(dtype), -0.7, 2.0, 4)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[1::2, 3:-2],
        lambda x: x.reshape(2, 5, 6, 10).to(memory_format=torch.channels_last),
        lambda x: x[:0],
        lambda x: x[3, 7],
    ],
    ids=["transposed", "strided", "channels_last", "empty", "scalar"],
)
def test_any_shape_and_stride(view):
    torch.manual_seed(2)
    check(view(torch.randn(10, 60)), -1.0, 2.0, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.randn(9).double()}, TypeError, "x must be float32, .*float64"),
        ({"low": torch.tensor(0.5).double()}, TypeError, "low must be torch.float32, got torch.float64"),
        ({"bits": torch.tensor([3])}, ValueError, r"bits must have shape \(\), got \(1,\)"),
        ({"high": torch.tensor(3.0, device="meta")}, ValueError, r"high must be on \S+, got meta"),
    ],
    ids=["float64", "dtype", "shape", "device"],
)
def test_bad_arguments(change, error, words):
    arguments = {"x": torch.randn(9), "low": torch.tensor(-1.0), "high": torch.tensor(1.0), "bits": torch.tensor(3)}
    with pytest.raises(error, match="quantize: " + words):
        quantize(**arguments | change)
