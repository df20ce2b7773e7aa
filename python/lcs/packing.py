"""The weights of one level of a frozen network: which layers run packed, and all of them made in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from lcs_kernels.formats import NestedWeight, SparseWeight, WidthWeight

from .layers import SubspaceLayer
from .layers.frozen_norm import WidthView
from .layers.frozen_quantized import NestedView
from .levels import Level
from .recipe import Recipe
from .snapshot import grouped

Shape = tuple[int, ...]
Weight = Tensor | SparseWeight | WidthView | NestedView


@dataclass(frozen=True)
class Choice:
    """How one layer runs: the op, and why where it is a dense one. A `fallback`: it should run packed, but cannot."""

    kernel: str
    why: str = ""
    fallback: bool = False
    dense: bool = False  # by choice: the op multiplies the whole weight

    @property
    def packed(self) -> bool:
        return self.kernel != "torch"


class Packer:
    """How the compressed layers of one recipe run when frozen: by which kernel, from which form of the weight.

    layers: by type of the subspace's layer, the one that runs such a weight.
    by_level: whether the choice depends on the level, beside the layer and its input.
    dense: whether such layers run packed even where they are never compressed.
    channels_last: whether its kernels on the CPU are faster with channels last.
    keeps_layout: whether a fused forward's results lie in memory as a layer's input does, not with channels last.
    """

    by_level: ClassVar[bool] = True
    dense: ClassVar[bool] = False
    channels_last: ClassVar[bool] = False
    keeps_layout: ClassVar[bool] = True
    layers: ClassVar[Mapping[type[SubspaceLayer], type[SubspaceLayer]]] = {}

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def frozen(self, layer: SubspaceLayer) -> type[SubspaceLayer]:
        """The type that a layer becomes."""
        return self.layers.get(type(layer), type(layer))

    def kept(self, modules: Iterable[nn.Module]) -> dict[nn.Module, SubspaceLayer]:
        """Of modules that a point has left as they are, those that run better as layers that are never compressed."""
        return {}

    def check(self, layers: Mapping[str, SubspaceLayer]) -> None:
        """Raises ValueError naming the first of a network's layers that cannot run at any level."""

    def stored(self, layer: SubspaceLayer, level: Level) -> int:
        """How many of a compressed layer's weights are stored at `level`."""
        raise NotImplementedError

    def choose(self, layer: SubspaceLayer, x_shape: Shape | None, level: Level) -> Choice:
        """For a compressed layer's input of `x_shape`; None: the layer was not reached."""
        raise NotImplementedError

    def input(self, layer: SubspaceLayer, x: Tensor, level: Level) -> Tensor:
        """What a compressed layer multiplies its weight by."""
        return x

    def weights(self, layers: Sequence[SubspaceLayer], level: Level, kernels: Sequence[str]) -> Iterable[Weight]:
        """Of layers of one dtype and device at `level`, each in the form that its kernel reads."""
        raise NotImplementedError


@dataclass(frozen=True)
class Choices:
    """One per layer, for the shapes of one input, at one level or any."""

    layers: tuple[Choice, ...]
    kernels: tuple[str, ...]

    @classmethod
    def of(cls, layers: tuple[Choice, ...]) -> Choices:
        return cls(layers, tuple(choice.kernel for choice in layers))

    def key(self, level: Level) -> tuple:
        """Of the level's weights when made so."""
        return *vars(level).values(), self.kernels


@dataclass(frozen=True, eq=False)
class Packed:
    """(weight, bias) of each layer at one level, and what else its recipe gives; a weight is dense or in the form that
    its kernel reads. Never changed."""

    level: Level
    tensors: tuple[tuple[Weight | None, Tensor | None], ...]
    dense_nbytes: int  # of the dense tensors that are not stored ends
    own: tuple[SparseWeight | NestedWeight | WidthWeight, ...]  # weights of this level alone
    inputs: dict = field(default_factory=dict)  # what it has run on, for which more may have been derived
    networks: dict = field(default_factory=dict)  # what several layers run as (`lcs.packed_steps`), by input
    plans: dict = field(default_factory=dict)  # how layers do their work, by layer and what it is given
    recorded: dict = field(default_factory=dict)  # calls as they ran (`lcs.recorded`), by input
    shapes: None = None

    @property
    def nbytes(self) -> int:
        """Bytes held by this level alone, with what has been derived for the kernels so far."""
        return self.dense_nbytes + sum(map(nbytes, self.own))


@dataclass(frozen=True)
class Trace:
    """As `Packed`, for a forward that finds out which layer gets which shapes: {index: shape of its first input}."""

    tensors: tuple
    shapes: dict[int, Shape] = field(default_factory=dict)
    plans: None = None


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

    def plans(self) -> dict | None:
        """What layers remember of the level that runs; None: their shapes are found out, or there is none."""
        running = RUNNING.get(None)
        return None if running is None else running.plans


def nbytes(weight: Weight | None) -> int:
    """Bytes held, with what has been derived for the kernels so far."""
    if weight is None:
        return 0
    return weight.nbytes + (0 if isinstance(weight, Tensor) else weight.prepacked_nbytes)


def pack(layers: Sequence[SubspaceLayer], level: Level, packer: Packer, kernels: Sequence[str]) -> Packed:
    """All layers at `level`, from their stored ends, each in the form that its kernel reads."""
    with torch.inference_mode(False), torch.no_grad():
        weights = {}
        for group in grouped(layers):
            made = packer.weights(group, level, [kernels[layer.index] for layer in group])
            weights.update(zip(group, made, strict=True))
        tensors = tuple(packer.recipe.tensors(layer, level, weights.get(layer)) for layer in layers)
    stored = {
        t.untyped_storage()._cdata
        for layer in layers
        for t in (*layer._parameters.values(), *layer._buffers.values())
        if t is not None
    }
    made = [t for tensors_of in tensors for t in tensors_of if isinstance(t, Tensor)]
    dense = sum(t.nbytes for t in made if t.untyped_storage()._cdata not in stored)
    sparse = [w for w, *_ in tensors if isinstance(w, SparseWeight)]
    own = [w.whole for w, *_ in tensors if isinstance(w, (NestedView, WidthView)) and not w.shared]
    return Packed(level, tensors, dense, (*sparse, *own))
