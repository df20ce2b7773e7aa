"""The recipe for bit widths (arXiv 2110.04252, section 4): weights and inputs of each compressed layer are rounded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lcs_kernels import interpolate_quantize

from .channels import trace
from .layers import SubspaceLayer
from .layers.base import blend
from .layers.quantized import QUANTIZED_LAYERS, RANGES
from .levels import Level, bounds
from .recipe import Recipe

LEAST, MOST = 2, 8


@dataclass(frozen=True)
class Quantized(Recipe):
    """The weights and the inputs of each compressed layer are rounded to `bits` bits, forward; backward goes straight
    through.

    Weights are rounded from the first step on; inputs once training's warm-up has ended, over a range that a running
    average of the batches' gives from there on. Before that a level leaves inputs as they are.

    line: a line on which each width has a place of its own, alpha = k / n for the k-th of n widths (LCS+L), or one
        point for all (LCS+P).
    bits: lowest and highest width that `sample` draws.
    target: train for this one width only (the fixed baseline); always a point.
    per_channel: a scale for each output channel, not one for the weight.
    nested: the rounding under which every width is the top of one stored 8-bit code (`lcs_kernels.formats`).
    per_layer: a point's `sample` draws a width for each layer, instead of one for all.

    A batch norm that is kept, and that alone reads what a compressed convolution makes, is folded into its weight
    before that is rounded, with the running variance, and out of it afterwards (arXiv 2110.04252, section 4).
    """

    unit: ClassVar[str] = "bits"
    op: ClassVar[str] = "interpolate_quantize"
    layers: ClassVar = QUANTIZED_LAYERS

    line: bool = True
    bits: tuple[int, int] = (3, 8)
    target: int | None = None
    per_channel: bool = False
    nested: bool = False
    per_layer: bool = False

    def __post_init__(self) -> None:
        low, high = (_whole("bits", value) for value in bounds("Quantized: bits", self.bits))
        if low > high:
            raise ValueError(f"Quantized: bits must be (low, high) with low <= high, got {self.bits}")
        object.__setattr__(self, "bits", (low, high))
        if self.target is not None:
            object.__setattr__(self, "target", _whole("target", self.target))
            object.__setattr__(self, "line", False)
        if self.per_layer and (self.line or self.target is not None):
            raise ValueError("Quantized: per_layer widths are of a point without target; pass line=False")

    def level(self, bits: float, alpha: float | None = None) -> Level:
        """The level at `bits`, a whole number from 2 to 8; on a line, within the recipe's `bits`, whose place on it is
        alpha, unless an alpha in [0, 1] is given."""
        bits = _whole("bits", bits)
        if not self.line:
            if alpha not in (None, 0):
                raise ValueError(f"Quantized: a point has no alpha, got alpha={alpha}; leave it out")
            return Level(0.0, bits=bits)
        if alpha is None:
            low, high = self.bits
            if not low <= bits <= high:
                raise ValueError(f"Quantized: bits must lie in {[low, high]}, got {bits}; else give alpha too")
            alpha = (bits - low + 1) / (high - low + 1)
        elif not 0.0 <= alpha <= 1.0:
            raise ValueError(
                f"Quantized: alpha must lie in [0, 1], got {alpha}; to leave the line, pass lcs.Level(alpha=..., "
                "bits=...)"
            )
        return Level(float(alpha), bits=bits)

    def full(self) -> Level:
        """Of the weights that the highest width rounds."""
        highest = self.level(self.bits[1] if self.target is None else self.target)
        return replace(highest, bits=None, inputs=False)

    def weights(self, layers: Sequence[SubspaceLayer], level: Level) -> Sequence[Tensor]:
        return [self._weight(layer, level) for layer in layers]

    def _weight(self, layer: SubspaceLayer, level: Level) -> Tensor:
        ends = layer.ends("weight")
        if not layer.compressed or level.bits is None:
            return blend(*ends, level.alpha)
        options = {"per_channel": self.per_channel, "nested": self.nested, "extrapolate": True}
        bits = self.bits_of(layer, level)
        if layer.folded is None:
            return interpolate_quantize(*ends, level.alpha, bits, **options)
        weight, factor = blend(*ends, level.alpha), folded_factor(layer, level)
        rounded = interpolate_quantize(weight * factor, None, 0.0, bits, **options)
        return rounded / torch.where(factor == 0, 1, factor)  # nothing of a channel of factor 0 goes through the norm

    def bits_of(self, layer: SubspaceLayer, level: Level) -> int:
        """Of one layer's weight and input."""
        if level.mixed is None:
            return level.bits
        low, high = self.bits
        return random.Random(level.mixed << 32 | layer.index).randint(low, high)

    def extras(self, layer: SubspaceLayer, level: Level) -> tuple[Tensor, ...]:
        """The bits of the input, where it is rounded: a tensor, which torch.compile makes one graph for."""
        if not layer.compressed or level.bits is None or not level.inputs:
            return ()
        if not layer.training and not layer.input_known:
            return ()
        return (torch.full((), self.bits_of(layer, level), dtype=torch.int64, device=layer.weight.device),)

    def prepare(self, layer: SubspaceLayer) -> None:
        if layer.compressed:
            layer.add_ranges()

    def folded(self, model: nn.Module, converted: Mapping[str, bool], norms: Collection[str]) -> Mapping[str, str]:
        if not norms:
            return {}
        graph = trace(model, [*norms, *converted], "lcs.Quantized with norm='keep'")
        modules = dict(model.named_modules())
        calls = [node for node in graph.nodes if node.op == "call_module"]
        times = Counter(node.target for node in calls)
        found = {}
        for node in calls:
            source = node.all_input_nodes[0] if node.target in norms else None
            if source is None or source.op != "call_module" or not converted.get(source.target):
                continue
            once = times[node.target] == times[source.target] == len(source.users) == 1
            if once and isinstance(modules[source.target], (nn.Conv1d, nn.Conv2d)):
                found[source.target] = node.target
        return found

    def plain(self, layer: SubspaceLayer, level: Level, weight: Tensor | None) -> nn.Module:
        """Its weight is rounded; its inputs are not."""
        module = super().plain(layer, level, weight)
        for name in RANGES:
            module._buffers.pop(name, None)
        module.__dict__.pop("folded", None)
        return module

    def stored_bytes(self, n: int, level: Level) -> int:
        """The codes, a scale and a zero point."""
        return (n * (level.bits or 32) + 7) // 8 + 8

    def sample(self, generator: torch.Generator | None, progress: float = 1.0) -> list[Level]:
        """The level of one training step, drawn from `generator` (on the CPU; one number per call).

        progress: fraction of the warm-up that is done, in [0, 1]. Until it is, inputs are not rounded, and a point
        trains at its highest width.
        """
        (low, high), done = self.bits, progress >= 1.0
        if self.per_layer and done:
            return [Level(0.0, bits=high, mixed=int(torch.randint(1 << 31, (), generator=generator)))]
        drawn = low + int(torch.randint(high - low + 1, (), generator=generator))
        if self.target is not None:
            return [Level(0.0, bits=self.target, inputs=done)]
        if not self.line:
            return [Level(0.0, bits=drawn if done else high, inputs=done)]
        return [Level(self.level(drawn).alpha, bits=drawn, inputs=done)]


def folded_factor(layer: SubspaceLayer, level: Level) -> Tensor:
    """What the folded norm multiplies each output channel of `layer` with; without gradient."""
    norm = layer.folded
    scale = norm.weight if norm.weight is None else blend(norm.weight, getattr(norm, "weight_1", None), level.alpha)
    factor = (norm.running_var + norm.eps).rsqrt() if scale is None else scale * (norm.running_var + norm.eps).rsqrt()
    return factor.detach().view(-1, *[1] * (layer.weight.dim() - 1))


def _whole(name: str, value: float) -> int:
    if not LEAST <= value <= MOST or value != int(value):
        raise ValueError(f"Quantized: {name} must be a whole number from {LEAST} to {MOST}, got {value}")
    return int(value)
