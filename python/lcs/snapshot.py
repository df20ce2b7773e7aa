"""The tensors of one level for all layers, made at the start of a forward and never changed after."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .layers import SubspaceLayer
from .layers.weights import WEIGHT_LAYERS
from .levels import Level
from .recipe import Recipe, Tensors

Snapshot = tuple[Tensors, ...]


def make(layers: Sequence[SubspaceLayer], level: Level, recipe: Recipe) -> Snapshot:
    """Weight, bias and what else the recipe gives of each layer at `level`, differentiable to the ends.

    Of a layer that blends its ends itself: weight, bias, their second ends, and alpha.
    """
    weights, alphas = made_weights(layers, level, recipe), {}
    snapshot = tuple(
        _ends(layer, level, alphas) if layer.takes_ends else recipe.tensors(layer, level, weights.get(layer))
        for layer in layers
    )
    for layer, tensors in zip(layers, snapshot, strict=True):
        if recipe.cuts and not layer.takes_ends and (layer.compressed or layer.incoming is not None):
            for tensor in tensors:
                if isinstance(tensor, Tensor):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)  # else each width would be compiled anew
    return snapshot


def _ends(layer: SubspaceLayer, level: Level, alphas: dict) -> Tensors:
    """`alphas`: one tensor for each device and dtype that layers need it in."""
    (weight, weight_1), (bias, bias_1) = layer.ends("weight"), layer.ends("bias")
    if weight_1 is None and bias_1 is None:
        return weight, bias
    like = weight if bias_1 is None else bias
    kind = like.device, torch.float64 if like.dtype == torch.float64 else torch.float32
    if kind not in alphas:
        alphas[kind] = torch.full((), level.alpha, device=kind[0], dtype=kind[1])
    return weight, bias, weight_1, bias_1, alphas[kind]


def made_weights(layers: Sequence[SubspaceLayer], level: Level, recipe: Recipe) -> dict[SubspaceLayer, Tensor]:
    """Of those with a convolution's or a linear weight."""
    weights = {}
    for group in grouped(layers):
        weights.update(zip(group, recipe.weights(group, level), strict=True))
    return weights


def grouped(layers: Sequence[SubspaceLayer]) -> list[list[SubspaceLayer]]:
    """Those with a convolution's or a linear weight, by its dtype and device: what one launch can take."""
    groups = defaultdict(list)
    for layer in layers:
        if isinstance(layer, tuple(WEIGHT_LAYERS)):
            if "weight" in vars(layer):
                raise RuntimeError(
                    f"the weight of a {layer.original.__name__} is set by a hook (prune, weight_norm, spectral_norm), "
                    "which would run after the weights of the level are made: apply it before lcs.convert, or as one "
                    "of torch.nn.utils.parametrizations"
                )
            groups[layer.weight.dtype, layer.weight.device].append(layer)
    return list(groups.values())


class Made(NamedTuple):
    """The last snapshot made without gradient, the key of all that it depends on, and the tensors that it was made of:
    were they gone, others could be in their places in memory, and have their key."""

    key: Hashable
    read: list[Tensor]
    snapshot: Snapshot


class Slot:
    """The one mutable object that all layers of a subspace share: the level that is set, and the running snapshot."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.level: Level | None = None
        self.running: Snapshot | None = None  # of the forward in progress
        self.replay: Replay | None = None  # of the forward in progress, or the one whose backward pass is
        self.made: Made | None = None

    def tensors(self, layer: SubspaceLayer) -> Tensors:
        """For a layer called outside the model's forward (a part of the model alone) they are made for it alone."""
        if self.running is not None:
            if self.replay is not None and not torch.is_grad_enabled():
                self.replay.alone.add(layer.index)
            return self.running[layer.index]
        if self.replay is not None and torch._C._current_graph_task_id() != -1:
            return self.replay.tensors(layer)
        return make([layer], self.needed(), self.recipe)[0]

    def needed(self) -> Level:
        if self.level is None:
            raise RuntimeError("no level is set: set one with `with subspace.at(density=...)` around the forward")
        return self.level

    def __getstate__(self) -> dict:
        return self.__dict__ | {"running": None, "replay": None, "made": None}


class Replay:
    """What a forward with gradient read: its backward pass may run parts of it again (activation checkpointing)."""

    def __init__(self, slot: Slot, snapshot: Snapshot) -> None:
        self.slot, self.snapshot, self.level = slot, snapshot, slot.needed()
        self.alone: set[int] = set()  # layers run without gradient, of which each is then differentiated by itself

    def tensors(self, layer: SubspaceLayer) -> Tensors:
        if layer.index in self.alone:
            return make([layer], self.level, self.slot.recipe)[0]
        return self.snapshot[layer.index]

    def begin(self, grad: Tensor) -> None:
        """The backward pass has come to an output of the forward."""
        self.slot.replay = self
        torch.autograd.Variable._execution_engine.queue_callback(self.end)

    def end(self) -> None:
        self.slot.replay = None


class Refresh:
    """The hooks on the model: a snapshot before each forward, none after it.

    torch.compile leaves them alone; torch.compiler.disable would import all of torch._dynamo before the first one.
    """

    def __init__(self, slot: Slot, layers: Sequence[SubspaceLayer]) -> None:
        self.slot, self.layers = slot, layers

    @torch._disable_dynamo
    def before(self, model, args) -> None:
        slot = self.slot
        if torch.is_grad_enabled():
            slot.made = None  # its memory; training changes the ends anyway
            slot.running = make(self.layers, slot.needed(), slot.recipe)
            slot.replay = Replay(slot, slot.running)
            return
        read = self._read()
        key = self._key(read)
        if slot.made is None or slot.made.key != key:
            slot.made = Made(key, read, make(self.layers, slot.needed(), slot.recipe))
        slot.running = slot.made.snapshot

    @torch._disable_dynamo
    def after(self, model, args, output) -> None:
        replay, self.slot.running, self.slot.replay = self.slot.replay, None, None
        for tensor in _tensors_in(output, set()) if replay is not None else ():
            if tensor.requires_grad:
                tensor.register_hook(replay.begin)

    def _read(self) -> list[Tensor]:
        """The tensors that weights without gradient are made of, parameters first."""
        parameters = [p for layer in self.layers for p in layer._parameters.values() if p is not None]
        norms = [layer.folded for layer in self.layers if getattr(layer, "folded", None) is not None]
        folded = [t for norm in norms for t in (norm.running_var, norm.weight) if t is not None]
        return parameters + folded + [layer.input_known for layer in self.layers if hasattr(layer, "input_known")]

    def _key(self, read: list[Tensor]) -> Hashable:
        """Of everything that tensors made without gradient depend on."""
        if any(tensor.is_inference() for tensor in read):
            return object()  # torch counts no versions for these
        device = read[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        versions = tuple((id(tensor), tensor._version, tensor.data_ptr()) for tensor in read)
        return self.slot.needed(), autocast, self.layers[0].training, versions


def _tensors_in(output: object, seen: set[int]) -> Iterator[Tensor]:
    """Those that a model's output holds, in containers and objects of any kind."""
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen and not isinstance(leaf, (nn.Module, type)):
            seen.add(id(leaf))
            yield from _tensors_in(_parts(leaf), seen)


def _parts(leaf: object) -> list:
    """Of what pytree does not take apart: subclasses of containers, and objects."""
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, (list, tuple)):
        return list(leaf)
    if is_dataclass(leaf):
        return [getattr(leaf, field.name) for field in fields(leaf)]
    return list(vars(leaf).values()) if hasattr(leaf, "__dict__") else []
