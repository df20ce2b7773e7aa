"""A level: where on the line, and how strongly it is compressed there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

UNITS = ("density", "width", "bits")
FULL = {"density": 1.0, "width": 1.0, "bits": 32.0}  # of a network that is not compressed, by unit


class Setting(TypedDict, total=False):
    """A level as a user gives it: one of the units that the recipe knows, and perhaps alpha; None is not given."""

    density: float | None
    width: float | None
    bits: int | None
    alpha: float | None


def check_number(name: str, value: object) -> None:
    """Raises TypeError where a value is none."""
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")


def bounds(name: str, value: object) -> tuple[float, float]:
    """The lowest and the highest level. Raises TypeError where `value` is not two numbers."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(hasattr(v, "__float__") for v in value):
        raise TypeError(f"{name} must be (low, high), two numbers, got {value!r}; one level alone is a target")
    return tuple(value)


@dataclass(frozen=True)
class Level:
    """The weights compress((1 - alpha) * w0 + alpha * w1) of arXiv 2110.04252, section 3.

    alpha: position on the line, 0 is the first end; outside [0, 1] the line is extrapolated. A point has alpha 0.
    density: fraction of each compressed layer's weights that is kept, in [0, 1].
    width: fraction of each compressed layer's output channels that is kept, in (0, 1].
    bits: of the weights of the compressed layers, 2 to 8, or None for full precision.
    inputs: whether their inputs are rounded to `bits` too, where training has found their ranges.
    mixed: a seed from which each layer draws bits of its own, of all that its recipe trains; None: all have `bits`.
    """

    alpha: float
    density: float = 1.0
    width: float = 1.0
    bits: int | None = None
    inputs: bool = True
    mixed: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ValueError(f"Level: alpha must be a finite number, got {self.alpha}")
        if not 0.0 <= self.density <= 1.0:
            raise ValueError(f"Level: density must lie in [0, 1], got {self.density}")
        if not 0.0 < self.width <= 1.0:
            raise ValueError(f"Level: width must lie in (0, 1], got {self.width}")
        if self.bits is not None and (not isinstance(self.bits, int) or not 2 <= self.bits <= 8):
            raise ValueError(f"Level: bits must be a whole number from 2 to 8, got {self.bits!r}")
