"""From a dense weight to a bitmap and values, and back; and to the form that the sparse kernels read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded

from ._library import define, pack_bits, unpack_bits

MAX_BLOCK = 65536  # columns of a block that 16-bit indices can tell apart


def reference(w: Tensor, mask_bits: Tensor | None) -> tuple[Tensor, Tensor]:
    flat = w.flatten()
    bits = pack_bits(flat != 0) if mask_bits is None else mask_bits.clone()
    return bits, flat[unpack_bits(bits, flat.numel())]


def reference_unpack(mask_bits: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    n = math.prod(shape)
    return values.new_zeros(n).masked_scatter(unpack_bits(mask_bits, n), values).view(shape)


def reference_prepack(mask_bits: Tensor, values: Tensor, rows: int, columns: int, block: int) -> list[Tensor]:
    """Per block of columns, per row: how many values, where the block's begin, their columns in it, their values."""
    mask = unpack_bits(mask_bits, rows * columns).view(rows, columns)
    dense = reference_unpack(mask_bits, values.float(), (rows, columns))
    parts = list(zip(mask.split(block, 1), dense.split(block, 1), strict=True))
    count = torch.stack([m.sum(1) for m, _ in parts])
    start = torch.cat([count.new_zeros(1, dtype=torch.int64), count.sum(1).cumsum(0)])
    index = torch.cat([mask.new_empty(0, dtype=torch.int64), *(m.nonzero()[:, 1] for m, _ in parts)])
    stored = torch.cat([dense.new_empty(0), *(d[m] for m, d in parts)])
    return [count.to(torch.int32), start, index.to(torch.uint16).view(torch.int16), stored]


def reference_prepack_tiles(mask_bits: Tensor, values: Tensor, rows: int, columns: int) -> list[Tensor]:
    """In tiles of 16 rows and 32 columns: which weights are stored, where each row tile's begin, their values."""

    def tiled(dense: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(dense.view(rows, columns), (0, -columns % 32, 0, -rows % 32))
        tiles = padded.view(padded.shape[0] // 16, 16, padded.shape[1] // 32, 16, 2)
        return tiles.permute(0, 2, 3, 1, 4).reshape(tiles.shape[0], tiles.shape[2], 16, 32)

    mask = tiled(unpack_bits(mask_bits, rows * columns))
    dense = tiled(reference_unpack(mask_bits, values, (rows * columns,)))
    start = torch.cat([mask.new_zeros(1, dtype=torch.int64), mask.sum((1, 2, 3)).cumsum(0)])
    return [pack_bits(mask.flatten()).view(mask.shape[:3]), start, torch.cat([dense[mask], values.new_zeros(32)])]


def fake(w, mask_bits):
    stored = torch.library.get_ctx().new_dynamic_size()
    return w.new_empty((w.numel() + 31) // 32, dtype=torch.int32), w.new_empty(stored)


def fake_unpack(mask_bits, values, shape):
    return values.new_empty(shape)


def fake_prepack(mask_bits, values, rows, columns, block):
    blocks, n = (columns + block - 1) // block if columns > 0 else 1, values.numel()
    return [
        mask_bits.new_empty((blocks, rows)),
        mask_bits.new_empty(blocks + 1, dtype=torch.int64),
        mask_bits.new_empty(n, dtype=torch.int16),
        values.new_empty(n, dtype=torch.float32),
    ]


def fake_prepack_tiles(mask_bits, values, rows, columns):
    row_tiles = (rows + 31) // 32 * 2
    return [
        mask_bits.new_empty((row_tiles, (columns + 31) // 32, 16)),
        mask_bits.new_empty(row_tiles + 1, dtype=torch.int64),
        values.new_empty(values.numel() + 32),
    ]


_op = define("sparse_pack(Tensor w, Tensor? mask_bits) -> (Tensor mask_bits, Tensor values)", reference, fake)
_op_unpack = define(
    "sparse_unpack(Tensor mask_bits, Tensor values, SymInt[] shape) -> Tensor", reference_unpack, fake_unpack
)
_op_prepack = define(
    "sparse_prepack(Tensor mask_bits, Tensor values, SymInt rows, SymInt columns, SymInt block) -> Tensor[]",
    reference_prepack,
    fake_prepack,
)
_op_prepack_tiles = define(
    "sparse_prepack_tiles(Tensor mask_bits, Tensor values, SymInt rows, SymInt columns) -> Tensor[]",
    reference_prepack_tiles,
    fake_prepack_tiles,
)


def sparse_pack(w: Tensor, mask_bits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The bitmap and the stored values of a dense weight; see `lcs_kernels.formats.SparseWeight` for their meaning.

    Args:
        w: any shape, float32 or bfloat16.
        mask_bits: int32 (ceil(n / 32),), what to store, as `interpolate_prune` makes it; by default what is not 0.

    Returns:
        mask_bits int32 (ceil(n / 32),) and values (stored,) of w's dtype.

    Raises:
        TypeError: another dtype.
        ValueError: a mask of another size or device.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    if w.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"sparse_pack: w must be float32 or bfloat16, got {w.dtype}")
    words = (w.numel() + 31) // 32
    if mask_bits is not None:
        if mask_bits.dtype != torch.int32 or tuple(mask_bits.shape) != (words,) or mask_bits.device != w.device:
            raise ValueError(
                f"sparse_pack: mask_bits must be {words} int32 words on {w.device} for w of shape {tuple(w.shape)}, "
                f"got {mask_bits.dtype} {tuple(mask_bits.shape)} on {mask_bits.device}"
            )
    return _op(w, mask_bits)


def sparse_unpack(mask_bits: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """The dense weight of `shape`: the inverse of `sparse_pack`, exactly."""
    ensure_loaded()
    return _op_unpack(mask_bits, values, shape)


def sparse_prepack(mask_bits: Tensor, values: Tensor, rows: int, columns: int, block: int) -> list[Tensor]:
    """What the kernels read in place of the bitmap of a weight of rows x columns, its columns cut into blocks.

    Returns:
        count int32 (blocks, rows): the values of each block and row; start int64 (blocks + 1,): where a block's values
        begin; index int16 (stored,), to be read unsigned: each value's column in its block; values float32 (stored,).
        The values of a block stand together, row after row.
    """
    ensure_loaded()
    return _op_prepack(mask_bits, values, rows, columns, block)


def sparse_prepack_tiles(mask_bits: Tensor, values: Tensor, rows: int, columns: int) -> list[Tensor]:
    """What kernels with matrix tiles read instead, for bfloat16 values: still compressed, in tiles of 16 rows (an even
    number of them) and 32 columns.

    Returns:
        bits int32 (row tiles, column tiles, 16): bit 2 * r + c of word i says whether row r of the tile has a weight in
        its column 2 * i + c; start int64 (row tiles + 1,): where a row tile's values begin; values bfloat16
        (stored + 32,), in the order of the bits, with zeros behind. 4 bytes for 32 weights, and 2 for each stored one.

    Raises:
        TypeError: values of another dtype.
    """
    ensure_loaded()
    if values.dtype != torch.bfloat16:
        raise TypeError(f"sparse_prepack_tiles: values must be bfloat16, got {values.dtype}")
    return _op_prepack_tiles(mask_bits, values, rows, columns)
