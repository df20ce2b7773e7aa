"""Rows of `sparse_pack`: the compressible layers of ResNet-18, from dense and from the prune's mask."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lcs_kernels import keep_count
from lcs_kernels.formats import SparseWeight

from .harness import Row
from .interpolate_prune_foreach import ALPHA, RESNET18

DENSITY = 0.1


def csr(w: torch.Tensor) -> torch.Tensor:
    return w.flatten(1).to_sparse_csr()


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    w0s, w1s = ([torch.randn(shape) for shape in RESNET18] for _ in range(2))
    counts = torch.tensor([keep_count(DENSITY, w.numel()) for w in w0s])
    prune = torch.ops.lcs.interpolate_prune_foreach.default
    ws, masks = prune(w0s, w1s, torch.tensor(ALPHA), counts)
    n = sum(w.numel() for w in ws)

    def check():
        for w, bits in zip(ws, masks, strict=True):
            if not torch.equal(SparseWeight.pack(w, bits).unpack(), w):
                raise AssertionError("sparse_pack does not unpack to what was packed")

    yield Row(
        op="sparse_pack",
        case=f"ResNet-18, {len(ws)} layers, density {DENSITY}",
        candidates={
            "lcs": lambda: [SparseWeight.pack(w, bits) for w, bits in zip(ws, masks, strict=True)],
            "lcs, without the prune's mask": lambda: [SparseWeight.pack(w) for w in ws],
            "interpolate_prune_foreach alone": lambda: prune(w0s, w1s, torch.tensor(ALPHA), counts),
            "torch to_sparse_csr": lambda: [csr(w) for w in ws],
        },
        limit=None,
        bytes=4 * n + n // 8 + 4 * int(counts.sum()),
        check=check,
    )
