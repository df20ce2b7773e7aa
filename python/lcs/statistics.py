"""What a level saves: true zeros and stored bytes."""

from dataclasses import dataclass

import torch
from torch import nn

from .layers import SubspaceLayer
from .levels import Level
from .recipe import Recipe
from .snapshot import make


@dataclass(frozen=True)
class LevelStatistics:
    """One level, its weights materialised and counted.

    level: which one.
    sparsity: zeros / weights, in [0, 1].
    zeros: exact zeros among the compressed layers' weights.
    weights: all convolution and linear weights of the model, one end of a line.
    stored_bytes: parameters at this level, each compressed layer's weight as the recipe stores it, all else in float32.
    dense_bytes: the same parameters, all dense.
    """

    level: Level
    sparsity: float
    zeros: int
    weights: int
    stored_bytes: int
    dense_bytes: int


@torch.no_grad()
def level_statistics(model: nn.Module, level: Level, recipe: Recipe) -> LevelStatistics:
    """The statistics of a converted model at `level`."""
    layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
    compressed = [layer for layer in layers if layer.compressed]
    sizes = [layer.weight.numel() for layer in compressed]
    zeros = sum(int((weight == 0).sum()) for weight, *_ in make(compressed, level, recipe))
    second_ends = sum(p.numel() for layer in layers for name, p in layer.named_parameters() if name.endswith("_1"))
    dense_bytes = 4 * (sum(p.numel() for p in model.parameters()) - second_ends)
    return LevelStatistics(
        level=level,
        sparsity=zeros / (weights := _weights(model)),
        zeros=zeros,
        weights=weights,
        stored_bytes=dense_bytes + sum(recipe.stored_bytes(n, level) - 4 * n for n in sizes),
        dense_bytes=dense_bytes,
    )


def _weights(model: nn.Module) -> int:
    """Counts a tensor that several modules share once."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return sum({id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, kinds)}.values())
