"""The recipe for width (arXiv 2110.04252, section 4): every compressed layer keeps its first channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .channels import Channels, incoming, is_depthwise
from .layers import SubspaceLayer
from .layers.base import blend
from .layers.structured import STRUCTURED_LAYERS, narrow
from .layers.weights import WEIGHT_LAYERS
from .levels import Level, bounds, check_number
from .recipe import Recipe, Tensors

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Structured(Recipe):
    """Each compressed layer keeps its first max(1, round(width * C)) of C output channels (half to even), and takes the
    input channels that arrive; a `dense` layer keeps all outputs (the classifier). Weights are one tensor for all
    widths; on a line the norms alone have two ends, cut to the channels that arrive.

    line: the norms are lines (LCS+L, where width = low + (high - low) * alpha), or nothing is (LCS+P).
    width: lowest and highest width that `sample` draws.
    samples: widths of one step: both ends and so many less two between them (the sandwich).
    target: train for this one width only (the fixed baseline); always a point.
    fixed: train all of these widths in each step and no others (slimmable networks, arXiv 1812.08928); a point.
    per_width: each of the `fixed` widths has running statistics of its own in the batch norms that are kept, and any
        other width those of all of them; else one set serves all.
    """

    unit: ClassVar[str] = "width"
    op: ClassVar[str] = "torch"
    norm: ClassVar[str] = "instance"
    norms: ClassVar[tuple[str, ...]] = ("instance", "keep")
    cuts: ClassVar[bool] = True
    layers: ClassVar = STRUCTURED_LAYERS

    line: bool = True
    width: tuple[float, float] = (0.25, 1.0)
    samples: int = 4
    target: float | None = None
    fixed: tuple[float, ...] | None = None
    per_width: bool = False

    def __post_init__(self) -> None:
        low, high = bounds("Structured: width", self.width)
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"Structured: width must be (low, high) with 0 < low <= high <= 1, got {self.width}")
        object.__setattr__(self, "width", (float(low), float(high)))
        if not isinstance(self.samples, int) or self.samples < 2:
            raise ValueError(f"Structured: samples must be at least 2, both ends of width, got {self.samples!r}")
        if self.target is not None:
            _check_width("target", self.target)
            object.__setattr__(self, "line", False)
        if self.fixed is not None:
            if not self.fixed or self.target is not None:
                raise ValueError("Structured: fixed is at least one width, and without target")
            if not isinstance(self.fixed, (tuple, list)):
                raise TypeError(f"Structured: fixed must be a tuple of widths, got {self.fixed!r}")
            for width in self.fixed:
                _check_width("fixed", width)
            object.__setattr__(self, "fixed", tuple(map(float, self.fixed)))
            object.__setattr__(self, "line", False)
        elif self.per_width:
            raise ValueError("Structured: per_width statistics are of the fixed widths; give them")
        if self.line and low == high:
            raise ValueError(f"Structured: a line needs two widths, got {self.width}; for one, pass line=False")

    def level(self, width: float, alpha: float | None = None) -> Level:
        """The level at `width` in (0, 1]; on a line, within the recipe's `width`, where alpha follows from it, unless
        an alpha in [0, 1] is given."""
        _check_width("width", width)
        if not self.line:
            if alpha not in (None, 0):
                raise ValueError(f"Structured: a point has no alpha, got alpha={alpha}; leave it out")
            return Level(0.0, width=float(width))
        low, high = self.width
        if alpha is None:
            alpha = (width - low) / (high - low)
            if not 0.0 <= alpha <= 1.0:
                raise ValueError(f"Structured: width must lie in {list(self.width)}, got {width}; else give alpha too")
        elif not 0.0 <= alpha <= 1.0:
            raise ValueError(
                f"Structured: alpha must lie in [0, 1], got {alpha}; to leave the line, pass lcs.Level(alpha=..., "
                "width=...)"
            )
        return Level(float(alpha), width=float(width))

    def channels(self, count: int, level: Level) -> int:
        """How many of a layer's `count` output channels there are at `level`."""
        return max(1, round(level.width * count))

    def sample(self, generator: torch.Generator | None, progress: float = 1.0) -> list[Level]:
        """The levels of one training step: the lowest, the highest and uniform ones between, drawn from `generator`
        (on the CPU), or the `fixed` ones. There is no warm-up."""
        if self.fixed is not None:
            return [Level(0.0, width=width) for width in self.fixed]
        if self.target is not None:
            return [Level(0.0, width=self.target)]
        low, high = self.width
        drawn = torch.rand(self.samples - 2, generator=generator, dtype=torch.float64).tolist()
        alphas = [0.0, 1.0, *drawn]
        return [
            Level(a if self.line else 0.0, width=high if a == 1.0 else min(low + (high - low) * a, high))
            for a in alphas
        ]

    def incoming(self, model: nn.Module, converted: dict[str, bool]) -> dict[str, Channels | None]:
        return incoming(model, converted)

    def weights(self, layers: Sequence[SubspaceLayer], level: Level) -> Sequence[Tensor]:
        """Views: all inputs of the outputs that are kept."""
        return [layer.weight[: self.outputs(layer, level)] for layer in layers]

    def outputs(self, layer: SubspaceLayer, level: Level) -> int:
        """Of a layer with a convolution's or a linear weight."""
        count = layer.weight.shape[0]
        if is_depthwise(layer):
            return count // layer.groups * self.inputs(layer, layer.groups, level)
        return self.channels(count, level) if layer.compressed else count

    def inputs(self, layer: SubspaceLayer, count: int, level: Level) -> int:
        """How many of `count` channels arrive at `layer`."""
        x = layer.incoming
        return count if x is None else x.times * self.channels(x.count, level)

    def tensors(self, layer: SubspaceLayer, level: Level, weight: Tensor | None) -> Tensors:
        if weight is None:
            return *self.bake(layer, level, None), *self._statistics(layer, level)
        bias = None if layer.bias is None else layer.bias[: len(weight)]
        return (weight, bias, self._arriving(layer, level)) if isinstance(layer, nn.Linear) else (weight, bias)

    def _arriving(self, layer: SubspaceLayer, level: Level) -> Tensor | None:
        """As long as an input of a linear layer: torch.compile makes one graph for all lengths of a tensor, if it has
        one dimension, but not for all values of a number."""
        return layer.weight[0, : self.inputs(layer, layer.in_features, level)] if layer.traced else None

    def _statistics(self, layer: SubspaceLayer, level: Level) -> Tensors:
        """Of a batch or instance norm: the mean and the variance that run along with training."""
        if not hasattr(layer, "track_running_stats"):
            return ()
        own = self.per_width and level.width in self.fixed and layer.running_mean is not None
        place = f"_{self.fixed.index(level.width)}" if own else ""
        return tuple(self._cut(layer, getattr(layer, name + place), level) for name in _STATISTICS)

    def prepare(self, layer: SubspaceLayer) -> None:
        if self.per_width and isinstance(getattr(layer, "running_mean", None), Tensor):
            for i, width in enumerate(self.fixed):
                for name in _STATISTICS:
                    own = self._cut(layer, getattr(layer, name), Level(0.0, width=width))
                    layer.register_buffer(f"{name}_{i}", own.clone())

    def bake(self, layer: SubspaceLayer, level: Level, weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if weight is None:
            ends = (map(lambda end: self._cut(layer, end, level), layer.ends(name)) for name in ("weight", "bias"))
            return tuple(blend(*cut, level.alpha) for cut in ends)
        inputs = weight.shape[1] if is_depthwise(layer) else self.inputs(layer, weight.shape[1], level)
        return weight[:, :inputs], None if layer.bias is None else layer.bias[: len(weight)]

    def plain(self, layer: SubspaceLayer, level: Level, weight: Tensor | None) -> nn.Module:
        module = super().plain(layer, level, weight)
        if weight is not None:
            narrow(module, self.inputs(layer, getattr(layer, "in_channels", 0), level))
        else:
            if (statistics := self._statistics(layer, level)) and statistics[0] is not None:
                module._buffers = dict(zip(_STATISTICS, (t.clone() for t in statistics), strict=True))
                module._buffers["num_batches_tracked"] = layer.num_batches_tracked
            if layer.incoming is not None:
                narrow(module, self.inputs(layer, 0, level))
        return module

    def _cut(self, layer: SubspaceLayer, end: Tensor | None, level: Level) -> Tensor | None:
        return None if end is None else end[: self.inputs(layer, len(end), level)]

    def stored_bytes(self, n: int, level: Level) -> int:
        """What is kept of a weight is stored as it is."""
        return 4 * n

    def has_second_end(self, layer: SubspaceLayer) -> bool:
        return self.line and not isinstance(layer, tuple(WEIGHT_LAYERS))

    def is_regularized(self, layer: SubspaceLayer) -> bool:
        """The norms' scales alone."""
        return not isinstance(layer, tuple(WEIGHT_LAYERS)) and layer.weight is not None


def _check_width(name: str, value: float) -> None:
    check_number(f"Structured: {name}", value)
    if not 0.0 < value <= 1.0:
        raise ValueError(f"Structured: {name} must lie in (0, 1], got {value}")
