"""Rows of `sparse_conv2d_norm`: 3 x 3 convolutions of ResNet-18 with the norm, the sum and the ReLU behind them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels import line_norm, sparse_conv2d, sparse_conv2d_norm
from lcs_kernels.formats import SparseWeight

from .harness import Row
from .sparse_conv2d import LAYERS, prepacked

DENSITIES = (0.1, 0.02)
GROUPS, EPS = 32, 1e-5


def check(found: Tensor, expected: Tensor) -> None:
    if not torch.equal(found, expected):
        raise AssertionError("sparse_conv2d_norm's result differs from that of its two ops")


def row(images: int, channels: int, side: int, density: float) -> Row:
    x, w = torch.randn(images, channels, side, side), torch.randn(channels, channels, 3, 3)
    weight = SparseWeight.pack(w * (torch.rand_like(w) < density))
    norm, residual = (*(torch.randn(channels) for _ in range(4)), torch.tensor(0.3)), torch.randn_like(x)
    last = residual.contiguous(memory_format=torch.channels_last)  # as the prepacked convolution's result lies
    scale, shift = torch.lerp(*norm[:2], norm[4]), torch.lerp(*norm[2:4], norm[4])
    after = {"residual": residual, "relu": True}
    convolve = prepacked(x, weight.unpack())

    def fused() -> Tensor:
        return sparse_conv2d_norm(x, weight, norm, GROUPS, EPS, padding=1, **after)

    def apart() -> Tensor:
        return line_norm(sparse_conv2d(x, weight, padding=1), *norm, GROUPS, EPS, **after)

    return Row(
        op="sparse_conv2d_norm",
        case=f"{images} x {channels} x {side} x {side}, 3 x 3, density {density}",
        candidates={
            "lcs": fused,
            "sparse_conv2d, line_norm": apart,
            "torch float32, prepacked": lambda: F.group_norm(convolve(), GROUPS, scale, shift).add_(last).relu_(),
        },
        limit=None,
        flops=2 * images * side * side * weight.values.numel(),
        bytes=6 * weight.values.numel() + 3 * x.nbytes,
        check=lambda: check(fused(), apart()),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    with torch.no_grad():
        for images in (1, 16):
            for channels, side in LAYERS:
                for density in DENSITIES:
                    yield row(images, channels, side, density)
