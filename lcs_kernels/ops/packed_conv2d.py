"""A 2-d convolution at 2 to 8 bits, chosen per call, from one stored copy of the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded
from lcs_kernels.levels import range_tensors

from ._convolution import (
    backward,
    check_channels,
    check_fits,
    conv2d,
    geometry,
    laid_out_residual,
    memory_format,
    output_size,
)
from ._library import check_operands, check_packed, define, wants_grad, without_autocast
from .nested_pack import STEP, codes_of, reference_unpack
from .packed_linear import quantized
from .quantize import grid

if TYPE_CHECKING:
    from lcs_kernels.formats import NestedWeight

MAX_TERMS, MAX_RANGED_TERMS = 32768, 16384  # of a sum, twice which fits the kernels' 32 bits


def codes_on(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """The codes of `quantize`'s grid, int8: of NaN the lowest one, and 0 of a range without a step or an end."""
    _, inverse, zero, lowest, highest = grid(low, high, torch.full((), bits, device=x.device), x.dtype)
    found = (x * inverse).round() + zero
    found = torch.where(found.isnan(), lowest, found).clamp(lowest, highest)
    return torch.where(inverse > 0, found, 0).to(torch.int8)


def on_range(x: Tensor, low: Tensor, high: Tensor, x_bits: int) -> tuple[Tensor, Tensor]:
    """x as integers (int64) less their zero point, and half of what one counts; NaN for an image that holds NaN."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    scale, _, zero, *_ = grid(low, high, torch.full((), x_bits, device=x.device), dtype)
    zero = zero.nan_to_num(0.0).long()
    if x.dtype == torch.int8:
        return x.long() - zero, scale * 0.5
    spoilt = x.isnan().any(1).any(1).any(1)[:, None, None, None]
    return codes_on(x, low, high, x_bits).long() - zero, torch.where(spoilt, torch.nan, scale * 0.5)


def convolved(q: Tensor, codes: Tensor, settings) -> Tensor:
    """In integers; exact, as sums stay below 2^53. Rounded, for a library of convolutions may choose an inexact way."""
    return conv2d(q.double(), codes.double(), None, *settings).round().to(torch.int64)


@without_autocast
def reference(
    x, planes, scales, zero_points, weight_shape, bits, bias, stride, padding, dilation, groups, low, high, x_bits,
    relu, exact, prepack, residual=None, y_low=None, y_high=None, y_bits=8, *, group=None,
) -> Tensor:  # fmt: skip
    """In integers, but for the scales; `exact`: the dense convolution in float32 (float64 for float64), rounded once.

    group: columns that share a scale, by default all of them, which is what the kernels take.
    """
    wide = x if x.dtype == torch.int8 else x.to(torch.promote_types(x.dtype, torch.float32))
    float_type = torch.float32 if x.dtype == torch.int8 else wide.dtype
    settings = (stride, padding, dilation, groups)
    columns = max(weight_shape[1] * weight_shape[2] * weight_shape[3], 1)
    group = columns if group is None else min(group, columns)
    if exact:
        w = reference_unpack(planes, scales, zero_points, weight_shape, group, bits).to(wide.dtype)
        y = conv2d(wide, w, None, *settings)
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
            y = doubled.to(float_type) * scales[:, g, None, None] + (y if g else 0)
        y = y * half
    if bias is not None:
        y = y + bias[:, None, None].to(float_type)
    if residual is not None:
        y = y + residual.to(float_type)
    y = y.relu() if relu else y
    dtype, layout = result_type(x, y_low)
    return (y.to(dtype) if y_low is None else codes_on(y, y_low, y_high, y_bits)).contiguous(memory_format=layout)


def result_type(x: Tensor, y_low: Tensor | None) -> tuple[torch.dtype, torch.memory_format]:
    """Of the result: x's own, but codes lie channels last, and what is made of them is float32."""
    codes = x.dtype == torch.int8 or y_low is not None
    dtype = torch.int8 if y_low is not None else torch.float32 if codes else x.dtype
    return dtype, torch.channels_last if codes else memory_format(x)


def fake(
    x, planes, scales, zero_points, weight_shape, bits, bias, stride, padding, dilation, groups, low, high, x_bits,
    relu, exact, prepack, residual=None, y_low=None, y_high=None, y_bits=8,
) -> Tensor:  # fmt: skip
    size = output_size(x.shape, weight_shape, stride, padding, dilation)
    dtype, layout = result_type(x, y_low)
    return x.new_empty((x.shape[0], weight_shape[0], *size), dtype=dtype).contiguous(memory_format=layout)


_op = define(
    "packed_conv2d(Tensor x, Tensor planes, Tensor scales, Tensor zero_points, SymInt[] weight_shape, SymInt bits,"
    " Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, Tensor? low, Tensor? high,"
    " SymInt x_bits, bool relu, bool exact, Tensor[] prepack, Tensor? residual=None, Tensor? y_low=None,"
    " Tensor? y_high=None, SymInt y_bits=8) -> Tensor",
    reference,
    fake,
)


class PackedConv2d(torch.autograd.Function):
    """Gradients to x, bias and residual, by the dense convolution at this width, straight through the rounding of x."""

    @staticmethod
    def forward(ctx, x, bias, residual, weight, bits, settings, x_range, x_bits, relu, exact, prepack, y_range):
        fields = (weight.planes, weight.scales, weight.zero_points, weight.shape)
        arguments = (x, *fields, bits, bias, *settings, *x_range, x_bits, relu, exact, prepack, residual, *y_range)
        by_reference = _by_reference(x, weight, x_range, exact)
        y = reference(*arguments, group=weight.group) if by_reference else _op(*arguments)
        ctx.save_for_backward(*([y] if relu else []))
        ctx.weight, ctx.bits, ctx.settings, ctx.x_shape = weight, bits, settings, x.shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grad_residual = torch.where(ctx.saved_tensors[0] > 0, grad, 0) if ctx.saved_tensors else grad
        grads = backward(ctx, grad, lambda: ctx.weight.unpack(ctx.bits), ctx.settings)
        return *grads, grad_residual if ctx.needs_input_grad[2] else None, *[None] * 9


def _by_reference(x: Tensor, weight: NestedWeight, x_range: tuple, exact: bool) -> bool:
    """float64, several scales in a channel, and sums that 32 bits may not hold."""
    most = MAX_TERMS if x_range[0] is None else MAX_RANGED_TERMS
    return x.dtype == torch.float64 or weight.group < weight.columns or (not exact and weight.columns > most)


def prepacked(weight: NestedWeight, groups: int, device: torch.device) -> list[Tensor]:
    """What the kernels read. On a CPU the taps of a kernel's row are put together where they have few channels each,
    and a depthwise weight is a matrix of channels x taps."""
    out, channels, height, width = weight.shape
    if device.type == "cpu" and channels == 1 and out == groups > 1:
        return weight.prepack()
    joined = width if device.type == "cpu" and channels < STEP else 1
    return weight.prepack(height * width, groups, joined)


def _check_bits(which: str, bits: int, over: tuple | None) -> None:
    if not 2 <= bits <= 8 or (over is None and bits != 8):
        raise ValueError(f"packed_conv2d: {which}_bits must lie in [2, 8], and be 8 without {which}_range, got {bits}")


def _check_residual(x: Tensor, weight_shape, residual: Tensor | None, settings, y_range: tuple) -> Tensor | None:
    """As the op takes it: laid out as the result."""
    if residual is None:
        return None
    size = (x.shape[0], weight_shape[0], *output_size(x.shape, weight_shape, *settings[:3]))
    dtype, layout = result_type(x, None)[0], result_type(x, y_range[0])[1]
    return laid_out_residual("packed_conv2d", residual, size, dtype, x, layout)


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
    residual: Tensor | None = None,
    relu: bool = False,
    y_range: tuple[float | Tensor, float | Tensor] | None = None,
    y_bits: int = 8,
    exact: bool = False,
) -> Tensor:
    """`torch.nn.functional.conv2d`, plus a residual and then ReLU on request, with the weight at `bits` bits.

    x is rounded to 8 bits first, each image for itself: x becomes round(127 * x / m), m being the image's largest
    magnitude, so it moves by at most m / 254, and an image is worth the same in any batch. With `x_range`, x becomes
    what `lcs_kernels.quantize(x, *x_range, x_bits)` makes of it. From there on the sums are integers, and the result is
    the same, bit for bit, on every instruction set and for any number of threads. An image that holds NaN (or, without
    `x_range`, infinity) comes out as NaN. With `exact`, x stays as it is and the sums are float32, rounded once.

    Between convolutions of a network codes can stay integers: with `y_range` the result is the codes of
    `lcs_kernels.quantize`'s grid over it, int8, which a next call takes as its x, with that range as its `x_range`.

    Differentiable once, to x, bias and residual; the rounding of x passes gradients straight through. Codes have no
    gradient.

    Args:
        x: (n, c, h, w), float32 or bfloat16, contiguous or channels_last (other strides are copied), or codes over
            `x_range`, int8, channels_last. The eager reference runs float64, weights with several scales in a channel,
            and, unless `exact`, weights of more than 32,768 columns (c / groups * kernel_h * kernel_w), or 16,384 with
            `x_range`.
        weight: of shape (out_channels, c / groups, kernel_h, kernel_w).
        bits: from 2 to 8; b bits read b / 8 of the weight's bytes.
        bias: (out_channels,), float32 (or x's dtype, which is widened).
        stride, padding, dilation: one number, or one for height and one for width.
        groups: as in conv2d.
        x_range: (low, high), numbers or 0-d tensors on x's device (values then unchecked), if it is known beforehand.
        x_bits: of x, from 2 to 8, over `x_range`.
        residual: of the result's shape and, codes aside, dtype: added before ReLU. Other strides than the result's are
            copied.
        relu: whether to clamp the result at 0.
        y_range: (low, high) as `x_range`, of the result, which is rounded to codes: NaN to the lowest one, and to
            0 over a range without a step or an end.
        y_bits: of the result, from 2 to 8, over `y_range`.
        exact: whether x keeps its precision.

    Returns:
        (n, out_channels, h', w') of x's dtype and memory format; of codes float32, channels_last; with `y_range` int8,
        channels_last.

    Raises:
        ValueError: shapes, devices, bits, ranges or settings that do not fit.
        TypeError: another dtype, or another weight.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    name = "packed_conv2d"
    check_operands(name, x, weight, "NestedWeight")
    stride, padding, dilation = geometry(name, stride, padding, dilation)
    check_channels(name, x, weight.shape, groups)
    check_fits(name, x, weight.shape, padding, dilation)
    bias = check_packed(name, x, weight, bits, bias, codes=True)
    _check_bits("x", x_bits, x_range)
    _check_bits("y", y_bits, y_range)
    if x.dtype == torch.int8 and x_range is None:
        raise ValueError(f"{name}: x holds codes (int8): give the x_range that they were made over")
    if x_range is not None and exact:
        raise ValueError(f"{name}: x_range rounds x, which `exact` rules out; give one of the two")
    wants = wants_grad(x, bias, residual)
    if wants and y_range is not None:
        raise ValueError(f"{name}: y_range makes codes, which have no gradient; call it under torch.no_grad()")
    x_range = (None, None) if x_range is None else range_tensors(name, *x_range, x)
    y_range = (None, None, 8) if y_range is None else (*range_tensors(name, *y_range, x), y_bits)
    settings = (stride, padding, dilation, groups)
    residual = _check_residual(x, weight.shape, residual, settings, y_range)
    by_reference = _by_reference(x, weight, x_range, exact)
    prepack = prepacked(weight, groups, x.device) if (x.is_cpu or x.is_cuda) and not by_reference else []
    if wants or by_reference:
        return PackedConv2d.apply(
            x, bias, residual, weight, bits, settings, x_range, x_bits, relu, exact, prepack, y_range
        )
    fields = (weight.planes, weight.scales, weight.zero_points, weight.shape)
    return _op(x, *fields, bits, bias, *settings, *x_range, x_bits, relu, exact, prepack, residual, *y_range)
