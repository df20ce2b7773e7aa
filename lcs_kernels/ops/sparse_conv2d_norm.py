"""A sparse convolution and the norm behind it, whose input stays in the caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._convolution import Made, output_size
from ._library import define, is_wide, wants_grad, widened
from .line_norm import check as check_norm
from .line_norm import line_norm, ready_alpha
from .sparse_conv2d import by_reference, checked, sparse_conv2d

if TYPE_CHECKING:
    from lcs_kernels.formats import SparseWeight


def reference(
    x, mask_bits, values, weight_shape, bias, stride, padding, dilation, groups, block, prepack, *norm
) -> Tensor:
    """Both ops, one after the other, by the kernels that each of them has."""
    *line, residual, norm_groups, eps, relu = norm
    lcs, geometry = torch.ops.lcs, (stride, padding, dilation, groups)
    y = lcs.sparse_conv2d(x, mask_bits, values, weight_shape, bias, *geometry, False, block, prepack)
    return lcs.line_norm(y, *line, None, None, residual, norm_groups, eps, relu)[0]


_op = define(
    "sparse_conv2d_norm(Tensor x, Tensor mask_bits, Tensor values, SymInt[] weight_shape, Tensor? bias,"
    " SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, SymInt block, Tensor[] prepack,"
    " Tensor? weight0, Tensor? weight1, Tensor? bias0, Tensor? bias1, Tensor? alpha, Tensor? residual,"
    " SymInt norm_groups, float eps, bool relu) -> Tensor",
    reference,
    reference,
)


def sparse_conv2d_norm(
    x: Tensor,
    weight: SparseWeight,
    norm: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, float | Tensor | None],
    norm_groups: int,
    eps: float = 1e-5,
    *,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`line_norm` of `sparse_conv2d`, the same bits in one op. A norm with given statistics is a scale and a bias of
    `sparse_conv2d` itself.

    On the CPU the norm is in place: of a large batch each image is normalised by the thread that has made it, before it
    leaves the caches. Where a gradient is asked for, or for float64, both run one after the other, as they do on other
    devices.

    Args:
        x, weight, bias, stride, padding, dilation, groups: as of `sparse_conv2d`.
        norm: weight0, weight1, bias0, bias1 and alpha of `line_norm`; alpha may be None for a point.
        norm_groups: of the norm.
        eps, residual, relu: as of `line_norm`.

    Returns:
        (n, out_channels, h', w') of x's dtype and memory format.

    Raises:
        ValueError, TypeError, LcsUnavailableError: as the two.
    """
    geometry = {"bias": bias, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return bound_sparse_conv2d_norm(x, weight, norm, norm_groups, eps, **geometry, relu=relu)(x, residual)


def bound_sparse_conv2d_norm(
    x: Tensor,
    weight: SparseWeight,
    norm: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, float | Tensor | None],
    norm_groups: int,
    eps: float = 1e-5,
    *,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    relu: bool = False,
) -> Callable[..., Tensor]:
    """`sparse_conv2d_norm`, the convolution checked, for any x of the shape, dtype and device of this one, and any
    residual, which comes second. Raises as it does."""
    geometry, block, prepack = checked(x, weight, bias, stride, padding, dilation, groups)
    norm = (*norm[:4], ready_alpha(norm[1], norm[3], norm[4], x))
    slow = by_reference(x, block)

    def settings(bias: Tensor | None) -> tuple:
        return weight.mask_bits, weight.values, weight.shape, bias, *geometry, block, prepack, *norm

    ready, last = settings(bias) if is_wide(bias) else None, (norm_groups, eps, relu)

    def run(x: Tensor, residual: Tensor | None = None) -> Tensor:
        if slow or wants_grad(x, bias, *norm, residual):
            return apart(x, residual)
        try:
            return _op(x, *(ready or settings(widened(bias, x))), residual, *last)
        except RuntimeError:
            check(x, residual)  # says it as a ValueError or a TypeError
            raise

    def check(x: Tensor, residual: Tensor | None) -> None:
        checked(x, weight, bias, *geometry)
        y = Made.of(x, weight.shape[0], output_size(x.shape, weight.shape, *geometry[:3]))
        check_norm(y, *norm, None, None, residual, norm_groups, eps)

    def apart(x: Tensor, residual: Tensor | None) -> Tensor:
        y = sparse_conv2d(x, weight, bias, *geometry)
        return line_norm(y, *norm, norm_groups, eps, residual=residual, relu=relu)

    return run
