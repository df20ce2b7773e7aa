"""The weights of one level of a frozen network: which layers are stored sparse, and all of them made in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

import lcs_kernels
from lcs_kernels import costs, interpolate_prune_foreach_masks
from lcs_kernels.formats import SparseWeight

from .layers import SubspaceLayer
from .layers.base import blend
from .layers.frozen import FrozenConv2d, FrozenLinear
from .layers.weights import WEIGHT_LAYERS
from .levels import Level
from .snapshot import grouped
from .unstructured import Unstructured

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """How one layer runs: the op, and why where it is not a sparse one. A `fallback`: it should, but cannot."""

    kernel: str
    why: str = ""
    fallback: bool = False

    @property
    def sparse(self) -> bool:
        return self.kernel != "torch"


def choose(layer: SubspaceLayer, x_shape: Shape | None, density: float) -> Choice:
    """For an input of `x_shape` (None: the layer was not reached) and a weight of which `density` is kept."""
    if not isinstance(layer, tuple(WEIGHT_LAYERS)):
        return Choice("torch", "norm")
    if not layer.compressed:
        return Choice("torch", "never compressed")
    device, dtype = layer.weight.device.type, str(layer.weight.dtype).removeprefix("torch.")
    if not isinstance(layer, (FrozenConv2d, FrozenLinear)):
        return Choice("torch", f"no sparse op for {layer.original.__name__}", fallback=True)
    if layer.weight.dtype not in (torch.float32, torch.bfloat16):
        return Choice("torch", f"no sparse kernel for {dtype}", fallback=True)
    if device != "cpu":
        backend = lcs_kernels.backends()[layer.sparse_op].get(device, "reference")
        if backend.startswith("reference"):
            return Choice("torch", f"{layer.sparse_op} has no kernel on {device}: {backend}", fallback=True)
    elif x_shape is not None and not costs.pays(layer.sparse_op, x_shape, tuple(layer.weight.shape), density):
        return Choice("torch", "dense is faster here")
    return Choice(layer.sparse_op, "not reached by this input" if x_shape is None else "")


@dataclass(frozen=True)
class Choices:
    """One per layer, for one level and the shapes of one input. `key`: of the level's weights when made so."""

    layers: tuple[Choice, ...]
    key: tuple[float, float, int]

    @classmethod
    def of(cls, level: Level, layers: tuple[Choice, ...]) -> Choices:
        return cls(layers, (level.alpha, level.density, sum(choice.sparse << i for i, choice in enumerate(layers))))


@dataclass(frozen=True, eq=False)
class Packed:
    """(weight, bias) of each layer at one level; a weight is dense or a `SparseWeight`. Never changed."""

    level: Level
    tensors: tuple[tuple[Tensor | SparseWeight | None, Tensor | None], ...]
    dense_nbytes: int  # of the dense tensors that are not stored ends
    inputs: dict = field(default_factory=dict)  # what it has run on, for which more may have been derived
    shapes: None = None

    @property
    def nbytes(self) -> int:
        """Bytes held by this level alone, with what has been derived for the kernels so far."""
        return self.dense_nbytes + sum(nbytes(weight) for weight, _ in self.tensors if isinstance(weight, SparseWeight))


@dataclass(frozen=True)
class Trace:
    """As `Packed`, for a forward that finds out which layer gets which shapes: {index: shape of its first input}."""

    tensors: tuple
    shapes: dict[int, Shape] = field(default_factory=dict)


RUNNING: ContextVar[Packed | Trace] = ContextVar("the level that a frozen network runs at")


class FrozenSlot:
    """What a frozen network's layers ask for their tensors: those of the call that they are in."""

    def tensors(self, layer: SubspaceLayer, x_shape: Shape | None = None):
        running = RUNNING.get(None)
        if running is None:
            raise RuntimeError("a layer of a frozen network runs only inside a call of that network, in its thread")
        if running.shapes is not None and x_shape is not None:
            running.shapes.setdefault(layer.index, tuple(x_shape))
        return running.tensors[layer.index]


def nbytes(weight: Tensor | SparseWeight | None) -> int:
    if weight is None:
        return 0
    return weight.nbytes + (weight.prepacked_nbytes if isinstance(weight, SparseWeight) else 0)


def pack(layers: Sequence[SubspaceLayer], level: Level, recipe: Unstructured, sparse: Sequence[bool]) -> Packed:
    """All layers at `level`, from their stored ends; those that `sparse` names as a `SparseWeight`."""
    with torch.inference_mode(False), torch.no_grad():
        weights = {}
        for group in grouped(layers):
            w0s, w1s, keep = recipe.prune_arguments(group, level)
            made = interpolate_prune_foreach_masks(
                w0s, w1s, level.alpha, keep=keep, dtype=w0s[0].dtype, extrapolate=True
            )
            for layer, w, mask_bits in zip(group, *made, strict=True):
                weights[layer] = SparseWeight.pack(w, mask_bits) if sparse[layer.index] else w
        tensors = tuple(
            (
                weights[layer] if layer in weights else blend(*layer.ends("weight"), level.alpha),
                blend(*layer.ends("bias"), level.alpha),
            )
            for layer in layers
        )
    ends = {id(end) for layer in layers for end in (layer.weight, layer.bias)}
    own = [t for pair in tensors for t in pair if isinstance(t, Tensor) and id(t) not in ends]
    return Packed(level, tensors, sum(t.nbytes for t in own))
