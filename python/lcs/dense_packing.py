"""Dense layers of a frozen network: the engine's convolution where that is expected to be faster than torch's."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from lcs_kernels.formats import WidthWeight
from lcs_kernels.formats.width_weight import packing_pays

from .layers import SubspaceLayer
from .layers.frozen import FrozenConv2d
from .layers.frozen_norm import WidthView
from .packing import Shape

_SMALL = 1 << 16  # weights, of which torch's convolution takes longer to call, or to lay out, than ours


class WholeWeights:
    """Packed once, for all levels, of layers that no level changes."""

    def __init__(self) -> None:
        self._views: dict[SubspaceLayer, WidthView] = {}
        self._packing = threading.Lock()

    def of(self, layer: SubspaceLayer) -> WidthView:
        with self._packing:
            if layer not in self._views:
                self._views[layer] = view(layer.weight, shared=True)
            return self._views[layer]


def view(weight: Tensor, shared: bool) -> WidthView:
    whole = WidthWeight.pack(weight)
    whole.prepack(pairs=True)  # before threads share it
    return WidthView(whole, len(weight), shared=shared)


def dense_kernel(layer: SubspaceLayer, x_shape: Shape | None) -> str:
    """Which op is expected to be the fastest on the whole weight."""
    if _does_the_norm(layer):
        return "width_conv2d_norm"
    return "width_conv2d" if pays_packed(layer, x_shape) else "torch"


def _does_the_norm(layer: SubspaceLayer) -> bool:
    """Whether the engine's dense convolution can do the norm behind it, too, as of a first layer."""
    behind = vars(layer).get("behind")
    known = (torch.float32,) if isinstance(behind, nn.BatchNorm2d) else (torch.float32, torch.bfloat16)
    return behind is not None and layer.weight.is_cpu and layer.weight.dtype in known and layer.groups == 1


def pays_packed(layer: SubspaceLayer, x_shape: Shape | None) -> bool:
    """Whether the engine's dense convolution is faster than torch's. A small one is, and a pointwise one where it takes
    in a batch norm, which else would be a pass of its own, and of single pixels, as a classifier."""
    if is_depthwise(layer):
        return True
    if not isinstance(layer, FrozenConv2d) or layer.groups != 1 or not layer.weight.is_cpu:
        return False
    pixels = x_shape is not None and x_shape[2:] == (1, 1)
    normed = isinstance(vars(layer).get("behind"), nn.BatchNorm2d)
    if layer.weight.numel() <= _SMALL or (layer.kernel_size == (1, 1) and (pixels or normed)):
        return layer.weight.dtype == torch.float32
    return layer.stride == layer.dilation == (1, 1) and packing_pays(layer.weight)


def is_depthwise(layer: SubspaceLayer) -> bool:
    """Whether it is a convolution with a kernel of its own for each channel, whose few taps vectors run along: leaving
    some out saves less than it costs."""
    if not isinstance(layer, FrozenConv2d) or not layer.in_channels == layer.out_channels == layer.groups > 1:
        return False
    return layer.weight.is_cpu and layer.weight.dtype == torch.float32
