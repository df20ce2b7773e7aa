"""A convolution at any width, the norm behind it and max pooling, whose inputs stay in the caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels._load import ensure_loaded

from ._convolution import Made, geometry, memory_format, output_size, window
from ._library import check_operands, define, is_wide, wants_grad, widened
from .line_norm import check as check_norm
from .line_norm import line_norm, ready_alpha
from .width_conv2d import bound_width_conv2d, prepacked, version_of, width, width_conv2d

if TYPE_CHECKING:
    from lcs_kernels.formats import WidthWeight

Pair = int | tuple[int, int]


def reference(x, weight, out_channels, bias, stride, padding, dilation, groups, packed, *norm) -> Tensor:
    """The ops one after the other, by the kernels that each of them has."""
    *line, residual, norm_groups, eps, relu, pool, mean, var = norm
    lcs = torch.ops.lcs
    y = lcs.width_conv2d(x, weight, out_channels, None, bias, stride, padding, dilation, groups, False, packed)
    y = lcs.line_norm(_last(y, pool), *line, mean, var, residual, norm_groups, eps, relu)[0]
    return _pooled(x, y, pool)


_op = define(
    "width_conv2d_norm(Tensor x, Tensor weight, SymInt out_channels, Tensor? bias, SymInt[] stride, SymInt[] padding,"
    " SymInt[] dilation, SymInt groups, Tensor? packed, Tensor? weight0, Tensor? weight1, Tensor? bias0,"
    " Tensor? bias1, Tensor? alpha, Tensor? residual, SymInt norm_groups, float eps, bool relu,"
    " SymInt[] pool, Tensor? mean, Tensor? var) -> Tensor",
    reference,
    reference,
)


def width_conv2d_norm(
    x: Tensor,
    weight: Tensor | WidthWeight,
    out_channels: int,
    norm: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, float | Tensor | None],
    norm_groups: int | None = None,
    eps: float = 1e-5,
    *,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    max_pool: tuple[Pair, Pair, Pair] | None = None,
) -> Tensor:
    """`line_norm` of `width_conv2d`, then max pooling on request, the same bits in one op: of a few images at a time.
    What is pooled is the norm of the convolution's result with channels last, whatever x's format.

    On the CPU what is in between is written to memory that is kept, and read again before it leaves the caches.
    Where a gradient is asked for, or for float64, they run one after the other, as they do on other devices.

    Args:
        x, weight, out_channels, bias, stride, padding, dilation, groups: as of `width_conv2d`.
        norm: weight0, weight1, bias0, bias1 and alpha of `line_norm`; alpha may be None for a point.
        norm_groups: of the norm; by default each channel is one (instance norm).
        eps, mean, var, residual, relu: as of `line_norm`.
        max_pool: kernel size, stride and padding of `torch.nn.functional.max_pool2d`, each one number or two.

    Returns:
        (n, out_channels, h', w') of x's dtype and memory format.

    Raises:
        ValueError, TypeError, LcsUnavailableError: as the two; ValueError too where the pooling does not fit.
    """
    geometry = {"bias": bias, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    after = {"mean": mean, "var": var, "relu": relu, "max_pool": max_pool}
    return bound_width_conv2d_norm(x, weight, out_channels, norm, norm_groups, eps, **geometry, **after)(x, residual)


def bound_width_conv2d_norm(
    x: Tensor,
    weight: Tensor | WidthWeight,
    out_channels: int,
    norm: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, float | Tensor | None],
    norm_groups: int | None = None,
    eps: float = 1e-5,
    *,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    relu: bool = False,
    max_pool: tuple[Pair, Pair, Pair] | None = None,
) -> Callable[..., Tensor]:
    """`width_conv2d_norm`, made ready for any x of the shape, dtype and device of this one, and any residual, which
    comes second. What raises as it does is this or the call."""
    ensure_loaded()
    if not isinstance(weight, Tensor):
        check_operands("width_conv2d_norm", x, weight, "WidthWeight")
    norm_groups = out_channels if norm_groups is None else norm_groups
    if not type(stride) is type(padding) is type(dilation) is tuple:
        stride, padding, dilation = geometry("width_conv2d", stride, padding, dilation)
    norm = (*norm[:4], ready_alpha(norm[1], norm[3], norm[4], x))
    pool = [] if max_pool is None else sum(window("width_conv2d_norm", *max_pool), [])

    def apart(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = width_conv2d(x, weight, out_channels, bias, stride, padding, dilation, groups)
        y = line_norm(_last(y, pool), *norm, norm_groups, eps, mean=mean, var=var, residual=residual, relu=relu)
        return _pooled(x, y, pool)

    if isinstance(weight, Tensor) or x.dtype == torch.float64:
        return apart
    packed, version = prepacked(x, weight, groups), version_of(weight)
    own_groups = width(x, weight.weight, out_channels, groups)[1] if groups > 1 else groups

    def settings(bias: Tensor | None) -> tuple:
        return weight.weight, out_channels, bias, stride, padding, dilation, own_groups, packed, *norm

    ready, last = settings(bias) if is_wide(bias) else None, (norm_groups, eps, relu, pool, mean, var)

    def run(x: Tensor, residual: Tensor | None = None) -> Tensor:
        if version is not None and weight.weight._version != version:
            weight.check_unchanged()  # raises
        if wants_grad(x, bias, *norm, residual):
            return apart(x, residual)
        try:
            return _op(x, *(ready or settings(widened(bias, x))), residual, *last)
        except RuntimeError:
            check(x, residual)  # says it as a ValueError or a TypeError
            raise

    def check(x: Tensor, residual: Tensor | None) -> None:
        bound_width_conv2d(x, weight, out_channels, bias, stride, padding, dilation, groups)
        size = output_size(x.shape, weight.weight.shape, stride, padding, dilation)
        y = Made.of(x, out_channels, size)
        check_norm(y, *norm, mean, var, residual, norm_groups, eps)
        _check_windows(y, pool)

    check(x, None)
    return run


def _last(y: Tensor, pool: list[int]) -> Tensor:
    """What is pooled lies channels last, which the order of a norm's sums depends on."""
    return y.contiguous(memory_format=torch.channels_last) if pool else y


def _pooled(x: Tensor, y: Tensor, pool: list[int]) -> Tensor:
    """In x's format. Raises ValueError where a window is larger than y with its padding."""
    if not pool:
        return y
    _check_windows(y, pool)
    return F.max_pool2d(y, pool[:2], pool[2:4], pool[4:]).contiguous(memory_format=memory_format(x))


def _check_windows(y: Tensor | Made, pool: list[int]) -> None:
    kernel, padding = pool[:2], pool[4:]
    if any(k > n + 2 * p for k, n, p in zip(kernel, y.shape[2:], padding, strict=False)):
        raise ValueError(f"width_conv2d_norm: a window of {kernel} does not fit {tuple(y.shape)}, padded by {padding}")
