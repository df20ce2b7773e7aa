"""The point alpha of the line from w0 to w1, fake-quantised: blend, range, write in one op."""

from __future__ import annotations

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded
from lcs_kernels.levels import alpha_tensor, bits_tensor

from ._library import check_ends, check_finite_weights, define, output_dtype, wants_grad
from .interpolate_prune import blend, blend_backward
from .quantize import on_grid


def in_groups(w: Tensor, group_size: int) -> Tensor:
    """w as (rows, groups, weights), zeros behind a row's last group; 0: all of w is one group, else of dim 0's rows."""
    rows = w.reshape(1, 1, -1) if group_size == 0 else w.reshape(w.shape[0], 1, -1)
    size = min(group_size or rows.shape[2], rows.shape[2])
    return torch.nn.functional.pad(rows, (0, -rows.shape[2] % size)).reshape(len(rows), -1, size)


def reference(
    w0: Tensor,
    w1: Tensor | None,
    alpha: Tensor,
    bits: Tensor,
    group_size: int = 0,
    nested: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The forward; its gradient is that of the blend alone."""
    w = blend(w0, w1, alpha).detach().contiguous()
    if w.numel() == 0:
        return w.to(dtype or w0.dtype)
    groups = in_groups(w, group_size)
    values = on_grid(groups, *groups.aminmax(dim=2, keepdim=True), bits, nested).flatten(1)
    return values[:, : w.numel() // len(values)].reshape(w.shape).to(dtype or w0.dtype)


def reference_backward(
    grad: Tensor, w0: Tensor | None, w1: Tensor | None, alpha: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return blend_backward(grad.to(torch.promote_types(dtype, torch.float32)).contiguous(), w0, w1, alpha, dtype)


def fake(w0, w1, alpha, bits, group_size=0, nested=False, dtype=None):
    return w0.new_empty(w0.shape, dtype=dtype or w0.dtype)


def fake_backward(grad, w0, w1, alpha, dtype):
    ends = (grad.new_empty(grad.shape, dtype=dtype) for _ in range(2))
    return *ends, alpha.new_empty(() if w0 is not None else 0)


_op = define(
    "interpolate_quantize(Tensor w0, Tensor? w1, Tensor alpha, Tensor bits, SymInt group_size=0, bool nested=False,"
    " ScalarType? dtype=None) -> Tensor",
    reference,
    fake,
)
_op_backward = define(
    "interpolate_quantize_backward(Tensor grad, Tensor? w0, Tensor? w1, Tensor alpha, ScalarType dtype)"
    " -> (Tensor grad_w0, Tensor grad_w1, Tensor grad_alpha)",
    reference_backward,
    fake_backward,
)


class InterpolateQuantize(torch.autograd.Function):
    """Straight through: every weight passes (1 - alpha), alpha, and w1 - w0 to w0, w1 and alpha, clipped or not."""

    @staticmethod
    def forward(ctx, w0, w1, alpha, bits, group_size, nested, dtype):
        ends = (w0, w1) if ctx.needs_input_grad[2] and w1 is not None else (None, None)
        ctx.save_for_backward(*ends, alpha)
        ctx.line, ctx.dtype = w1 is not None, w0.dtype
        run = reference if w0.dtype == torch.float64 else _op
        return run(w0, w1, alpha, bits, group_size, nested, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        if not ctx.line:
            return grad.to(ctx.dtype), *[None] * 6
        run = reference_backward if ctx.dtype == torch.float64 else _op_backward
        grad_w0, grad_w1, grad_alpha = run(grad, *ctx.saved_tensors, ctx.dtype)
        return grad_w0, grad_w1, grad_alpha if grad_alpha.dim() == 0 else None, *[None] * 4


def interpolate_quantize(
    w0: Tensor,
    w1: Tensor | None,
    alpha: float | Tensor,
    bits: int | Tensor,
    *,
    per_channel: bool = False,
    group_size: int | None = None,
    nested: bool = False,
    dtype: torch.dtype | None = None,
    check_finite: bool = False,
    extrapolate: bool = False,
) -> Tensor:
    """w = (1 - alpha) * w0 + alpha * w1, rounded to the 2^bits values that spread evenly over its range and 0.

    The blend is float32 and quantised as by `quantize`, over the range of all weights that share a scale: all of w, or
    with `per_channel` a channel (dim 0), or with `group_size` so many consecutive weights of a channel, the last of
    which may be fewer. NaN or infinity makes its whole group NaN. Bit for bit the same on every back end.
    Differentiable once, to w0, w1 and alpha, straight through the rounding and the clipping (arXiv 2110.04252,
    section 3).

    `nested` is what one stored 8-bit copy can be read as at every width: q8 is the unsigned 8-bit code, and b bits give
    scale8 * (((q8 >> (8-b)) << (8-b)) + (2^(8-b) - 1)/2 - zero8), in which 0 is exact at 8 bits alone.

    Args:
        w0: one end of the line, any shape; float32, bfloat16, float16, or float64 (which runs the eager reference).
        w1: the other end, of w0's shape, dtype and device, or None for a point (w = w0).
        alpha: position in [0, 1]; a number, or a 0-d tensor on w0's device (values then unchecked, never synchronised).
        bits: 2 to 8; a tensor is clamped. Pass a 0-d tensor to have torch.compile make one graph for all widths.
        per_channel: one scale per index of dim 0.
        group_size: one scale per so many consecutive weights of a channel, its inner dims flattened; at least 1.
        nested: quantise to 8 bits and keep the leading `bits`.
        dtype: of the result; by default w0's, or autocast's dtype where autocast is on and w0 is float32.
        check_finite: raise if an end holds NaN or infinity (reads both ends, waits for the device).
        extrapolate: allow alpha outside [0, 1].

    Returns:
        w of w0's shape, contiguous.

    Raises:
        ValueError: a level or group size out of range, a 0-d w0 with channels or groups, both of them, shapes or
            devices that differ, and with `check_finite` a weight that is not finite.
        TypeError: a dtype other than those named.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    name = "interpolate_quantize"
    check_ends(name, w0, w1, dtype)
    if check_finite:
        check_finite_weights(name, w0=w0, w1=w1)
    alpha = alpha_tensor(name, alpha, extrapolate, w0)
    bits = bits_tensor(name, bits, w0)
    size = _group_size(w0, per_channel, group_size)
    dtype = output_dtype(dtype, w0)
    if wants_grad(w0, w1, alpha) or w0.dtype == torch.float64:
        return InterpolateQuantize.apply(w0, w1, alpha, bits, size, nested, dtype)
    return _op(w0, w1, alpha, bits, size, nested, dtype)


def _group_size(w: Tensor, per_channel: bool, group_size: int | None) -> int:
    """As the schema takes it: 0 for one group of all weights."""
    if not per_channel and group_size is None:
        return 0
    if per_channel and group_size is not None:
        raise ValueError(f"interpolate_quantize: give per_channel or group_size, got both (group_size={group_size})")
    if w.dim() == 0:
        raise ValueError("interpolate_quantize: w0 has no channels, its shape is ()")
    if group_size is not None and group_size < 1:
        raise ValueError(f"interpolate_quantize: group_size must be at least 1, got {group_size}")
    return max(w[0].numel(), 1) if group_size is None and w.shape[0] else group_size or 1
