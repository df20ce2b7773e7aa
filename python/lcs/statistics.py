"""What a level saves: zeros, weights that are cut away, stored bytes and arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .layers import SubspaceLayer
from .levels import Level
from .macs import count_macs
from .recipe import Recipe
from .snapshot import made_weights

if TYPE_CHECKING:
    from .subspace import Subspace


@dataclass(frozen=True)
class LevelStatistics:
    """One level, its weights materialised and counted.

    level: which one.
    sparsity: zeros / weights, in [0, 1].
    zeros: exact zeros among the compressed layers' weights, and weights of all layers that a width cuts away.
    weights: all convolution and linear weights of the model, one end of a line.
    parameters: all parameters that are left at this level, zeros among them; one end of a line.
    stored_bytes: parameters at this level, each compressed layer's weight as the recipe stores it, all else in float32.
    dense_bytes: the parameters of one end, all dense.
    macs: multiply-accumulate operations of the call that was given, by `lcs.macs.count_macs`; None without one.
    """

    level: Level
    sparsity: float
    zeros: int
    weights: int
    parameters: int
    stored_bytes: int
    dense_bytes: int
    macs: int | None = None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and after it each module's own again."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@torch.no_grad()
def level_statistics(subspace: Subspace, level: Level, args: Sequence) -> LevelStatistics:
    """The statistics of a converted model at `level`; its MACs too if it is given arguments to run on."""
    model, recipe = subspace.model, subspace.recipe
    layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
    zeros, cut, saved = _left(layers, level, recipe)
    second_ends = sum(p.numel() for layer in layers for name, p in layer.named_parameters() if name.endswith("_1"))
    parameters = sum(p.numel() for p in model.parameters()) - second_ends
    macs = None
    if args:
        with evaluating(model), subspace.at(level):
            macs = count_macs(subspace, *args)
    return LevelStatistics(
        level=level,
        sparsity=zeros / (weights := count_weights(model)),
        zeros=zeros,
        weights=weights,
        parameters=parameters - cut,
        stored_bytes=4 * (parameters - cut) - saved,
        dense_bytes=4 * parameters,
        macs=macs,
    )


def _left(layers: Sequence[SubspaceLayer], level: Level, recipe: Recipe) -> tuple[int, int, int]:
    """Zero or cut weights, cut parameters, and bytes that the compressed layers' weights are stored in less."""
    zeros = cut = saved = 0
    made = made_weights(layers, level, recipe)
    for layer in layers:
        weight, bias = recipe.bake(layer, level, made.get(layer))
        gone = 0 if weight is None else layer.weight.numel() - weight.numel()
        cut += gone + (0 if bias is None else layer.bias.numel() - bias.numel())
        if layer in made:
            zeros += gone + (int((weight == 0).sum()) if layer.compressed else 0)
        if layer.compressed:
            saved += 4 * weight.numel() - recipe.stored_bytes(weight.numel(), level)
    return zeros, cut, saved


def count_weights(model: nn.Module) -> int:
    """All convolution and linear weights; a tensor that several modules share counts once."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return sum({id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, kinds)}.values())
