"""Frozen layers of a structured subspace: convolutions at any width from one buffer."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence

import torch

import lcs_kernels
from lcs_kernels.formats import WidthWeight

from .layers import SubspaceLayer
from .layers.frozen_norm import WidthView
from .layers.frozen_width import FrozenWidthConv2d
from .layers.structured import StructuredConv2d
from .levels import Level
from .packing import Choice, Packer, Shape, Weight
from .recipe import Recipe


class WidthPacker(Packer):
    """Every width reads the same packed weights, which are made once; a level is only how many channels it uses."""

    by_level = False
    dense = True
    channels_last = True
    layers = {StructuredConv2d: FrozenWidthConv2d}

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._packed: dict[SubspaceLayer, WidthWeight] = {}
        self._packing = threading.Lock()

    @functools.cached_property
    def _backends(self) -> dict[str, str]:
        return lcs_kernels.backends()["width_conv2d"]

    def stored(self, layer: SubspaceLayer, level: Level) -> int:
        weight, _ = self.recipe.bake(layer, level, self.recipe.weights([layer], level)[0])
        return weight.numel()

    def choose(self, layer: SubspaceLayer, x_shape: Shape | None, level: Level) -> Choice:
        device, dtype = layer.weight.device.type, str(layer.weight.dtype).removeprefix("torch.")
        if not isinstance(layer, FrozenWidthConv2d):
            return Choice(
                "torch", "torch reads the first channels in place" if layer.weight.dim() == 2 else "no width op"
            )
        if layer.weight.dtype not in (torch.float32, torch.bfloat16):
            return Choice("torch", f"no width kernel for {dtype}", fallback=True)
        backend = self._backends.get(device, "reference")
        if backend.startswith("reference"):
            return Choice("torch", f"width_conv2d has no kernel on {device}: {backend}", fallback=True)
        return Choice("width_conv2d", "not reached by this input" if x_shape is None else "")

    def weights(self, layers: Sequence[SubspaceLayer], level: Level, kernels: Sequence[str]) -> Iterator[Weight]:
        for layer, cut, kernel in zip(layers, self.recipe.weights(layers, level), kernels, strict=True):
            yield cut if kernel == "torch" else WidthView(self._whole(layer), len(cut))

    def _whole(self, layer: SubspaceLayer) -> WidthWeight:
        with self._packing:
            if layer not in self._packed:
                self._packed[layer] = WidthWeight.pack(layer.weight)
                if layer.weight.is_cpu:
                    self._packed[layer].prepack(pairs=layer.groups == 1)
            return self._packed[layer]
