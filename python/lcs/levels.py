"""A level: where on the line, and how much is kept there."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """The weights prune((1 - alpha) * w0 + alpha * w1, density) of arXiv 2110.04252, section 3.

    alpha: position on the line, 0 is the first end; outside [0, 1] the line is extrapolated. A point has alpha 0.
    density: fraction of each compressed layer's weights that is kept, in [0, 1].
    """

    alpha: float
    density: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ValueError(f"Level: alpha must be a finite number, got {self.alpha}")
        if not 0.0 <= self.density <= 1.0:
            raise ValueError(f"Level: density must lie in [0, 1], got {self.density}")

    @property
    def sparsity(self) -> float:
        """Fraction of each compressed layer's weights that is zero."""
        return 1.0 - self.density
