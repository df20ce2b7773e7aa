"""Activations rounded to 2^bits values over a given range and back: fake quantisation, with a straight-through grad."""

from __future__ import annotations

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded
from lcs_kernels.levels import bits_tensor, range_tensors

from ._library import FLOATS, check_finite_weights, define, wants_grad


def grid(low: Tensor, high: Tensor, bits: Tensor, dtype: torch.dtype, nested: bool = False) -> tuple[Tensor, ...]:
    """scale, 1 / scale, zero point, lowest and highest code, in `dtype`; in float64 on the way, 0 getting a code."""
    finite = low.isfinite() & high.isfinite()
    low, high, bits = low.double().clamp(max=0), high.double().clamp(min=0), bits.clamp(2, 8)
    coded = torch.full_like(bits, 8) if nested else bits
    lowest = torch.zeros_like(bits) if nested else -(1 << (bits - 1))
    highest = lowest + (1 << coded) - 1
    scale = torch.where(finite, (high - low) / (highest - lowest), torch.nan)
    scale = torch.where(scale < torch.finfo(dtype).tiny, 0, scale)
    inverse = torch.where(scale == 0, 0, 1 / scale)
    zero = torch.where(scale == 0, 0, (lowest - low / scale).round().clamp(lowest, highest))
    return tuple(t.to(dtype) for t in (scale, inverse, zero, lowest, highest))


def on_grid(x: Tensor, low: Tensor, high: Tensor, bits: Tensor, nested: bool = False) -> Tensor:
    """x, quantised and back in its own dtype, float32 or float64; low and high broadcast over it.

    `nested` reads the leading bits of an unsigned 8-bit code at the middle of what they leave open. Elements take one
    product, and one product back, each rounded.
    """
    scale, inverse, zero, lowest, highest = grid(low, high, bits, x.dtype, nested)
    code = ((x * inverse).round() + zero).clamp(lowest, highest)
    if nested:
        step = (1 << (8 - bits.clamp(2, 8))).to(x.dtype)
        code = (code / step).floor() * step + (step - 1) / 2
    return (code - zero) * scale


def reference(x: Tensor, low: Tensor, high: Tensor, bits: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return on_grid(wide, low, high, bits).to(x.dtype)


def fake(x, low, high, bits):
    return torch.empty_like(x)


_op = define("quantize(Tensor x, Tensor low, Tensor high, Tensor bits) -> Tensor", reference, fake)


class Quantize(torch.autograd.Function):
    """The gradient passes unchanged, also where x was clipped (the straight-through estimator)."""

    @staticmethod
    def forward(ctx, x, low, high, bits):
        return (reference if x.dtype == torch.float64 else _op)(x, low, high, bits)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None, None


def quantize(
    x: Tensor, low: float | Tensor, high: float | Tensor, bits: int | Tensor, *, check_finite: bool = False
) -> Tensor:
    """x rounded to the nearest of 2^bits values evenly spread over [low, high], one of which is 0; the rest is clipped.

    scale = (high - low) / (2^bits - 1) in float64, after the range is widened to hold 0; the code of x is
    round(x / scale) + zero point, half to even, clamped to the signed range of `bits`, and stands for
    (code - zero point) * scale. Elements are computed in float32, x / scale as a product with the rounded 1 / scale, so
    that the result is bit for bit the same on every back end. NaN stays NaN; a range that is not finite makes all NaN,
    and one whose scale is below 2^-126 (0 among them) makes all 0. Differentiable to x, straight through everywhere
    (arXiv 2110.04252, section 3).

    Args:
        x: any shape and strides; float32, bfloat16, float16, or float64 (which runs the eager reference).
        low, high: the range; numbers with low <= high, or 0-d tensors on x's device (values then unchecked).
        bits: 2 to 8; a tensor is clamped. Pass a 0-d tensor to have torch.compile make one graph for all widths.
        check_finite: raise if x holds NaN or infinity (reads x, waits for the device).

    Returns:
        The values, of x's shape, dtype and strides.

    Raises:
        ValueError: bits or a range out of order, and with `check_finite` an x that is not finite.
        TypeError: a dtype other than those named.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    if x.dtype not in FLOATS:
        raise TypeError(f"quantize: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if check_finite:
        check_finite_weights("quantize", x=x)
    low, high = range_tensors("quantize", low, high, x)
    bits = bits_tensor("quantize", bits, x)
    if wants_grad(x) or x.dtype == torch.float64:
        return Quantize.apply(x, low, high, bits)
    return _op(x, low, high, bits)
