"""A convolution at any width and the norm behind it, whose input stays in the caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded

from ._library import define, wants_grad
from .line_norm import line_norm
from .width_conv2d import width_conv2d

if TYPE_CHECKING:
    from lcs_kernels.formats import WidthWeight


def reference(x, weight, out_channels, bias, stride, padding, dilation, groups, packed, *norm) -> Tensor:
    """Both ops, one after the other, by the kernels that each of them has."""
    *line, residual, norm_groups, eps, relu = norm
    lcs = torch.ops.lcs
    y = lcs.width_conv2d(x, weight, out_channels, None, bias, stride, padding, dilation, groups, False, packed)
    return lcs.line_norm(y, *line, None, None, residual, norm_groups, eps, relu)[0]


_op = define(
    "width_conv2d_norm(Tensor x, Tensor weight, SymInt out_channels, Tensor? bias, SymInt[] stride, SymInt[] padding,"
    " SymInt[] dilation, SymInt groups, Tensor? packed, Tensor? weight0, Tensor? weight1, Tensor? bias0,"
    " Tensor? bias1, Tensor? alpha, Tensor? residual, SymInt norm_groups, float eps, bool relu) -> Tensor",
    reference,
    reference,
)


def width_conv2d_norm(
    x: Tensor,
    weight: Tensor | WidthWeight,
    out_channels: int,
    norm: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    norm_groups: int | None = None,
    eps: float = 1e-5,
    *,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`line_norm` of `width_conv2d`, the same bits in one op: of one group of images, or one, at a time.

    On the CPU what is between the two is written to memory that is kept, and read again before it leaves the caches.
    Where a gradient is asked for, or for float64, both run one after the other, as they do on other devices.

    Args:
        x, weight, out_channels, bias, stride, padding, dilation, groups: as of `width_conv2d`.
        norm: weight0, weight1, bias0, bias1 and alpha of `line_norm`; alpha is a 0-d float32 tensor, or None for a
            point.
        norm_groups: of the norm; by default each channel is one (instance norm).
        eps, residual, relu: as of `line_norm`.

    Returns:
        (n, out_channels, h', w') of x's dtype and memory format.

    Raises:
        ValueError, TypeError, LcsUnavailableError: as the two.
    """
    ensure_loaded()
    norm_groups = norm_groups or out_channels
    geometry = (stride, padding, dilation, groups)
    if isinstance(weight, Tensor) or x.dtype == torch.float64 or wants_grad(x, bias, *norm, residual):
        y = width_conv2d(x, weight, out_channels, bias, *geometry)
        return line_norm(y, *norm, norm_groups, eps, residual=residual, relu=relu)
    packed = weight.prepack(x.dtype == torch.bfloat16 and groups == 1) if x.is_cpu else None
    settings = (norm_groups, eps, relu)
    try:
        return _op(x, weight.weight, out_channels, bias, *geometry, packed, *norm, residual, *settings)
    except RuntimeError:
        y = width_conv2d(x, weight, out_channels, bias, *geometry)  # says it as a ValueError or a TypeError
        line_norm(y, *norm, norm_groups, eps, residual=residual, relu=relu)
        raise
