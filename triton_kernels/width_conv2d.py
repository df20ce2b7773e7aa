"""Triton twin of `width_conv2d`: an implicit product of positions and output channels over taps and input channels.

Channel counts, strides and the geometry are run-time numbers that nothing is specialised on, so a change of width
compiles nothing. The weight is read where it lies. bfloat16 is multiplied in TF32, which holds it exactly.

The kernel is tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100. It has not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lcs_kernels.ops._convolution import memory_format, output_size

from ._common import TYPES, check, check_counts, rounded, widened

TILE = {"POSITIONS": 64, "OUTPUTS": 32, "INPUTS": 16}  # with 4 warps no target spills
_NUMBERS = [
    "positions", "outputs", "inputs", "pixels", "width", "x_height", "x_width", "kernel_width", "taps", "weight_row",
    "stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w",
    "x_n", "x_c", "x_h", "x_w", "y_n", "y_c", "y_h", "y_w",
]  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def convolve_kernel(
    x, weight, scale, bias, residual, y, cap,
    positions, outputs, inputs, pixels, width, x_height, x_width, kernel_width, taps, weight_row: tl.int64,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    x_n: tl.int64, x_c: tl.int64, x_h: tl.int64, x_w: tl.int64,
    y_n: tl.int64, y_c: tl.int64, y_h: tl.int64, y_w: tl.int64,
    OUT: tl.constexpr, PRECISION: tl.constexpr, DEPTHWISE: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
    ADDED: tl.constexpr, RELU: tl.constexpr, CAPPED: tl.constexpr,
    POSITIONS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """`positions`: images * pixels of the result; `outputs`, `inputs`: channels of a group, `pixels` of an image."""
    group = tl.program_id(2)
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    image, row, column = position // pixels, position % pixels // width, position % width
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    channel = (group * outputs + output).to(tl.int64)
    from_image = x + image.to(tl.int64) * x_n
    total = tl.zeros((POSITIONS, OUTPUTS), tl.float32)
    for tap in range(taps):
        h = row * stride_h - padding_h + tap // kernel_width * dilation_h
        w = column * stride_w - padding_w + tap % kernel_width * dilation_w
        inside = (position < positions) & (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
        pixel = from_image + h * x_h + w * x_w
        if DEPTHWISE:
            seen = inside[:, None] & (output < outputs)[None, :]
            values = widened(tl.load(pixel[:, None] + channel[None, :] * x_c, mask=seen, other=0.0))
            factors = widened(tl.load(weight + channel * weight_row + tap, mask=output < outputs, other=0.0))
            total += values * factors[None, :]
        else:
            for first in range(0, inputs, INPUTS):
                i = first + tl.arange(0, INPUTS)
                at = pixel[:, None] + (group * inputs + i)[None, :] * x_c
                values = widened(tl.load(at, mask=inside[:, None] & (i < inputs)[None, :], other=0.0))
                at = weight + channel[None, :] * weight_row + (i * taps + tap)[:, None]
                used = (i < inputs)[:, None] & (output < outputs)[None, :]
                total = tl.dot(values, widened(tl.load(at, mask=used, other=0.0)), total, input_precision=PRECISION)
    if SCALED:
        total *= tl.load(scale + channel, mask=output < outputs, other=0.0)[None, :]
    if BIASED:
        total += tl.load(bias + channel, mask=output < outputs, other=0.0)[None, :]
    at = (image.to(tl.int64) * y_n + row * y_h + column * y_w)[:, None] + channel[None, :] * y_c
    stored = (position < positions)[:, None] & (output < outputs)[None, :]
    if ADDED:
        total = widened(rounded(total, OUT)) + widened(tl.load(residual + at, mask=stored, other=0.0))
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # a NaN stays
    if CAPPED:
        total = tl.where(total > cap, cap, total)  # likewise
    tl.store(y + at, rounded(total, OUT), mask=stored)


def width_conv2d(
    x: Tensor,
    weight: Tensor,
    out_channels: int,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
    packed: Tensor | None = None,
    winograd: bool | None = None,
    cap: float | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """As the op's schema, on the GPU of `x`; `packed` and `winograd` are for CPUs."""
    _check(x, weight, scale, bias)
    scale, bias = (None if vector is None else vector.contiguous() for vector in (scale, bias))
    weight = weight.contiguous()
    size = output_size(x.shape, weight.shape, stride, padding, dilation)
    check_counts("width_conv2d", positions_of_all_images=len(x) * size[0] * size[1])
    layout = memory_format(x)
    y = torch.empty((x.shape[0], out_channels, *size), dtype=x.dtype, device=x.device, memory_format=layout)
    depthwise = groups > 1 and groups == x.shape[1] == out_channels
    outputs, programs = (out_channels, 1) if depthwise else (out_channels // groups, groups)
    positions, taps = x.shape[0] * size[0] * size[1], weight.shape[2] * weight.shape[3]
    if residual is not None:
        check("width_conv2d", "residual", residual, x, x.dtype, y.shape)
        residual = residual.contiguous(memory_format=layout)
    if y.numel() == 0:
        return y
    grid = triton.cdiv(positions, TILE["POSITIONS"]), triton.cdiv(outputs, TILE["OUTPUTS"]), programs
    exact_in_tf32 = x.dtype == weight.dtype == torch.bfloat16
    with torch.cuda.device_of(x):
        convolve_kernel[grid](
            x, weight, scale, bias, residual, y, 0.0 if cap is None else cap,
            positions, outputs, x.shape[1] // groups, size[0] * size[1], size[1], x.shape[2], x.shape[3],
            weight.shape[3], taps, weight.shape[1] * taps, *stride, *padding, *dilation, *x.stride(), *y.stride(),
            OUT=TYPES[x.dtype], PRECISION="tf32" if exact_in_tf32 else "ieee", DEPTHWISE=depthwise,
            SCALED=scale is not None, BIASED=bias is not None, ADDED=residual is not None, RELU=relu,
            CAPPED=cap is not None, **TILE, num_warps=4,
        )  # fmt: skip
    return y


def _check(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
    for name, tensor in ("x", x), ("weight", weight):
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"width_conv2d: {name} must be float32 or bfloat16, got {tensor.dtype}")
    check("width_conv2d", "weight", weight, x, weight.dtype, weight.shape)
    for name, vector in ("scale", scale), ("bias", bias):
        if vector is not None:
            check("width_conv2d", name, vector, x, torch.float32, weight.shape[:1])
