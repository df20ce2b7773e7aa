"""A 2-d convolution at 2 to 8 bits, chosen per call, from one stored copy of the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels._load import ensure_loaded
from lcs_kernels.levels import range_tensors

from ._convolution import backward, check_fits, geometry, memory_format, output_size
from ._library import check_packed, define, wants_grad
from .nested_pack import codes_of, reference_unpack
from .packed_linear import quantized
from .quantize import grid

if TYPE_CHECKING:
    from lcs_kernels.formats import NestedWeight

MAX_TERMS, MAX_RANGED_TERMS = 32768, 16384  # of a sum, twice which fits the kernels' 32 bits


def on_range(x: Tensor, low: Tensor, high: Tensor, x_bits: int) -> tuple[Tensor, Tensor]:
    """x as integers (int64) less their zero point, and half of what one counts; NaN for an image that holds NaN."""
    bits = torch.full((), x_bits, dtype=torch.int64, device=x.device)
    scale, inverse, zero, lowest, highest = grid(low, high, bits, x.dtype)
    codes = ((x * inverse).nan_to_num(0.0).round() + zero).clamp(lowest, highest)
    spoilt = x.isnan().any(1).any(1).any(1)[:, None, None, None]
    return (codes - zero).to(torch.int64), torch.where(spoilt, torch.nan, scale * 0.5)


def convolved(q: Tensor, codes: Tensor, settings) -> Tensor:
    """In integers; exact, as sums stay below 2^53."""
    return F.conv2d(q.double(), codes.double(), None, *settings).to(torch.int64)


def reference(
    x, planes, scales, zero_points, weight_shape, bits, bias, stride, padding, dilation, groups, low, high, x_bits,
    relu, exact, prepack, group=None,
) -> Tensor:  # fmt: skip
    """In integers, but for the scales; `exact`: the dense convolution in float32 (float64 for float64), rounded once.

    group: columns that share a scale, by default all of them, which is what the kernels take.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    settings = (stride, padding, dilation, groups)
    columns = max(weight_shape[1] * weight_shape[2] * weight_shape[3], 1)
    group = min(group or columns, columns)
    if exact:
        w = reference_unpack(planes, scales, zero_points, weight_shape, group, bits).to(wide.dtype)
        y = F.conv2d(wide, w, None, *settings)
    else:
        q, half = quantized(wide, (1, 2, 3)) if low is None else on_range(wide, low, high, x_bits)
        codes, dropped = codes_of(planes, weight_shape, bits), planes.shape[0] - bits
        shared = torch.arange(columns, device=x.device) // group
        for g in range(-(-columns // group)):
            own = (shared == g)[: codes[0].numel()].view(weight_shape[1:])
            sums = convolved(q, own.expand(groups, *own.shape), settings)
            center = (1 << dropped) - 1 - 2 * zero_points[:, g].long()
            sums = center[:, None, None] * sums.repeat_interleave(weight_shape[0] // groups, 1)
            doubled = (convolved(q, codes * own, settings) << (dropped + 1)) + sums
            y = doubled.to(wide.dtype) * scales[:, g, None, None] + (y if g else 0)
        y = y * half
    if bias is not None:
        y = y + bias[:, None, None].to(wide.dtype)
    return (y.relu() if relu else y).to(x.dtype).contiguous(memory_format=memory_format(x))


def fake(
    x, planes, scales, zero_points, weight_shape, bits, bias, stride, padding, dilation, groups, low, high, x_bits,
    relu, exact, prepack,
) -> Tensor:  # fmt: skip
    size = output_size(x, weight_shape, stride, padding, dilation)
    return x.new_empty((x.shape[0], weight_shape[0], *size)).contiguous(memory_format=memory_format(x))


_op = define(
    "packed_conv2d(Tensor x, Tensor planes, Tensor scales, Tensor zero_points, SymInt[] weight_shape, SymInt bits,"
    " Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, Tensor? low, Tensor? high,"
    " SymInt x_bits, bool relu, bool exact, Tensor[] prepack) -> Tensor",
    reference,
    fake,
)


class PackedConv2d(torch.autograd.Function):
    """Gradients to x and bias, by the dense convolution at this width, straight through the rounding of x."""

    @staticmethod
    def forward(ctx, x, bias, weight, bits, settings, x_range, x_bits, relu, exact, prepack):
        fields = (weight.planes, weight.scales, weight.zero_points, weight.shape)
        arguments = (x, *fields, bits, bias, *settings, *x_range, x_bits, relu, exact, prepack)
        by_reference = _by_reference(x, weight, x_range, exact)
        y = reference(*arguments, weight.group) if by_reference else _op(*arguments)
        ctx.save_for_backward(*([y] if relu else []))
        ctx.weight, ctx.bits, ctx.settings, ctx.x_shape = weight, bits, settings, x.shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return *backward(ctx, grad, lambda: ctx.weight.unpack(ctx.bits), ctx.settings), *[None] * 8


def _by_reference(x: Tensor, weight: NestedWeight, x_range: tuple, exact: bool) -> bool:
    """float64, several scales in a channel, and sums that 32 bits may not hold."""
    most = MAX_TERMS if x_range[0] is None else MAX_RANGED_TERMS
    return x.dtype == torch.float64 or weight.group < weight.columns or (not exact and weight.columns > most)


def packed_conv2d(
    x: Tensor,
    weight: NestedWeight,
    bits: int,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    x_range: tuple[float | Tensor, float | Tensor] | None = None,
    x_bits: int = 8,
    relu: bool = False,
    exact: bool = False,
) -> Tensor:
    """`torch.nn.functional.conv2d`, then ReLU on request, with the weight at `bits` bits.

    x is rounded to 8 bits first, each image for itself: x becomes round(127 * x / m), m being the image's largest
    magnitude, so it moves by at most m / 254, and an image is worth the same in any batch. With `x_range`, x becomes
    what `lcs_kernels.quantize(x, *x_range, x_bits)` makes of it. From there on the sums are integers, and the result is
    the same, bit for bit, on every instruction set and for any number of threads. An image that holds NaN (or, without
    `x_range`, infinity) comes out as NaN. With `exact`, x stays as it is and the sums are float32, rounded once.

    Differentiable once, to x and bias; the rounding of x passes gradients straight through.

    Args:
        x: (n, c, h, w), float32 or bfloat16, contiguous or channels_last (other strides are copied). The eager
            reference runs float64, weights with several scales in a channel, and, unless `exact`, weights of more than
            32,768 columns (c / groups * kernel_h * kernel_w), or 16,384 with `x_range`.
        weight: of shape (out_channels, c / groups, kernel_h, kernel_w).
        bits: from 2 to 8; b bits read b / 8 of the weight's bytes.
        bias: (out_channels,), float32 (or x's dtype, which is widened).
        stride, padding, dilation: one number, or one for height and one for width.
        groups: as in conv2d.
        x_range: (low, high), numbers or 0-d tensors on x's device (values then unchecked), if it is known beforehand.
        x_bits: of x, from 2 to 8, over `x_range`.
        relu: whether to clamp the result at 0.
        exact: whether x keeps its precision.

    Returns:
        (n, out_channels, h', w') of x's dtype and memory format.

    Raises:
        ValueError: shapes, devices, bits, ranges or settings that do not fit.
        TypeError: another dtype.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    name = "packed_conv2d"
    if len(weight.shape) != 4:
        raise ValueError(f"{name}: weight must be (out_channels, in_channels / groups, h, w), got shape {weight.shape}")
    stride, padding, dilation = geometry(name, stride, padding, dilation)
    if x.dim() != 4 or groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"{name}: x has shape {tuple(x.shape)}, which does not fit a weight of shape {weight.shape} in {groups} "
            "groups"
        )
    check_fits(name, x, weight.shape, padding, dilation)
    bias = check_packed(name, x, weight, bits, bias)
    if x_range is not None and exact:
        raise ValueError(f"{name}: x_range rounds x, which `exact` rules out; give one of the two")
    if not 2 <= x_bits <= 8 or (x_range is None and x_bits != 8):
        raise ValueError(f"{name}: x_bits must lie in [2, 8], and be 8 without x_range, got {x_bits}")
    x_range = (None, None) if x_range is None else range_tensors(name, *x_range, x)
    settings = (stride, padding, dilation, groups)
    by_reference = _by_reference(x, weight, x_range, exact)
    taps = weight.shape[2] * weight.shape[3]
    prepack = weight.prepack(taps, groups) if x.is_cpu and not by_reference else []
    if wants_grad(x, bias) or by_reference:
        return PackedConv2d.apply(x, bias, weight, bits, settings, x_range, x_bits, relu, exact, prepack)
    fields = (weight.planes, weight.scales, weight.zero_points, weight.shape)
    return _op(x, *fields, bits, bias, *settings, *x_range, x_bits, relu, exact, prepack)
