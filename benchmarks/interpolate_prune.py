"""Rows of `interpolate_prune`: one 512 x 512 x 3 x 3 layer, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lcs_kernels import keep_count
from lcs_kernels.ops import interpolate_prune as op

from .harness import Row

SHAPE = (512, 512, 3, 3)
ALPHA = 0.3


def eager_kthvalue(w0, w1, keep):
    w = torch.lerp(w0, w1, ALPHA)
    magnitude = w.abs()
    return torch.where(magnitude > magnitude.flatten().kthvalue(w.numel() - keep).values, w, 0)


def eager_topk(w0, w1, keep):
    w = torch.lerp(w0, w1, ALPHA)
    magnitude = w.abs()
    return w * (magnitude >= magnitude.flatten().topk(keep, sorted=False).values.min())


def eager_sort(w0, w1, keep):
    w = torch.lerp(w0, w1, ALPHA)
    mask = torch.ones(w.numel())
    mask[w.abs().flatten().sort().indices[: w.numel() - keep]] = 0
    return w * mask.view(w.shape)


def assert_equal(actual, expected) -> None:
    if not all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True)):
        raise AssertionError("the op's result differs from its reference")


def forward_row(density: float) -> Row:
    w0, w1 = torch.randn(2, *SHAPE).unbind()
    alpha, keep = torch.tensor(ALPHA), keep_count(density, w0.numel())
    args = (w0, w1, alpha, torch.tensor(keep))
    run = torch.ops.lcs.interpolate_prune.default
    out = torch.empty_like(w0)
    return Row(
        op="interpolate_prune",
        case=f"{'x'.join(map(str, SHAPE))} density {density}",
        candidates={
            "lcs": lambda: run(*args),
            "torch.lerp alone": lambda: torch.lerp(w0, w1, ALPHA),
            "lerp + kthvalue + mask": lambda: eager_kthvalue(w0, w1, keep),
            "lerp + topk + mask": lambda: eager_topk(w0, w1, keep),
            "lerp + abs.sort + scatter + mul": lambda: eager_sort(w0, w1, keep),
        },
        limit=lambda: torch.add(w0, w1, out=out),
        bytes=3 * 4 * w0.numel(),
        check=lambda: assert_equal(run(*args), op.reference(*args)),
    )


def backward_row() -> Row:
    w0, w1, grad = torch.randn(3, *SHAPE).unbind()
    alpha = torch.tensor(ALPHA)
    w, mask_bits = torch.ops.lcs.interpolate_prune(w0, w1, alpha, torch.tensor(w0.numel() // 10))
    mask = w != 0
    args = (grad, None, None, alpha, mask_bits, True, torch.float32)
    run = torch.ops.lcs.interpolate_prune_backward.default
    out = torch.empty_like(w0)

    def eager():
        kept = torch.where(mask, grad, 0)
        return (1 - ALPHA) * kept, ALPHA * kept

    return Row(
        op="interpolate_prune_backward",
        case=f"{'x'.join(map(str, SHAPE))} density 0.1",
        candidates={"lcs": lambda: run(*args), "where + 2 mul": eager},
        limit=lambda: torch.add(w0, w1, out=out),
        bytes=3 * 4 * w0.numel(),
        check=lambda: assert_equal(run(*args), op.reference_backward(*args)),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield forward_row(0.1)
    yield forward_row(0.5)
    yield backward_row()
