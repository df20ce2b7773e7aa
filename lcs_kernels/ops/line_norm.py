"""Group, instance and batch norm with an affine part that is a point of a line, cut to the channels that arrive."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded
from lcs_kernels.levels import alpha_tensor

from ._convolution import memory_format
from ._library import FLOATS, check_ends, define, once_differentiable, through_relu, wants_grad


def reference(
    x, weight0, weight1, bias0, bias1, alpha, mean, var, residual, groups, eps, relu
) -> tuple[Tensor, Tensor]:
    """y, and the mean and the inverse deviation of each group of each sample as (2, n, groups), empty where given."""
    check(x, weight0, weight1, bias0, bias1, alpha, mean, var, residual, groups, eps)
    wide = _wide(x)
    centred, rstd = x.to(wide), None
    if mean is not None:
        centred, rstd = centred - _per_channel(mean, x), (_per_channel(var, x) + eps).rsqrt()
        y, statistics = centred * rstd, x.new_empty(0, dtype=wide)
    else:
        grouped = centred.reshape(len(x), groups, math.prod(x.shape[1:]) // groups)
        middle = grouped.mean(2, keepdim=True)
        rstd = ((grouped - middle).square().mean(2, keepdim=True) + eps).rsqrt()
        y, statistics = ((grouped - middle) * rstd).view(x.shape), torch.stack([middle, rstd]).squeeze(3).detach()
    if weight0 is not None:
        y = y * _per_channel(blend(weight0, weight1, alpha), x)
    if bias0 is not None:
        y = y + _per_channel(blend(bias0, bias1, alpha), x)
    y = y.to(x.dtype)
    y = y if residual is None else y + residual
    return _laid_out_as(x, y.relu() if relu else y), statistics


def reference_backward(
    grad, x, weight0, weight1, bias0, bias1, alpha, mean, var, statistics, groups, eps, relu
) -> tuple[Tensor, ...]:
    """Gradients to x, both ends of the weight and of the bias, and alpha; in float32 (float64 for float64) but for x's.

    Of an end's own shape, 0 outside of what was used; empty where there is no such end.
    """
    wide = _wide(x)
    samples, channels = x.shape[:2]
    if mean is not None:
        middle, rstd = _per_channel(mean, x), (_per_channel(var, x) + eps).rsqrt()
    else:
        size = (samples, groups, channels // groups, math.prod(x.shape[2:]))
        middle, rstd = (
            s[:, :, None].expand(size[:3]).reshape(samples, channels, *[1] * (x.dim() - 2)) for s in statistics
        )
    centred = x.to(wide) - middle
    weight, bias = (_blended(*ends, alpha, x, fill) for ends, fill in (((weight0, weight1), 1), ((bias0, bias1), 0)))
    grad = grad.to(wide)
    if relu:
        grad = torch.where(centred * (rstd * weight) + bias > 0, grad, 0)
    normed, inner = centred * rstd, [0, *range(2, x.dim())]
    grad_weight, grad_bias = (grad * normed).sum(inner), grad.sum(inner)
    grad_x = grad * weight
    if mean is None:
        normed, rest = (t.reshape(size) for t in (normed, grad_x))
        through = rest.mean((2, 3), keepdim=True) + normed * (rest * normed).mean((2, 3), keepdim=True)
        grad_x = (rest - through).view(x.shape)
    grad_x = _laid_out_as(x, (grad_x * rstd).to(x.dtype))
    ends, to_alpha = [], grad.new_zeros((), dtype=torch.float64)
    for total, end0, end1 in ((grad_weight, weight0, weight1), (grad_bias, bias0, bias1)):
        parts = (total if end1 is None else (1 - alpha) * total), None if end1 is None else alpha * total
        ends += [
            x.new_empty(0, dtype=wide) if end is None else torch.nn.functional.pad(part, (0, len(end) - channels))
            for part, end in zip(parts, (end0, end1), strict=True)
        ]
        if end1 is not None:
            to_alpha = to_alpha + (total.double() * (end1[:channels].to(wide) - end0[:channels].to(wide))).sum()
    return grad_x, *ends, to_alpha.to(wide) if _is_line(weight1, bias1) else x.new_empty(0, dtype=wide)


def blend(end0: Tensor, end1: Tensor | None, alpha: Tensor | None) -> Tensor:
    """In float32 (float64 for float64), of values that the ends' dtype holds."""
    wide = torch.promote_types(end0.dtype, torch.float32)
    blended = end0 if end1 is None else ((1 - alpha) * end0.to(wide) + alpha * end1.to(wide)).to(end0.dtype)
    return blended.to(wide)


def _blended(end0: Tensor | None, end1: Tensor | None, alpha: Tensor | None, x: Tensor, fill: int) -> Tensor:
    return x.new_full((), fill, dtype=torch.float32) if end0 is None else _per_channel(blend(end0, end1, alpha), x)


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """The first of a vector, to be combined with x."""
    return vector[: x.shape[1]].view(-1, *[1] * (x.dim() - 2))


def _is_line(weight1: Tensor | None, bias1: Tensor | None) -> bool:
    return weight1 is not None or bias1 is not None


def _laid_out_as(x: Tensor, y: Tensor) -> Tensor:
    """Contiguous or channels last, as x is; contiguous where x is neither."""
    return y.contiguous(memory_format=memory_format(x))


def fake(x, weight0, weight1, bias0, bias1, alpha, mean, var, residual, groups, eps, relu):
    check(x, weight0, weight1, bias0, bias1, alpha, mean, var, residual, groups, eps)
    statistics = x.new_empty((2, x.shape[0], groups) if mean is None else 0, dtype=_wide(x))
    return _laid_out_as(x, x.new_empty(x.shape)), statistics


def fake_backward(grad, x, weight0, weight1, bias0, bias1, alpha, mean, var, statistics, groups, eps, relu):
    ends = (x.new_empty(0 if end is None else end.shape, dtype=_wide(x)) for end in (weight0, weight1, bias0, bias1))
    grad_alpha = x.new_empty(() if _is_line(weight1, bias1) else 0, dtype=_wide(x))
    return _laid_out_as(x, x.new_empty(x.shape)), *ends, grad_alpha


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


_op = define(
    "line_norm(Tensor x, Tensor? weight0, Tensor? weight1, Tensor? bias0, Tensor? bias1, Tensor? alpha, Tensor? mean,"
    " Tensor? var, Tensor? residual, SymInt groups, float eps, bool relu) -> (Tensor y, Tensor statistics)",
    reference,
    fake,
)
_op_backward = define(
    "line_norm_backward(Tensor grad, Tensor x, Tensor? weight0, Tensor? weight1, Tensor? bias0, Tensor? bias1,"
    " Tensor? alpha, Tensor? mean, Tensor? var, Tensor statistics, SymInt groups, float eps, bool relu)"
    " -> (Tensor grad_x, Tensor grad_weight0, Tensor grad_weight1, Tensor grad_bias0, Tensor grad_bias1,"
    " Tensor grad_alpha)",
    reference_backward,
    fake_backward,
)


class LineNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight0, weight1, bias0, bias1, alpha, residual, mean, var, groups, eps, relu):
        run = reference if x.dtype == torch.float64 else _op
        y, statistics = run(x, weight0, weight1, bias0, bias1, alpha, mean, var, residual, groups, eps, relu)
        masks = relu and residual is not None
        ctx.save_for_backward(x, weight0, weight1, bias0, bias1, alpha, mean, var, statistics, y if masks else None)
        ctx.settings = groups, eps, relu and not masks
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *saved, y = ctx.saved_tensors
        if y is not None:
            grad = through_relu(grad, y)
        run = reference_backward if grad.dtype == torch.float64 else _op_backward
        grad_x, *found, grad_alpha = run(grad, *saved, *ctx.settings)
        ends = [
            None if end is None else g if g.dtype == end.dtype else g.to(end.dtype)
            for g, end in zip(found, saved[1:5], strict=True)
        ]
        to_alpha, to_residual = None if grad_alpha.dim() else grad_alpha, grad if ctx.needs_input_grad[6] else None
        return grad_x, *ends, to_alpha, to_residual, None, None, None, None, None


def line_norm(
    x: Tensor,
    weight0: Tensor | None,
    weight1: Tensor | None,
    bias0: Tensor | None,
    bias1: Tensor | None,
    alpha: float | Tensor | None,
    groups: int,
    eps: float = 1e-5,
    *,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, then + residual and ReLU on request, in one op.

    weight = (1 - alpha) * weight0 + alpha * weight1, rounded to its dtype, bias likewise, each cut to the channels of
    x: the norms of compressible subspaces (arXiv 2110.04252). Mean and variance (by n, not n - 1) are those of each
    sample's groups of consecutive channels: `groups` of 1 to x.shape[1], which is instance norm. Or they are given, of
    each channel, as batch norm has them in evaluation; statistics over a batch, as in its training, are torch's.

    The variance is that of the deviations from the mean, so that a large mean costs no digits. All else in float32;
    what is added to the residual has been rounded to x's dtype before. Differentiable once: to x, all four ends, alpha
    and the residual, not to given statistics. No sum depends on the number of threads.

    Args:
        x: (n, c, ...), float32, bfloat16, float16, or float64 (which runs the eager reference); contiguous or channels
            last (other strides are copied).
        weight0, bias0: (channels,) of c or more, in float32 or x's dtype; None for 1 and for 0.
        weight1, bias1: the other ends, of the same shape and dtype; None for a point.
        alpha: position in [0, 1], a number or a 0-d tensor on x's device (values then unchecked, never synchronised).
            Not used, and may be None, where there is no line.
        groups: must divide c.
        eps: added to the variance, at least 0.
        mean, var: (channels,) of c or more, float32 (float64 for float64); both, or None. `groups` is not used then.
        residual: of x's shape, dtype and, to be read in place, strides.

    Returns:
        y of x's shape, dtype and memory format.

    Raises:
        ValueError: shapes, devices, groups or an alpha that do not fit.
        TypeError: another dtype.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    alpha = ready_alpha(weight1, bias1, alpha, x)
    arguments = (x, weight0, weight1, bias0, bias1, alpha)
    try:
        if x.dtype == torch.float64 or wants_grad(*arguments, residual):
            return LineNorm.apply(*arguments, residual, mean, var, groups, eps, relu)
        return _op(*arguments, mean, var, residual, groups, eps, relu)[0]
    except RuntimeError:
        check(*arguments, mean, var, residual, groups, eps)  # says it as a ValueError or a TypeError
        raise


def ready_alpha(weight1: Tensor | None, bias1: Tensor | None, alpha: float | Tensor | None, x: Tensor) -> Tensor | None:
    """As the op takes it; None where there is no line."""
    if weight1 is None and bias1 is None:
        return None
    return alpha if alpha is None or _is_ready(alpha, x) else alpha_tensor("line_norm", alpha, None, x)


def _is_ready(alpha: float | Tensor, x: Tensor) -> bool:
    return isinstance(alpha, Tensor) and alpha.dim() == 0 and alpha.dtype == torch.float32 and x.dtype != torch.float64


def check(x, weight0, weight1, bias0, bias1, alpha, mean, var, residual, groups, eps) -> None:
    """Raises where the arguments do not fit each other, as the op itself does on the CPU. Of x only shape, dtype and
    device are read."""
    if x.dtype not in FLOATS:
        raise TypeError(f"line_norm: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if len(x.shape) < 2:
        raise ValueError(f"line_norm: x must be (n, channels, ...), got shape {tuple(x.shape)}")
    if (mean is None) != (var is None):
        raise ValueError("line_norm: give both mean and var, or neither")
    if mean is None and (groups < 1 or x.shape[1] % groups):
        raise ValueError(f"line_norm: {groups} groups do not divide {x.shape[1]} channels of x")
    if not eps >= 0:
        raise ValueError(f"line_norm: eps must be at least 0, got {eps}")
    wide = _wide(x)
    for name, end0, end1 in (("weight", weight0, weight1), ("bias", bias0, bias1)):
        if end0 is None and end1 is not None:
            raise ValueError(f"line_norm: {name}1 without {name}0")
        if end0 is not None:
            _check_vector(f"{name}0", end0, x, (wide, x.dtype))
            check_ends("line_norm", end0, end1, None, (f"{name}0", f"{name}1"))
    for name, vector in (("mean", mean), ("var", var)):
        if vector is not None:
            _check_vector(name, vector, x, (wide,))
    if alpha is None and _is_line(weight1, bias1):
        raise ValueError("line_norm: a line needs an alpha")
    if alpha is not None and alpha.device != x.device:
        raise ValueError(f"line_norm: alpha is on {alpha.device}, x on {x.device}; pass a number, or move it there")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device):
        raise ValueError(
            f"line_norm: residual must be {tuple(x.shape)} of {x.dtype} on {x.device} like x, got "
            f"{tuple(residual.shape)} of {residual.dtype} on {residual.device}"
        )


def _check_vector(name: str, vector: Tensor, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if vector.dim() != 1 or vector.shape[0] < x.shape[1] or vector.device != x.device:
        raise ValueError(
            f"line_norm: {name} must be a vector of at least {x.shape[1]} on {x.device}, got {tuple(vector.shape)} on "
            f"{vector.device}"
        )
    if vector.dtype not in dtypes:
        raise TypeError(f"line_norm: {name} must be {' or '.join(map(str, dict.fromkeys(dtypes)))}, got {vector.dtype}")
