"""Triton twin of `interpolate_prune`: exact radix select over one stored copy of the blend, its state on the device.

The blend is written once and its keys counted by their leading digit; a one-program kernel picks the digit that holds
the threshold; further digits take one pass each over the blend. Then every tile counts its keys that tie with the
threshold, and knows from the sum over the tiles after it how many of them stay. No step waits for the device.

These kernels are tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100. They have not run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    BLOCK,
    OPTIONS,
    TYPES,
    Table,
    check,
    check_length,
    check_type,
    pointer,
    rounded,
    tabulate,
    this_layer,
    this_tile,
    widened,
)

# (shift, bits) of a key's digits, from the top
DIGITS = {
    torch.float32: [(20, 11), (10, 10), (0, 10)],
    torch.bfloat16: [(7, 8), (0, 7)],
    torch.float16: [(7, 8), (0, 7)],
}

W0 = tl.constexpr(0)  # columns of the table
W1 = tl.constexpr(1)
MASK = tl.constexpr(2)
W = tl.constexpr(3)
GRAD = tl.constexpr(3)
GRAD_W0 = tl.constexpr(4)
GRAD_W1 = tl.constexpr(5)


@triton.jit
def magnitude(w):
    """The key to rank by: the bits below the sign, every NaN the same, next above infinity."""
    if w.dtype == tl.float32:
        return tl.minimum(w.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7F800001)
    else:
        bits = w.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
        return tl.minimum(bits, 0x7F81 if w.dtype == tl.bfloat16 else 0x7C01)


@triton.jit
def count_digits(counts, segment, key, counted, SHIFT: tl.constexpr, BITS: tl.constexpr):
    found = tl.histogram((key >> SHIFT) & ((1 << BITS) - 1), 1 << BITS, mask=counted)
    counts += segment * (1 << BITS) + tl.arange(0, 1 << BITS)
    tl.atomic_add(counts, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def blend_kernel(
    table, alpha, counts, IN: tl.constexpr, OUT: tl.constexpr, LINE: tl.constexpr, TOGETHER: tl.constexpr,
    SHIFT: tl.constexpr, BITS: tl.constexpr, LAYERS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    layer, row = this_layer(table, LAYERS)
    n, tile, offsets, inside = this_tile(row, ALIGNED, BLOCK)
    w = widened(tl.load(pointer(row, W0, IN, ALIGNED) + offsets, mask=inside, other=0.0))
    if LINE:
        w1 = widened(tl.load(pointer(row, W1, IN, ALIGNED) + offsets, mask=inside, other=0.0))
        c1 = tl.load(alpha)
        w = (1.0 - c1) * w + c1 * w1
    w = rounded(w, OUT)
    tl.store(pointer(row, W, OUT, ALIGNED) + offsets, w, mask=inside)
    count_digits(counts, 0 if TOGETHER else layer, magnitude(w), inside, SHIFT, BITS)


@triton.jit
def count_kernel(
    table, counts, threshold, OUT: tl.constexpr, TOGETHER: tl.constexpr,
    SHIFT: tl.constexpr, BITS: tl.constexpr, LAYERS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Counts the next digit of the keys that begin with the digits found so far."""
    layer, row = this_layer(table, LAYERS)
    n, tile, offsets, inside = this_tile(row, ALIGNED, BLOCK)
    key = magnitude(tl.load(pointer(row, W, OUT, ALIGNED) + offsets, mask=inside, other=0.0))
    segment = 0 if TOGETHER else layer
    count_digits(counts, segment, key, inside & ((key >> (SHIFT + BITS)) == tl.load(threshold + segment)), SHIFT, BITS)


@triton.jit
def pick_kernel(counts, threshold, rank, BITS: tl.constexpr):
    """Appends to each segment's threshold the digit of its rank-th greatest key, and takes what lies above off `rank`.

    At the end `rank` keys that equal the threshold are kept. A rank below 1 ends at the largest threshold, which no key
    reaches; a rank above the number of keys at -1, below every key.
    """
    segment = tl.program_id(0)
    digits = tl.arange(0, 1 << BITS)
    found = tl.load(counts + segment * (1 << BITS) + digits)
    left = tl.load(rank + segment)
    at_least = tl.cumsum(found, reverse=True)
    digit = tl.sum((at_least >= left).to(tl.int32)) - 1
    tl.store(rank + segment, left - tl.sum(tl.where(digits > digit, found, 0)))
    tl.store(threshold + segment, (tl.load(threshold + segment) << BITS) | digit)


@triton.jit
def tie_kernel(
    table, threshold, ties, OUT: tl.constexpr, TOGETHER: tl.constexpr,
    LAYERS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    layer, row = this_layer(table, LAYERS)
    n, tile, offsets, inside = this_tile(row, ALIGNED, BLOCK)
    key = magnitude(tl.load(pointer(row, W, OUT, ALIGNED) + offsets, mask=inside, other=0.0))
    tie = inside & (key == tl.load(threshold + (0 if TOGETHER else layer)))
    tl.store(ties + tl.program_id(0), tl.sum(tie.to(tl.int32)))


@triton.jit
def prune_kernel(
    table, threshold, rank, ties_until, OUT: tl.constexpr, TOGETHER: tl.constexpr,
    LAYERS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Zeroes what falls below the threshold, and of its ties all but the last `rank` of the segment."""
    layer, row = this_layer(table, LAYERS)
    n, tile, offsets, inside = this_tile(row, ALIGNED, BLOCK)
    to = pointer(row, W, OUT, ALIGNED) + offsets
    w = tl.load(to, mask=inside, other=0.0)
    key = magnitude(w)
    segment = 0 if TOGETHER else layer
    least = tl.load(threshold + segment)
    last_tile = tl.num_programs(0) - 1 if TOGETHER else tl.program_id(0) - tile + (n - 1) // BLOCK
    ties_after = tl.load(ties_until + last_tile) - tl.load(ties_until + tl.program_id(0))
    tie = inside & (key == least)
    rank_from_end = ties_after + tl.cumsum(tie.to(tl.int32), reverse=True)
    kept = (inside & (key > least)) | (tie & (rank_from_end <= tl.load(rank + segment)))
    tl.store(to, tl.where(kept, w, tl.zeros_like(w)), mask=inside)
    bits = tl.reshape(kept, (BLOCK // 32, 32)).to(tl.int32) << tl.arange(0, 32)[None, :]
    words = tile * (BLOCK // 32) + tl.arange(0, BLOCK // 32)
    tl.store(pointer(row, MASK, tl.int32, ALIGNED) + words, tl.sum(bits, axis=1), mask=words * 32 < n)


@triton.jit
def backward_kernel(
    table, alpha, share, IN: tl.constexpr, OUT: tl.constexpr, LINE: tl.constexpr, PRUNED: tl.constexpr,
    WANTS_ALPHA: tl.constexpr, LAYERS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    layer, row = this_layer(table, LAYERS)
    n, tile, offsets, inside = this_tile(row, ALIGNED, BLOCK)
    grad = widened(tl.load(pointer(row, GRAD, OUT, ALIGNED) + offsets, mask=inside, other=0.0))
    if PRUNED:
        word = tl.load(pointer(row, MASK, tl.int32, ALIGNED) + (offsets >> 5), mask=inside, other=0)
        grad = tl.where(((word >> (offsets & 31).to(tl.int32)) & 1) != 0, grad, 0.0)
    c1 = tl.load(alpha)
    c0 = 1.0 - c1 if LINE else 1.0
    tl.store(pointer(row, GRAD_W0, IN, ALIGNED) + offsets, rounded(c0 * grad, IN), mask=inside)
    if LINE:
        tl.store(pointer(row, GRAD_W1, IN, ALIGNED) + offsets, rounded(c1 * grad, IN), mask=inside)
    if WANTS_ALPHA:
        w0 = widened(tl.load(pointer(row, W0, IN, ALIGNED) + offsets, mask=inside, other=0.0))
        w1 = widened(tl.load(pointer(row, W1, IN, ALIGNED) + offsets, mask=inside, other=0.0))
        tl.store(share + tl.program_id(0), tl.sum(grad * (w1 - w0)))


def prune(
    op: str,
    w0s: list[Tensor],
    w1s: list[Tensor],
    alpha: Tensor,
    keep: Tensor,
    dtype: torch.dtype | None,
    block: int = BLOCK,
) -> tuple[list[Tensor], list[Tensor]]:
    """The op for a list of layers; `keep` (layers,) or, 0-d, over all of them. `block`: a power of two from 32."""
    if not w0s:
        return [], []
    like, dtype = w0s[0], dtype or w0s[0].dtype
    _check_ends(op, w0s, w1s, alpha, keep, dtype)
    w0s, w1s = [w.contiguous() for w in w0s], [w.contiguous() for w in w1s]
    ws = [torch.empty(w.shape, dtype=dtype, device=w.device) for w in w0s]
    masks = [torch.empty((w.numel() + 31) // 32, dtype=torch.int32, device=w.device) for w in w0s]
    with torch.cuda.device_of(like):
        layers = zip(w0s, w1s or [None] * len(w0s), masks, ws, strict=True)
        table = tabulate(layers, [w.numel() for w in w0s], like, block)
        _select_and_write(table, alpha, keep.reshape(-1).clone(), like.dtype, dtype, bool(w1s), keep.dim() == 0)
    return ws, masks


def _select_and_write(
    table: Table, alpha: Tensor, rank: Tensor, source: torch.dtype, dtype: torch.dtype, line: bool, together: bool
) -> None:
    grid, shape = (table.tiles,), {"OUT": TYPES[dtype], "TOGETHER": together, **table.shape, **OPTIONS}
    threshold = torch.zeros_like(rank, dtype=torch.int32)
    digits = DIGITS[dtype]
    all_counts = rank.new_zeros(len(rank) * sum(1 << bits for _, bits in digits))
    per_digit = all_counts.split([len(rank) << bits for _, bits in digits])
    for i, ((shift, bits), counts) in enumerate(zip(digits, per_digit, strict=True)):
        digit = {"SHIFT": shift, "BITS": bits}
        if i == 0:
            blend_kernel[grid](table.rows, alpha, counts, IN=TYPES[source], LINE=line, **digit, **shape)
        else:
            count_kernel[grid](table.rows, counts, threshold, **digit, **shape)
        pick_kernel[(len(rank),)](counts, threshold, rank, BITS=bits, **OPTIONS)
    ties = rank.new_empty(table.tiles)
    tie_kernel[grid](table.rows, threshold, ties, **shape)
    prune_kernel[grid](table.rows, threshold, rank, ties.cumsum(0), **shape)


def prune_backward(
    op: str,
    grads: list[Tensor],
    w0s: list[Tensor],
    w1s: list[Tensor],
    alpha: Tensor,
    masks: list[Tensor],
    line: bool,
    dtype: torch.dtype,
    block: int = BLOCK,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """`w0s` and `w1s` empty: alpha's gradient is not wanted, and has 0 elements. Not a line: no gradients to w1.
    `masks` empty: every weight was kept."""
    like, wants_alpha, none = grads[0] if grads else alpha, bool(w0s), [None] * len(grads)
    _check_gradients(op, like, grads, w0s, w1s, alpha, masks, dtype)
    grads, w0s, w1s, masks = ([t.contiguous() for t in each] for each in (grads, w0s, w1s, masks))
    grad_w0s = [torch.empty(g.shape, dtype=dtype, device=g.device) for g in grads]
    grad_w1s = [torch.empty_like(g) for g in grad_w0s] if line else []
    with torch.cuda.device_of(like):
        layers = zip(w0s or none, w1s or none, masks or none, grads, grad_w0s, grad_w1s or none, strict=True)
        table = tabulate(layers, [g.numel() for g in grads], like, block)
        share = alpha.new_empty(table.tiles)  # each tile's part of alpha's gradient; summed in one order
        flags = {"LINE": line, "PRUNED": bool(masks), "WANTS_ALPHA": wants_alpha, **table.shape, **OPTIONS}
        backward_kernel[(table.tiles,)](table.rows, alpha, share, IN=TYPES[dtype], OUT=TYPES[like.dtype], **flags)
        grad_alpha = share.sum(dtype=torch.float64).to(alpha.dtype) if wants_alpha else alpha.new_empty(0)
    return grad_w0s, grad_w1s, grad_alpha


def _check_ends(op: str, w0s: list[Tensor], w1s: list[Tensor], alpha: Tensor, keep: Tensor, dtype: torch.dtype) -> None:
    like = w0s[0]
    check_type(op, "w0", like.dtype)
    check_type(op, "dtype", dtype)
    check_length(op, "w1", w1s, w0s)
    for i, w0 in enumerate(w0s):
        check(op, f"w0 of layer {i}", w0, like, like.dtype, w0.shape)
        if w1s:
            check(op, f"w1 of layer {i}", w1s[i], like, like.dtype, w0.shape)
    check(op, "alpha", alpha, like, torch.float32, ())
    check(op, "keep", keep, like, torch.int64, (len(w0s),) if keep.dim() else ())


def _check_gradients(
    op: str,
    like: Tensor,
    grads: list[Tensor],
    w0s: list[Tensor],
    w1s: list[Tensor],
    alpha: Tensor,
    masks: list[Tensor],
    dtype: torch.dtype,
) -> None:
    check_type(op, "grad", like.dtype)
    check_type(op, "dtype", dtype)
    for name, each in ("w0", w0s), ("w1", w1s), ("mask_bits", masks):
        check_length(op, name, each, grads)
    check(op, "alpha", alpha, like, torch.float32, ())
    for i, grad in enumerate(grads):
        check(op, f"grad of layer {i}", grad, like, like.dtype, grad.shape)
        if masks:
            check(op, f"mask_bits of layer {i}", masks[i], like, torch.int32, ((grad.numel() + 31) // 32,))
        for name, ends in ("w0", w0s), ("w1", w1s):
            if ends:
                check(op, f"{name} of layer {i}", ends[i], like, dtype, grad.shape)


def interpolate_prune(
    w0: Tensor, w1: Tensor | None, alpha: Tensor, keep: Tensor, dtype: torch.dtype | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """As the op's schema, on the GPU of `w0`."""
    (w,), (mask_bits,) = prune("interpolate_prune", [w0], [] if w1 is None else [w1], alpha, keep, dtype, block)
    return w, mask_bits


def interpolate_prune_backward(
    grad: Tensor,
    w0: Tensor | None,
    w1: Tensor | None,
    alpha: Tensor,
    mask_bits: Tensor,
    line: bool,
    dtype: torch.dtype,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the op's schema, on the GPU of `grad`."""
    ends = ([w0], [w1]) if w0 is not None and w1 is not None else ([], [])
    (grad_w0,), grad_w1s, grad_alpha = prune_backward(
        "interpolate_prune_backward", [grad], *ends, alpha, [mask_bits], line, dtype, block
    )
    return grad_w0, grad_w1s[0] if line else grad.new_empty(0, dtype=dtype), grad_alpha
