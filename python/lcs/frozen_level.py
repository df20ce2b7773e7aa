"""A frozen network at one level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import compiling
from .levels import Level
from .no_module import NoModule

if TYPE_CHECKING:
    from .frozen import Frozen


class FrozenLevel(NoModule):
    """A frozen network at one level."""

    def __init__(self, frozen: Frozen, level: Level) -> None:
        self.frozen, self.level = frozen, level

    @compiling.disabled
    def __call__(self, *args, **kwargs):
        """`model(*args, **kwargs)` at this level."""
        return self.frozen._call(self.level, args, kwargs)

    def eval(self) -> FrozenLevel:
        """Itself, as of `Frozen`."""
        return self

    def train(self, mode: bool = True) -> FrozenLevel:
        """As of `Frozen`."""
        self.frozen.train(mode)
        return self

    def __repr__(self) -> str:
        return f"{self.frozen!r} at {self.level}"
