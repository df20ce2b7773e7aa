"""Sparse weights and what float32 sums of them may differ by."""

import torch

from lcs_kernels.formats import SparseWeight
from lcs_kernels.ops._library import pack_bits

DTYPES = [torch.float32, torch.bfloat16]
# Unit roundoff of the one rounding from float32.
LAST = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}


def integers(*shape, dtype=torch.float32):
    """Small enough that bfloat16 holds them, and float32 every sum of products of two."""
    return torch.randint(-3, 4, shape).to(dtype)


def integer_weight(shape, density=0.3, dtype=torch.float32):
    """Zeros are stored too."""
    return SparseWeight.pack(integers(*shape, dtype=dtype), pack_bits(torch.rand(shape).flatten() < density))


def float_weight(shape, density=0.3, dtype=torch.float32):
    return SparseWeight.pack(torch.randn(shape).to(dtype), pack_bits(torch.rand(shape).flatten() < density))


def stored(weight):
    """Which weights are stored, in the dense shape, as 0 and 1."""
    ones = torch.ones(weight.values.numel())
    return SparseWeight(weight.mask_bits, ones, weight.shape).unpack()


def assert_within_roundings(y, exact, magnitude, terms):
    """y, of float32 sums, against the float64 `exact`.

    A sum of `terms` products and a bias in any order rounds each product once and each partial sum once: every term
    goes through at most terms + 1 roundings, so the error is at most ((1 + 2^-24)^(terms + 1) - 1) times `magnitude`,
    the sum of the terms' magnitudes. One more rounding stands for the float64 sum's own error. Then y is rounded.
    """
    error = ((1 + 2.0**-24) ** (terms.double() + 2) - 1) * magnitude
    last = LAST[y.dtype]
    assert ((y.double() - exact).abs() <= error + last * (exact.abs() + error)).all()
