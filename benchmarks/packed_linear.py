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
SET = 128 << 20  # bytes of the layers that take turns: more than a cache holds
MAX_FOUR_BIT_ROWS = 16  # of x, for which torch's 4-bit product is made
LEAST_INT8_ROWS = 17  # that torch's int8 product on a GPU takes

Calls = list[Callable[[], object]]


def in_turn(calls: Calls) -> Callable[[], object]:
    turn = count()
    return lambda: calls[next(turn) % len(calls)]()


def layers(bits: int) -> int:
    """How many layers take turns."""
    return -(-SET // (FEATURES * FEATURES * bits // 8))


def dynamic(w: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    """torch's int8 layer that quantises x itself (fbgemm)."""
    scales = (w.abs().amax(1) / 127).double()
    q = torch.quantize_per_channel(w, scales, torch.zeros(w.shape[0], dtype=torch.long), 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(q, None)
    return lambda: torch.ops.quantized.linear_dynamic(x, packed, True)


def one_dnn(w: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    """torch's int8 layer by oneDNN, of an x that was quantised before."""
    scales = w.abs().amax(1) / 127
    packed = torch.ops.onednn.qlinear_prepack((w / scales[:, None]).round().to(torch.int8), list(x.shape))
    scale = (x.abs().max() / 127).item()
    q = ((x / scale).round() + 128).to(torch.uint8)
    zeros = torch.zeros(w.shape[0], dtype=torch.int32)
    rest = (None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(q, scale, 128, packed, scales, zeros, *rest)


def four_bits(w: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    """torch's 4-bit weight in groups of 128, x in bfloat16."""
    codes = torch.randint(0, 16, w.shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.ones(w.shape[1] // 128, w.shape[0], 2, dtype=torch.bfloat16)
    x = x.bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 128, scales)


def int8_on_a_gpu(w: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    """torch's int8 product, without scales, of an x that was quantised before."""
    q, codes = ((t / t.abs().max() * 127).round().to(torch.int8) for t in (x, w))
    return lambda: torch._int_mm(q, codes.t())


def four_bits_on_a_gpu(w: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    """As `four_bits`, laid out for the tensor cores."""
    packed = torch.ops.aten._convert_weight_to_int4pack(torch.randint(0, 256, (len(w), w.shape[1] // 2)).byte(), 8)
    scales = torch.ones(w.shape[1] // 128, w.shape[0], 2, dtype=torch.bfloat16)
    x = x.bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm(x, packed, 128, scales)


def check(x: torch.Tensor, weight: NestedWeight, bits: int) -> None:
    fields = (weight.planes, weight.scales, weight.zero_points, weight.shape[0], weight.group)
    if not torch.equal(packed_linear(x, weight, bits), reference(x, *fields, bits, None, False, False, [])):
        raise AssertionError("packed_linear's result differs from its reference")


def row(x: torch.Tensor, weights: list[NestedWeight], bits: int, where: str, peers: dict) -> Row:
    traffic = [torch.ones(FEATURES * FEATURES * bits // 32) for _ in weights]
    return Row(
        op="packed_linear",
        case=f"{len(x)} x {FEATURES} by {FEATURES} x {FEATURES}, {bits} bits, {where}",
        candidates={"lcs": in_turn([lambda w=w: packed_linear(x, w, bits) for w in weights]), **peers},
        limit=in_turn([lambda t=t: torch.sum(t) for t in traffic]),
        bytes=FEATURES * FEATURES * bits // 8,
        check=lambda: check(x, weights[0], bits),
    )


def peers_of(x: torch.Tensor, w: torch.Tensor, counts: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    """Each with so many copies of its weight, of 32, 8 and 4 bits, in turn."""
    dense = [w.clone() for _ in range(counts[0])]
    if x.is_cuda:
        halves, half = [w.bfloat16() for _ in range(2 * counts[0])], x.bfloat16()
        peers = {
            "torch float32": in_turn([lambda d=d: F.linear(x, d) for d in dense]),
            "torch bfloat16": in_turn([lambda d=d: F.linear(half, d) for d in halves]),
            "torch 4 bits, x bfloat16": in_turn([four_bits_on_a_gpu(w, x) for _ in range(counts[2])]),
        }
        if len(x) >= LEAST_INT8_ROWS:
            peers["torch int8, x given in int8"] = in_turn([int8_on_a_gpu(w, x) for _ in range(counts[1])])
        return peers
    peers = {
        "torch float32": in_turn([lambda d=d: F.linear(x, d) for d in dense]),
        "torch int8 fbgemm, x quantised": in_turn([dynamic(w, x) for _ in range(counts[1])]),
        "torch int8 oneDNN, x given in int8": in_turn([one_dnn(w, x) for _ in range(counts[1])]),
    }
    if len(x) <= MAX_FOUR_BIT_ROWS:
        peers["torch 4 bits, x bfloat16"] = in_turn([four_bits(w, x) for _ in range(counts[2])])
    return peers


def rows() -> Iterator[Row]:
    """Of weights that come from memory, and at one row of x also of one that stays in a cache large enough for it."""
    torch.manual_seed(0)
    dense = torch.randn(FEATURES, FEATURES) / 64
    packed = NestedWeight.pack(dense)
    fields = (packed.planes, packed.scales, packed.zero_points, packed.shape, packed.group)
    weights = [NestedWeight(*fields) for _ in range(layers(min(WIDTHS)))]  # each with a prepack of its own
    for weight in weights:
        weight.prepack()
    for n in ROWS:
        x = torch.randn(n, FEATURES)
        peers = peers_of(x, dense, (layers(32), layers(8), layers(4)))
        for bits in WIDTHS:
            yield row(x, weights[: layers(bits)], bits, "layers in turn", peers)
    x = torch.randn(1, FEATURES)
    peers = peers_of(x, dense, (1, 1, 1))
    for bits in WIDTHS:
        yield row(x, weights[:1], bits, "one layer", peers)
