"""A linear layer at 2 to 8 bits, chosen per call, from one stored copy of the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels._load import ensure_loaded

from ._library import check_operands, check_packed, define, wants_grad, without_autocast
from ._linear import backward, check_fits
from .nested_pack import codes_of, reference_unpack

if TYPE_CHECKING:
    from lcs_kernels.formats import NestedWeight

MAX_COLUMNS = 32768  # that share a scale: twice their sum of products fits the kernels' 32 bits
LEAST = 2.0**-100  # as the largest magnitude of a row, so that its inverse is finite


def quantized(x: Tensor, dims: tuple[int, ...] = (-1,)) -> tuple[Tensor, Tensor]:
    """x as integers from -127 to 127 (int64), and half of what one counts; NaN where a value is not finite."""
    most = x.abs().amax(dims, keepdim=True) if x.numel() else x.new_zeros([1] * x.dim())
    finite = torch.isfinite(most)
    most = most.clamp(min=LEAST)
    q = torch.where(finite, x * (torch.full_like(most, 127) / most), 0).round().to(torch.int64)
    return q, torch.where(finite, most / 127 * 0.5, torch.nan)


@without_autocast
def reference(x, planes, scales, zero_points, out_features, group, bits, bias, relu, exact, prepack):
    """In integers, but for the scales; `exact`: the dense layer in float32 (float64 for float64), rounded once."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    shape = (out_features, x.shape[-1])
    if exact:
        y = F.linear(wide, reference_unpack(planes, scales, zero_points, shape, group, bits).to(wide.dtype))
    else:
        q, half = quantized(wide)
        codes, dropped = codes_of(planes, shape, bits), planes.shape[0] - bits
        y = wide.new_zeros((*x.shape[:-1], out_features))
        for g, (xs, ws) in enumerate(zip(q.split(group, -1), codes.split(group, -1), strict=True)):
            products = (xs.double() @ ws.double().t()).to(torch.int64)  # exact: below 2^53
            center = (1 << dropped) - 1 - 2 * zero_points[:, g].long()
            doubled = (products << (dropped + 1)) + center * xs.sum(-1, keepdim=True)
            y = doubled.to(wide.dtype) * scales[:, g] + (y if g else 0)
        y = y * half
    if bias is not None:
        y = y + bias.to(wide.dtype)
    return (y.relu() if relu else y).to(x.dtype)


def fake(x, planes, scales, zero_points, out_features, group, bits, bias, relu, exact, prepack):
    return x.new_empty((*x.shape[:-1], out_features))


_op = define(
    "packed_linear(Tensor x, Tensor planes, Tensor scales, Tensor zero_points, SymInt out_features, SymInt group,"
    " SymInt bits, Tensor? bias, bool relu, bool exact, Tensor[] prepack) -> Tensor",
    reference,
    fake,
)


class PackedLinear(torch.autograd.Function):
    """Gradients to x and bias, by the dense layer at this width, straight through the rounding of x."""

    @staticmethod
    def forward(ctx, x, bias, relu, weight, bits, exact, prepack):
        run = reference if _by_reference(x, weight, exact) else _op
        fields = (weight.planes, weight.scales, weight.zero_points, weight.shape[0], weight.group)
        y = run(x, *fields, bits, bias, relu, exact, prepack)
        ctx.save_for_backward(*([y] if relu else []))
        ctx.weight, ctx.bits = weight, bits
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return *backward(ctx, grad, lambda: ctx.weight.unpack(ctx.bits)), None, None, None, None, None


def _by_reference(x: Tensor, weight: NestedWeight, exact: bool) -> bool:
    """float64, and sums that 32 bits may not hold."""
    return x.dtype == torch.float64 or (not exact and min(weight.group, weight.columns) > MAX_COLUMNS)


def packed_linear(
    x: Tensor, weight: NestedWeight, bits: int, bias: Tensor | None = None, *, relu: bool = False, exact: bool = False
) -> Tensor:
    """x @ weight.T + bias, then ReLU on request, with the weight at `bits` bits.

    Each row of x is rounded to 8 bits first: x becomes round(127 * x / m), m being the row's largest magnitude, so it
    moves by at most m / 254. From there on the sums are integers, and the result is the same, bit for bit, on every
    instruction set and for any number of threads. A row that holds NaN or infinity comes out as NaN. With `exact`, x
    stays as it is and the sums are float32, rounded once.

    Differentiable once, to x and bias; the rounding of x passes gradients straight through.

    Args:
        x: (..., in_features), float32 or bfloat16; float64 runs the eager reference, as do more than 32,768 columns
            that share a scale unless `exact`.
        weight: of shape (out_features, in_features).
        bits: from 2 to 8; b bits read b / 8 of the weight's bytes.
        bias: (out_features,), float32 (or x's dtype, which is widened).
        relu: whether to clamp the result at 0.
        exact: whether x keeps its precision.

    Returns:
        (..., out_features), of x's dtype.

    Raises:
        ValueError: shapes, devices or bits that do not fit.
        TypeError: another dtype, or another weight.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    check_operands("packed_linear", x, weight, "NestedWeight")
    check_fits("packed_linear", x, weight.shape)
    bias = check_packed("packed_linear", x, weight, bits, bias)
    by_reference = _by_reference(x, weight, exact)
    prepack = weight.prepack() if (x.is_cpu or x.is_cuda) and not by_reference else []
    if wants_grad(x, bias) or by_reference:
        return PackedLinear.apply(x, bias, relu, weight, bits, exact, prepack)
    fields = (weight.planes, weight.scales, weight.zero_points, weight.shape[0], weight.group)
    return _op(x, *fields, bits, bias, relu, exact, prepack)
