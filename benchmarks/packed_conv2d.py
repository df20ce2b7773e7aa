"""Rows of `packed_conv2d`: ResNet-18's 3 x 3 convolutions at batch 16 and 1 and several widths, and depthwise ones as
MobileNetV2 has them, against oneDNN int8."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels import packed_conv2d
from lcs_kernels.formats import NestedWeight
from lcs_kernels.ops.packed_conv2d import codes_on, reference

from .harness import Row

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, side
BATCHES = (16, 1)
DEPTHWISE = ((32, 112), (144, 56), (384, 14), (960, 7))
DEPTHWISE_WIDTHS = (8, 4)
WIDTHS = (8, 4, 3, 2)
LOW, HIGH = -4.0, 4.0
IN_INT8 = "oneDNN int8, x and y in int8"


def onednn(x: Tensor, w: Tensor, groups: int) -> dict[str, Callable[[], Tensor]]:
    """oneDNN's int8 convolution, its weight laid out for it: to float32 of x in int8, and with x quantised first; and
    from int8 to int8."""
    scale, zero, ones = (HIGH - LOW) / 255, 128, [1, 1]
    scales = w.abs().amax((1, 2, 3)) / 127
    codes = (w / scales[:, None, None, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qconv_prepack(codes, scales, scale, zero, ones, ones, ones, groups, list(x.shape))
    weight = packed, scales, torch.zeros(len(w), dtype=torch.int8), None

    def quantized() -> Tensor:
        return ((x * (1 / scale)).round() + zero).clamp(0, 255).to(torch.uint8)

    def convolved(q: Tensor, *to: float | int | torch.dtype) -> Tensor:
        output = *to, "none", [], ""
        return torch.ops.onednn.qconv_pointwise(q, scale, zero, *weight, ones, ones, ones, groups, *output)

    codes_of_x, floats = quantized(), (1.0, 0, torch.float32)
    quantize = torch.compile(quantized)
    return {
        "oneDNN int8, x quantised": lambda: convolved(quantize(), *floats),
        "oneDNN int8, x in int8": lambda: convolved(codes_of_x, *floats),
        IN_INT8: lambda: convolved(codes_of_x, scale, zero, torch.uint8),
    }


def prepacked(x: Tensor, w: Tensor, groups: int) -> Callable[[], Tensor]:
    """torch's float32 convolution with a weight laid out by oneDNN, as when it freezes."""
    ones = [1, 1]
    packed = torch.ops.mkldnn._reorder_convolution_weight(w, ones, ones, ones, groups, list(x.shape))
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, None, ones, ones, ones, groups, "none", [], "")


def on_a_gpu(x: Tensor, w: Tensor, groups: int) -> dict[str, Callable[[], Tensor]]:
    """cuDNN in bfloat16, channels last; torch has no convolution in int8 there."""
    half, weight = x.bfloat16(), w.bfloat16().contiguous(memory_format=torch.channels_last)
    return {"torch bfloat16": lambda: F.conv2d(half, weight, None, 1, 1, 1, groups)}


def check(x: Tensor, weight: NestedWeight, bits: int, groups: int) -> None:
    fields, ones = (weight.planes, weight.scales, weight.zero_points, weight.shape), [1, 1]
    settings = bits, None, ones, ones, ones, groups
    given = torch.tensor(LOW), torch.tensor(HIGH)
    for ends, x_bits in (((None, None), 8), (given, 8), (given, bits)):
        expected = reference(x, *fields, *settings, *ends, x_bits, False, False, [])
        found = packed_conv2d(
            x, weight, bits, padding=1, groups=groups, x_range=None if ends[0] is None else ends, x_bits=x_bits
        )
        if not torch.equal(found, expected):
            raise AssertionError("packed_conv2d's result differs from its reference")


def row(x: Tensor, weight: NestedWeight, bits: int, peers: dict[str, Callable[[], Tensor]]) -> Row:
    images, channels, side, _ = x.shape
    groups = channels // weight.shape[1]
    given = {"padding": 1, "groups": groups, "x_range": (torch.tensor(LOW), torch.tensor(HIGH))}
    plain, out = x.contiguous(), torch.empty_like(x)
    kind, limit = ("", None) if groups == 1 else (" depthwise", lambda: out.copy_(x))
    return Row(
        op="packed_conv2d",
        case=f"{images} x {channels} x {side} x {side}, 3 x 3{kind}, {bits} bits",
        candidates={
            "lcs": lambda: packed_conv2d(x, weight, bits, **given),
            "lcs, x at the weight's bits": lambda: packed_conv2d(x, weight, bits, **given, x_bits=bits),
            "lcs, ranges of the images": lambda: packed_conv2d(x, weight, bits, padding=1, groups=groups),
            "lcs, contiguous": lambda: packed_conv2d(plain, weight, bits, **given),
            **peers,
        },
        limit=limit,
        bytes=2 * x.nbytes + weight.nbytes_at(bits),
        check=lambda: check(x, weight, bits, groups),
    )


def row_of_codes(x: Tensor, weight: NestedWeight, bits: int, peer: Callable[[], Tensor]) -> Row:
    """From int8 to int8, as layers of a network after each other."""
    images, channels, side, _ = x.shape
    ends = torch.tensor(LOW), torch.tensor(HIGH)
    codes = codes_on(x, *ends, 8)
    given = {"padding": 1, "groups": channels, "x_range": ends, "y_range": ends, "y_bits": 8}

    def check() -> None:
        floats = {name: given[name] for name in ("padding", "groups", "x_range")}
        expected = codes_on(packed_conv2d(x, weight, bits, **floats), *ends, 8)
        if not torch.equal(packed_conv2d(codes, weight, bits, **given), expected):
            raise AssertionError("packed_conv2d's codes differ from those of its results")

    out = torch.empty_like(codes)
    return Row(
        op="packed_conv2d",
        case=f"{images} x {channels} x {side} x {side}, 3 x 3 depthwise, {bits} bits, x and y in int8",
        candidates={"lcs": lambda: packed_conv2d(codes, weight, bits, **given), IN_INT8: peer},
        limit=lambda: out.copy_(codes),
        bytes=2 * codes.nbytes + weight.nbytes_at(bits),
        check=check,
    )


def layer(n: int, channels: int, side: int, groups: int, widths: tuple[int, ...]) -> Iterator[Row]:
    x, w = torch.randn(n, channels, side, side), torch.randn(channels, channels // groups, 3, 3) / 16
    x = x.contiguous(memory_format=torch.channels_last)
    weight = NestedWeight.pack(w)
    peers = on_a_gpu(x, w, groups) if x.is_cuda else {**onednn(x, w, groups), "torch float32": prepacked(x, w, groups)}
    peers["F.conv2d"] = lambda: F.conv2d(x, w, None, 1, 1, 1, groups)
    in_int8 = peers.pop(IN_INT8, None)
    for bits in widths:
        yield row(x, weight, bits, peers)
    if groups > 1 and in_int8:
        yield row_of_codes(x, weight, widths[0], in_int8)


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    with torch.no_grad():
        for n in BATCHES:
            for channels, side in LAYERS:
                yield from layer(n, channels, side, 1, WIDTHS)
        for n in BATCHES:
            for channels, side in DEPTHWISE:
                yield from layer(n, channels, side, channels, DEPTHWISE_WIDTHS)
