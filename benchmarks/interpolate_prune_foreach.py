"""Rows of `interpolate_prune_foreach`: what is compressed of ResNet-18 and of cPreResNet20, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lcs_kernels import keep_count
from lcs_kernels.ops import interpolate_prune_foreach as op

from .harness import Row
from .interpolate_prune import ALPHA, assert_equal, eager_kthvalue, eager_sort, eager_topk

RESNET18 = [
    *[(64, 64, 3, 3)] * 4,
    *[(128, 64, 3, 3), (128, 128, 3, 3), (128, 64, 1, 1), (128, 128, 3, 3), (128, 128, 3, 3)],
    *[(256, 128, 3, 3), (256, 256, 3, 3), (256, 128, 1, 1), (256, 256, 3, 3), (256, 256, 3, 3)],
    *[(512, 256, 3, 3), (512, 512, 3, 3), (512, 256, 1, 1), (512, 512, 3, 3), (512, 512, 3, 3)],
]

SLOW_KTHVALUE = 50_000_000  # kept: on a GPU one block finds it, in seconds


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

    def each_layer(eager):
        return lambda: [eager(*layer) for layer in zip(w0s, w1s, counts, strict=True)]

    peers = {
        "lerp + kthvalue + mask": each_layer(eager_kthvalue),
        "lerp + topk + mask": each_layer(eager_topk),
        "lerp + abs.sort + scatter + mul": each_layer(eager_sort),
    }
    if sum(counts) > SLOW_KTHVALUE:
        del peers["lerp + kthvalue + mask"]

    def check():
        for actual, expected in zip(run(*args), op.reference(*args), strict=True):
            assert_equal(actual, expected)

    return Row(
        op="interpolate_prune_foreach",
        case=f"{name}, {len(shapes)} layers, density {density}",
        candidates={
            "lcs": lambda: run(*args),
            "_foreach_lerp alone": lambda: torch._foreach_lerp(w0s, w1s, ALPHA),
            "a lerp a layer": lambda: [torch.lerp(a, b, ALPHA) for a, b in zip(w0s, w1s, strict=True)],
            **peers,
        },
        limit=lambda: [torch.add(a, b, out=o) for a, b, o in zip(w0s, w1s, outs, strict=True)],
        bytes=3 * 4 * sum(w.numel() for w in w0s),
        check=check,
    )


def backward_row(name: str, shapes: list[tuple[int, ...]], density: float) -> Row:
    grads = [torch.randn(shape) for shape in shapes]
    counts = torch.tensor([keep_count(density, g.numel()) for g in grads])
    alpha = torch.tensor(ALPHA)
    mask_bits = torch.ops.lcs.interpolate_prune_foreach([torch.randn_like(g) for g in grads], [], alpha, counts)[1]
    args = (grads, [], [], alpha, mask_bits, True, torch.float32)
    run = torch.ops.lcs.interpolate_prune_foreach_backward.default
    others, outs = ([torch.zeros_like(g) for g in grads] for _ in range(2))

    def check():
        for actual, expected in zip(run(*args)[:2], op.reference_backward(*args)[:2], strict=True):
            assert_equal(actual, expected)

    def add():
        for a, b, out in zip(grads, others, outs, strict=True):
            torch.add(a, b, out=out)

    return Row(
        op="interpolate_prune_foreach_backward",
        case=f"{name}, {len(shapes)} layers, density {density}",
        candidates={"lcs": lambda: run(*args), "torch.add(out=)": add},
        limit=add,
        bytes=3 * 4 * sum(g.numel() for g in grads),
        check=check,
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield forward_row("ResNet-18", RESNET18, 0.1)
    yield forward_row("ResNet-18", RESNET18, 0.5)
    yield forward_row("cPreResNet20", CPRERESNET20, 0.1)
    yield backward_row("ResNet-18", RESNET18, 0.1)
    if torch.get_default_device().type == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
        many = [(1_000_000_000 if memory > 100e9 else 500_000_000,)]
        yield forward_row(f"{many[0][0]:.0e} weights", many, 0.1)
        yield backward_row(f"{many[0][0]:.0e} weights", many, 0.1)
