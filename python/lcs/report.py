"""`lcs report`: several runs side by side, one table and one plot of accuracy over the level, operations or bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import checkpoint, optional, strict_json
from .evaluate import GRIDS, Evaluation, Row, evaluate
from .plot import LABELS, legend_below, level_axis
from .rundir import RunDirectory, RunError

if TYPE_CHECKING:
    from rich.console import Console

Over = Literal["level", "macs", "bytes"]
_LABELS = {"macs": "multiply-accumulate operations of an image", "bytes": "bytes of the weights as stored"}
EVALUATION = "evaluation.json"  # in a run directory
_SAME = ("data", "image_size", "limit")


@dataclass(frozen=True)
class Report:
    """The evaluations of `runs`, in their order."""

    runs: list[Evaluation]

    def to_json(self) -> str:
        return strict_json.dumps(asdict(self), indent=2) + "\n"


def report(
    runs: Sequence[Path], *, device: str = "auto", batch_size: int = 64, tell: Callable[[str], None] = print
) -> Report:
    """The evaluation.json of each run where it is of the newest checkpoint; else evaluates as `lcs eval` and writes it.

    tell: is given a line before each evaluation. Raises RunError where a path holds no run or nothing trained, a run's
    data is other than the first one's, there are two runs of one name, or a dense run was evaluated, but not whole.
    """
    _check(runs)
    found = [_evaluated(run) for run in runs]
    for evaluation in filter(None, found):
        if evaluation.method == "dense":
            _whole(evaluation)
    for run in (run for run, evaluation in zip(runs, found, strict=True) if evaluation is None):
        _check_writable(run / EVALUATION)
    return Report([there or _evaluate(run, device, batch_size, tell) for run, there in zip(runs, found, strict=True)])


def _check(runs: Sequence[Path]) -> None:
    if not runs:
        raise RunError("report: give at least one run directory")
    configs = [RunDirectory(run).config().resolved() for run in runs]
    for run, config in zip(runs, configs, strict=True):
        for name in _SAME:
            there, here = getattr(config, name), getattr(configs[0], name)
            if there != here:
                raise RunError(f"{run}: cannot be compared: its {name} is {there}, that of {runs[0]} is {here}")
    names = [run.resolve().name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise RunError(f"report: two runs are named {twice}; rename one of the directories")


def _evaluated(run: Path) -> Evaluation | None:
    """The evaluation of the newest checkpoint, where there is one."""
    path, checkpoints = run / EVALUATION, RunDirectory(run).checkpoints
    newest = checkpoint.paths(checkpoints)
    found = _read(path) if path.exists() and newest else None
    return found if found and checkpoint.path_for(checkpoints, found.step) == newest[0] else None


def _whole(run: Evaluation) -> Row:
    """Of a dense run, as it was trained."""
    value = GRIDS[run.unit][-1]
    row = next((row for row in run.rows if row.value == value), None)
    if row is None:
        raise RunError(
            f"{run.run}: its {EVALUATION} is of other levels than {run.unit} {value:g}, at which a dense run is "
            f"compared; evaluate it again with lcs eval {run.run}"
        )
    return row


def _check_writable(path: Path) -> None:
    try:
        checkpoint.check_writable(path)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror}; make the run directory writable, or report on a copy of it"
        ) from error


def _evaluate(run: Path, device: str, batch_size: int, tell: Callable[[str], None]) -> Evaluation:
    tell(f"evaluating {run}")
    found = evaluate(run, device=device, batch_size=batch_size)
    checkpoint.write_atomic(run / EVALUATION, found.to_json().encode())
    return found


def _read(path: Path) -> Evaluation:
    """An evaluation as written, without the times that it may hold."""
    try:
        fields = json.loads(path.read_text())
        rows = {name: [Row(**row) for row in fields[name]] for name in ("rows", "targets")}
        dense = Row(**fields["dense"]) if fields["dense"] else None
        return Evaluation(**{**fields, **rows, "dense": dense, "speed": None})
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: is damaged or of another version ({error}); remove it and report again") from error


def _name(found: Evaluation) -> str:
    return Path(found.run).resolve().name


def print_report(found: Report, console: Console | None = None) -> None:
    """A table of accuracies for each unit of levels: a level a row, a run a column; dense runs below it."""
    console = console or optional.require("rich.console").Console()
    compressed = [run for run in found.runs if run.method != "dense"] or found.runs
    dense = ", ".join(f"{_name(run)} {_whole(run).accuracy:.2%}" for run in found.runs if run not in compressed)
    for unit in dict.fromkeys(run.unit for run in compressed):
        console.print(f"accuracy at each {unit}, {found.runs[0].images:,} test images")
        console.print(_table(unit, [run for run in compressed if run.unit == unit]))
    if dense:
        console.print(f"dense: {dense}")


def _table(unit: str, runs: list[Evaluation]):
    table = optional.require("rich.table").Table()
    table.add_column(unit, justify="right")
    for run in runs:
        table.add_column(_name(run), justify="right")
    accuracies = [{row.value: row.accuracy for row in run.rows} for run in runs]
    for value in sorted(set().union(*accuracies)):
        table.add_row(f"{value:g}", *(f"{run[value]:.2%}" if value in run else "" for run in accuracies))
    return table


def plot_report(found: Report, path: Path, *, over: Over = "level", log_x: bool = False) -> None:
    """Draws the runs to `path`, a PNG: a curve each, a point where a run has one level, a level line for a dense run.

    Raises RunError where `over` is "level" and the runs' levels are of several units, or "macs" and a run has none.
    """
    units = list(dict.fromkeys(run.unit for run in found.runs if run.method != "dense"))
    if over == "level" and len(units) > 1:
        raise RunError(
            f"report: levels of {' and '.join(units)} have no axis in common; give --over macs or --over bytes"
        )
    optional.require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for run in found.runs:
        _draw(axes, run, over)
    if over == "level" and units:
        level_axis(axes, units[0], log_x=log_x)
    elif log_x:
        axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set(xlabel=LABELS[units[0]] if over == "level" and units else _LABELS.get(over), ylabel="test accuracy")
    axes.set_title(f"{found.runs[0].images:,} test images", fontsize=11)
    axes.grid(alpha=0.3)
    legend_below(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    checkpoint.write_atomic(path, picture.getvalue())


def _draw(axes, run: Evaluation, over: Over) -> None:
    if run.method == "dense":
        axes.axhline(_whole(run).accuracy, color="0.3", linestyle="--", label=_name(run))
        return
    points = sorted((_place(run, row, over), row.accuracy) for row in run.rows)
    style = "o-" if len(points) > 1 else "D"
    axes.plot(*zip(*points, strict=True), style, markersize=5, label=_name(run))


def _place(run: Evaluation, row: Row, over: Over) -> float:
    place = {"level": row.value, "macs": row.macs, "bytes": row.stored_bytes}[over]
    if place is None:
        raise RunError(f"{run.run}: its levels of {run.unit} leave the operations as they are; give --over bytes")
    return place
