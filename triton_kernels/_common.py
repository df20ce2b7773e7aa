"""What the Triton kernels share: a list of layers as one launch, floats in integers, checks.

A launch covers all layers of a list. Its programs, one a tile of BLOCK elements, find their layer's pointers in a table
in device memory, which small kernels write: the pointers are their arguments, so a CUDA graph records them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}  # no fused a * b + c: each rounds, as on every back end
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

COLUMNS = tl.constexpr(8)  # of the table: six pointers, then
SIZE = tl.constexpr(6)
FIRST_TILE = tl.constexpr(7)
_ROW = ["row", "p0", "p1", "p2", "p3", "p4", "p5", "n", "first"]


@triton.jit(do_not_specialize=_ROW)
def write_row_kernel(
    table,
    row: tl.int64,
    p0: tl.int64,
    p1: tl.int64,
    p2: tl.int64,
    p3: tl.int64,
    p4: tl.int64,
    p5: tl.int64,
    n: tl.int64,
    first: tl.int64,
):
    table += row * COLUMNS
    tl.store(table + 0, p0)
    tl.store(table + 1, p1)
    tl.store(table + 2, p2)
    tl.store(table + 3, p3)
    tl.store(table + 4, p4)
    tl.store(table + 5, p5)
    tl.store(table + SIZE, n)
    tl.store(table + FIRST_TILE, first)


MOST = (1 << 31) - (1 << 16)  # of what a kernel counts by 32 bits, blocks that reach beyond included


def check_counts(op: str, **counts: int) -> None:
    """Raises ValueError naming what there is too much of."""
    for name, count in counts.items():
        if count > MOST:
            raise ValueError(f"{op}: {count:,} {name.replace('_', ' ')} are more than {MOST:,}; split the batch")


class Table(NamedTuple):
    rows: Tensor  # int64 (layers, up to a power of two; COLUMNS)
    tiles: int  # over all layers: the grid
    shape: dict  # what kernels take as compile-time constants


def tabulate(layers: Iterable[Sequence[Tensor | None]], sizes: Sequence[int], like: Tensor, block: int) -> Table:
    """The table of `layers`, each at most six contiguous tensors or None, of `sizes` elements."""
    length = triton.next_power_of_2(max(len(sizes), 1))
    rows = torch.full((length, COLUMNS.value), 1 << 62, dtype=torch.int64, device=like.device)
    tiles, together = 0, 0
    for i, (layer, n) in enumerate(zip(layers, sizes, strict=True)):
        pointers = [0 if t is None else t.data_ptr() for t in layer]
        write_row_kernel[(1,)](rows, i, *pointers, *[0] * (6 - len(pointers)), n, tiles, **OPTIONS)
        tiles += triton.cdiv(n, block)
        together |= n
        for address in pointers:
            together |= address
    return Table(rows, tiles, {"LAYERS": length, "ALIGNED": together % 16 == 0, "BLOCK": block})


@triton.jit
def this_layer(table, LAYERS: tl.constexpr):
    """This program's layer and its row of the table; an empty layer has no program."""
    first = tl.load(table + tl.arange(0, LAYERS) * COLUMNS + FIRST_TILE)
    layer = tl.sum((first <= tl.program_id(0)).to(tl.int32)) - 1
    return layer, table + layer * COLUMNS


@triton.jit
def this_tile(row, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """The layer's size, the number of this tile in it, its int64 offsets, and which of them are inside."""
    n = tl.load(row + SIZE)
    if ALIGNED:
        n = tl.multiple_of(n, 16)
    tile = tl.program_id(0) - tl.load(row + FIRST_TILE)
    offsets = tile * BLOCK + tl.arange(0, BLOCK)
    return n, tile, offsets, offsets < n


@triton.jit
def pointer(row, COLUMN: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    p = tl.load(row + COLUMN).to(tl.pointer_type(TYPE))
    if ALIGNED:
        p = tl.multiple_of(p, 16)
    return p


@triton.jit
def widened(x):
    """x in float32. Integers for bfloat16, here and below: exact in Triton's interpreter too."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """float32 x in TYPE, half to even."""
    if TYPE == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        nearest = bits + 0x7FFF + ((bits >> 16) & 1)
        quiet_nan = bits | 0x400000
        return (tl.where(x == x, nearest, quiet_nan) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(TYPE)


def check(op: str, name: str, tensor: Tensor, like: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Raises TypeError or ValueError unless `tensor` has this dtype and shape, and lies on the device of `like`."""
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype}, got {tensor.dtype}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device}, got {tensor.device}")


def check_type(op: str, name: str, dtype: torch.dtype) -> None:
    if dtype not in TYPES:
        raise TypeError(f"{op}: {name} must be float32, bfloat16 or float16 (float64 runs the reference), got {dtype}")


def check_length(op: str, name: str, tensors: Sequence[Tensor], layers: Sequence[Tensor]) -> None:
    if tensors and len(tensors) != len(layers):
        raise ValueError(f"{op}: {name} is given for {len(tensors)} of {len(layers)} layers")
