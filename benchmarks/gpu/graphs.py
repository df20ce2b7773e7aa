"""The stage that changes levels between replays of a CUDA graph, with all waits for the device forbidden."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import lcs_kernels
from lcs_kernels.ops import interpolate_prune_foreach as op

from .stages import note

SHAPES = [(64, 64, 3, 3), (7,), (0,), (130, 257), (512, 512, 3, 3), (33,)]
LEVELS = [(0.3, 0.1), (0.0, 0.9), (1.0, 0.0), (0.7, 1.0), (0.5, 0.025)]


@contextlib.contextmanager
def no_waiting(device: str) -> Iterator[None]:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    yield
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def recorded(device: str, call: Callable[[], object]) -> tuple[Callable[[], None], object]:
    """How to run `call` again, and where its results lie: on the GPU a graph of it, else the call itself."""
    if device != "cuda":
        found = call()

        def again():
            for to, now in zip(leaves(found), leaves(call()), strict=True):
                to.copy_(now)

        return again, found
    call()  # what compiles at first use
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    return graph.replay, found


def leaves(found) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for part in found for t in leaves(part)]


def same(a: Tensor, b: Tensor) -> bool:
    a, b = a.cpu(), b.cpu()
    return a.shape == b.shape and a.dtype == b.dtype and bool((a.view(torch.int32) == b.view(torch.int32)).all())


def check(device: str, together: bool, shapes=SHAPES) -> list[str]:
    """What was wrong: forward and backward of a list of layers, recorded at one level and replayed at others."""
    torch.manual_seed(0)
    w0s, w1s, grads = ([torch.randn(shape) for shape in shapes] for _ in range(3))
    there = [[w.to(device) for w in ws] for ws in (w0s, w1s, grads)]
    sizes = [w.numel() for w in w0s]
    alpha = torch.tensor(0.5, device=device)
    keep = torch.tensor(7, device=device) if together else torch.tensor([n // 2 for n in sizes], device=device)
    forward = torch.ops.lcs.interpolate_prune_foreach.default
    backward = torch.ops.lcs.interpolate_prune_foreach_backward.default

    def call():
        ws, masks = forward(there[0], there[1], alpha, keep)
        return ws, masks, *backward(there[2], [], [], alpha, masks, True, torch.float32)[:2]

    with no_waiting(device):
        call()
    replay, found = recorded(device, call)
    wrong = []
    for a, density in LEVELS:
        counts = [lcs_kernels.keep_count(density, n) for n in ([sum(sizes)] if together else sizes)]
        level = torch.tensor(a), torch.tensor(counts[0] if together else counts)
        alpha.copy_(level[0])
        keep.copy_(level[1])
        for t in leaves(found):
            t.view(torch.int32).fill_(-1)  # NaN: all must be written
        replay()
        ws, masks = op.reference(w0s, w1s, *level)
        expected = ws, masks, *op.reference_backward(grads, [], [], level[0], masks, True, torch.float32)[:2]
        bad = sum(not same(*pair) for pair in zip(leaves(found), leaves(expected), strict=True))
        if bad:
            wrong.append(f"alpha {a}, density {density}: {bad} of {len(leaves(expected))} tensors differ")
    return wrong


def main(device: str = "cuda") -> int:
    note(backend=lcs_kernels.backends()["interpolate_prune_foreach"][device])
    failed = 0
    for together in (False, True):
        wrong = check(device, together)
        failed += bool(wrong)
        note(ranked="together" if together else "layer by layer", replays=len(LEVELS), wrong=wrong)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
