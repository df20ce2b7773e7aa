"""A 2-d convolution whose weight is stored sparse: only what is stored is multiplied."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded
from lcs_kernels.isa import max_name

from ._convolution import (
    backward,
    check_cap,
    check_channels,
    check_fits,
    conv2d,
    finished,
    geometry,
    laid_out_residual,
    memory_format,
    output_size,
)
from ._library import check_operands, check_sparse, check_vector, define, is_wide, wants_grad, widened, without_autocast
from .sparse_pack import MAX_BLOCK, reference_unpack

if TYPE_CHECKING:
    from lcs_kernels.formats import SparseWeight


@without_autocast
def reference(
    x,
    mask_bits,
    values,
    weight_shape,
    bias,
    stride,
    padding,
    dilation,
    groups,
    relu,
    block,
    prepack,
    scale=None,
    cap=None,
    residual=None,
) -> Tensor:
    """The dense convolution in float32 (float64 for float64), rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    w = reference_unpack(mask_bits, values, weight_shape).to(wide)
    start = None if bias is None or scale is not None else bias.to(wide)
    y = conv2d(x.to(wide), w, start, stride, padding, dilation, groups)
    y = finished(y, scale, bias if start is None else None, relu, cap, residual)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def fake(x, mask_bits, values, weight_shape, bias, stride, padding, dilation, *_):
    size = output_size(x.shape, weight_shape, stride, padding, dilation)
    return x.new_empty((x.shape[0], weight_shape[0], *size)).contiguous(memory_format=memory_format(x))


_op = define(
    "sparse_conv2d(Tensor x, Tensor mask_bits, Tensor values, SymInt[] weight_shape, Tensor? bias, SymInt[] stride,"
    " SymInt[] padding, SymInt[] dilation, SymInt groups, bool relu, SymInt block, Tensor[] prepack,"
    " Tensor? scale=None, float? cap=None, Tensor? residual=None) -> Tensor",
    reference,
    fake,
)


class SparseConv2d(torch.autograd.Function):
    """Gradients to x and bias, by the dense convolution: the stored weight is constant."""

    @staticmethod
    def forward(ctx, x, bias, relu, weight, geometry, block, prepack):
        run = reference if by_reference(x, block) else _op
        y = run(x, weight.mask_bits, weight.values, weight.shape, bias, *geometry, relu, block, prepack)
        ctx.save_for_backward(*([y] if relu else []))
        ctx.weight, ctx.geometry, ctx.x_shape = weight, geometry, x.shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return *backward(ctx, grad, ctx.weight.unpack, ctx.geometry), *[None] * 5


def block_for(channels: int, taps: int, density: float) -> int:
    """Columns of a block, whole channels of `taps`: so many that their part of x fits the first-level cache, unless
    that would leave a row of the weight with too few values to pay for coming back to its sums. Fewer with AVX2, where
    that costs less, unless the channels, and so mostly the sums, are many."""
    small = channels < 512 and max_name() == "avx2"
    wanted = max((16.0 if small else 24.0) if taps > 1 else 72.0, 10 / max(taps * density, 1e-6))
    blocks = max(round(channels / wanted), 1)
    return max(min(-(-channels // blocks), MAX_BLOCK // taps), 1) * taps


def by_reference(x: Tensor, block: int) -> bool:
    """float64, and kernels of more taps than 16-bit indices can tell apart."""
    return x.dtype == torch.float64 or block > MAX_BLOCK


def checked(x: Tensor, weight: SparseWeight, bias: Tensor | None, stride, padding, dilation, groups: int) -> tuple:
    """Geometry, block and prepack as the op takes them. Raises as `sparse_conv2d` does."""
    ensure_loaded()
    check_operands("sparse_conv2d", x, weight, "SparseWeight")
    stride, padding, dilation = geometry("sparse_conv2d", stride, padding, dilation)
    check_channels("sparse_conv2d", x, weight.shape, groups)
    check_fits("sparse_conv2d", x, weight.shape, padding, dilation)
    check_sparse("sparse_conv2d", x, weight, bias)
    block = block_for(weight.shape[1], weight.shape[2] * weight.shape[3], weight.density)
    prepack = weight.prepack(block) if x.is_cpu and not by_reference(x, block) else []
    return (stride, padding, dilation, groups), block, prepack


def sparse_conv2d(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    cap: float | None = None,
) -> Tensor:
    """`torch.nn.functional.conv2d`, then ReLU on request, from a sparse weight. Exact: float32 sums, rounded once.

    The result is scale * convolution + bias + residual, then ReLU. Differentiable once, to x, scale, bias and residual.
    The order of the sums depends on shapes, how many weights are stored, the instruction set and, on the CPU, the size
    of the second-level cache.

    Args:
        x: (n, c, h, w), float32 or bfloat16, contiguous or channels_last (other strides are copied); float64 runs the
            eager reference.
        weight: of shape (out_channels, c / groups, kernel_h, kernel_w), float32 or bfloat16.
        bias: (out_channels,), float32 (or x's dtype, which is widened).
        stride, padding, dilation: one number, or one for height and one for width.
        groups: as in conv2d.
        scale: as bias; a norm layer with fixed statistics folds into both.
        residual: of the result's shape, dtype and, to be read in place, strides.
        relu: whether to clamp the result at 0.
        cap: what ReLU ends at, as 6 of ReLU6; above 0.

    Returns:
        (n, out_channels, h', w') of x's dtype and memory format.

    Raises:
        ValueError: shapes, devices or settings that do not fit; a cap without ReLU.
        TypeError: another dtype, or another weight.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    geometry = (stride, padding, dilation, groups)
    return bound_sparse_conv2d(x, weight, bias, *geometry, scale=scale, relu=relu, cap=cap)(x, residual)


def bound_sparse_conv2d(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    relu: bool = False,
    cap: float | None = None,
) -> Callable[..., Tensor]:
    """`sparse_conv2d`, all checked, for any x of the shape, dtype and device of this one, and any residual, which comes
    second. Raises as it does."""
    geometry, block, prepack = checked(x, weight, bias, stride, padding, dilation, groups)
    check_vector("sparse_conv2d", "scale", scale, x, weight.shape)
    check_cap("sparse_conv2d", relu, cap)
    slow = by_reference(x, block)

    def settings(bias: Tensor | None, scale: Tensor | None) -> tuple:
        stored = (weight.mask_bits, weight.values, weight.shape)
        return (*stored, bias, *geometry, relu, block, prepack, scale, cap)

    ready = settings(bias, scale) if is_wide(bias, scale) else None
    size = (x.shape[0], weight.shape[0], *output_size(x.shape, weight.shape, *geometry[:3]))

    def run(x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None:
            residual = laid_out_residual("sparse_conv2d", residual, size, x.dtype, x, memory_format(x))
        if not slow and not wants_grad(x, bias, scale, residual):
            return _op(x, *(ready or settings(widened(bias, x), widened(scale, x))), residual)
        if scale is None and cap is None and residual is None:
            return SparseConv2d.apply(x, widened(bias, x), relu, weight, geometry, block, prepack)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # so that the result is rounded once
        y = SparseConv2d.apply(wide, None, False, weight, geometry, block, prepack)
        y = finished(y, widened(scale, x), widened(bias, x), relu, cap, residual).to(x.dtype)
        return y.contiguous(memory_format=memory_format(x))  # `wide` may lie in another way

    return run
