"""Frozen layers of an unstructured subspace: sparse where that is expected to be faster, else dense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

import lcs_kernels
from lcs_kernels import costs, interpolate_prune_foreach_masks, isa
from lcs_kernels.formats import SparseWeight

from .dense_packing import WholeWeights, dense_kernel, is_depthwise, pays_packed, view
from .layers import SubspaceLayer
from .layers.frozen import FROZEN_LAYERS, FrozenConv2d, FrozenLinear
from .layers.norms import SubspaceGroupNorm, SubspaceInstanceNorm2d
from .layers.weights import SubspaceConv2d
from .levels import Level
from .packed_steps import watched
from .packing import Choice, Packer, Shape, Weight
from .recipe import Recipe

_KEPT = {nn.Conv2d: SubspaceConv2d, nn.GroupNorm: SubspaceGroupNorm, nn.InstanceNorm2d: SubspaceInstanceNorm2d}
# Products of an image, and densities, at most, of convolutions that networks run sparse whatever they cost alone: in
# lanes after each other (`lcs_kernels.replay`) they take less time than laying images out for dense ones. Of what
# Winograd's products are for, these are faster from a lower density on.
_FEW, _FEW_DENSITY, _FEW_DENSITY_WINOGRAD = 1 << 22, 0.5, 0.25
_LEAST_WIDTH = 6  # of a result in lanes


class SparsePacker(Packer):
    dense = True
    layers = FROZEN_LAYERS

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._wholes = WholeWeights()

    def kept(self, modules: Iterable[nn.Module]) -> dict[nn.Module, SubspaceLayer]:
        free = [m for m in modules if type(m) in _KEPT and not watched(m)]
        return {m: _KEPT[type(m)].of(m) for m in free if not getattr(m, "track_running_stats", False)}

    def stored(self, layer: SubspaceLayer, level: Level) -> int:
        return self.recipe.keep(level.density, layer.weight.numel())

    def choose(self, layer: SubspaceLayer, x_shape: Shape | None, level: Level) -> Choice:
        device, dtype = layer.weight.device.type, str(layer.weight.dtype).removeprefix("torch.")
        if not layer.compressed:
            return Choice(dense_kernel(layer, x_shape), "never compressed")
        if not isinstance(layer, (FrozenConv2d, FrozenLinear)):
            return Choice("torch", f"no sparse op for {layer.original.__name__}", fallback=True)
        if layer.weight.dtype not in (torch.float32, torch.bfloat16):
            return Choice("torch", f"no sparse kernel for {dtype}", fallback=True)
        if device != "cpu":
            backend = lcs_kernels.backends()[layer.sparse_op].get(device, "reference")
            if backend.startswith("reference"):
                return Choice("torch", f"{layer.sparse_op} has no kernel on {device}: {backend}", fallback=True)
        elif x_shape is not None:
            density = self.stored(layer, level) / max(layer.weight.numel(), 1)
            stride = getattr(layer, "stride", (1,))[0]
            shape = tuple(layer.weight.shape)
            few = _does_few(layer, x_shape, density)
            pays = few or costs.pays(layer.sparse_op, x_shape, shape, density, stride=stride)
            if is_depthwise(layer) or not pays:
                packed = "width_conv2d" if pays_packed(layer, x_shape) else "torch"
                return Choice(packed, "dense is faster here", dense=True)
        return Choice(layer.sparse_op, "not reached by this input" if x_shape is None else "")

    def weights(self, layers: Sequence[SubspaceLayer], level: Level, kernels: Sequence[str]) -> Iterator[Weight]:
        changing = [layer for layer in layers if layer.compressed or layer.line]
        made = iter(self._made(changing, level))
        for layer, kernel in zip(layers, kernels, strict=True):
            if not (layer.compressed or layer.line):  # at every level its own
                yield layer.weight if kernel == "torch" else self._wholes.of(layer)
                continue
            w, mask_bits = next(made)
            if kernel.startswith("width_conv2d"):
                yield view(w, shared=False)
            else:
                yield w if kernel == "torch" else SparseWeight.pack(w, mask_bits)

    def _made(self, layers: Sequence[SubspaceLayer], level: Level) -> Iterable[tuple[Tensor, Tensor]]:
        if not layers:
            return ()
        w0s, w1s, keep = self.recipe.prune_arguments(layers, level)
        made = interpolate_prune_foreach_masks(w0s, w1s, level.alpha, keep=keep, dtype=w0s[0].dtype, extrapolate=True)
        return zip(*made, strict=True)


def _does_few(layer: SubspaceLayer, x_shape: Shape, density: float) -> bool:
    """Whether it is a convolution of few products, and replay has vectors for it."""
    if not isinstance(layer, FrozenConv2d) or len(x_shape) != 4 or isa.max_name() == "scalar":
        return False
    if layer.weight.dtype != torch.float32 or max(layer.stride) > 2 or x_shape[3] < _LEAST_WIDTH * layer.stride[1]:
        return False
    plain = layer.kernel_size == (3, 3) and layer.stride == layer.dilation == (1, 1)
    positions = math.prod(x_shape[2:]) // math.prod(layer.stride)
    most = _FEW_DENSITY_WINOGRAD if plain else _FEW_DENSITY
    return density <= most and layer.weight.numel() * positions <= _FEW
