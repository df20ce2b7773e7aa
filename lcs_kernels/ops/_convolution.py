"""What the 2-d convolutions and the norms behind them share: memory formats, and the checks of their geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ._library import through_relu


def memory_format(x: Tensor) -> torch.memory_format:
    """That of the result: x's own, channels last only where x is not contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def output_size(x_shape: Sequence[int], weight_shape: Sequence[int], stride, padding, dilation=(1, 1)) -> list[int]:
    """Height and width of the result; of `weight_shape` only the last two count."""
    axes = zip(x_shape[2:], weight_shape[-2:], stride, padding, dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]


def geometry(op: str, stride, padding, dilation) -> tuple[list[int], list[int], list[int]]:
    """Each as two numbers. Raises ValueError where one is out of range."""
    return _pair(op, "stride", stride, 1), _pair(op, "padding", padding, 0), _pair(op, "dilation", dilation, 1)


def window(op: str, kernel_size, stride, padding) -> tuple[list[int], list[int], list[int]]:
    """Of max pooling, each as two numbers. Raises ValueError where one is out of range."""
    kernel = _pair(op, "kernel_size", kernel_size, 1)
    stride, padding = _pair(op, "stride", stride, 1), _pair(op, "padding", padding, 0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"{op}: padding {padding} is more than half of a window of {kernel}")
    return kernel, stride, padding


def _pair(op: str, name: str, value: int | tuple[int, int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, Integral) else list(value) if hasattr(value, "__len__") else []
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{op}: {name} must be one number or two, {least} or more, got {value}")
    return pair


def check_channels(op: str, x: Tensor, weight_shape: Sequence[int], groups: int) -> None:
    """Raises ValueError where the weight is not that of a 2-d convolution, or not one of x's channels in `groups`."""
    if len(weight_shape) != 4:
        raise ValueError(f"{op}: weight must be (out_channels, in_channels / groups, h, w), got shape {weight_shape}")
    if x.dim() != 4 or groups < 1 or x.shape[1] != weight_shape[1] * groups or weight_shape[0] % groups:
        raise ValueError(
            f"{op}: x has shape {tuple(x.shape)}, which does not fit a weight of shape {weight_shape} in {groups} "
            "groups"
        )


def check_fits(op: str, x: Tensor, weight_shape: Sequence[int], padding: list[int], dilation: list[int]) -> None:
    """Raises ValueError where the kernel is larger than the padded input."""
    for size, kernel, p, d in zip(x.shape[2:], weight_shape[2:], padding, dilation, strict=True):
        if kernel < 1 or d * (kernel - 1) >= size + 2 * p:
            raise ValueError(
                f"{op}: a kernel of {kernel}, dilated by {d}, does not fit an input of {size}, padded by {p}"
            )


class Made(NamedTuple):
    """What checks read of a tensor that is not made yet."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor, channels: int, size: Sequence[int]) -> Made:
        """Of a convolution of x."""
        return cls(torch.Size((x.shape[0], channels, *size)), x.dtype, x.device)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int) -> Tensor:
    """torch's, which refuses images without pixels and, of a weight without input channels, loses its output channels:
    sums of nothing are 0."""
    if x.numel() and weight.numel():
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    size = output_size(x.shape, weight.shape, stride, padding, dilation)
    y = x.new_zeros((x.shape[0], weight.shape[0], *size))
    return y if bias is None else y + bias[:, None, None]


def finished(
    y: Tensor, scale: Tensor | None, bias: Tensor | None, relu: bool, cap: float | None, residual: Tensor | None = None
) -> Tensor:
    """What comes behind a convolution's sums, in their dtype; of scale and bias the first of the channels count."""
    out = y.shape[1]
    y = y if scale is None else y * scale[:out, None, None].to(y.dtype)
    y = y if bias is None else y + bias[:out, None, None].to(y.dtype)
    y = y if residual is None else y + residual
    if relu:
        return y.relu() if cap is None else F.hardtanh(y, 0.0, cap)
    return y


def laid_out_residual(
    op: str, residual: Tensor, size: Sequence[int], dtype: torch.dtype, x: Tensor, layout: torch.memory_format
) -> Tensor:
    """As an op of x takes it whose result has this size, dtype and layout. Raises ValueError where it does not fit."""
    if tuple(residual.shape) != tuple(size) or residual.dtype != dtype or residual.device != x.device:
        raise ValueError(
            f"{op}: residual must be {tuple(size)} {dtype} on {x.device}, "
            f"got {tuple(residual.shape)} {residual.dtype} on {residual.device}"
        )
    return residual.contiguous(memory_format=layout)


def check_cap(op: str, relu: bool, cap: float | None) -> None:
    """Raises ValueError where there is no ReLU to end at `cap`, or nothing is left of it."""
    if cap is not None and not (relu and cap > 0):
        raise ValueError(f"{op}: cap must be above 0 and needs relu=True, got {cap} and relu={relu}")


def backward(ctx, grad: Tensor, unpack: Callable[[], Tensor], settings) -> tuple[Tensor | None, Tensor | None]:
    """To x and bias, by the dense convolution; ctx has saved the result where ReLU came last, and nothing else."""
    for y in ctx.saved_tensors:
        grad = through_relu(grad, y)
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.nn.grad.conv2d_input(ctx.x_shape, unpack().to(wide.dtype), wide, *settings).to(grad.dtype)
    return grad_x, wide.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
