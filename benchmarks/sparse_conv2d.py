"""Rows of `sparse_conv2d`: the 3 x 3 convolutions of ResNet-18 at batch 1 and 16."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from lcs_kernels import sparse_conv2d
from lcs_kernels.formats import SparseWeight
from lcs_kernels.ops.sparse_conv2d import reference

from .harness import Row
from .peers import Model
from .sparse_linear import DENSITIES, fast_bfloat16

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, side


def prepacked(x: torch.Tensor, w: torch.Tensor) -> Callable[[], torch.Tensor]:
    """torch's convolution with a weight that oneDNN laid out for this input, as torch.compile does when it freezes."""
    ones, shape = [1, 1], list(x.shape)
    packed = torch.ops.mkldnn._reorder_convolution_weight(w, ones, ones, ones, 1, shape)
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, None, ones, ones, ones, 1, "none", [], "")


def check(x: torch.Tensor, weight: SparseWeight) -> None:
    ones = [1, 1]
    expected = reference(x, weight.mask_bits, weight.values, weight.shape, None, ones, ones, ones, 1, False, 1, [])
    size = F.conv2d(x.double().abs(), weight.unpack().double().abs(), padding=1)
    terms = 9 * x.shape[1]
    if not ((sparse_conv2d(x, weight, padding=1) - expected).abs() <= 2 * terms * 2**-24 * size).all():
        raise AssertionError("sparse_conv2d's result differs from its reference")


def row(images: int, channels: int, side: int, density: float) -> Row:
    x, w = torch.randn(images, channels, side, side), torch.randn(channels, channels, 3, 3)
    weight = SparseWeight.pack(w * (torch.rand_like(w) < density))
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
    conv.weight.copy_(weight.unpack())
    peers = {
        "torch float32": lambda: F.conv2d(x, w, padding=1),
        "torch float32, prepacked": prepacked(x, w),
    }
    if fast_bfloat16():
        peers["torch bfloat16, prepacked"] = prepacked(x.bfloat16(), w.bfloat16())
    return Row(
        op="sparse_conv2d",
        case=f"{images} x {channels} x {side} x {side}, 3 x 3, density {density}",
        candidates={"lcs": lambda: sparse_conv2d(x, weight, padding=1), **peers},
        limit=None,
        flops=2 * images * side * side * weight.values.numel(),
        bytes=6 * weight.values.numel() + x.nbytes + x.nbytes,
        check=lambda: check(x, weight),
        model=Model(conv, x),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    for images in (1, 16):
        for channels, side in LAYERS:
            for density in DENSITIES:
                yield row(images, channels, side, density)
