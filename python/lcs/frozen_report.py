"""What a frozen network tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from .levels import Level
from .planning import columns

NORM = "line_norm"  # the kernel of norms


@dataclass(frozen=True)
class LayerReport:
    """One layer at one level: the kernel that it runs, why none on a packed weight, weights stored, and bytes held."""

    layer: str
    kernel: str
    why: str
    stored: int
    bytes: int


@dataclass(frozen=True)
class FrozenReport:
    """The layers in the model's order; `print` shows them as a table."""

    level: Level
    rows: tuple[LayerReport, ...]

    def __str__(self) -> str:
        packed = sum(row.kernel not in ("torch", NORM) for row in self.rows)
        total = sum(row.bytes for row in self.rows)
        end = f"{self.level}: {packed} of {len(self.rows)} layers packed, {total:,} bytes"
        return columns(LayerReport, self.rows, end)


@dataclass(frozen=True)
class Counters:
    """What a frozen network has done so far.

    hits, builds, evictions: of levels. levels, nbytes: held now. dense: {"layer: reason": levels built so} of the
    compressible layers that run dense; fallbacks: those of them that should run packed and cannot. unfused: why the
    model's forward ran as it is written, without steps in place, for the inputs that it last did so for; empty where it
    never did. contiguous: likewise, why inputs stayed contiguous, not channels last.
    """

    hits: int
    builds: int
    evictions: int
    levels: int
    nbytes: int
    dense: dict[str, int]
    fallbacks: dict[str, int]
    unfused: str
    contiguous: str
