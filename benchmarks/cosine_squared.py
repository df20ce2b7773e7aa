"""Rows of `cosine_squared`: the lines of ResNet-18 and of cPreResNet20, forward and backward together."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lcs_kernels import cosine_squared
from lcs_kernels.ops import cosine_squared as op

from .harness import Row
from .interpolate_prune_foreach import CPRERESNET20, RESNET18


def eager(w0s, w1s):
    dot = sum((a * b).sum() for a, b in zip(w0s, w1s, strict=True))
    norms = [sum((w * w).sum() for w in ws) for ws in (w0s, w1s)]
    return dot * dot / (norms[0] * norms[1])


def row(name: str, shapes: list[tuple[int, ...]]) -> Row:
    w0s, w1s = ([torch.randn(shape, requires_grad=True) for shape in shapes] for _ in range(2))
    n = sum(w.numel() for w in w0s)

    def gradients(f):
        return torch.autograd.grad(f(w0s, w1s), [*w0s, *w1s])

    def check():
        sums = op.reference(*detached)[1]
        bound = (1024 + 1) * 2**-24 * float(sums[1] + sums[2])  # of each sum; |<w0, w1>| is at most their mean
        found = torch.ops.lcs.cosine_squared(*detached)[1]
        if not ((found - sums).abs() <= bound).all():
            raise AssertionError(f"cosine_squared's sums {found.tolist()} are not {sums.tolist()}")

    detached = [[w.detach() for w in ws] for ws in (w0s, w1s)]
    outs = [torch.empty_like(w) for w in detached[0]]
    torch._dynamo.reset()  # it compiles one function a limited number of times
    fast = torch.compile(eager, dynamic=False)

    def limit():
        for _ in range(2):
            for a, b, out in zip(*detached, outs, strict=True):
                torch.add(a, b, out=out)

    return Row(
        op="cosine_squared",
        case=f"{name}, {len(shapes)} layers, forward and backward",
        candidates={
            "lcs": lambda: gradients(cosine_squared),
            "eager sums": lambda: gradients(eager),
            **({} if w0s[0].is_cuda else {"torch.compile of them": lambda: gradients(fast)}),
        },
        limit=limit,
        bytes=4 * 6 * n,
        check=check,
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield row("ResNet-18", RESNET18)
    yield row("cPreResNet20", CPRERESNET20)
