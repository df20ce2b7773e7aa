"""`lcs eval`: accuracy, true sparsity and stored bytes of a trained run over its levels, with baselines beside it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoint, strict_json
from .config import TrainConfig
from .convert import unconvert
from .data import Data, Split
from .levels import FULL, Level
from .macs import count_macs
from .measure import Measurement, measure_networks, measure_speed
from .network import build, load_data
from .rundir import RunDirectory, RunError
from .slimming import slim
from .statistics import count_weights, evaluating
from .subspace import Subspace

# The levels that the paper reports, by what they are named by.
GRIDS = {
    "density": (0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0),
    "width": (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
    "bits": (2, 3, 4, 5, 6, 7, 8),
}
SLIMMING_GRID = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)  # of the channels of a lec run


@dataclass(frozen=True)
class Row:
    """One level of one run. `accuracy` and `sparsity` in [0, 1]; bytes of the weights as stored at this level.

    macs: multiply-accumulate operations for one image, where the level changes them (`lcs.macs.count_macs`).
    parameters: that are left at the level, zeros among them; of a line, those of one end.
    """

    value: float
    alpha: float
    accuracy: float
    loss: float
    sparsity: float
    stored_bytes: int
    dense_bytes: int
    macs: int | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """A run's rows, its baselines' rows, and what they were measured on. `speed`: of the rows, in their order.

    unit: what the levels are named by: density, bits or width.
    """

    run: str
    method: str
    unit: str
    step: int
    images: int
    rows: list[Row]
    targets: list[Row]
    dense: Row | None
    speed: Measurement | None = None

    def to_json(self) -> str:
        return strict_json.dumps(asdict(self), indent=2) + "\n"


def values_of(config: TrainConfig, *, ends: bool = False) -> list[float]:
    """Where a run is evaluated: the paper's grid within its range and the range's ends (`ends`: only those)."""
    if config.method == "target":
        return [config.target_level()]
    if config.method == "dense":
        return [GRIDS[config.unit][-1]]
    if config.method == "lec":
        return list(SLIMMING_GRID[-1:] if ends else SLIMMING_GRID)
    low, high = config.bounds()
    if config.method == "ns" and not ends:
        return sorted(set(config.fixed_widths))
    between = [] if ends else [value for value in GRIDS[config.unit] if low < value < high]
    return sorted({low, *between, high})


@torch.no_grad()
def measure(
    subspace: Subspace, split: Split, level: Level, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> Tensor:
    """(correct, summed loss) float64 over the images of `split` that fall to process `rank`."""
    with evaluating(subspace.model), subspace.at(level):
        return _sums(subspace.model, split, range(rank, len(split), world_size), batch_size)


def _sums(model: nn.Module, split: Split, mine: Sequence[int], batch_size: int) -> Tensor:
    """(correct, summed loss) float64 of `model`, in evaluation mode, over the images `mine`."""
    parameter = next(model.parameters())
    sums = torch.zeros(2, dtype=torch.float64, device=parameter.device)
    wide = torch.promote_types(parameter.dtype, torch.float32)
    for begin in range(0, len(mine), batch_size):
        indices = list(mine[begin : begin + batch_size])
        images, labels = split.batch(indices, epoch=0, seed=0, augment=False)
        labels = labels.to(parameter.device)
        logits = model(images.to(parameter.device, parameter.dtype))
        sums[0] += (logits.argmax(1) == labels).sum()
        sums[1] += F.cross_entropy(logits.to(wide), labels, reduction="sum")
    return sums


def load_run(path: str | Path, device: str = "auto") -> tuple[TrainConfig, Data, Subspace, int]:
    """A run's settings, data, subspace at its newest intact checkpoint, and that checkpoint's step.

    Raises RunError where there is no run or nothing trained yet, CheckpointError where every checkpoint is damaged.
    """
    directory = RunDirectory(path)
    config = directory.config().resolved()
    found = checkpoint.load_newest(directory.checkpoints)
    if found is None:
        raise RunError(f"{directory.path}: has no checkpoint yet; train it first")
    tensors, manifest, notices = found
    for notice in notices:
        warnings.warn(f"damaged, taking the checkpoint before: {notice}", stacklevel=3)
    data = load_data(config)
    subspace = build(config, data)
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    file = checkpoint.path_for(directory.checkpoints, manifest["step"])
    checkpoint.check_tensors(file, weights, subspace.model.state_dict())
    subspace.model.load_state_dict(weights)
    subspace.model.to(_device(device))
    return config, data, subspace, manifest["step"]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f"device: {name!r} is not a PyTorch device; use cpu, cuda or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"device: {name} was asked for, but PyTorch sees no GPU; use cpu or auto")
    return device


def evaluate(
    run: str | Path,
    values: Sequence[float] | None = None,
    *,
    targets: Sequence[str | Path] = (),
    dense: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 64,
    measure_batch: int | None = None,
) -> Evaluation:
    """Measures `run` on its test images at `values` of its unit (default: `values_of`), no retraining between them.

    A lec run is rebuilt for each value: that share of its norms' channels, ranked together (`lcs.slim`).

    targets: runs of method target, each measured at its own level. dense: a run of method dense. measure_batch: also
    time the frozen network at each level, on so many test images at once (`lcs.measure.measure_speed`).

    Raises RunError if a path holds no such run, the data or model of a baseline differs or there are fewer than
    `measure_batch` images, CheckpointError for damaged files, ValueError for a level that there is none.
    """
    config, data, subspace, step = load_run(run, device)
    for value in values or ():
        subspace.recipe.level(value)
    if measure_batch is not None and not 1 <= measure_batch <= len(data.test):
        raise RunError(f"measure_batch: must lie in 1 to {len(data.test)}, the test images, got {measure_batch}")
    values = values or values_of(config)
    if any(layer.compressed and not getattr(layer, "input_known", True) for layer in subspace._layers().values()):
        warnings.warn(
            f"{run}: inputs are not rounded yet, at any bits: its warm-up goes on at step {step}", stacklevel=2
        )
    slimmed = Slimming(config, subspace, values) if config.method == "lec" else None
    rows = slimmed.rows(data, batch_size) if slimmed else _rows(subspace, data, values, batch_size)
    target_rows = [_baseline(path, "target", config, device, batch_size) for path in targets]
    dense_row = None if dense is None else _baseline(dense, "dense", config, device, batch_size)
    speed = None if measure_batch is None else _speed(subspace, data, rows, measure_batch, slimmed)
    found = rows, target_rows, dense_row, speed
    return Evaluation(str(run), config.method, config.unit, step, len(data.test), *found)


def _speed(subspace: Subspace, data: Data, rows: list[Row], batch: int, slimmed: Slimming | None) -> Measurement:
    images = _images(subspace.model, data, batch)
    if slimmed:
        return measure_networks(slimmed.full, {width: s.model for width, s in slimmed.found.items()}, images)
    return measure_speed(subspace, images, [subspace.recipe.level(row.value) for row in rows])


def _images(model: nn.Module, data: Data, count: int = 1) -> Tensor:
    like = next(model.parameters())
    images, _ = data.test.batch(range(count), epoch=0, seed=0, augment=False)
    return images.to(like.device, like.dtype)


class Slimming:
    """The network of a lec run, and what is left of it at each width."""

    def __init__(self, config: TrainConfig, subspace: Subspace, widths: Sequence[float]) -> None:
        self.full = unconvert(copy.deepcopy(subspace), width=1.0).eval()
        self.found = {width: slim(self.full, width, selection=config.slimming) for width in widths}

    @torch.no_grad()
    def rows(self, data: Data, batch_size: int) -> list[Row]:
        """As of a subspace; stored are the parameters, and a bit for each channel that a selection chooses among."""
        dense, rows = _parameters(self.full), []
        for width, slimmed in self.found.items():
            model, left = slimmed.model, _parameters(slimmed.model)
            sums = _sums(model, data.test, range(len(data.test)), batch_size) / len(data.test)
            cut = count_weights(self.full) - count_weights(model)
            stored, macs = 4 * left + slimmed.selection_bytes, count_macs(model, _images(model, data))
            sparsity = cut / count_weights(self.full)
            rows.append(Row(width, 0.0, *sums.tolist(), sparsity, stored, 4 * dense, macs, left))
        return rows


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _rows(subspace: Subspace, data: Data, values: Sequence[float], batch_size: int) -> list[Row]:
    return [_row(subspace, data, subspace.recipe.level(value), batch_size) for value in values]


def _row(subspace: Subspace, data: Data, level: Level, batch_size: int) -> Row:
    correct, loss = (measure(subspace, data.test, level, batch_size=batch_size) / len(data.test)).tolist()
    stored = subspace.statistics(level, example=_images(subspace.model, data) if subspace.recipe.cuts else None)
    counts = stored.sparsity, stored.stored_bytes, stored.dense_bytes, stored.macs, stored.parameters
    return Row(subspace.recipe.value(level), level.alpha, correct, loss, *counts)


def _baseline(path: str | Path, method: str, beside: TrainConfig, device: str, batch_size: int) -> Row:
    config, data, subspace, _ = load_run(path, device)
    if config.method != method:
        raise RunError(f"{path}: is a {config.method} run, a {method} run is wanted here")
    same = ("model", "data", "image_size", "limit")
    for name in same if method == "dense" else ("compression", *same):
        there, here = getattr(config, name), getattr(beside, name)
        if there != here:
            raise RunError(f"{path}: cannot be compared: its {name} is {there}, the evaluated run's is {here}")
    row = _rows(subspace, data, values_of(config), batch_size)[0]
    return replace(row, value=FULL[beside.unit]) if method == "dense" else row
