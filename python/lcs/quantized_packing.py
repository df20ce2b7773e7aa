"""Frozen layers of a quantised subspace: integer products, at the level's bits, from bit planes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

import lcs_kernels
from lcs_kernels.formats import NestedWeight
from lcs_kernels.ops.packed_conv2d import MAX_RANGED_TERMS, prepacked

from .dense_packing import WholeWeights, dense_kernel, view
from .hooks import watched
from .layers import SubspaceLayer
from .layers.base import blend
from .layers.frozen import FrozenConv2d
from .layers.frozen_quantized import FROZEN_LAYERS, NestedView
from .layers.quantized import QuantizedConv2d, QuantizedLinear
from .layers.weights import SubspaceConv2d
from .levels import Level
from .packing import Choice, Packer, Shape, Weight
from .quantized import MOST, folded_factor
from .recipe import Recipe


class QuantizedPacker(Packer):
    """Each width is rounded on its own, so that a level holds `bits` planes of its codes. Of a nested point all widths
    are the first planes of one weight, which is made once; a level is only how many of them it reads.

    Layers that stay float32 run by the engine's dense convolution where that is faster than torch's. It sums in another
    order, so that an input code behind it may differ by one where a value lies on the border of two."""

    dense = True
    keeps_layout = False
    layers = {**FROZEN_LAYERS, SubspaceConv2d: FrozenConv2d}

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._wholes = WholeWeights()
        self._packed: dict[SubspaceLayer, NestedView] = {}
        self._packing = threading.Lock()

    @functools.cached_property
    def _backends(self) -> dict[str, str]:
        return lcs_kernels.backends()["packed_conv2d"]

    def frozen(self, layer: SubspaceLayer) -> type[SubspaceLayer]:
        """A float32 convolution, as the first layer of a network, runs by the engine's dense op; a classifier is a step
        of the network of integers before it."""
        return FrozenConv2d if type(layer) is QuantizedConv2d and _is_dense(layer) else super().frozen(layer)

    def kept(self, modules: Iterable[nn.Module]) -> dict[nn.Module, SubspaceLayer]:
        free = [m for m in modules if type(m) is nn.Conv2d and not watched(m)]
        return {m: SubspaceConv2d.of(m) for m in free if _is_dense(m)}

    def check(self, layers: Mapping[str, SubspaceLayer]) -> None:
        for name, layer in layers.items():
            for end in (w for w in layer.ends("weight") if layer.compressed and w is not None and not w.is_meta):
                if wrong := int((~end.isfinite()).sum()):
                    raise ValueError(
                        f"freeze: the weight of {name} holds {wrong} values that are not finite and cannot be rounded"
                    )

    def stored(self, layer: SubspaceLayer, level: Level) -> int:
        return layer.weight.numel()

    def choose(self, layer: SubspaceLayer, x_shape: Shape | None, level: Level) -> Choice:
        device, dtype = layer.weight.device.type, str(layer.weight.dtype).removeprefix("torch.")
        if not layer.compressed:
            kernel = dense_kernel(layer, x_shape) if isinstance(layer, FrozenConv2d) else "torch"
            return Choice(kernel, "never compressed")
        if level.bits is None:
            return Choice("torch", "full precision")
        if not isinstance(layer, tuple(FROZEN_LAYERS.values())):
            return Choice("torch", f"no packed op for {layer.original.__name__}", fallback=True)
        if layer.weight.dtype != torch.float32:
            return Choice("torch", f"no codes of {dtype} weights", fallback=True)
        if not _parts(layer):
            return Choice("torch", f"more than {MAX_RANGED_TERMS:,} products in a sum", fallback=True)
        backend = self._backends.get(device, "reference")
        if backend.startswith("reference"):
            return Choice("torch", f"packed_conv2d has no kernel on {device}: {backend}", fallback=True)
        return Choice("packed_conv2d", "not reached by this input" if x_shape is None else "")

    def weights(self, layers: Sequence[SubspaceLayer], level: Level, kernels: Sequence[str]) -> Iterator[Weight]:
        for layer, kernel in zip(layers, kernels, strict=True):
            if kernel == "packed_conv2d":
                yield self._view(layer, level)
            elif kernel != "torch" and not layer.line:
                yield self._wholes.of(layer)
            else:
                w = self.recipe.weights([layer], level)[0]
                yield w if kernel == "torch" else view(w, shared=False)

    def input(self, layer: SubspaceLayer, x: Tensor, level: Level) -> Tensor:
        bits = self.recipe.extras(layer, level)
        return layer.rounded(x, *bits) if bits else x

    def _view(self, layer: SubspaceLayer, level: Level) -> NestedView:
        if not self.recipe.nested or layer.line:
            return self._made(layer, level, shared=False)
        with self._packing:
            if layer not in self._packed:
                self._packed[layer] = self._made(layer, level, shared=True)
            return replace(self._packed[layer], bits=self.recipe.bits_of(layer, level))

    def _made(self, layer: SubspaceLayer, level: Level, shared: bool) -> NestedView:
        """The codes, and what the kernels read, of the weight as that of a 2-d convolution."""
        w = blend(*layer.ends("weight"), level.alpha)
        factor = None if layer.folded is None else folded_factor(layer, level)
        w = w if factor is None else w * factor
        w = w.view(*w.shape[:2], *[1] * (4 - w.dim()), *w.shape[2:])
        read = self.recipe.bits_of(layer, level)
        bits = MOST if self.recipe.nested else read
        per = "channel" if self.recipe.per_channel else "tensor"
        made = NestedWeight.quantize(w, bits, per, nested=self.recipe.nested)
        parts = _parts(layer)
        made = made if parts == 1 else made.split(parts)
        if w.is_cpu:
            prepacked(made, getattr(layer, "groups", parts), w.device)
        if factor is None:
            return NestedView(made, read, shared)
        factor = factor.flatten()
        none = (factor == 0)[:, None]  # channels that the norm drops, whatever their codes stand for
        zero_points = made.zero_points.expand(len(w), -1).contiguous()
        alone = replace(made, scales=made.scales / torch.where(none, 1, factor[:, None]), zero_points=zero_points)
        if none.any():
            made = replace(made, scales=torch.where(none, 0, made.scales), zero_points=zero_points)
        return NestedView(alone, read, shared, (made, self._left_of_norm(layer, level, factor)))

    def _left_of_norm(self, layer: SubspaceLayer, level: Level, factor: Tensor) -> Tensor:
        """What its norm adds to a layer's output once the weight holds the norm's factor."""
        norm, bias = layer.folded, blend(*layer.ends("bias"), level.alpha)
        shift = None if norm.bias is None else blend(norm.bias, getattr(norm, "bias_1", None), level.alpha)
        mean = norm.running_mean if bias is None else norm.running_mean - bias
        return -mean * factor if shift is None else shift - mean * factor


def _parts(layer: SubspaceLayer) -> int:
    """How many equal runs of its columns the kernels sum, each for itself; 0: no few are short enough."""
    columns = layer.weight[:1].numel()
    fewest = -(-columns // MAX_RANGED_TERMS) or 1
    if not isinstance(layer, QuantizedLinear):
        return 1 if fewest == 1 else 0
    return next((parts for parts in range(fewest, 4 * fewest + 1) if columns % parts == 0), 0)


def _is_dense(layer: nn.Conv2d) -> bool:
    """Whether it is a float32 convolution of more than single positions, at every level."""
    return (
        not getattr(layer, "compressed", False) and layer.kernel_size != (1, 1) and layer.weight.dtype == torch.float32
    )
