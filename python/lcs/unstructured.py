"""The recipe for unstructured sparsity (arXiv 2110.04252, section 4): which levels exist and which are trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcs_kernels import interpolate_prune_foreach, keep_count

from .layers import SubspaceLayer
from .levels import Level, bounds
from .recipe import Recipe


@dataclass(frozen=True)
class Unstructured(Recipe):
    """Each compressed layer keeps its largest weights by magnitude.

    line: a line between two ends (LCS+L, where alpha = density) or one point for all levels (LCS+P).
    density: lowest and highest density that `sample` draws.
    target: train for this one density only (the fixed baseline); always a point.
    endpoint_probability: how often a line's sample is one of the two ends of `density` instead of uniform between them.
    keep_rounding: of density * n weights kept: "half_even", or "truncate", the paper's n - int((1 - density) * n).
    """

    unit: ClassVar[str] = "density"
    op: ClassVar[str] = "interpolate_prune_foreach"

    line: bool = True
    density: tuple[float, float] = (0.025, 1.0)
    target: float | None = None
    endpoint_probability: float = 0.5
    keep_rounding: Literal["half_even", "truncate"] = "half_even"

    def __post_init__(self) -> None:
        low, high = bounds("Unstructured: density", self.density)
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(
                f"Unstructured: density must be (low, high) with 0 <= low <= high <= 1, got {self.density}"
            )
        object.__setattr__(self, "density", (float(low), float(high)))
        if self.target is not None:
            _check_unit("target", self.target)
            object.__setattr__(self, "line", False)
        _check_unit("endpoint_probability", self.endpoint_probability)
        if self.keep_rounding not in ("half_even", "truncate"):
            raise ValueError(f"Unstructured: keep_rounding must be half_even or truncate, got {self.keep_rounding!r}")

    def level(self, density: float, alpha: float | None = None) -> Level:
        """The level at `density` in [0, 1]; on a line, alpha in [0, 1] is the density unless given."""
        _check_unit("density", density)
        if not self.line:
            if alpha not in (None, 0):
                raise ValueError(f"Unstructured: a point has no alpha, got alpha={alpha}; leave it out")
            return Level(0.0, float(density))
        if alpha is None:
            return Level(float(density), float(density))
        _check_unit("alpha", alpha, "; to leave the line, pass lcs.Level(alpha=..., density=...)")
        return Level(float(alpha), float(density))

    def keep(self, density: float, n: int) -> int:
        """How many of a layer's `n` weights are kept."""
        return keep_count(density, n) if self.keep_rounding == "half_even" else n - int((1.0 - density) * n)

    def prune_arguments(
        self, layers: Sequence[SubspaceLayer], level: Level
    ) -> tuple[Sequence[Tensor], Sequence[Tensor] | None, list[int]]:
        """Both ends (the second None on a point) of layers with weights, and how many each one keeps."""
        w0s, w1s = zip(*(layer.ends("weight") for layer in layers), strict=True)
        sizes = [w0.numel() for w0 in w0s]
        keep = [self.keep(level.density, n) if layer.compressed else n for layer, n in zip(layers, sizes, strict=True)]
        return w0s, None if w1s[0] is None else w1s, keep

    def weights(self, layers: Sequence[SubspaceLayer], level: Level) -> Sequence[Tensor]:
        w0s, w1s, keep = self.prune_arguments(layers, level)
        return interpolate_prune_foreach(w0s, w1s, level.alpha, keep=keep, extrapolate=True)

    def stored_bytes(self, n: int, level: Level) -> int:
        """One bit per weight, and the kept values."""
        return (n + 7) // 8 + 4 * self.keep(level.density, n)

    def sample(self, generator: torch.Generator | None, progress: float = 1.0) -> list[Level]:
        """The levels of one training step (here one), drawn from `generator` (on the CPU; two numbers per call).

        progress: fraction of the warm-up that is done, clamped to [0, 1]. During it a line trains at density
        a + (1 - a) * (1 - progress) for its drawn alpha a, a point at the highest density, and `target` is approached
        linearly from density 1.
        """
        left = 1.0 - min(max(progress, 0.0), 1.0)
        low, high = self.density
        choice, place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        uniform = min(low + (high - low) * place, high)
        if self.target is not None:
            return [Level(0.0, _toward_one(self.target, left))]
        if not self.line:
            return [Level(0.0, high if left > 0.0 else uniform)]
        p = self.endpoint_probability
        alpha = low if choice < p / 2 else high if choice < p else uniform
        return [Level(alpha, _toward_one(alpha, left))]


def _toward_one(density: float, left: float) -> float:
    return min(density + (1.0 - density) * left, 1.0)


def _check_unit(name: str, value: float, hint: str = "") -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"Unstructured: {name} must lie in [0, 1], got {value}{hint}")
