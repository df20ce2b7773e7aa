"""What every recipe shares: a level from what a user gives, and a level's tensors from the stored ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from .layers import SubspaceLayer
from .layers.base import blend
from .layers.weights import WEIGHT_LAYERS
from .levels import UNITS, Level, Setting, check_number

if TYPE_CHECKING:
    from .channels import Channels

Tensors = tuple[Tensor | None, ...]


class Recipe:
    """Base of the recipes: which levels exist, which are trained, and what a level makes of a layer's weight.

    unit: what a level is named by: density, bits or width. op: of lcs_kernels, that makes a compressed weight.
    norm: what `convert` makes of a batch norm unless told; norms: what it may be told.
    cuts: whether a level changes how many channels arrive, so that dense layers and norms follow it on a point too.
    layers: by type of the plain module, the layer that stands for it where that is not `lcs.layers.support`'s.
    """

    unit: ClassVar[str]
    op: ClassVar[str]
    norm: ClassVar[str] = "group"
    norms: ClassVar[tuple[str, ...]] = ("group", "instance", "keep")
    cuts: ClassVar[bool] = False
    layers: ClassVar[Mapping[type[nn.Module], type[SubspaceLayer]]] = {}

    line: bool
    target: float | None

    def level(self, value: float, alpha: float | None = None) -> Level:
        """The level at `value` of the unit; on a line, alpha follows from it unless given."""
        raise NotImplementedError

    def full(self) -> Level:
        """The level at which nothing is compressed."""
        return self.level(1.0)

    def sample(self, generator: torch.Generator | None, progress: float = 1.0) -> list[Level]:
        """The levels of one training step, drawn from `generator`; `progress` in [0, 1] is how much of the warm-up is
        done."""
        raise NotImplementedError

    def weights(self, layers: Sequence[SubspaceLayer], level: Level) -> Sequence[Tensor]:
        """The weights at `level` of layers with a convolution's or a linear weight, all of one dtype and device."""
        raise NotImplementedError

    def incoming(self, model: nn.Module, converted: Mapping[str, bool]) -> Mapping[str, Channels | None]:
        """What each layer of a plain model will need to know of its inputs, by name; `converted`: layers by name, and
        whether they are compressed. Raises ValueError where the recipe cannot be applied."""
        return {}

    def folded(self, model: nn.Module, converted: Mapping[str, bool], norms: Collection[str]) -> Mapping[str, str]:
        """Which of the batch norms `norms`, which stay such, each layer of a plain model takes into its weight, by
        names; `converted` and ValueError as for `incoming`."""
        return {}

    def tensors(self, layer: SubspaceLayer, level: Level, weight: Tensor | None) -> Tensors:
        """What a layer's forward gets at `level`: its weight, as `weights` made it (None: of another layer), bias and
        extras."""
        return (
            blend(*layer.ends("weight"), level.alpha) if weight is None else weight,
            blend(*layer.ends("bias"), level.alpha),
            *self.extras(layer, level),
        )

    def bake(self, layer: SubspaceLayer, level: Level, weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias as a plain module holds them at `level`; `weight` as for `tensors`."""
        return self.tensors(layer, level, weight)[:2]

    def plain(self, layer: SubspaceLayer, level: Level, weight: Tensor | None) -> nn.Module:
        """`layer` at `level` as a plain module; `weight` as for `tensors`."""
        return layer.plain(*self.bake(layer, level, weight))

    def extras(self, layer: SubspaceLayer, level: Level) -> tuple[Tensor, ...]:
        """What a layer's forward gets besides weight and bias."""
        return ()

    def prepare(self, layer: SubspaceLayer) -> None:
        """What a new layer needs besides its ends."""

    def stored_bytes(self, n: int, level: Level) -> int:
        """Bytes of a compressed weight of `n` float32 elements as a file stores it at `level`."""
        raise NotImplementedError

    def has_second_end(self, layer: SubspaceLayer) -> bool:
        """Whether a layer becomes a line."""
        return self.line

    def is_regularized(self, layer: SubspaceLayer) -> bool:
        """Whether the angle between the ends of a line's weight counts (arXiv 2110.04252, section 3)."""
        return isinstance(layer, tuple(WEIGHT_LAYERS))

    def resolve(self, level: Level | None, setting: Setting) -> Level:
        """From a level, or a value of the recipe's unit and perhaps alpha. Raises TypeError for another name or no
        number, ValueError where both or neither are given, or one is out of range."""
        given = {name: value for name, value in setting.items() if value is not None}
        if unknown := set(given) - {*UNITS, "alpha"}:
            raise TypeError(f"a level has no {min(unknown)}; give {self.unit}=..., and alpha=... on a line")
        for name, value in given.items():
            check_number(name, value)
        if level is not None:
            if not isinstance(level, Level):
                raise TypeError(f"a level is a lcs.Level, got {level!r}; as a {self.unit} it is {self.unit}={level!r}")
            if given:
                raise ValueError(f"give either {level} or {_written(given)}, not both")
            if others := {unit for unit in UNITS if getattr(level, unit) != getattr(Level, unit)} - {self.unit}:
                raise ValueError(
                    f"lcs.{type(self).__name__} has levels of {self.unit}, not of {min(others)}: got {level}"
                )
            return level
        alpha = given.pop("alpha", None)
        if others := set(given) - {self.unit}:
            raise ValueError(f"lcs.{type(self).__name__} has levels of {self.unit}, not of {min(others)}")
        if not given:
            raise ValueError(f"give a level: {self.unit}=..., {self.unit}=... with alpha=..., or a lcs.Level")
        return self.level(given[self.unit], alpha)

    def value(self, level: Level) -> float:
        """Of the unit, at `level`."""
        return getattr(level, self.unit)


def _written(setting: Setting) -> str:
    return ", ".join(f"{name}={value}" for name, value in setting.items())
