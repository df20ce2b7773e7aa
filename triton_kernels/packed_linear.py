"""Triton twin of `packed_linear`: a kernel rounds the rows of x to int8, a second multiplies them by tiles of codes.

One kernel for each width reads that many planes of the weight; a change of width compiles it at its first use, and
nothing after that. Products of a weight's rows and x's are tiles of integers (`exact`: of float32), scaled and added up
group by group.

These kernels are tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100. They have not run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lcs_kernels.ops.packed_linear import MAX_COLUMNS

from ._common import TYPES, check, rounded, widened
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
from .quantize import WHOLE

BLOCK = 2048  # elements of x that are quantised at once
FEW = 16  # rows of x that make one tile
TILE = {"OUTPUTS": 64, "POSITIONS": 64, "INPUTS": 64}
TILE_OF_FEW = {"OUTPUTS": 32, "POSITIONS": FEW, "INPUTS": 256}
EXACT_TILE = {"OUTPUTS": 32, "POSITIONS": 32, "INPUTS": 32}
EXACT_TILE_OF_FEW = {"OUTPUTS": 32, "POSITIONS": FEW, "INPUTS": 32}
_NUMBERS = ["rows", "outputs", "columns", "group", "groups", "chunks", "steps", "blocks", "row_groups"]
_NUMBERS += ["dropped", "biased"]


@triton.jit(do_not_specialize=["columns", "group", "groups", "chunks"])
def quantize_rows_kernel(
    x, q, half, sums, columns, group, groups, chunks,
    INPUTS: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """GROUPS groups of a row of x in units of its largest magnitude / 127, padded to `chunks` of INPUTS; their sums."""
    row = tl.program_id(0).to(tl.int64)
    x += row * columns
    most = tl.zeros((GROUPS * BLOCK,), tl.int32)
    for first in range(0, columns, GROUPS * BLOCK):
        column = first + tl.arange(0, GROUPS * BLOCK)
        most = tl.maximum(most, magnitudes(widened(tl.load(x + column, mask=column < columns, other=0.0))))
    inverse, half_unit = symmetric(tl.max(most, 0))
    tl.store(half + row, half_unit)
    g = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    total = tl.zeros((GROUPS,), tl.int32)
    for first in range(0, chunks * INPUTS, BLOCK):
        i = first + tl.arange(0, BLOCK)
        column = g[:, None] * group + i[None, :]
        inside = (i < group)[None, :] & (column < columns)
        value = widened(tl.load(x + column, mask=inside, other=0.0)) * inverse
        units = tl.where(inverse > 0, (value + WHOLE) - WHOLE, 0.0).to(tl.int32)
        total += tl.sum(units, 1)
        to = q + (row * groups + g[:, None]) * (chunks * INPUTS) + i[None, :]
        tl.store(to, units.to(tl.int8), mask=(g < groups)[:, None] & (i < chunks * INPUTS)[None, :])
    tl.store(sums + row * groups + g, total, mask=g < groups)


@triton.jit(do_not_specialize=_NUMBERS)
def packed_linear_kernel(
    x, half, sums, planes, scales, zero_points, bias, y,
    rows, outputs, columns, group, groups, chunks, steps, blocks, row_groups, dropped, biased, floor,
    OUT: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    POSITIONS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """`steps`: bytes of a group of a row of the weight; `blocks`: of its rows; `row_groups`: between rows of scales.

    `biased`: outputs of `bias`, or 0. EXACT: x as it is, (rows, columns); else as `quantize_rows_kernel` makes it.
    """
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    plane_blocks = blocks.to(tl.int64) * groups * steps
    stored, seen = output < outputs, position < rows
    block = output // ROWS
    from_row = planes + block.to(tl.int64) * groups * steps * ROWS + output % ROWS
    from_x = x + position.to(tl.int64) * (columns if EXACT else groups * chunks * INPUTS)
    total = tl.zeros((OUTPUTS, POSITIONS), tl.float32)
    for g in range(groups):
        scale = tl.load(scales + output * row_groups + g, mask=stored, other=0.0)
        zero = tl.load(zero_points + output * row_groups + g, mask=stored, other=0).to(tl.int32)
        center = (1 << dropped) - 1 - 2 * zero
        products = tl.zeros((OUTPUTS, POSITIONS), tl.float32 if EXACT else tl.int32)
        for chunk in range(chunks):
            step = chunk * (INPUTS // COLUMNS) + tl.arange(0, INPUTS // COLUMNS)
            at = from_row[:, None] + ((g * steps + step) * ROWS)[None, :]
            codes = weight_tile(at, (block < blocks)[:, None] & (step < steps)[None, :], plane_blocks, BITS, not EXACT)
            i = chunk * INPUTS + tl.arange(0, INPUTS)
            if EXACT:
                column = g * group + i
                inside = ((i < group) & (column < columns))[:, None] & seen[None, :]
                values = widened(tl.load(from_x[None, :] + column[:, None], mask=inside, other=0.0))
                weights = doubled(codes, center, dropped)
                products = tl.dot(weights, values, products, input_precision=PRECISION)
            else:
                at = from_x[None, :] + (g * chunks * INPUTS + i)[:, None]
                products = tl.dot(codes, tl.load(at, mask=seen[None, :], other=0), products, out_dtype=tl.int32)
        if not EXACT:
            sum_of_x = tl.load(sums + position.to(tl.int64) * groups + g, mask=seen, other=0)
            products = whole(products, sum_of_x, center, dropped, BITS)
        total = products.to(tl.float32) * scale[:, None] + total
    if EXACT:
        total *= 0.5
    else:
        total *= tl.load(half + position, mask=seen, other=0.0)[None, :]
    total += tl.load(bias + output, mask=output < biased, other=0.0)[:, None]
    total = tl.where(total < floor, floor, total)  # a NaN stays
    to = y + position.to(tl.int64)[None, :] * outputs + output[:, None]
    tl.store(to, rounded(total, OUT), mask=stored[:, None] & seen[None, :])


def packed_linear(
    x: Tensor,
    planes: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    out_features: int,
    group: int,
    bits: int,
    bias: Tensor | None,
    relu: bool,
    exact: bool,
    prepack: list[Tensor],
) -> Tensor:
    """As the op's schema, on the GPU of `x`."""
    op, columns = "packed_linear", _columns(x, group, exact)
    layout = (out_features, columns, group, 1, 1)
    weight = weight_of(op, (planes, scales, zero_points), layout, bits, prepack, x)
    if bias is not None:
        check(op, "bias", bias, x, torch.float32, (out_features,))
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    x, rows, group = x.contiguous(), y.numel() // out_features, max(min(group, columns), 1)
    few, many = (EXACT_TILE_OF_FEW, EXACT_TILE) if exact else (TILE_OF_FEW, TILE)
    tile = fitted(few if rows <= FEW else many, group)
    groups, chunks = max(triton.cdiv(columns, group), 1), triton.cdiv(min(group, columns), tile["INPUTS"])
    with torch.cuda.device_of(x):
        operand, half, sums = (
            (x, x, x) if exact else _quantized(x, rows, columns, group, groups, chunks, tile["INPUTS"])
        )
        grid = triton.cdiv(rows, tile["POSITIONS"]), triton.cdiv(out_features, tile["OUTPUTS"])
        packed_linear_kernel[grid](
            operand, half, sums, weight.planes, scales, zero_points, scales if bias is None else bias.contiguous(), y,
            rows, out_features, columns, group, groups, chunks, triton.cdiv(group, COLUMNS.value),
            triton.cdiv(out_features, ROWS.value), groups if weight.per_row else 0,
            weight.dropped, 0 if bias is None else out_features, floor_of(relu),
            OUT=TYPES[x.dtype], BITS=bits, EXACT=exact, PRECISION="tf32" if x.dtype == torch.bfloat16 else "ieee",
            **tile, **OPTIONS,
        )  # fmt: skip
    return y


def _columns(x: Tensor, group: int, exact: bool) -> int:
    if x.dim() == 0:
        raise ValueError("packed_linear: x must have a last dimension of in_features, got shape ()")
    check_x("packed_linear", x)
    columns = x.shape[-1]
    if not exact and min(group, columns) > MAX_COLUMNS:
        raise ValueError(
            f"packed_linear: groups of {min(group, columns)} columns run by the reference, above {MAX_COLUMNS}"
        )
    return columns


def _quantized(x, rows, columns, group, groups, chunks, inputs) -> tuple[Tensor, Tensor, Tensor]:
    """x in int8, (rows, groups, chunks, inputs), what half a unit of each row counts, and the sums of its groups."""
    q = torch.empty((rows, groups, chunks, inputs), dtype=torch.int8, device=x.device)
    half = torch.empty(rows, dtype=torch.float32, device=x.device)
    sums = torch.empty((rows, groups), dtype=torch.int32, device=x.device)
    block = min(triton.next_power_of_2(max(chunks * inputs, 1)), BLOCK)
    at_once = BLOCK // block
    quantize_rows_kernel[(rows, triton.cdiv(groups, at_once))](
        x, q, half, sums, columns, group, groups, chunks, INPUTS=inputs, GROUPS=at_once, BLOCK=block, **OPTIONS
    )
    return q, half, sums
