"""Rows of a whole network at a bit width: frozen ResNet-18, all widths from one stored copy, against engines.

Batch norms are folded into the weights before these are rounded, and activations stay int8 between the convolutions of
a block. The first convolution is rounded, as OpenVINO's and any int8 engine's is, or float, as subspaces are mostly
trained; the classifier is float. Images are contiguous; torch's rows have float32 weights, and images channels last,
which they take faster.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from torch import Tensor

import lcs
from lcs.measure import check_layers

from .harness import Row
from .network import SIZE, compiled, model_of
from .peers import Model

WIDTHS = (8, 4, 3)
Pairs = tuple[tuple[lcs.Subspace, lcs.Frozen], ...]  # with a first layer that is rounded, and float


def subspace_of(first_layer_float: bool) -> lcs.Subspace:
    """With the ranges of its activations, as training leaves them."""
    model = model_of("batch")
    dense = [model.stem_name, model.classifier_name] if first_layer_float else [model.classifier_name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the statistics, which one set of weights shares
        subspace = lcs.convert(model, lcs.Quantized(line=False, nested=True), norm="keep", dense=dense)
    see_ranges(subspace, torch.randn(4, 3, SIZE, SIZE))
    return subspace


@torch.no_grad()
def see_ranges(subspace: lcs.Subspace, x: Tensor) -> None:
    """Leaves it as training does: with the ranges of its activations, and running statistics that go with them."""
    norms = [m for m in subspace.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    subspace.train()
    with subspace.at(bits=8):
        subspace(x)
    subspace.eval()


def plain_of(subspace: lcs.Subspace) -> torch.nn.Module:
    """The network that is not rounded."""
    return lcs.unconvert(copy.deepcopy(subspace), subspace.recipe.full()).requires_grad_(False).eval()


@torch.no_grad()
def check_network(level: lcs.FrozenLevel, subspace: lcs.Subspace, plain: torch.nn.Module, x: Tensor) -> None:
    """Raises unless the timed call computes what the subspace does at this level, whose rounding torch simulates.

    Sums in another order let some codes fall to the other side of a border, which changes less than rounding does to
    `plain`.
    """
    with subspace.at(level.level):
        expected = subspace(x)
    error, rounding = (float((y - expected).norm() / expected.norm()) for y in (level(x), plain(x)))
    if not error <= rounding / 2:
        raise AssertionError(
            f"the network at {level.level.bits} bits is {error:.1%} off the model's own, rounding {rounding:.1%}"
        )


def weight_bytes(frozen: lcs.Frozen, x: Tensor, bits: int) -> int:
    """Of the compressed layers' codes, that a width reads."""
    return sum(row.stored * bits // 8 for row in frozen.report(x, bits=bits).rows if row.kernel == "packed_conv2d")


def row(pairs: Pairs, x: Tensor, bits: int, peers: dict[str, Callable], model: Model) -> Row:
    frozen = pairs[0][1]
    level, float_first = (made.at(bits=bits) for _, made in pairs)
    candidates = {"lcs": lambda: level(x), "lcs, first layer float": lambda: float_first(x), **peers}
    read = weight_bytes(frozen, x, bits)

    def check() -> None:
        check_layers(frozen, x, level.level)
        for subspace, made in pairs:
            check_network(made.at(bits=bits), subspace, plain_of(subspace), x)

    return Row(
        op="network_bits",
        case=f"ResNet-18, {len(x)} x 3 x {SIZE} x {SIZE}, {bits} bits, {read / 2**20:.1f} MiB of weights read",
        candidates={name: torch.no_grad()(call) for name, call in candidates.items()},
        limit=None,
        bytes=read,
        check=check,
        model=model,
    )


def change_row(frozen: lcs.Frozen, x: Tensor) -> Row:
    """What a call at another width costs beyond one at the same."""
    widths, width = cycle(WIDTHS), WIDTHS[0]
    builds = frozen.counters.builds

    def check() -> None:
        if frozen.counters.builds != builds:
            raise AssertionError("a change of width made a level anew")

    return Row(
        op="network_bits",
        case="ResNet-18, a change of width",
        candidates={
            "lcs": lambda: frozen.prepare(x, bits=next(widths)),
            "the same width again": lambda: frozen.prepare(x, bits=width),
        },
        limit=None,
        bytes=0,
        check=check,
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    pairs = tuple((subspace, subspace.freeze(strict=True)) for subspace in map(subspace_of, (False, True)))
    subspace, frozen = pairs[0]
    plain = plain_of(subspace)
    for images in (1, 16):
        x = torch.randn(images, 3, SIZE, SIZE)
        last = x.contiguous(memory_format=torch.channels_last)
        peers = {"torch float32, compiled": compiled(plain, last), "torch float32": lambda x=last: plain(x)}
        for bits in WIDTHS:
            yield row(pairs, x, bits, peers, Model(plain, x))
    yield change_row(frozen, x)
