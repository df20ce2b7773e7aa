"""Rows of `packed_linear`: a 4096 x 4096 layer at 1, 16 and 128 rows of x and every width, against torch's int8."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch.nn import functional as F

from lcs_kernels import packed_linear
from lcs_kernels.formats import NestedWeight
from lcs_kernels.ops.packed_linear import reference

from .harness import Row

FEATURES = 4096
ROWS = (1, 16, 128)
WIDTHS = (8, 7, 6, 5, 4, 3, 2)
LAYERS = 4  # in turn, so that no second-level cache holds the next one's weight


def in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    turn = count()
    return lambda: calls[next(turn) % len(calls)]()


def dynamic(w: torch.Tensor) -> object:
    """torch's int8 weight for linear layers that quantise x themselves (fbgemm, oneDNN)."""
    scales = (w.abs().amax(1) / 127).double()
    q = torch.quantize_per_channel(w, scales, torch.zeros(w.shape[0], dtype=torch.long), 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(q, None)


def four_bits(x: torch.Tensor, w: torch.Tensor) -> Callable[[], torch.Tensor]:
    """torch's 4-bit weight in groups of 128, x in bfloat16."""
    codes = torch.randint(0, 16, w.shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.ones(w.shape[1] // 128, w.shape[0], 2, dtype=torch.bfloat16)
    x = x.bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 128, scales)


def check(x: torch.Tensor, weight: NestedWeight, bits: int) -> None:
    fields = (weight.planes, weight.scales, weight.zero_points, weight.shape[0], weight.group)
    if not torch.equal(packed_linear(x, weight, bits), reference(x, *fields, bits, None, False, False, [])):
        raise AssertionError("packed_linear's result differs from its reference")


def row(x: torch.Tensor, weights: list[NestedWeight], bits: int, peers: dict) -> Row:
    traffic = [torch.ones(FEATURES * FEATURES * bits // 32) for _ in weights]
    return Row(
        op="packed_linear",
        case=f"{len(x)} x {FEATURES} by {FEATURES} x {FEATURES}, {bits} bits",
        candidates={"lcs": in_turn([lambda w=w: packed_linear(x, w, bits) for w in weights]), **peers},
        limit=in_turn([lambda t=t: torch.sum(t) for t in traffic]),
        bytes=FEATURES * FEATURES * bits // 8,
        check=lambda: check(x, weights[0], bits),
    )


def peers_of(x: torch.Tensor, dense: list[torch.Tensor], int8: list[object]) -> dict[str, Callable[[], object]]:
    return {
        "torch float32": in_turn([lambda w=w: F.linear(x, w) for w in dense]),
        "torch int8, x quantised": in_turn([lambda p=p: torch.ops.quantized.linear_dynamic(x, p, True) for p in int8]),
        "torch 4 bits, x bfloat16": in_turn([four_bits(x, w) for w in dense]),
    }


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    dense = [torch.randn(FEATURES, FEATURES) / 64 for _ in range(LAYERS)]
    weights, int8 = [NestedWeight.pack(w) for w in dense], [dynamic(w) for w in dense]
    for n in ROWS:
        x = torch.randn(n, FEATURES)
        peers = peers_of(x, dense, int8)
        for bits in WIDTHS:
            yield row(x, weights, bits, peers)
