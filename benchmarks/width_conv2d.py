"""Rows of `width_conv2d`: convolutions at quarter, half, three quarters and full width, from one packed weight, and
depthwise ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels import isa, width_conv2d
from lcs_kernels.formats import WidthWeight
from lcs_kernels.ops._winograd import rounding_bound, strided_rounding_bound
from lcs_kernels.ops.width_conv2d import reference, width_conv2d_pack

from .harness import Row
from .sparse_linear import fast_bfloat16

WIDTHS = (0.25, 0.5, 0.75, 1.0)
# images, input channels, side, output channels, kernel, stride
LAYERS = (
    (1, 256, 14, 256, 3, 1),
    (1, 64, 56, 64, 3, 1),
    (16, 256, 14, 256, 3, 1),
    (16, 64, 56, 64, 3, 1),
    (16, 64, 56, 128, 3, 2),
    (16, 64, 56, 128, 1, 2),
    (128, 64, 32, 16, 1, 1),
    (128, 16, 32, 16, 3, 1),
)
# images, channels, side: 3 x 3 of stride 1
TRAINED = ((16, 64, 56), (16, 128, 28), (16, 256, 14), (16, 512, 7), (128, 32, 16), (128, 64, 8))
# channels, side: 3 x 3 of stride 1, depthwise
DEPTHWISE = ((32, 112), (144, 56), (384, 14), (960, 7))


def prepacked(x: Tensor, w: Tensor, settings: tuple[list[int], list[int]]) -> Callable[[], Tensor]:
    """torch's convolution with a weight sliced and laid out by oneDNN for this width alone, as when it freezes."""
    stride, padding = settings
    ones = [1, 1]
    packed = torch.ops.mkldnn._reorder_convolution_weight(w.contiguous(), padding, stride, ones, 1, list(x.shape))
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, None, padding, stride, ones, 1, "none", [], "")


def copied(x: Tensor, w: Tensor, settings: tuple[list[int], list[int]]) -> Callable[[], Tensor]:
    """The same on a GPU: with a weight copied to x's layout for this width alone."""
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    w = w.contiguous(memory_format=layout)
    return lambda: F.conv2d(x, w, None, *settings)


def other_form(x: Tensor, w: Tensor, out: int, settings: tuple[list[int], list[int]]) -> dict[str, Callable]:
    """By pairs of bfloat16 where this package takes floats to be faster, and the other way round."""
    if x.dtype != torch.bfloat16 or isa.max_name() not in ("avx512_bf16", "amx"):
        return {}
    pairs = not isa.multiplies_pairs()
    weight = WidthWeight(w, dict.fromkeys((False, True), width_conv2d_pack(w, pairs)))
    return {f"lcs by {'pairs' if pairs else 'floats'}": lambda: width_conv2d(x, weight, out, None, *settings)}


def check(x: Tensor, weight: WidthWeight, out: int, settings: tuple[list[int], list[int]]) -> None:
    arguments = (out, None, None, *settings, [1, 1], 1, False, None)
    expected = reference(x, weight.weight, *arguments)
    size = reference(x.double().abs(), weight.weight.double().abs(), *arguments)
    terms = x.shape[1] * weight.shape[2] * weight.shape[3]
    error = 2 * terms * 2**-24 * size
    if weight.weight.shape[2:] == (3, 3) and settings[0] == [1, 1] and x.is_cpu:
        error += rounding_bound(x, settings[1], weight.weight[:out, : x.shape[1]])
    if weight.weight.shape[2:] == (7, 7) and x.is_cpu:
        error += strided_rounding_bound(x, settings[1], weight.weight[:out, : x.shape[1]])
    if x.dtype == torch.bfloat16:
        error += 2**-7 * (expected.abs() + error)  # both are rounded
    if not ((width_conv2d(x, weight, out, None, *settings) - expected).abs() <= error).all():
        raise AssertionError("width_conv2d's result differs from its reference")


def row(layer: tuple[int, ...], width: float, last: bool, dtype: torch.dtype) -> Row:
    """`last`: channels last, the best layout of oneDNN and cuDNN; else contiguous."""
    images, full_in, side, full_out, kernel, stride = layer
    inputs, out, settings = round(width * full_in), round(width * full_out), ([stride] * 2, [kernel // 2] * 2)
    x, w = torch.randn(images, inputs, side, side), torch.randn(full_out, full_in, kernel, kernel)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    x, w = x.to(dtype), w.to(dtype)
    weight, view = WidthWeight.pack(w), w[:out, :inputs]
    y = width_conv2d(x, weight, out, None, *settings)
    return Row(
        op="width_conv2d",
        case=f"{images} x {full_in} x {side} x {side}, {kernel} x {kernel} to {full_out}, stride {stride}, "
        f"{'channels last' if last else 'contiguous'}, width {width}{', bfloat16' if dtype == torch.bfloat16 else ''}",
        candidates={
            "lcs": lambda: width_conv2d(x, weight, out, None, *settings),
            "torch, packed for this width": copied(x, view, settings) if x.is_cuda else prepacked(x, view, settings),
            "torch on the sliced weight": lambda: F.conv2d(x, view, None, *settings),
            "lcs from a tensor": lambda: width_conv2d(x, w, out, None, *settings),
            **other_form(x, w, out, settings),
        },
        limit=None,
        flops=2 * y.numel() * view[0].numel() if dtype == torch.float32 else 0,
        bytes=x.nbytes + y.nbytes + view.numel() * view.itemsize,
        check=lambda: check(x, weight, out, settings),
    )


def depthwise_row(images: int, channels: int, side: int, dtype: torch.dtype) -> Row:
    x, w, bias = torch.randn(images, channels, side, side), torch.randn(channels, 1, 3, 3), torch.randn(channels)
    x, w = x.to(dtype), w.to(dtype)
    weight, last = WidthWeight.pack(w), x.contiguous(memory_format=torch.channels_last)
    settings, cast, copy = ([1, 1], [1, 1], [1, 1], channels), bias.to(dtype), torch.empty_like(x)

    def run() -> Tensor:
        return width_conv2d(x, weight, channels, bias, *settings)

    def check() -> None:
        expected = reference(x, w, channels, None, bias, *settings, False, None)
        magnitudes = (t.double().abs() for t in (x, w))
        size = reference(*magnitudes, channels, None, bias.double().abs(), *settings, False, None)
        error = 2 * 10 * 2**-24 * size + (2**-7 * expected.abs() if dtype == torch.bfloat16 else 0)
        if not ((run() - expected).abs() <= error).all():
            raise AssertionError("width_conv2d's result differs from its reference")

    return Row(
        op="width_conv2d",
        case=f"{images} x {channels} x {side} x {side}, 3 x 3 depthwise, contiguous"
        f"{', bfloat16' if dtype == torch.bfloat16 else ''}",
        candidates={
            "lcs": run,
            "lcs, channels last": lambda: width_conv2d(last, weight, channels, bias, *settings),
            "torch": lambda: F.conv2d(x, w, cast, *settings),
            "torch, channels last": lambda: F.conv2d(last, w, cast, *settings),
        },
        limit=lambda: copy.copy_(x),
        bytes=2 * x.nbytes + w.nbytes,
        check=check,
    )


def training_row(layer: tuple[int, int, int], width: float, last: bool) -> Row:
    """Of 3 x 3 taps at stride 1: the result, and the gradients to x and the whole weight."""
    images, channels, side = layer
    count, layout = round(width * channels), torch.channels_last if last else torch.contiguous_format
    x, grad = (torch.randn(images, count, side, side).contiguous(memory_format=layout) for _ in range(2))
    w = torch.randn(channels, channels, 3, 3).requires_grad_()
    x.requires_grad_()

    def trained(convolved: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return torch.enable_grad()(lambda: torch.autograd.grad(convolved(), [x, w], grad))

    run = trained(lambda: width_conv2d(x, w, count, None, 1, 1))
    exact = trained(lambda: F.conv2d(x, w[:count, :count], None, 1, 1))

    def check() -> None:
        for found, expected, terms in zip(run(), exact(), (count, images * (-(-side // 4)) ** 2), strict=True):
            most = terms * 1250 * terms * 2**-24 * grad.abs().max() * max(x.abs().max(), w.abs().max())
            if not ((found - expected).abs() <= 2 * most).all():
                raise AssertionError("width_conv2d's gradients differ from torch's")

    return Row(
        op="width_conv2d_backward",
        case=f"{images} x {channels} x {side} x {side}, 3 x 3, {'channels last' if last else 'contiguous'}, and its "
        f"gradients, width {width}",
        candidates={"lcs": run, "torch on the sliced weight": exact},
        limit=None,
        flops=6 * grad.numel() * count * 9,
        bytes=0,
        check=check,
    )


def rows() -> Iterator[Row]:
    """bfloat16 on a GPU; on a CPU float32, then the layers of ResNet-18 in bfloat16 where it multiplies that. Depthwise
    layers come after these, and then training."""
    torch.manual_seed(0)
    gpu = torch.get_default_device().type == "cuda"
    with torch.no_grad():
        for layers, last, dtype in (
            (LAYERS, True, torch.bfloat16 if gpu else torch.float32),
            (LAYERS[:4], False, torch.bfloat16 if gpu else torch.float32),
            (() if gpu or not fast_bfloat16() else LAYERS[:6], True, torch.bfloat16),
        ):
            for layer in layers:
                for width in WIDTHS:
                    yield row(layer, width, last, dtype)
        for images in (1, 16):
            for channels, side in DEPTHWISE:
                yield depthwise_row(images, channels, side, torch.bfloat16 if gpu else torch.float32)
        for layer in () if gpu else TRAINED:
            for width in WIDTHS[1::2]:
                for last in (True, False):
                    yield training_row(layer, width, last)
