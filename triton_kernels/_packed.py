"""What the Triton twins of the packed ops share: x in integers, and tiles of the weight from its bit planes.

A weight is read as `nested_prepack` lays it out: of each plane a byte holds eight columns of a row, so that the planes
of a width are all that is read of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lcs_kernels.ops.nested_pack import BLOCK, PLANES, STEP, fake_prepack, nested_prepack
from lcs_kernels.ops.packed_linear import LEAST

from ._common import check

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # no fused a * b + c: each rounds, as on every back end

ROWS = tl.constexpr(BLOCK)  # of the weight, whose bytes lie side by side
COLUMNS = tl.constexpr(STEP)  # of a byte
_LEAST = tl.constexpr(LEAST)
_INFINITY = tl.constexpr(0x7F800000)
_FLIP = tl.constexpr(-0x7F7F7F80)  # the leading bit of each of four bytes


@triton.jit
def magnitudes(x):
    """float32 x without its sign, as integers, among which a NaN comes last."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def symmetric(most):
    """From the largest of `magnitudes`: the inverse of a unit of x at 127 units to each side, and half a unit."""
    finite = most < _INFINITY
    largest = tl.maximum(tl.where(finite, most, 0).to(tl.float32, bitcast=True), _LEAST)
    inverse = tl.where(finite, tl.div_rn(tl.full(most.shape, 127, tl.float32), largest), 0.0)
    half = tl.div_rn(largest, tl.full(most.shape, 127, tl.float32)) * 0.5
    return inverse, tl.where(finite, half, float("nan"))


@triton.jit
def _spread(four):
    """Bit i of four bits as bit 0 of byte i."""
    return (four * 0x204081) & 0x01010101


@triton.jit
def weight_tile(at, inside, plane_blocks, BITS: tl.constexpr, SIGNED: tl.constexpr):
    """The codes that the bytes `at` (rows, steps) of the first plane, and of those that follow, stand for.

    SIGNED: (rows, columns) of int8, less `offset(BITS)`; else of int32. Where a byte is not inside, they are 0.
    """
    low = tl.zeros(at.shape, tl.int32)  # four columns each, a byte a column
    high = tl.zeros(at.shape, tl.int32)
    for plane in tl.static_range(BITS):
        byte = tl.load(at + plane * plane_blocks * ROWS, mask=inside, other=0).to(tl.int32)
        low = 2 * low + _spread(byte & 15)
        high = 2 * high + _spread(byte >> 4)
    both = tl.join(low, high)
    if SIGNED and BITS == 8:
        both ^= _FLIP
    pairs = tl.join(both, both >> 16)
    columns = tl.join(pairs, pairs >> 8)  # of the byte, in their order, in the last three dimensions
    columns = columns.to(tl.int8) if SIGNED else columns & 255
    return tl.reshape(columns, (at.shape[0], at.shape[1] * COLUMNS))


@triton.jit
def offset(BITS: tl.constexpr):
    """What is taken off a code to make it int8."""
    return 128 if BITS == 8 else 0


@triton.jit
def whole(products, sums, center, dropped, BITS: tl.constexpr):
    """Sums of products with doubled, centred codes, from those with `weight_tile` (rows, n) and from sums of x (n,)."""
    center += offset(BITS) << (dropped + 1)
    return (products << (dropped + 1)) + center[:, None] * sums[None, :]


@triton.jit
def doubled(codes, center, dropped):
    """Weights over half their scale, float32, from codes (rows, columns)."""
    return ((codes << (dropped + 1)) + center[:, None]).to(tl.float32)


def fitted(tile: dict[str, int], columns: int) -> dict[str, int]:
    """The tile with no more INPUTS than so many columns need, but as many as a product in int8 takes at least."""
    return tile | {"INPUTS": min(tile["INPUTS"], max(triton.next_power_of_2(columns), 32))}


def floor_of(relu: bool) -> float:
    """Below which nothing comes out: a number, so that ReLU makes no kernel of its own."""
    return 0.0 if relu else -math.inf


def check_x(op: str, x: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"{op}: x must be float32 or bfloat16, got {x.dtype}")


class Weight(NamedTuple):
    planes: Tensor  # uint8 (depth, bytes): as nested_prepack makes them
    dropped: int  # planes that are not read
    per_row: bool  # scales and zero points


def weight_of(
    op: str,
    fields: tuple[Tensor, Tensor, Tensor],
    layout: tuple[int, int, int, int, int],
    bits: int,
    prepack: Sequence[Tensor],
    like: Tensor,
) -> Weight:
    """`fields`, `layout` and `prepack`: of a NestedWeight, of what `nested_prepack` takes, and its result or none."""
    planes, scales, zero_points = fields
    rows, columns, group, taps, parts = layout
    depth, words = planes.shape[0], (rows * columns + 31) // 32
    if not 2 <= depth <= PLANES:
        raise ValueError(f"{op}: planes must be 2 to {PLANES}, got {depth}")
    if not 2 <= bits <= depth:
        raise ValueError(f"{op}: bits must lie in [2, {depth}], got {bits}")
    if group < 1:
        raise ValueError(f"{op}: {columns} columns do not fit a group of {group} columns")
    check(op, "planes", planes, like, torch.int32, (depth, words))
    groups = 1 if taps > 1 else max(triton.cdiv(columns, group), 1)
    shape = rows if scales.shape[:1] != (1,) else 1, groups
    check(op, "scales", scales, like, torch.float32, shape)
    check(op, "zero_points", zero_points, like, torch.uint8, shape)
    if not (planes.is_contiguous() and scales.is_contiguous() and zero_points.is_contiguous()):
        raise ValueError(f"{op}: planes, scales and zero_points must be contiguous")
    if len(prepack) > 1:
        raise ValueError(
            f"{op}: prepack must hold what nested_prepack makes of this weight, got {len(prepack)} tensors"
        )
    made = prepack[0] if prepack else nested_prepack(planes, *layout)
    check(
        op,
        "prepack",
        made,
        like,
        torch.uint8,
        fake_prepack(planes.new_empty(planes.shape, device="meta"), *layout).shape,
    )
    return Weight(made, depth - bits, shape[0] > 1)
