"""Measures at which density the sparse ops break even with the dense ones: `lcs bench --calibrate`."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from lcs_kernels import costs, isa, sparse_conv2d, sparse_linear, width_conv2d
from lcs_kernels.formats import SparseWeight, WidthWeight
from lcs_kernels.formats.width_weight import packing_pays
from lcs_kernels.ops.sparse_linear import run

from .harness import Row, measure
from .machine import fingerprint
from .output import write_json

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
LINEAR = [(rows, features) for features in (512, 2048) for rows in (1, 4, 16, 128, 1024)]
CONV3X3 = [
    (n, c, s) for n in (1, 16) for c, s in ((16, 32), (32, 16), (64, 56), (64, 8), (128, 28), (256, 14), (512, 7))
]
STRIDED = [(n, c, s) for n in (1, 16) for c, s in ((16, 32), (32, 32), (64, 56), (128, 28), (256, 14))]
CONV1X1 = [(n, c, s) for n in (1, 16) for c, s in ((16, 32), (64, 56), (128, 28), (256, 14), (256, 8))]


def cases() -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], int]]:
    """op, shape of x, shape of the weight, stride."""
    for rows, features in LINEAR:
        yield "sparse_linear", (rows, features), (features, features), 1
    for kernel, stride, sizes in ((3, 1, CONV3X3), (3, 2, STRIDED), (1, 1, CONV1X1), (1, 2, STRIDED)):
        for n, channels, side in sizes:
            yield "sparse_conv2d", (n, channels, side, side), (stride * channels, channels, kernel, kernel), stride


def calls(op: str, x: torch.Tensor, w: torch.Tensor, stride: int) -> dict[str, Callable[[], object]]:
    """The dense op that a frozen network runs, and the sparse one at every density, by name."""
    options = {"padding": w.shape[-1] // 2, "stride": stride} if op == "sparse_conv2d" else {}
    dense, whole = (F.linear if op == "sparse_linear" else F.conv2d), w
    if op == "sparse_conv2d" and stride == 1 and packing_pays(w):
        dense, whole = width_conv2d, WidthWeight.pack(w)

    def sparse(density: float) -> Callable[[], object]:
        weight = SparseWeight.pack(w * (torch.rand_like(w) < density))
        if op == "sparse_linear":
            return lambda: sparse_linear(x, weight)
        return lambda: sparse_conv2d(x, weight, **options)

    return {"dense": lambda: dense(x, whole, **options), **{str(density): sparse(density) for density in DENSITIES}}


def tile_calls(x: torch.Tensor, w: torch.Tensor) -> dict[str, Callable[[], object]]:
    """sparse_linear of bfloat16 at every density, with AMX's tiles and by what is stored, by name."""
    calls = {}
    for density in DENSITIES:
        weight = SparseWeight.pack(w * (torch.rand_like(w) < density))
        for way, tiles in (("tiles", True), ("stored", False)):
            calls[f"{way} {density}"] = functools.partial(run, x, weight, None, False, tiles)
    return calls


def tiles_break_even(timings: dict[str, float]) -> float:
    """The density above which tiles are faster, from the timings of `tile_calls`."""
    return break_even(1.0, {d: timings[f"stored {d}"] / timings[f"tiles {d}"] for d in DENSITIES})


def break_even(dense: float, sparse: dict[float, float]) -> float:
    """The density, between those measured, at which `sparse` takes as long as `dense`; 0 and 1 where it always or never
    takes longer. The time grows with the density, so a slower sample below a faster one is noise."""
    last = 0.0
    for density, seconds in sorted(sparse.items()):
        if seconds >= dense:
            if last == 0.0:
                return 0.0
            share = math.log(dense / sparse[last]) / max(math.log(seconds / sparse[last]), 1e-9)
            return last * (density / last) ** min(max(share, 0.0), 1.0)
        last = density
    return 1.0


def _present(path: Path, progress: Callable[[str], None]) -> dict:
    """What `path` holds now; nothing of a damaged file, which is said."""
    if not path.is_file():
        return {}
    try:
        costs.load(path)
    except ValueError as error:
        progress(f"replaced: {error}")
        return {}
    return json.loads(path.read_text())


@torch.no_grad()
def calibrate(path: Path, rounds: int, progress: Callable[[str], None]) -> None:
    """Writes the table of the instruction set in use to `path`, and leaves those of others there as they are."""
    torch.manual_seed(0)
    breaks = []
    for op, x_shape, weight_shape, stride in cases():
        row = Row(op, "", calls(op, torch.randn(x_shape), torch.randn(weight_shape), stride), None, 0, lambda: None)
        timings = {name: timing.median for name, timing in measure(row, rounds).items()}
        density = break_even(timings.pop("dense"), {float(name): seconds for name, seconds in timings.items()})
        breaks.append(
            {"op": op, "size": costs.size_of(op, x_shape, weight_shape, stride), "density": round(density, 4)}
        )
        progress(f"{op} {x_shape} by {weight_shape}, stride {stride}: breaks even at density {density:.3f}")
    for rows, features in LINEAR if isa.max_name() == "amx" else ():
        x, w = (torch.randn(n, features, dtype=torch.bfloat16) for n in (rows, features))
        row = Row("sparse_linear", "", tile_calls(x, w), None, 0, lambda: None)
        density = tiles_break_even({name: timing.median for name, timing in measure(row, rounds).items()})
        size = (rows, features, features)
        breaks.append({"op": "sparse_linear_tiles", "size": size, "density": round(density, 4)})
        progress(f"sparse_linear {size[:2]} by {size[1:]}, bfloat16: tiles win above density {density:.3f}")
    tables = _present(path, progress)
    machine = fingerprint()
    tables[isa.max_name()] = {"machine": {key: machine[key] for key in ("cpu", "threads", "torch")}, "breaks": breaks}
    write_json(path, tables)
    costs.reset()
