"""Rows of `width_conv2d_norm`: convolutions of ResNet-18 at widths with the instance norm and the ReLU behind them, and
the max pooling behind the first one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels import line_norm, width_conv2d, width_conv2d_norm
from lcs_kernels.formats import WidthWeight

from .harness import Row
from .width_conv2d import prepacked

WIDTHS = (0.25, 1.0)
# input channels, side, output channels, kernel, stride
STEM = (3, 224, 64, 7, 2)
LAYERS = (STEM, (64, 56, 64, 3, 1), (128, 28, 128, 3, 1), (256, 14, 256, 3, 1), (512, 7, 512, 3, 1))
EPS = 1e-5


def check(found: Tensor, expected: Tensor) -> None:
    if not torch.equal(found, expected):
        raise AssertionError("width_conv2d_norm's result differs from that of its two ops")


def row(images: int, layer: tuple[int, ...], width: float) -> Row:
    full_in, side, full_out, kernel, stride = layer
    inputs, out = full_in if layer == STEM else round(width * full_in), round(width * full_out)
    pool = (3, 2, 1) if layer == STEM else None
    settings = {"stride": (stride,) * 2, "padding": (kernel // 2,) * 2}
    x = torch.randn(images, inputs, side, side).contiguous(memory_format=torch.channels_last)
    w = torch.randn(full_out, full_in, kernel, kernel)
    weight, norm = WidthWeight.pack(w), (*(torch.randn(full_out) for _ in range(4)), torch.tensor(0.3))

    def apart() -> Tensor:
        return pooled(line_norm(width_conv2d(x, weight, out, **settings), *norm, out, EPS, relu=True))

    def pooled(y: Tensor) -> Tensor:
        return y if pool is None else F.max_pool2d(y, *pool)

    def together() -> Tensor:
        return width_conv2d_norm(x, weight, out, norm, None, EPS, relu=True, max_pool=pool, **settings)

    convolve = prepacked(x, w[:out, :inputs], ([stride] * 2, [kernel // 2] * 2))
    ends = [end[:out] for end in norm[:4]]
    scale, shift = torch.lerp(*ends[:2], norm[4]), torch.lerp(*ends[2:], norm[4])
    return Row(
        op="width_conv2d_norm",
        case=f"{images} x {full_in} x {side} x {side}, {kernel} x {kernel} to {full_out}, stride {stride}, "
        f"{'max pooling, ' if pool else ''}channels last, width {width}",
        candidates={
            "lcs": together,
            "width_conv2d, line_norm": apart,
            "torch, packed for this width": lambda: pooled(F.group_norm(convolve(), out, scale, shift).relu_()),
            "torch, its instance norm": lambda: pooled(F.instance_norm(convolve(), None, None, scale, shift).relu_()),
        },
        limit=None,
        flops=2 * images * side**2 // stride**2 * out * inputs * kernel**2,
        bytes=x.nbytes + 4 * images * out * (side // stride) ** 2 + 4 * out * inputs * kernel**2,
        check=lambda: check(together(), apart()),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    with torch.no_grad():
        for images in (1, 16):
            for layer in LAYERS:
                for width in WIDTHS:
                    yield row(images, layer, width)
