"""Whether a sparse op is worth its while: the densities below which it beat the dense op where that was measured.

`costs.json` beside this file is shipped; `lcs bench --calibrate` writes the machine's own into the cache folder.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import _jit, isa

_NUMBERS = {"sparse_linear": 3, "sparse_linear_tiles": 3, "sparse_conv2d": 6}  # that a size has
# From which rows and density on tiles are taken where no table says so: derived from a probe of the same scheme, not
# yet measured for this kernel.
TILE_ROWS, TILE_DENSITY = 16, 0.05
SHIPPED = Path(__file__).parent / "costs.json"


@dataclass(frozen=True)
class Break:
    """A shape at which sparse and dense took the same time at density `density`; sparse wins below it.

    For sparse_linear_tiles: tiles and sums of what is stored; tiles win above it.
    """

    op: str
    size: tuple[int, ...]  # what `size_of` says of the shape
    density: float


def calibrated() -> Path:
    """Where this machine's own table is kept, if there is one."""
    return _jit.cache_dir() / "costs.json"


def size_of(op: str, x_shape: Sequence[int], weight_shape: Sequence[int], stride: int = 1) -> tuple[int, ...]:
    """What decides how fast an op is.

    sparse_linear: rows of x, in_features, out_features. sparse_conv2d: images, input channels of a group, output
    channels, input positions of an image, taps, stride.
    """
    if op == "sparse_linear":
        return math.prod(x_shape[:-1]), weight_shape[1], weight_shape[0]
    if op == "sparse_conv2d":
        return (x_shape[0], *weight_shape[1::-1], math.prod(x_shape[2:]), math.prod(weight_shape[2:]), stride)
    raise ValueError(f"costs: no op {op!r} has a cost table; sparse_linear and sparse_conv2d have")


def pays(op: str, x_shape: Sequence[int], weight_shape: Sequence[int], density: float, *, stride: int = 1) -> bool:
    """Whether `op` is expected to be faster than its dense counterpart on this machine's CPU."""
    return density < break_even(op, tuple(x_shape), tuple(weight_shape), stride)


def break_even(op: str, x_shape: Sequence[int], weight_shape: Sequence[int], stride: int = 1) -> float:
    """The density below which `op` is expected to win: that of the most similar shape that was measured.

    0 on instruction sets without vectors, whose sparse kernels are there for correctness.
    """
    return _nearest(op, size_of(op, x_shape, weight_shape, stride), isa.max_name()) or 0.0


def tiles_pay(x_shape: Sequence[int], weight_shape: Sequence[int], density: float) -> bool:
    """Whether sparse_linear of bfloat16 is expected to be faster with the weight unpacked into AMX's tiles."""
    if isa.max_name() != "amx":
        return False
    size = size_of("sparse_linear", x_shape, weight_shape)
    measured = _nearest("sparse_linear_tiles", size, "amx")
    return density > measured if measured is not None else size[0] >= TILE_ROWS and density >= TILE_DENSITY


def source() -> str:
    """Which table is in use, in words."""
    return _table(isa.max_name())[1]


def reset() -> None:
    """Reads the tables anew."""
    _table.cache_clear()
    _nearest.cache_clear()


@functools.lru_cache(maxsize=4096)
def _nearest(op: str, size: tuple[int, ...], instructions: str) -> float | None:
    """The break of the most similar shape; None: no shape was measured."""
    breaks = [b for b in _table(instructions)[0] if b.op == op]
    if not breaks:
        return None
    distances = [math.dist(_logarithms(b.size), _logarithms(size)) for b in breaks]
    return breaks[distances.index(min(distances))].density


def _logarithms(size: tuple[int, ...]) -> list[float]:
    return [math.log2(max(n, 1)) for n in size]


@functools.lru_cache(maxsize=8)
def _table(instructions: str) -> tuple[list[Break], str]:
    """The table of the best instruction set up to `instructions` that there is one of; the machine's own before the
    shipped one."""
    names = isa.NAMES[1 : isa.NAMES.index(instructions) + 1] if instructions in isa.NAMES else ()
    tables = {path: load(path) for path in (calibrated(), SHIPPED) if path.is_file()}
    for name in reversed(names):
        for path, table in tables.items():
            if name in table:
                return table[name], f"{path.name} ({'this machine' if path != SHIPPED else 'shipped'}, {name})"
    return [], "no table for this instruction set: dense"


def load(path: Path) -> dict[str, list[Break]]:
    """{instruction set: breaks} of a table. Raises ValueError naming a file that is not one."""
    try:
        content = json.loads(path.read_text())
        return {
            name: [_break(b["op"], tuple(b["size"]), float(b["density"])) for b in table["breaks"]]
            for name, table in content.items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"lcs_kernels: {path} is not a cost table ({error!r}); remove it, or write it anew: lcs bench --calibrate"
        ) from None


def _break(op: str, size: tuple[int, ...], density: float) -> Break:
    if len(size) != _NUMBERS[op]:
        raise ValueError(f"a size of {op} is {_NUMBERS[op]} numbers, got {size}")
    if not all(isinstance(n, int) for n in size):
        raise ValueError(f"a size is of whole numbers, got {size}")
    if not 0 <= density <= 1:
        raise ValueError(f"a density lies in [0, 1], got {density}")
    return Break(op, size, density)
