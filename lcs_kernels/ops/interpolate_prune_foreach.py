"""`interpolate_prune` for a list of layers in one launch: each layer for itself, or ranked over all together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded
from lcs_kernels.levels import alpha_tensor, keep_tensors

from . import interpolate_prune as _single
from ._library import check_ends, check_finite_weights, define, output_dtype, pack_bits, wants_grad


def reference(
    w0s: list[Tensor], w1s: list[Tensor], alpha: Tensor, keep: Tensor, dtype: torch.dtype | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """`w1s` empty: points. `keep` (len(w0s),): a count per layer; 0-d: one count over all layers, in list order."""
    ends = [(w0, w1s[i] if w1s else None) for i, w0 in enumerate(w0s)]
    if keep.dim():
        pairs = [_single.reference(w0, w1, alpha, keep[i], dtype) for i, (w0, w1) in enumerate(ends)]
        return [w for w, _ in pairs], [bits for _, bits in pairs]
    ws = [_single.blend(w0, w1, alpha).to(dtype or w0.dtype).contiguous() for w0, w1 in ends]
    mask = _single.top_mask(torch.cat([w.detach().flatten() for w in ws]), keep) if ws else alpha.new_empty(0).bool()
    masks = mask.split([w.numel() for w in ws])
    return [torch.where(m.view(w.shape), w, 0) for m, w in zip(masks, ws, strict=True)], [pack_bits(m) for m in masks]


def reference_backward(
    grads: list[Tensor],
    w0s: list[Tensor],
    w1s: list[Tensor],
    alpha: Tensor,
    mask_bits: list[Tensor],
    line: bool,
    dtype: torch.dtype,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """`w0s` and `w1s` empty: alpha's gradient is not wanted, and has 0 elements. Not a line: no grad_w1s."""
    parts = [
        _single.reference_backward(
            grad, w0s[i] if w0s else None, w1s[i] if w1s else None, alpha, mask_bits[i], line, dtype
        )
        for i, grad in enumerate(grads)
    ]
    grad_alpha = sum((a.double() for _, _, a in parts), alpha.new_zeros(()).double()).to(alpha.dtype)
    return [g for g, _, _ in parts], [g for _, g, _ in parts] if line else [], grad_alpha if w0s else alpha.new_empty(0)


def fake(w0s, w1s, alpha, keep, dtype=None):
    pairs = [_single.fake(w0, None, alpha, keep, dtype) for w0 in w0s]
    return [w for w, _ in pairs], [bits for _, bits in pairs]


def fake_backward(grads, w0s, w1s, alpha, mask_bits, line, dtype):
    like = [grad.new_empty(grad.shape, dtype=dtype) for grad in grads]
    return like, [torch.empty_like(g) for g in like] if line else [], alpha.new_empty(() if w0s else 0)


_op = define(
    "interpolate_prune_foreach(Tensor[] w0s, Tensor[] w1s, Tensor alpha, Tensor keep, ScalarType? dtype=None)"
    " -> (Tensor[] ws, Tensor[] mask_bits)",
    reference,
    fake,
)
_op_backward = define(
    "interpolate_prune_foreach_backward(Tensor[] grads, Tensor[] w0s, Tensor[] w1s, Tensor alpha, Tensor[] mask_bits,"
    " bool line, ScalarType dtype) -> (Tensor[] grad_w0s, Tensor[] grad_w1s, Tensor grad_alpha)",
    reference_backward,
    fake_backward,
)


class InterpolatePruneForeach(torch.autograd.Function):
    """As `InterpolatePrune`; `ends` is w0s followed by w1s, so that each is an input of its own."""

    @staticmethod
    def forward(ctx, alpha, keep, dtype, layers, *ends):
        w0s, w1s = list(ends[:layers]), list(ends[layers:])
        run = reference if w0s[0].dtype == torch.float64 else _op
        ws, mask_bits = run(w0s, w1s, alpha, keep, dtype)
        ctx.line, ctx.dtype, ctx.layers = bool(w1s), w0s[0].dtype, layers
        ctx.alpha_wants_grad = ctx.line and ctx.needs_input_grad[0]
        ctx.save_for_backward(alpha, *mask_bits, *(ends if ctx.alpha_wants_grad else ()))
        return tuple(ws)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        alpha, *rest = ctx.saved_tensors
        mask_bits, w0s, w1s = rest[: ctx.layers], rest[ctx.layers : 2 * ctx.layers], rest[2 * ctx.layers :]
        run = reference_backward if ctx.dtype == torch.float64 else _op_backward
        grad_w0s, grad_w1s, grad_alpha = run(list(grads), w0s, w1s, alpha, mask_bits, ctx.line, ctx.dtype)
        return grad_alpha if ctx.alpha_wants_grad else None, None, None, None, *grad_w0s, *grad_w1s


def interpolate_prune_foreach(
    w0s: Sequence[Tensor],
    w1s: Sequence[Tensor] | None,
    alpha: float | Tensor,
    density: float | Tensor | Sequence[float] | None = None,
    *,
    keep: int | Tensor | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    check_finite: bool = False,
    extrapolate: bool = False,
) -> list[Tensor]:
    """`interpolate_prune` of every layer in one launch, at one alpha.

    Args:
        w0s: one end of each layer's line: any shapes, one dtype, one device.
        w1s: the other ends, matching `w0s`, or None for points.
        alpha: as in `interpolate_prune`, one for all layers.
        density: a number or 0-d tensor: this fraction of each layer; a sequence: one fraction per layer.
        keep: in place of `density`. A sequence or int64 tensor of shape (layers,): a count per layer. One number or 0-d
            tensor: the count over ALL layers ranked together, where of equal magnitudes the later layer keeps its own.
        dtype, check_finite, extrapolate: as in `interpolate_prune`.

    Returns:
        one contiguous tensor per layer, of its shape.

    Raises:
        as `interpolate_prune`; also ValueError where the lists differ in length or a layer in dtype or device.
    """
    ensure_loaded()
    if not w0s:
        return []
    w0s, w1s, alpha, keep, dtype = _arguments(w0s, w1s, alpha, density, keep, dtype, check_finite, extrapolate)
    if wants_grad(alpha, *w0s, *w1s) or w0s[0].dtype == torch.float64:
        return list(InterpolatePruneForeach.apply(alpha, keep, dtype, len(w0s), *w0s, *w1s))
    return _op(w0s, w1s, alpha, keep, dtype)[0]


@torch.no_grad()
def interpolate_prune_foreach_masks(
    w0s: Sequence[Tensor],
    w1s: Sequence[Tensor] | None,
    alpha: float | Tensor,
    density: float | Tensor | Sequence[float] | None = None,
    *,
    keep: int | Tensor | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    extrapolate: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """`interpolate_prune_foreach` without gradient, and which weights it kept, from the same pass.

    Returns:
        one contiguous tensor per layer; and per layer the mask bits, int32 (ceil(n / 32),): weight i was kept if bit
        i % 32 of word i // 32 is set, as `lcs_kernels.formats.SparseWeight` stores it. A kept weight may be 0.
    """
    ensure_loaded()
    if not w0s:
        return [], []
    w0s, w1s, alpha, keep, dtype = _arguments(w0s, w1s, alpha, density, keep, dtype, False, extrapolate)
    return (reference if w0s[0].dtype == torch.float64 else _op)(w0s, w1s, alpha, keep, dtype)


def _arguments(w0s, w1s, alpha, density, keep, dtype, check_finite, extrapolate):
    """What the op takes, checked."""
    name = "interpolate_prune_foreach"
    w0s, w1s = list(w0s), [] if w1s is None else list(w1s)
    if w1s and len(w1s) != len(w0s):
        raise ValueError(f"{name}: w0s has {len(w0s)} layers and w1s {len(w1s)}")
    for i, w0 in enumerate(w0s):
        check_ends(name, w0, w1s[i] if w1s else None, dtype, (f"w0s[{i}]", f"w1s[{i}]"))
        if w0.dtype != w0s[0].dtype or w0.device != w0s[0].device:
            raise ValueError(f"{name}: w0s[{i}] is {w0.dtype} on {w0.device}, w0s[0] {w0s[0].dtype} on {w0s[0].device}")
    if check_finite:
        check_finite_weights(
            name, **{f"w{end}s[{i}]": w for end, ws in enumerate((w0s, w1s)) for i, w in enumerate(ws)}
        )
    alpha = alpha_tensor(name, alpha, extrapolate, w0s[0])
    return w0s, w1s, alpha, keep_tensors(name, density, keep, w0s), output_dtype(dtype, w0s[0])
