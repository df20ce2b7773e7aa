"""Rows of `interpolate_prune_foreach`: the compressible layers of ResNet-18 and of cPreResNet20, each for itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lcs_kernels import keep_count
from lcs_kernels.ops import interpolate_prune_foreach as op

from .harness import Row
from .interpolate_prune import ALPHA, assert_equal, eager_kthvalue

RESNET18 = [
    *[(64, 64, 3, 3)] * 4,
    *[(128, 64, 3, 3), (128, 128, 3, 3), (128, 64, 1, 1), (128, 128, 3, 3), (128, 128, 3, 3)],
    *[(256, 128, 3, 3), (256, 256, 3, 3), (256, 128, 1, 1), (256, 256, 3, 3), (256, 256, 3, 3)],
    *[(512, 256, 3, 3), (512, 512, 3, 3), (512, 256, 1, 1), (512, 512, 3, 3), (512, 512, 3, 3)],
]


def bottleneck(width: int, inputs: int) -> list[tuple[int, ...]]:
    first = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1), (4 * width, inputs, 1, 1)]
    return [*first, (width, 4 * width, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]


CPRERESNET20 = bottleneck(16, 16) + bottleneck(32, 64) + bottleneck(64, 128)


def forward_row(name: str, shapes: list[tuple[int, ...]], density: float) -> Row:
    w0s, w1s = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    counts = [keep_count(density, w.numel()) for w in w0s]
    args = (w0s, w1s, torch.tensor(ALPHA), torch.tensor(counts))
    run = torch.ops.lcs.interpolate_prune_foreach.default
    outs = [torch.empty_like(w) for w in w0s]

    def check():
        for actual, expected in zip(run(*args), op.reference(*args), strict=True):
            assert_equal(actual, expected)

    return Row(
        op="interpolate_prune_foreach",
        case=f"{name}, {len(shapes)} layers, density {density}",
        candidates={
            "lcs": lambda: run(*args),
            "_foreach_lerp alone": lambda: torch._foreach_lerp(w0s, w1s, ALPHA),
            "lerp + kthvalue + mask": lambda: [eager_kthvalue(*z) for z in zip(w0s, w1s, counts, strict=True)],
        },
        limit=lambda: [torch.add(a, b, out=o) for a, b, o in zip(w0s, w1s, outs, strict=True)],
        bytes=3 * 4 * sum(w.numel() for w in w0s),
        check=check,
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield forward_row("ResNet-18", RESNET18, 0.1)
    yield forward_row("ResNet-18", RESNET18, 0.5)
    yield forward_row("cPreResNet20", CPRERESNET20, 0.1)
