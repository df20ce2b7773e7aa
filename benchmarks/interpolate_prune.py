"""Rows of `interpolate_prune`: one 512 x 512 x 3 x 3 layer, forward and backward, and data that is hard to rank."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
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


def numpy_partition(w0, w1, keep):
    w = torch.lerp(w0, w1, ALPHA)
    magnitude = w.abs()
    n = w.numel()
    return w * (magnitude >= float(np.partition(magnitude.flatten().numpy(), n - keep)[n - keep]))


def eager_sort(w0, w1, keep, alpha=ALPHA):
    w = torch.lerp(w0, w1, alpha)
    mask = torch.ones(w.numel(), device=w.device)
    mask[w.detach().abs().flatten().sort().indices[: w.numel() - keep]] = 0
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
            **({} if w0.is_cuda else {"lerp + numpy.partition + mask": lambda: numpy_partition(w0, w1, keep)}),
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

    def add():
        torch.add(w0, w1, out=out)

    def eager():
        kept = torch.where(mask, grad, 0)
        return (1 - ALPHA) * kept, ALPHA * kept

    return Row(
        op="interpolate_prune_backward",
        case=f"{'x'.join(map(str, SHAPE))} density 0.1",
        candidates={"lcs": lambda: run(*args), "torch.add(out=)": add, "where + 2 mul": eager},
        limit=add,
        bytes=3 * 4 * w0.numel(),
        check=lambda: assert_equal(run(*args), op.reference_backward(*args)),
    )


def hard_data() -> Iterator[tuple[str, torch.Tensor]]:
    normal = torch.randn(SHAPE)
    n = normal.numel()
    yield "all equal", torch.ones(SHAPE)
    yield "two values", torch.where(normal > 0, 1.0, 2.0)
    yield "sorted", normal.flatten().sort().values.view(SHAPE)
    yield "one outlier", torch.full((n,), 1e-3).index_fill(0, torch.tensor([n // 2]), 1e30).view(SHAPE)
    yield "one in seven NaN", normal.flatten().index_fill(0, torch.arange(0, n, 7), torch.nan).view(SHAPE)
    yield "denormal", normal * 1e-40


def hard_row(name: str, w: torch.Tensor) -> Row:
    other, alpha, keep = w.clone(), torch.tensor(ALPHA), torch.tensor(w.numel() // 10)
    args, usual = (w, other, alpha, keep), (*torch.randn(2, *SHAPE).unbind(), alpha, keep)
    run = torch.ops.lcs.interpolate_prune.default
    out = torch.empty_like(w)
    return Row(
        op="interpolate_prune",
        case=f"{'x'.join(map(str, SHAPE))} density 0.1, {name}",
        candidates={
            "lcs": lambda: run(*args),
            "lcs on normal data": lambda: run(*usual),
            "torch.lerp alone": lambda: torch.lerp(w, other, ALPHA),
        },
        limit=lambda: torch.add(w, other, out=out),
        bytes=3 * 4 * w.numel(),
        check=lambda: assert_equal(*([t.nan_to_num(7.0) for t in f(*args)] for f in (run, op.reference))),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield forward_row(0.1)
    yield forward_row(0.5)
    yield backward_row()
    for name, w in hard_data():
        yield hard_row(name, w)
