"""The square of the cosine between the two ends of all lines: the regulariser that keeps a line from collapsing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded

from ._library import check_ends, define, wants_grad


def reference(w0s: list[Tensor], w1s: list[Tensor]) -> tuple[Tensor, Tensor]:
    """cos^2 and what the backward needs: <w0, w1>, <w0, w0>, <w1, w1> in float64."""
    flat0, flat1 = (torch.cat([w.flatten() for w in ws]).double() for ws in (w0s, w1s))
    sums = torch.stack([flat0 @ flat1, flat0 @ flat0, flat1 @ flat1])
    dot, norm0, norm1 = sums.unbind()
    norms = norm0 * norm1
    value = torch.where(norms == 0, 0.0, dot * dot / torch.where(norms == 0, 1.0, norms))
    return value.to(torch.promote_types(w0s[0].dtype, torch.float32)), sums.detach()


def reference_backward(
    grad: Tensor, w0s: list[Tensor], w1s: list[Tensor], sums: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    dot, norm0, norm1 = sums.unbind()
    norms = torch.where(norm0 * norm1 == 0, torch.inf, norm0 * norm1)
    cross = 2 * grad * dot / norms
    own0, own1 = (-2 * grad * dot * dot / (norms * torch.where(norm == 0, 1.0, norm)) for norm in (norm0, norm1))
    wide = torch.promote_types(w0s[0].dtype, torch.float32)
    cross, own0, own1 = (x.to(wide) for x in (cross, own0, own1))
    pairs = [(a.to(wide), b.to(wide), a.dtype) for a, b in zip(w0s, w1s, strict=True)]
    return (
        [(cross * b + own0 * a).to(dtype) for a, b, dtype in pairs],
        [(cross * a + own1 * b).to(dtype) for a, b, dtype in pairs],
    )


def fake(w0s, w1s):
    wide = torch.promote_types(w0s[0].dtype, torch.float32)
    return w0s[0].new_empty((), dtype=wide), w0s[0].new_empty(3, dtype=torch.float64)


def fake_backward(grad, w0s, w1s, sums):
    return [w.new_empty(w.shape) for w in w0s], [w.new_empty(w.shape) for w in w1s]


_op = define("cosine_squared(Tensor[] w0s, Tensor[] w1s) -> (Tensor value, Tensor sums)", reference, fake)
_op_backward = define(
    "cosine_squared_backward(Tensor grad, Tensor[] w0s, Tensor[] w1s, Tensor sums)"
    " -> (Tensor[] grad_w0s, Tensor[] grad_w1s)",
    reference_backward,
    fake_backward,
)


class CosineSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layers, *ends):
        run = reference if ends[0].dtype == torch.float64 else _op
        value, sums = run(list(ends[:layers]), list(ends[layers:]))
        ctx.layers = layers
        ctx.save_for_backward(sums, *ends)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        sums, *ends = ctx.saved_tensors
        run = reference_backward if ends[0].dtype == torch.float64 else _op_backward
        grad_w0s, grad_w1s = run(grad, ends[: ctx.layers], ends[ctx.layers :], sums)
        return None, *grad_w0s, *grad_w1s


def cosine_squared(w0s: Sequence[Tensor], w1s: Sequence[Tensor]) -> Tensor:
    """cos^2 of the angle between w0 and w1, each all layers' weights as one vector; differentiable once, to both ends.

    (sum <w0, w1>)^2 / (sum |w0|^2 * sum |w1|^2), the regulariser of arXiv 2110.04252 (section 3); 0, without a
    gradient, where an end is 0. One pass over the ends forward, one backward; no sum depends on the thread count.

    Args:
        w0s, w1s: the ends of each layer, pairs of one shape, all of one dtype (as `interpolate_prune`) and device.

    Returns:
        0-d float32 (float64 for float64).

    Raises:
        ValueError: no layers, lists of different length, or ends that differ in shape or device.
        TypeError: dtypes that are not floating point, or that differ.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    w0s, w1s = list(w0s), list(w1s)
    if not w0s or len(w0s) != len(w1s):
        raise ValueError(f"cosine_squared: needs as many w1s as w0s, and at least one; got {len(w0s)} and {len(w1s)}")
    for i, (w0, w1) in enumerate(zip(w0s, w1s, strict=True)):
        check_ends("cosine_squared", w0, w1, None, (f"w0s[{i}]", f"w1s[{i}]"))
        if w0.dtype != w0s[0].dtype:
            raise TypeError(f"cosine_squared: w0s[{i}] is {w0.dtype}, w0s[0] {w0s[0].dtype}")
        if w0.device != w0s[0].device:
            raise ValueError(f"cosine_squared: w0s[{i}] is on {w0.device}, w0s[0] on {w0s[0].device}")
    if wants_grad(*w0s, *w1s) or w0s[0].dtype == torch.float64:
        return CosineSquared.apply(len(w0s), *w0s, *w1s)
    return _op(w0s, w1s)[0]
