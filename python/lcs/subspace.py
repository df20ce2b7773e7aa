"""A converted model with its recipe: one level is set, and the model runs at it."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lcs_kernels import cosine_squared

from .compiled import CompiledForward
from .frozen import CACHE_BYTES, Frozen, freeze
from .layers import SubspaceLayer
from .levels import Level, Setting
from .recipe import Recipe
from .snapshot import Refresh, Slot
from .statistics import LevelStatistics, level_statistics

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Subspace(nn.Module):
    """What `lcs.convert` returns; `model` is the user's own model, converted in place.

    The model runs at the level set by `with subspace.at(...)` or `set_level`. Each forward with gradient makes the
    weights of the level anew from the stored ends; without gradient they are made once and reused until a level is set
    again, or the autocast dtype or a parameter changes. (torch counts neither writes through `.data` nor the steps of
    fused optimizers: set the level again after one.)

    `state_dict` has the keys of `model.state_dict()`. `load_state_dict`, here and on the model, also takes the
    state_dict of the dense model: both ends of each line are then filled from it.

    torch.compile: `subspace.compile(...)` compiles `model.forward`; the weights of a level are made outside of it and
    enter as tensors, so that any number of levels is one graph for training and one for evaluation, fullgraph included.

    accelerate: prepare the subspace, not its `model`, so that mixed precision makes the weights in its dtype too.

    Several processes: DistributedDataParallel or torch's `fully_shard`, of the subspace, and none of its parts, whose
    weights are made before they run. FullyShardedDataParallel hides the ends from `regularizer`. The functions of
    torch.distributed.checkpoint take `model`, by whose names state_dict goes.

    A subspace has one level at a time: do not share it between threads. `generator` (CPU) draws the levels of `sample`;
    it starts from torch's default seed, the same in every process.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, *, kept: Iterable[str] = ()) -> None:
        """kept: modules that a point has left as they are, and a line would not."""
        super().__init__()
        self.model, self.recipe, self.kept = model, recipe, tuple(kept)
        self.generator = torch.Generator()
        layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
        self._slot = Slot(recipe)
        for index, layer in enumerate(layers):
            layer.slot, layer.index = self._slot, index
        refresh = Refresh(self._slot, layers)
        self._hooks = (
            model.register_forward_pre_hook(refresh.before),
            model.register_forward_hook(refresh.after, always_call=True),
        )
        self.register_state_dict_post_hook(_drop_model_prefix)
        self.register_load_state_dict_pre_hook(_add_model_prefix)

    def __getstate__(self) -> dict:
        state = self.generator.get_state()  # of a generator itself, torch sends a spawned process a tensor that is gone
        return super().__getstate__() | {"generator": state.numpy().tobytes()}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        drawn = torch.frombuffer(bytearray(self.generator), dtype=torch.uint8)
        self.generator = torch.Generator().set_state(drawn)

    def _apply(self, *args, **kwargs):
        self._slot.made = None  # another dtype and the one of before may end in the same memory
        return super()._apply(*args, **kwargs)

    def forward(self, *args, **kwargs):
        """`model(*args, **kwargs)` at the level that is set."""
        return self.model(*args, **kwargs)

    def compile(self, **options) -> None:
        """torch.compile, with its options, of the model's forward; in place."""
        self.model.forward = CompiledForward(self.model.forward, options)

    @property
    def level(self) -> Level | None:
        """The level that is set."""
        return self._slot.level

    def sample(self, generator: torch.Generator | None = None, progress: float = 1.0) -> list[Level]:
        """The levels to train in one step (the recipe's `sample`), from `self.generator` unless one is given."""
        return self.recipe.sample(self.generator if generator is None else generator, progress)

    def at(self, level: Level | None = None, **setting: Unpack[Setting]) -> AtLevel:
        """A context in which the model runs at `level`, or at density=, bits= or width=, whichever the recipe knows,
        with alpha= as the recipe maps it unless given.

        It may be nested and entered again; leaving it sets the level that was set before. Activation checkpointing in
        the model's forward runs parts of it again at the forward's level; of a part that is called alone, or of the
        whole, the backward pass must be in the context, too.
        """
        return AtLevel(self._slot, self._resolve(level, setting))

    def set_level(self, level: Level | None = None, **setting: Unpack[Setting]) -> Level:
        """Sets a level, as `at` takes it, until another one is set; returns it."""
        level = self._resolve(level, setting)
        self._slot.level, self._slot.running, self._slot.made = level, None, None
        return level

    def lines(self) -> dict[str, SubspaceLayer]:
        """The layers that have a second end, by their names in the model. None on a point."""
        return {name: layer for name, layer in self._layers().items() if layer.line}

    def regularizer(self) -> Tensor:
        """cos^2 of the angle between the ends, the weights that the recipe names taken as one vector; 0 on a point.

        (sum <w0, w1>)^2 / (sum |w0|^2 * sum |w1|^2), 0-d, in at least float32, differentiable. Convolution and linear
        weights count, norms and biases do not; of `lcs.Structured`, whose norms alone are lines, the norms' scales do
        (arXiv 2110.04252, section 3; added once per step with weight 1).
        """
        ends = [layer.ends("weight") for layer in self.lines().values() if self.recipe.is_regularized(layer)]
        if not ends:
            return torch.zeros((), device=next(self.model.parameters()).device, requires_grad=True)  # of nothing
        w0s, w1s = ([_whole(w) for w in ws] for ws in zip(*ends, strict=True))
        if len({w.dtype for w in w0s}) > 1:
            w0s, w1s = ([w.float() for w in ws] for ws in (w0s, w1s))
        value = cosine_squared(w0s, w1s)
        frozen = torch.is_grad_enabled() and not value.requires_grad
        return value.requires_grad_() if frozen else value

    def statistics(
        self, level: Level | None = None, *, example: Tensor | None = None, **setting: Unpack[Setting]
    ) -> LevelStatistics:
        """True sparsity, parameters and stored bytes at a level, given as to `at`; with an `example` of the model's
        input, also the multiply-accumulate operations of a forward, which runs once."""
        return level_statistics(self, self._resolve(level, setting), () if example is None else (example,))

    def freeze(self, *, cache_bytes: int = CACHE_BYTES, strict: bool = False) -> Frozen:
        """This subspace as it is now, to serve any level per call, from any thread, its weights packed: see `Frozen`.

        It has a copy of the model, in evaluation mode; this subspace and its training go on as they were.

        cache_bytes: of the levels that are held besides the ends. strict: raise where a layer has no sparse kernel.

        Raises RuntimeError for a spent subspace, ValueError where cache_bytes is negative, or where a weight that is to
        be rounded holds NaN or infinity, naming its layer.
        """
        self._check_converted()
        return freeze(self, cache_bytes=cache_bytes, strict=strict)

    def _check_converted(self) -> None:
        if not self._layers():
            raise RuntimeError("this subspace was unconverted: its model has no levels any more")

    def _layers(self) -> dict[str, SubspaceLayer]:
        return {name: module for name, module in self.model.named_modules() if isinstance(module, SubspaceLayer)}

    def _resolve(self, level: Level | None, setting: Setting) -> Level:
        self._check_converted()
        return self.recipe.resolve(level, setting)


def _whole(parameter: Tensor) -> Tensor:
    """Of a parameter that fully_shard has parted, all of it."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


class AtLevel:
    """Sets a level on entry and the one before on exit. One object may be entered several times."""

    def __init__(self, slot: Slot, level: Level) -> None:
        self._slot, self._level = slot, level
        self._before: list[Level | None] = []

    def __enter__(self) -> Level:
        self._before.append(self._slot.level)
        self._slot.level, self._slot.running, self._slot.made = self._level, None, None
        return self._level

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slot.level, self._slot.running = self._before.pop(), None


def _drop_model_prefix(subspace: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    _rename(state_dict, f"{prefix}model.", prefix)


def _add_model_prefix(subspace: nn.Module, state_dict: dict, prefix: str, *args) -> None:
    _rename(state_dict, prefix, f"{prefix}model.")


def _rename(state_dict: dict, before: str, after: str) -> None:
    """The start of all keys that begin with `before`: together, as a model may have a part of its own named model."""
    renamed = {after + key.removeprefix(before): key for key in state_dict if key.startswith(before)}
    state_dict.update({new: state_dict.pop(old) for new, old in renamed.items()})
