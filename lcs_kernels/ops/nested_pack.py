"""From 8-bit codes to bit planes, of which any first few are a coarser weight, and back; and to what kernels read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lcs_kernels._load import ensure_loaded

from ._library import define, pack_bits, unpack_bits

PLANES, BLOCK, STEP = 8, 32, 8  # rows of a prepack's block, columns of its step


def reference(codes: Tensor, depth: int = PLANES) -> Tensor:
    flat = codes.flatten()
    return torch.stack([pack_bits((flat >> (depth - 1 - p) & 1).bool()) for p in range(depth)])


def codes_of(planes: Tensor, shape: Sequence[int], bits: int) -> Tensor:
    """The top `bits` bits of every code, int64."""
    n = math.prod(shape)
    codes = torch.zeros(n, dtype=torch.int64, device=planes.device)
    for plane in planes[:bits]:
        codes = 2 * codes + unpack_bits(plane, n)
    return codes.view(shape)


def reference_unpack(
    planes: Tensor, scales: Tensor, zero_points: Tensor, shape: Sequence[int], group: int, bits: int
) -> Tensor:
    """scale * (code * 2^d + (2^d - 1) / 2 - zero_point), d = depth - bits: integers, halved, then one rounding."""
    codes = codes_of(planes, shape, bits).view(shape[0], math.prod(shape[1:]))
    repeats = min(group, max(codes.shape[1], 1))
    scale, zero = (t.repeat_interleave(repeats, 1)[:, : codes.shape[1]] for t in (scales, zero_points.long()))
    dropped = len(planes) - bits
    doubled = (codes << (dropped + 1)) + (1 << dropped) - 1 - 2 * zero
    return (scale * (doubled.float() / 2)).view(shape)


def reference_prepack(
    planes: Tensor, rows: int, columns: int, group: int, taps: int, parts: int, joined: int = 1
) -> Tensor:
    """(plane, part, block, segment, step, row): a byte whose bit i belongs to the step's column i."""
    depth = len(planes)
    codes = codes_of(planes, (parts, rows // parts, columns), depth)
    if taps > 1:
        codes = codes.unflatten(2, (columns // taps, taps)).transpose(2, 3)
        codes = codes.reshape(parts, rows // parts, taps // joined, columns // taps * joined)
    else:
        group = min(group, columns) or 1
        codes = torch.nn.functional.pad(codes, (0, -columns % group)).unflatten(2, (-1, group))
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[3] % STEP, 0, 0, 0, -codes.shape[1] % BLOCK))
    steps = codes.unflatten(3, (-1, STEP)).unflatten(1, (-1, BLOCK)).permute(0, 1, 3, 4, 2, 5)
    weights = 1 << torch.arange(STEP, device=planes.device)
    made = [((steps >> (depth - 1 - p) & 1) * weights).sum(-1).to(torch.uint8).flatten() for p in range(depth)]
    return torch.stack(made)


def fake(codes, depth=PLANES):
    return codes.new_empty((depth, (codes.numel() + 31) // 32), dtype=torch.int32)


def fake_unpack(planes, scales, zero_points, shape, group, bits):
    return scales.new_empty(shape)


def fake_prepack(planes, rows, columns, group, taps, parts, joined=1):
    blocks = parts * ((rows // parts + BLOCK - 1) // BLOCK)
    if taps > 1:
        steps = taps // joined * ((columns // taps * joined + STEP - 1) // STEP)
    elif columns > group:
        steps = (columns + group - 1) // group * ((group + STEP - 1) // STEP)
    else:
        steps = (columns + STEP - 1) // STEP
    return planes.new_empty((planes.shape[0], blocks * steps * BLOCK), dtype=torch.uint8)


_op = define("nested_pack(Tensor codes, SymInt depth=8) -> Tensor", reference, fake)
_op_unpack = define(
    "nested_unpack(Tensor planes, Tensor scales, Tensor zero_points, SymInt[] shape, SymInt group, SymInt bits)"
    " -> Tensor",
    reference_unpack,
    fake_unpack,
)
_op_prepack = define(
    "nested_prepack(Tensor planes, SymInt rows, SymInt columns, SymInt group, SymInt taps, SymInt parts,"
    " SymInt joined=1) -> Tensor",
    reference_prepack,
    fake_prepack,
)


def nested_pack(codes: Tensor, depth: int = PLANES) -> Tensor:
    """The bit planes of codes; see `lcs_kernels.formats.NestedWeight` for their meaning.

    Args:
        codes: uint8, any shape, below 2^depth.
        depth: bits of a code, from 2 to 8.

    Returns:
        int32 (depth, ceil(n / 32)), the most significant bits first.

    Raises:
        ValueError: another depth, or a code beyond it.
        TypeError: another dtype.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    if codes.dtype != torch.uint8:
        raise TypeError(
            f"nested_pack: codes must be uint8, got {codes.dtype}; NestedWeight.pack(w) of lcs_kernels.formats rounds "
            "a dense weight"
        )
    if not 2 <= depth <= PLANES:
        raise ValueError(f"nested_pack: depth must lie in [2, {PLANES}], got {depth}")
    if depth < PLANES and codes.numel() and not (codes.is_meta or torch.compiler.is_compiling()):
        if (most := int(codes.max())) >> depth:
            raise ValueError(f"nested_pack: codes of depth {depth} must be below {1 << depth}, got {most}")
    return _op(codes, depth)


def nested_unpack(
    planes: Tensor, scales: Tensor, zero_points: Tensor, shape: Sequence[int], group: int, bits: int
) -> Tensor:
    """The weight that the first `bits` planes stand for, float32 of `shape`."""
    ensure_loaded()
    return _op_unpack(planes, scales, zero_points, shape, group, bits)


def nested_prepack(
    planes: Tensor, rows: int, columns: int, group: int, taps: int = 1, parts: int = 1, joined: int = 1
) -> Tensor:
    """What the packed kernels read in place of the planes of a weight of rows x columns.

    Args:
        planes: as `nested_pack` makes them.
        group: columns that share a scale, padded to whole steps of 8; not used where there are several taps.
        taps: the columns are channel * taps + tap, and the channels of a tap are put together.
        parts: of equal numbers of rows, each padded to whole blocks of 32.
        joined: taps after each other whose channels are put together, tap by tap, before they are padded.

    Returns:
        uint8 (depth, bytes of a plane): per plane, block and step a byte for each row, whose bit i belongs to column i.
    """
    ensure_loaded()
    return _op_prepack(planes, rows, columns, group, taps, parts, joined)
