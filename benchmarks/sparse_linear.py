"""Rows of `sparse_linear`: a 4096 x 4096 layer at 1, 16 and 128 rows of x."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from lcs_kernels import sparse_linear
from lcs_kernels.formats import SparseWeight
from lcs_kernels.ops.sparse_linear import reference

from .harness import Row
from .peers import Model

FEATURES = 4096
ROWS = (1, 16, 128)
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)


def csr(w: torch.Tensor) -> torch.Tensor:
    """With 32-bit indices, which torch multiplies faster than its own default of 64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse CSR.*")
        wide = w.to_sparse_csr()
        return torch.sparse_csr_tensor(wide.crow_indices().int(), wide.col_indices().int(), wide.values(), w.shape)


def bfloat16_prepacked(x: torch.Tensor, w: torch.Tensor) -> Callable[[], torch.Tensor]:
    x, packed = x.bfloat16(), torch.ops.mkldnn._reorder_linear_weight(w.bfloat16(), x.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 at all (else torch emulates it, and takes seconds), and oneDNN may."""
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return fast and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check(x: torch.Tensor, weight: SparseWeight) -> None:
    expected = reference(x, weight.mask_bits, weight.values, weight.shape[0], None, False, 1, [])
    size = x.double().abs() @ weight.unpack().double().abs().t()
    if not ((sparse_linear(x, weight) - expected).abs() <= 2 * x.shape[1] * 2**-24 * size).all():
        raise AssertionError("sparse_linear's result differs from its reference")


def row(rows: int, density: float) -> Row:
    x, w = torch.randn(rows, FEATURES), torch.randn(FEATURES, FEATURES) / 64
    pruned = w * (torch.rand_like(w) < density)
    weight, compressed = SparseWeight.pack(pruned), csr(pruned)
    linear = torch.nn.Linear(FEATURES, FEATURES, bias=False).requires_grad_(False)
    linear.weight.copy_(pruned)
    peers = {
        "torch float32": lambda: F.linear(x, w),
        "torch CSR, 32-bit indices": lambda: F.linear(x, compressed),
    }
    if fast_bfloat16():
        peers["torch bfloat16, prepacked"] = bfloat16_prepacked(x, w)
    traffic = torch.ones(6 * weight.values.numel() // 4)
    return Row(
        op="sparse_linear",
        case=f"{rows} x {FEATURES} by {FEATURES} x {FEATURES}, density {density}",
        candidates={"lcs": lambda: sparse_linear(x, weight), **peers},
        limit=(lambda: torch.sum(traffic)) if rows == 1 else None,  # each stored value and its index is read once
        flops=2 * rows * weight.values.numel() if rows > 1 else 0,
        bytes=6 * weight.values.numel(),
        check=lambda: check(x, weight),
        model=Model(linear, x),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    for n in ROWS:
        for density in DENSITIES:
            yield row(n, density)
