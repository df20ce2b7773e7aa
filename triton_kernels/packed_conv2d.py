"""Triton twin of `packed_conv2d`: x becomes int8, channels last, then an implicit product over taps and input channels.

One kernel for each width reads that many planes of the weight; a change of width compiles it at its first use, and
nothing after that. Channel counts, strides and the geometry are run-time numbers that nothing is specialised on.

These kernels are tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100. They have not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lcs_kernels.ops._convolution import memory_format, output_size
from lcs_kernels.ops.packed_conv2d import MAX_RANGED_TERMS, MAX_TERMS, result_type

from ._common import TYPES, check, check_counts, rounded, widened
from ._packed import (
    COLUMNS,
    OPTIONS,
    ROWS,
    check_x,
    doubled,
    fitted,
    floor_of,
    magnitudes,
    symmetric,
    weight_of,
    weight_tile,
    whole,
)
from .quantize import FAR, WHOLE, clamped, grid_of

BLOCK = 4096  # elements of x of which the largest is looked for
PIXELS, CHANNELS = 64, 32  # of x that are quantised at once
TILE = {"OUTPUTS": 64, "POSITIONS": 64, "INPUTS": 64}
RESULTS = TYPES | {torch.int8: tl.int8}
EXACT_TILE = {"OUTPUTS": 32, "POSITIONS": 32, "INPUTS": 32}
_NUMBERS = [
    "positions", "outputs", "inputs", "pixels", "width", "x_height", "x_width", "kernel_width", "taps",
    "stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w", "x_bits",
    "chunks", "steps", "blocks", "row_scales", "dropped", "biased", "y_bits", "x_n", "x_c", "x_p", "y_n", "y_c", "y_p",
]  # fmt: skip


@triton.jit(do_not_specialize=["tiles"])
def largest_kernel(x, most, n, tiles, BLOCK: tl.constexpr):
    """Of each image of n elements, as `magnitudes` counts it; `most` begins at 0."""
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i = tile * BLOCK + tl.arange(0, BLOCK)
    values = widened(tl.load(x + image.to(tl.int64) * n + i, mask=i < n, other=0.0))
    tl.atomic_max(most + image, tl.max(magnitudes(values), 0), sem="relaxed")


@triton.jit(do_not_specialize=["positions", "pixels", "inputs", "chunks", "x_bits", "x_n", "x_c", "x_p"])
def quantize_images_kernel(
    x, q, sums, most, low, high, positions, pixels, inputs, chunks, x_bits, x_n: tl.int64, x_c, x_p,
    RANGED: tl.constexpr, INPUTS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A group's channels of some pixels, or their codes, padded with 0 to `chunks` of INPUTS; sums of each pixel's.

    `most`: the largest magnitude of each image, or RANGED the place to note with a 1 that it holds a NaN.
    """
    CODES: tl.constexpr = x.dtype.element_ty == tl.int8
    group, groups = tl.program_id(1), tl.num_programs(1)
    position = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    seen, image = position < positions, position // pixels
    if RANGED:
        _, inverse, zero, lowest, highest, _ = grid_of(tl.load(low), tl.load(high), x_bits, False)
    else:
        inverse = symmetric(tl.load(most + image, mask=seen, other=0))[0][:, None]
    from_x = x + image.to(tl.int64) * x_n + position % pixels * x_p + group * inputs * x_c
    to = q + (position.to(tl.int64) * groups + group) * (chunks * INPUTS)
    total = tl.zeros((PIXELS,), tl.int32)
    spoilt = tl.zeros((PIXELS,), tl.int32)
    for first in range(0, chunks * INPUTS, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        inside = seen[:, None] & (channel < inputs)[None, :]
        values = widened(tl.load(from_x[:, None] + channel[None, :] * x_c, mask=inside, other=0))
        if CODES:
            code = values
            total += tl.sum(tl.where(inside, code - zero, 0.0).to(tl.int32), 1)
        elif RANGED:
            code = (clamped(values * inverse, -FAR, FAR) + WHOLE) - WHOLE
            code = clamped(tl.where(code == code, code, 0.0) + zero, lowest, highest)
            total += tl.sum(tl.where(inside, code - zero, 0.0).to(tl.int32), 1)
            code = tl.where(inside, code, 0.0)
            spoilt = tl.maximum(spoilt, tl.max((values != values).to(tl.int32), 1))
        else:
            code = tl.where(inverse > 0, (values * inverse + WHOLE) - WHOLE, 0.0)
            total += tl.sum(code.to(tl.int32), 1)
        tl.store(to[:, None] + channel[None, :], code.to(tl.int8), mask=seen[:, None])
    tl.store(sums + position.to(tl.int64) * groups + group, total, mask=seen)
    if RANGED:
        tl.atomic_max(most + image, spoilt, mask=spoilt > 0, sem="relaxed")


@triton.jit(do_not_specialize=_NUMBERS)
def packed_conv2d_kernel(
    x, sums, most, low, high, planes, scales, zero_points, bias, residual, y_low, y_high, y,
    positions, outputs, inputs, pixels, width, x_height, x_width, kernel_width, taps,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, x_bits,
    chunks, steps, blocks, row_scales, dropped, biased, floor, y_bits,
    x_n: tl.int64, x_c, x_p, y_n: tl.int64, y_c: tl.int64, y_p: tl.int64,
    OUT: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, RANGED: tl.constexpr,
    ADDED: tl.constexpr, OUTPUTS: tl.constexpr, POSITIONS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """`positions`: images * pixels of the result; `outputs`, `inputs`: channels of a group, `pixels` of an image.

    `steps`: bytes of a tap of a row of the weight; `blocks`: of a group's rows; `biased`: channels of `bias`, or 0.
    EXACT: x as it is; else as `quantize_images_kernel` makes it.
    """
    group = tl.program_id(2)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    image, row, column = (position // pixels).to(tl.int64), position % pixels // width, position % width
    plane_blocks = tl.num_programs(2).to(tl.int64) * blocks * taps * steps
    stored, seen = output < outputs, position < positions
    channel = group * outputs + output
    block = output // ROWS
    from_row = planes + (group * blocks + block).to(tl.int64) * taps * steps * ROWS + output % ROWS
    center = tl.load(zero_points + channel * row_scales, mask=stored, other=0).to(tl.int32)
    center = (1 << dropped) - 1 - 2 * center
    sum_of_x = tl.zeros((POSITIONS,), tl.int32)
    sum_of_codes = tl.zeros((OUTPUTS,), tl.int32)
    if RANGED:
        x_scale, _, x_zero, _, _, _ = grid_of(tl.load(low), tl.load(high), x_bits, False)
    products = tl.zeros((OUTPUTS, POSITIONS), tl.float32 if EXACT else tl.int32)
    for tap in range(taps):
        h = row * stride_h - padding_h + tap // kernel_width * dilation_h
        w = column * stride_w - padding_w + tap % kernel_width * dilation_w
        inside = seen & (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
        pixel = h * x_width + w
        if EXACT:
            from_x = x + image * x_n + pixel * x_p + group * inputs * x_c
        else:
            from_group = (image * (x_height * x_width) + pixel) * tl.num_programs(2) + group
            from_x = x + from_group * (chunks * INPUTS)
            sum_of_x += tl.load(sums + from_group, mask=inside, other=0)
        for chunk in range(chunks):
            step = chunk * (INPUTS // COLUMNS) + tl.arange(0, INPUTS // COLUMNS)
            at = from_row[:, None] + ((tap * steps + step) * ROWS)[None, :]
            codes = weight_tile(at, (block < blocks)[:, None] & (step < steps)[None, :], plane_blocks, BITS, not EXACT)
            i = chunk * INPUTS + tl.arange(0, INPUTS)
            if EXACT:
                of_channels = from_x[None, :] + (i * x_c)[:, None]
                values = widened(tl.load(of_channels, mask=(i < inputs)[:, None] & inside[None, :], other=0.0))
                products = tl.dot(doubled(codes, center, dropped), values, products, input_precision=PRECISION)
            else:
                padding = 0
                if RANGED:
                    padding = tl.where(i < inputs, x_zero, 0.0).to(tl.int8)[:, None]
                    sum_of_codes += tl.sum(tl.where((i < inputs)[None, :], codes, 0).to(tl.int32), 1)
                values = tl.load(from_x[None, :] + i[:, None], mask=inside[None, :], other=padding)
                products = tl.dot(codes, values, products, out_dtype=tl.int32)
    if EXACT:
        half = 0.5
    elif RANGED:
        products -= x_zero.to(tl.int32) * sum_of_codes[:, None]
        half = tl.where(tl.load(most + image, mask=seen, other=0) == 0, x_scale * 0.5, float("nan"))[None, :]
    else:
        _, half = symmetric(tl.load(most + image, mask=seen, other=0))
        half = half[None, :]
    if not EXACT:
        products = whole(products, sum_of_x, center, dropped, BITS)
    total = products.to(tl.float32) * tl.load(scales + channel * row_scales, mask=stored, other=0.0)[:, None] * half
    total += tl.load(bias + channel, mask=channel < biased, other=0.0)[:, None]
    at = (image * y_n + (row * width + column) * y_p)[None, :] + (channel * y_c)[:, None]
    inside = stored[:, None] & seen[None, :]
    if ADDED:
        total += widened(tl.load(residual + at, mask=inside, other=0.0))
    total = tl.where(total < floor, floor, total)  # a NaN stays
    if OUT == tl.int8:
        _, inverse, zero, lowest, highest, _ = grid_of(tl.load(y_low), tl.load(y_high), y_bits, False)
        total = (clamped(total * inverse, -FAR, FAR) + WHOLE) - WHOLE + zero
        total = clamped(tl.where(total == total, total, lowest), lowest, highest)
        total = tl.where(inverse > 0, total, 0.0)
    tl.store(y + at, rounded(total, OUT), mask=inside)


def packed_conv2d(
    x: Tensor,
    planes: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    weight_shape: Sequence[int],
    bits: int,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    low: Tensor | None,
    high: Tensor | None,
    x_bits: int,
    relu: bool,
    exact: bool,
    prepack: list[Tensor],
    residual: Tensor | None = None,
    y_low: Tensor | None = None,
    y_high: Tensor | None = None,
    y_bits: int = 8,
) -> Tensor:
    """As the op's schema, on the GPU of `x`."""
    _check(x, weight_shape, bias, groups, low, high, x_bits, exact)
    _check_range(x, "y", y_low, y_high, y_bits)
    size = output_size(x.shape, weight_shape, stride, padding, dilation)
    _check_counts(x, size)
    taps, inputs = weight_shape[2] * weight_shape[3], weight_shape[1]
    out_layout = (weight_shape[0], inputs * taps, max(inputs * taps, 1), taps, groups)
    weight = weight_of("packed_conv2d", (planes, scales, zero_points), out_layout, bits, prepack, x)
    x_layout = torch.channels_last if x.dtype == torch.int8 else memory_format(x)
    dtype, layout = result_type(x, y_low)
    y = torch.empty((x.shape[0], weight_shape[0], *size), dtype=dtype, device=x.device, memory_format=layout)
    if residual is not None:
        check("packed_conv2d", "residual", residual, x, result_type(x, None)[0], y.shape)
        residual = residual.contiguous(memory_format=layout)
    if y.numel() == 0:
        return y
    x, outputs, positions = x.contiguous(memory_format=x_layout), weight_shape[0] // groups, len(x) * size[0] * size[1]
    tile = fitted(EXACT_TILE if exact else TILE, inputs)
    chunks = triton.cdiv(inputs, tile["INPUTS"])
    strides = _strides(x, x_layout), _strides(y, layout)
    grid = triton.cdiv(positions, tile["POSITIONS"]), triton.cdiv(outputs, tile["OUTPUTS"]), groups
    with torch.cuda.device_of(x):
        q = (x, x, x) if exact else _quantized(x, low, high, x_bits, groups, chunks, tile["INPUTS"], strides[0])
        packed_conv2d_kernel[grid](
            *q, low, high, weight.planes, scales, zero_points, scales if bias is None else bias.contiguous(),
            residual, y_low, y_high, y,
            positions, outputs, inputs, size[0] * size[1], size[1], x.shape[2], x.shape[3], weight_shape[3],
            taps, *stride, *padding, *dilation, x_bits, chunks, triton.cdiv(inputs, COLUMNS.value),
            triton.cdiv(outputs, ROWS.value), int(weight.per_row), weight.dropped,
            0 if bias is None else weight_shape[0], floor_of(relu), y_bits, *strides[0], *strides[1],
            OUT=RESULTS[dtype], BITS=bits, EXACT=exact,
            PRECISION="tf32" if x.dtype == torch.bfloat16 else "ieee", RANGED=low is not None,
            ADDED=residual is not None, **tile, **OPTIONS,
        )  # fmt: skip
    return y


def _check_counts(x: Tensor, size: Sequence[int]) -> None:
    n, channels, height, width = x.shape
    most = n * max(height * width, size[0] * size[1])
    check_counts("packed_conv2d", positions_of_all_images=most, elements_of_an_image=channels * height * width)


def _check(x, weight_shape, bias, groups, low, high, x_bits, exact) -> None:
    op = "packed_conv2d"
    if x.dtype != torch.int8:
        check_x(op, x)
    if x.dim() != 4 or len(weight_shape) != 4:
        raise ValueError(f"{op}: x must be (n, c, h, w), got shape {tuple(x.shape)}")
    out, inputs, height, width = weight_shape
    if groups < 1 or x.shape[1] != inputs * groups or out % groups:
        of = f"{out} x {inputs} in {groups} groups"
        raise ValueError(f"{op}: x has {x.shape[1]} channels, a weight of {of} takes {groups * inputs}")
    if height < 1 or width < 1:
        raise ValueError(f"{op}: a kernel of {height} x {width} has no taps")
    _check_range(x, "x", low, high, x_bits)
    if x.dtype == torch.int8 and (low is None or exact):
        raise ValueError(f"{op}: x holds codes (int8): give their range, not `exact`")
    most = MAX_TERMS if low is None else MAX_RANGED_TERMS
    if not exact and inputs * height * width > most:
        raise ValueError(f"{op}: sums of {inputs * height * width} products run by the reference, above {most}")
    if bias is not None:
        check(op, "bias", bias, x, torch.float32, (out,))


def _check_range(x: Tensor, of: str, low: Tensor | None, high: Tensor | None, bits: int) -> None:
    if (low is None) != (high is None):
        raise ValueError(f"packed_conv2d: give both ends of {of}'s range, or none")
    for name, end in ("low", low), ("high", high):
        if end is not None:
            check("packed_conv2d", name if of == "x" else f"{of}_{name}", end, x, torch.float32, ())
    if not 2 <= bits <= 8:
        raise ValueError(f"packed_conv2d: {of}_bits must lie in [2, 8], got {bits}")


def _strides(t: Tensor, layout: torch.memory_format) -> tuple[int, int, int]:
    """Of an image, a channel and a pixel of `t`, which is contiguous in `layout`."""
    pixels = t.shape[2] * t.shape[3]
    return t.shape[1] * pixels, *((1, t.shape[1]) if layout == torch.channels_last else (pixels, 1))


def _quantized(x, low, high, x_bits, groups, chunks, inputs, strides) -> tuple[Tensor, Tensor, Tensor]:
    """x in int8, (images, pixels, groups, chunks, inputs), the sums of a pixel's groups, and `most` of each image."""
    images, pixels, n = len(x), x.shape[2] * x.shape[3], strides[0]
    q = torch.empty((images, pixels, groups, chunks, inputs), dtype=torch.int8, device=x.device)
    sums = torch.empty((images, pixels, groups), dtype=torch.int32, device=x.device)
    most = torch.zeros(images, dtype=torch.int32, device=x.device)
    if low is None and n:
        tiles = triton.cdiv(n, BLOCK)
        largest_kernel[(images * tiles,)](x, most, n, tiles, BLOCK=BLOCK, **OPTIONS)
    if pixels:
        quantize_images_kernel[(triton.cdiv(images * pixels, PIXELS), groups)](
            x, q, sums, most, low, high, images * pixels, pixels, x.shape[1] // groups, chunks, x_bits, *strides,
            RANGED=low is not None, INPUTS=inputs, PIXELS=PIXELS, CHANNELS=CHANNELS, **OPTIONS,
        )  # fmt: skip
    return q, sums, most
