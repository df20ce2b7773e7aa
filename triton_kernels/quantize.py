"""Triton twin of `quantize`, and the arithmetic that `interpolate_quantize` has in common with it.

These kernels are tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100. They have not run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import BLOCK, OPTIONS, TYPES, check, check_type, rounded, widened

WHOLE = tl.constexpr(12582912.0)  # 1.5 * 2^23: added and taken away again, rounds to whole numbers, half to even
WHOLE_DOUBLE = tl.constexpr(6755399441055744.0)  # 1.5 * 2^52
FAR = tl.constexpr(1024.0)  # beyond every code
TINY = tl.constexpr(1.1754943508222875e-38)  # float32's least normal number


@triton.jit
def clamped(x, low, high):
    """A NaN stays."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def grid_of(low, high, bits, NESTED: tl.constexpr):
    """The scale, its inverse, the zero point, the first and the last code, and how many of 8 bits are one here."""
    finite = (low - low == 0) & (high - high == 0)
    bits = tl.minimum(tl.maximum(bits, 2), 8).to(tl.int32)
    coded = bits * 0 + 8 if NESTED else bits
    lowest = (bits * 0 if NESTED else -(1 << (coded - 1))).to(tl.float64)
    highest = lowest + ((1 << coded) - 1).to(tl.float64)
    bottom = tl.where(low < 0, low, 0.0).to(tl.float64)
    top = tl.where(high > 0, high, 0.0).to(tl.float64)
    scale = tl.where(finite, (top - bottom) / (highest - lowest), 0.0)
    empty = scale < TINY
    scale = tl.where(empty, 1.0, scale)
    zero = clamped((lowest - bottom / scale + WHOLE_DOUBLE) - WHOLE_DOUBLE, lowest, highest)
    inverse = tl.where(empty, 0.0, 1.0 / scale).to(tl.float32)
    zero = tl.where(empty, 0.0, zero).to(tl.float32)
    scale = tl.where(finite, tl.where(empty, 0.0, scale), float("nan")).to(tl.float32)
    return scale, inverse, zero, lowest.to(tl.float32), highest.to(tl.float32), 1 << (coded - bits)


@triton.jit
def on_grid(x, low, high, bits, NESTED: tl.constexpr):
    """float32 x, quantised over [low, high] and back; low, high and bits are scalars."""
    scale, inverse, zero, lowest, highest, step = grid_of(low, high, bits, NESTED)
    code = (clamped(x * inverse, -FAR, FAR) + WHOLE) - WHOLE
    code = clamped(code + zero, lowest, highest)
    if NESTED:
        whole = step.to(tl.float32)
        code = tl.floor(code * tl.div_rn(1.0, whole)) * whole + (whole - 1) * 0.5
    return (code - zero) * scale


@triton.jit
def quantize_kernel(x, to, low, high, bits, n, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    values = widened(tl.load(x + offsets, mask=inside, other=0.0))
    values = on_grid(values, tl.load(low), tl.load(high), tl.load(bits), False)
    tl.store(to + offsets, rounded(values, TYPE), mask=inside)


def quantize(x: Tensor, low: Tensor, high: Tensor, bits: Tensor, block: int = BLOCK) -> Tensor:
    """As the op's schema, on the GPU of `x`."""
    check_type("quantize", "x", x.dtype)
    check("quantize", "low", low, x, torch.float32, ())
    check("quantize", "high", high, x, torch.float32, ())
    check("quantize", "bits", bits, x, torch.int64, ())
    to = torch.empty_like(x)
    x = x if x.stride() == to.stride() else x.clone()
    n = x.numel()
    if n:
        with torch.cuda.device_of(x):
            grid = (triton.cdiv(n, block),)
            quantize_kernel[grid](x, to, low, high, bits, n, TYPE=TYPES[x.dtype], BLOCK=block, **OPTIONS)
    return to
