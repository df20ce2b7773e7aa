"""The point alpha of the line from w0 to w1, pruned to its largest weights: blend, exact top-k, write in one op."""

from __future__ import annotations

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded
from lcs_kernels.levels import alpha_tensor, keep_tensor

from ._library import check_ends, check_finite_weights, define, output_dtype, pack_bits, unpack_bits, wants_grad


def blend(w0: Tensor, w1: Tensor | None, alpha: Tensor) -> Tensor:
    """(1 - alpha) * w0 + alpha * w1 in float32 (float64 for float64), two products and one sum, each rounded."""
    w0 = w0.to(torch.promote_types(w0.dtype, torch.float32))
    return w0 if w1 is None else (1 - alpha) * w0 + alpha * w1.to(w0.dtype)


def blend_backward(
    grad: Tensor, w0: Tensor | None, w1: Tensor | None, alpha: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a float32 gradient (float64 for float64): to w0 and w1 in `dtype`, and to alpha, empty without the ends."""
    grad_alpha = alpha.new_empty(0)
    if w0 is not None and w1 is not None:
        grad_alpha = (grad.double() * (w1.to(grad.dtype) - w0.to(grad.dtype))).sum().to(alpha.dtype)
    return ((1 - alpha) * grad).to(dtype), (alpha * grad).to(dtype), grad_alpha


def top_mask(w: Tensor, keep: Tensor) -> Tensor:
    """Flat boolean mask of the `keep` largest magnitudes: ties to the higher index, -0 as 0, NaN above infinity."""
    n = w.numel()
    order = w.detach().abs().flatten().argsort(stable=True)
    return torch.empty(n, dtype=torch.bool, device=w.device).scatter(
        0, order, torch.arange(n, device=w.device) >= n - keep.clamp(0, n)
    )


def reference(
    w0: Tensor, w1: Tensor | None, alpha: Tensor, keep: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    w = blend(w0, w1, alpha).to(dtype or w0.dtype).contiguous()
    mask = top_mask(w, keep)
    return torch.where(mask.view(w.shape), w, 0), pack_bits(mask)


def reference_backward(
    grad: Tensor, w0: Tensor | None, w1: Tensor | None, alpha: Tensor, mask_bits: Tensor, line: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.where(unpack_bits(mask_bits, grad.numel()).view(grad.shape), grad, 0)
    kept = kept.to(torch.promote_types(dtype, torch.float32)).contiguous()
    if not line:
        return kept.to(dtype), grad.new_empty(0, dtype=dtype), alpha.new_empty(0)
    return blend_backward(kept, w0, w1, alpha, dtype)


def fake(w0, w1, alpha, keep, dtype=None):
    words = (w0.numel() + 31) // 32
    return w0.new_empty(w0.shape, dtype=dtype or w0.dtype), w0.new_empty(words, dtype=torch.int32)


def fake_backward(grad, w0, w1, alpha, mask_bits, line, dtype):
    shape = grad.shape if line else (0,)
    return (
        grad.new_empty(grad.shape, dtype=dtype),
        grad.new_empty(shape, dtype=dtype),
        alpha.new_empty(() if line and w0 is not None else 0),
    )


_op = define(
    "interpolate_prune(Tensor w0, Tensor? w1, Tensor alpha, Tensor keep, ScalarType? dtype=None)"
    " -> (Tensor w, Tensor mask_bits)",
    reference,
    fake,
)
_op_backward = define(
    "interpolate_prune_backward(Tensor grad, Tensor? w0, Tensor? w1, Tensor alpha, Tensor mask_bits, bool line,"
    " ScalarType dtype) -> (Tensor grad_w0, Tensor grad_w1, Tensor grad_alpha)",
    reference_backward,
    fake_backward,
)


class InterpolatePrune(torch.autograd.Function):
    """A pruned weight passes no gradient; the kept ones pass (1 - alpha), alpha, and w1 - w0 to w0, w1 and alpha."""

    @staticmethod
    def forward(ctx, w0, w1, alpha, keep, dtype):
        run = reference if w0.dtype == torch.float64 else _op
        w, mask_bits = run(w0, w1, alpha, keep, dtype)
        ends = (w0, w1) if ctx.needs_input_grad[2] and w1 is not None else (None, None)
        ctx.save_for_backward(*ends, alpha, mask_bits)
        ctx.line, ctx.dtype = w1 is not None, w0.dtype
        return w

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        run = reference_backward if ctx.dtype == torch.float64 else _op_backward
        grad_w0, grad_w1, grad_alpha = run(grad, *ctx.saved_tensors, ctx.line, ctx.dtype)
        return grad_w0, grad_w1 if ctx.line else None, grad_alpha if grad_alpha.dim() == 0 else None, None, None


def interpolate_prune(
    w0: Tensor,
    w1: Tensor | None,
    alpha: float | Tensor,
    density: float | Tensor | None = None,
    *,
    keep: int | Tensor | None = None,
    dtype: torch.dtype | None = None,
    check_finite: bool = False,
    extrapolate: bool = False,
) -> Tensor:
    """The `keep` largest weights by magnitude of w = (1 - alpha) * w0 + alpha * w1, zero elsewhere.

    The blend is float32, rounded to the output dtype, then ranked. Equal magnitudes keep the higher flat index, -0
    ranks as 0, NaN ranks above infinity and is kept first. The result is bit for bit the same on every back end.
    Differentiable once, to w0, w1 and alpha; the mask counts as constant (arXiv 2110.04252, section 3).

    Args:
        w0: one end of the line, any shape; float32, bfloat16, float16, or float64 (which runs the eager reference).
        w1: the other end, of w0's shape, dtype and device, or None for a point (w = w0).
        alpha: position in [0, 1]; a number, or a 0-d tensor on w0's device (values then unchecked, never synchronised).
        density: fraction kept, in [0, 1]; keep = density * n rounded half to even in float64. A tensor: best float64,
            on w0's device; it is clamped, and NaN keeps nothing.
        keep: the count itself, in [0, n], in place of `density`. A tensor is clamped.
        dtype: of the result; by default w0's, or autocast's dtype where autocast is on and w0 is float32.
        check_finite: raise if an end holds NaN or infinity (reads both ends, waits for the device).
        extrapolate: allow alpha outside [0, 1].

    Returns:
        w of w0's shape, contiguous.

    Raises:
        ValueError: a level out of range, both or neither of density and keep, shapes or devices that differ, and with
            `check_finite` a weight that is not finite.
        TypeError: a dtype other than those named, or a count that is no whole number.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    name = "interpolate_prune"
    check_ends(name, w0, w1, dtype)
    if check_finite:
        check_finite_weights(name, w0=w0, w1=w1)
    alpha = alpha_tensor(name, alpha, extrapolate, w0)
    keep = keep_tensor(name, density, keep, w0)
    dtype = output_dtype(dtype, w0)
    if wants_grad(w0, w1, alpha) or w0.dtype == torch.float64:
        return InterpolatePrune.apply(w0, w1, alpha, keep, dtype)
    return _op(w0, w1, alpha, keep, dtype)[0]
