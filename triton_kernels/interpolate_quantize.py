"""Triton twin of `interpolate_quantize`: one kernel takes each tile's least and greatest, a second quantises the tiles.

A group, whose weights share a scale, is cut into tiles of its own. No step waits for the device.

These kernels are tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100. They have not run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import BLOCK, OPTIONS, TYPES, check, check_type, rounded, widened
from .interpolate_prune import prune_backward
from .quantize import on_grid


@triton.jit
def blended_tile(
    w0, w1, alpha, columns, size, groups_in_row, tiles, LINE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """This program's group, its weights in float32, their offsets, and which of them are inside."""
    group = (tl.program_id(0) // tiles).to(tl.int64)
    row, first = group // groups_in_row, (group % groups_in_row) * size
    within = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (within < size) & (first + within < columns)
    offsets = row * columns + first + within
    w = widened(tl.load(w0 + offsets, mask=inside, other=0.0))
    if LINE:
        c1 = tl.load(alpha)
        w = (1.0 - c1) * w + c1 * widened(tl.load(w1 + offsets, mask=inside, other=0.0))
    return group, w, offsets, inside


@triton.jit
def range_kernel(
    w0, w1, alpha, low, high, columns, size, groups_in_row, tiles, LINE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Both NaN where a weight is not finite, whatever the device's minimum does with NaN."""
    group, w, offsets, inside = blended_tile(w0, w1, alpha, columns, size, groups_in_row, tiles, LINE, BLOCK)
    error = tl.sum(w - w)
    tl.store(low + tl.program_id(0), tl.min(w) + error)
    tl.store(high + tl.program_id(0), tl.max(w) + error)


@triton.jit
def write_kernel(
    w0, w1, alpha, to, low, high, bits, columns, size, groups_in_row, tiles,
    OUT: tl.constexpr, LINE: tl.constexpr, NESTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, w, offsets, inside = blended_tile(w0, w1, alpha, columns, size, groups_in_row, tiles, LINE, BLOCK)
    values = on_grid(w, tl.load(low + group), tl.load(high + group), tl.load(bits), NESTED)
    tl.store(to + offsets, rounded(values, OUT), mask=inside)


def interpolate_quantize(
    w0: Tensor,
    w1: Tensor | None,
    alpha: Tensor,
    bits: Tensor,
    group_size: int = 0,
    nested: bool = False,
    dtype: torch.dtype | None = None,
    block: int = BLOCK,
) -> Tensor:
    """As the op's schema, on the GPU of `w0`. `block`: a power of two."""
    op, dtype = "interpolate_quantize", dtype or w0.dtype
    check_type(op, "w0", w0.dtype)
    check_type(op, "dtype", dtype)
    check(op, "alpha", alpha, w0, torch.float32, ())
    check(op, "bits", bits, w0, torch.int64, ())
    if w1 is not None:
        check(op, "w1", w1, w0, w0.dtype, w0.shape)
    w = torch.empty(w0.shape, dtype=dtype, device=w0.device)
    n = w.numel()
    if n == 0:
        return w
    w0, w1 = w0.contiguous(), None if w1 is None else w1.contiguous()
    rows = w.shape[0] if group_size else 1
    columns = n // rows
    size = min(group_size or columns, columns)
    in_row, block = triton.cdiv(columns, size), min(block, triton.next_power_of_2(size))
    tiles, groups = triton.cdiv(size, block), rows * in_row
    low, high = torch.empty(2, groups, tiles, dtype=torch.float32, device=w.device).unbind()
    shape = {"columns": columns, "size": size, "groups_in_row": in_row, "tiles": tiles}
    options = {"LINE": w1 is not None, "BLOCK": block, **OPTIONS}
    with torch.cuda.device_of(w0):
        ends, grid = (w0, w0 if w1 is None else w1, alpha), (groups * tiles,)
        range_kernel[grid](*ends, low, high, **shape, **options)
        extremes = low.amin(1), high.amax(1)
        write_kernel[grid](*ends, w, *extremes, bits, **shape, OUT=TYPES[dtype], NESTED=nested, **options)
    return w


def interpolate_quantize_backward(
    grad: Tensor, w0: Tensor | None, w1: Tensor | None, alpha: Tensor, dtype: torch.dtype, block: int = BLOCK
) -> tuple[Tensor, Tensor, Tensor]:
    """As the op's schema, on the GPU of `grad`."""
    ends = ([w0], [w1]) if w0 is not None and w1 is not None else ([], [])
    (grad_w0,), (grad_w1,), grad_alpha = prune_backward(
        "interpolate_quantize_backward", [grad], *ends, alpha, [], True, dtype, block
    )
    return grad_w0, grad_w1, grad_alpha
