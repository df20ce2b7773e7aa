"""A linear layer whose weight is stored sparse: only what is stored is multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels import costs
from lcs_kernels._load import ensure_loaded

from ._library import check_operands, check_sparse, define, wants_grad, without_autocast
from ._linear import backward, check_fits
from .sparse_pack import MAX_BLOCK, reference_unpack

if TYPE_CHECKING:
    from lcs_kernels.formats import SparseWeight


MANY = 112  # rows of x at once, at most


@without_autocast
def reference(x, mask_bits, values, out_features, bias, relu, block, prepack):
    """The dense layer in float32 (float64 for float64), rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    w = reference_unpack(mask_bits, values, (out_features, x.shape[-1])).to(wide)
    y = F.linear(x.to(wide), w, None if bias is None else bias.to(wide))
    return (y.relu() if relu else y).to(x.dtype)


def fake(x, mask_bits, values, out_features, bias, relu, block, prepack):
    return x.new_empty((*x.shape[:-1], out_features))


_op = define(
    "sparse_linear(Tensor x, Tensor mask_bits, Tensor values, SymInt out_features, Tensor? bias, bool relu,"
    " SymInt block, Tensor[] prepack) -> Tensor",
    reference,
    fake,
)


class SparseLinear(torch.autograd.Function):
    """Gradients to x and bias, by the dense layer: the stored weight is constant."""

    @staticmethod
    def forward(ctx, x, bias, relu, weight, block, prepack):
        run = reference if x.dtype == torch.float64 else _op
        y = run(x, weight.mask_bits, weight.values, weight.shape[0], bias, relu, block, prepack)
        ctx.save_for_backward(*([y] if relu else []))
        ctx.weight = weight
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return *backward(ctx, grad, ctx.weight.unpack), None, None, None, None


def block_for(rows: int, columns: int, density: float) -> int:
    """Columns of a block: its part of x (`rows` float32 each, at most MANY at once) about fits the first-level cache,
    unless that would leave a row of the weight with too few values to pay for coming back to its sums."""
    if rows <= 2:
        return min(max(columns, 1), MAX_BLOCK)
    # Few sizes, as each is one more prepack to keep, and one more graph of torch.compile.
    at_once = 8 if rows <= 8 else 16 if rows <= 16 else 32 if rows <= 32 else 64 if rows <= 64 else MANY
    cached = 40960 // (4 * at_once)
    return min(max(cached, int(max(8, 320 / at_once) / max(density, 1e-6)), 1), MAX_BLOCK)


def takes_tiles(x: Tensor, weight: SparseWeight) -> bool:
    """Whether the weight is to be unpacked into AMX's tiles: bfloat16 by bfloat16, where `costs` expects it to pay.

    Code that torch.compile traces does so where an eager call has made the tiles before.
    """
    if not x.is_cpu or x.dtype != torch.bfloat16 or weight.values.dtype != torch.bfloat16:
        return False
    if torch.compiler.is_compiling():
        many = torch.compiler.is_exporting() or x.numel() // max(x.shape[-1], 1) >= costs.TILE_ROWS
        return weight.has_tiles and many
    return costs.tiles_pay(x.shape, weight.shape, weight.density)


def sparse_linear(x: Tensor, weight: SparseWeight, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """x @ weight.T + bias, then ReLU on request, from a sparse weight. Exact: float32 sums, rounded once.

    Differentiable once, to x and bias. Where x and weight are bfloat16 and many rows meet AMX, the sums are those of
    its matrix tiles: also float32, but with subnormal numbers taken for 0.

    Args:
        x: (..., in_features), float32 or bfloat16; float64 runs the eager reference.
        weight: of shape (out_features, in_features), float32 or bfloat16.
        bias: (out_features,), float32 (or x's dtype, which is widened).
        relu: whether to clamp the result at 0.

    Returns:
        (..., out_features), of x's dtype.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: another dtype, or another weight.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    check_operands("sparse_linear", x, weight, "SparseWeight")
    check_fits("sparse_linear", x, weight.shape)
    bias = check_sparse("sparse_linear", x, weight, bias)
    return run(x, weight, bias, relu, takes_tiles(x, weight))


def run(x: Tensor, weight: SparseWeight, bias: Tensor | None, relu: bool, tiles: bool) -> Tensor:
    """The checked op, with tiles or without."""
    # An exported program is one for all batches, and its block that of many rows.
    rows = MANY if torch.compiler.is_exporting() else x.numel() // max(x.shape[-1], 1)
    block = block_for(rows, weight.shape[1], weight.density)
    prepack = [] if not x.is_cpu else weight.prepack_tiles() if tiles else weight.prepack(block)
    if wants_grad(x, bias) or x.dtype == torch.float64:
        return SparseLinear.apply(x, bias, relu, weight, block, prepack)
    return _op(x, weight.mask_bits, weight.values, weight.shape[0], bias, relu, block, prepack)
