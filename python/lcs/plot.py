"""Accuracy, and speed where it was measured, over the level, as a PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from . import optional
from .checkpoint import write_atomic

if TYPE_CHECKING:
    from .evaluate import Evaluation

_NAMES = {
    "lcs_l": "subspace, line (LCS+L)",
    "lcs_p": "subspace, point (LCS+P)",
    "us": "universally slimmable",
    "ns": "slimmable, fixed widths",
    "lec": "slimmed after training (LEC)",
    "target": "target",
    "dense": "dense",
}
_SUBJECTS = {
    **dict.fromkeys(("lcs_l", "lcs_p", "us", "ns"), "One trained model at every"),
    "lec": "One trained model, slimmed to each",
    "target": "A model trained for one",
    "dense": "A model trained at full",
}
_NOUNS = {"density": "density", "width": "width", "bits": "bit width"}
LABELS = {
    "density": "density (weights kept in each compressed layer)",
    "width": "width (output channels kept in each compressed layer)",
    "bits": "bits (of each compressed layer's weights and inputs)",
}


def plot(evaluation: Evaluation, path: Path, *, log_x: bool = False) -> None:
    """Draws `evaluation` to `path`: its rows as a curve, target runs as points, the dense accuracy as a level line.

    A measured speed-up is a second curve with an axis of its own, without the rows that have none.
    """
    optional.require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rows, noun = sorted(evaluation.rows, key=lambda row: row.value), _NOUNS[evaluation.unit]
    _reference_line(axes, evaluation)
    label = _NAMES[evaluation.method]
    axes.plot([r.value for r in rows], [r.accuracy for r in rows], "o-", color="C0", markersize=5, label=label)
    if evaluation.targets:
        values, accuracies = zip(*((r.value, r.accuracy) for r in evaluation.targets), strict=True)
        axes.plot(values, accuracies, "D", color="C3", markersize=7, label=f"trained for this {noun} alone")
    level_axis(axes, evaluation.unit, log_x=log_x)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set(xlabel=LABELS[evaluation.unit], ylabel="test accuracy")
    axes.set_title(f"{_SUBJECTS[evaluation.method]} {noun} ({evaluation.images:,} test images)", fontsize=11)
    axes.grid(alpha=0.3)
    if evaluation.speed:
        _speed_curve(axes, evaluation)
    legend_below(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomic(path, picture.getvalue())


def level_axis(axes, unit: str, *, log_x: bool) -> None:
    """Ticks of the x axis for levels of `unit`."""
    from matplotlib.ticker import LogLocator, PercentFormatter

    percent = unit != "bits"
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.5, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%" if percent else f"{value:g}")
    elif percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def legend_below(figure) -> None:
    """Of all curves, where it hides none of them."""
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)


def _speed_curve(axes, evaluation: Evaluation) -> None:
    right, speed = axes.twinx(), evaluation.speed
    timed = sorted((s.value, s.speedup) for s in speed.rows if s.speedup is not None)
    label = f"speed-up, {speed.batch} image{'s' if speed.batch > 1 else ''} a call, {speed.device} (right)"
    right.plot([value for value, _ in timed], [s for _, s in timed], "s--", color="C2", markersize=4, label=label)
    right.axhline(1.0, color="C2", linewidth=0.8, alpha=0.5)
    right.set(ylabel="measured speed-up over the dense network", ylim=(0, None))


def _reference_line(axes, evaluation: Evaluation) -> None:
    full = 8 if evaluation.unit == "bits" else 1.0
    own = [row for row in evaluation.rows if row.value == full]
    if evaluation.dense is not None:
        axes.axhline(evaluation.dense.accuracy, color="0.3", linestyle="--", label="trained dense")
    elif own and len(evaluation.rows) > 1:
        label = f"its own accuracy at the highest {_NOUNS[evaluation.unit]}"
        axes.axhline(own[0].accuracy, color="0.5", linestyle=":", label=label)
