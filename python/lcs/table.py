"""An evaluation as a table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import optional

if TYPE_CHECKING:
    from rich.console import Console

    from .evaluate import Evaluation, Row
    from .measure import Measurement, Speed

_STORED = ("alpha", "accuracy", "loss", "sparsity", "KiB", "of dense")
_CUT = ("alpha", "accuracy", "loss", "sparsity", "KiB", "parameters", "MMACs")
_MEASURED = ("accuracy", "sparsity", "KiB", "ms", "p90", "speed-up", "resident", "packed")


def print_table(evaluation: Evaluation, console: Console | None = None) -> None:
    """Prints the run's rows, then its baselines'. With a measurement its columns take the place of some."""
    speed, cut = evaluation.speed, evaluation.unit == "width"
    table = optional.require("rich.table").Table(
        title=f"{evaluation.run}: {evaluation.method}, step {evaluation.step:,}, {evaluation.images:,} test images",
        caption=_explained(speed) if speed else None,
        padding=(0, 0) if speed or cut else (0, 1),
    )
    table.add_column("run")
    names, cells = (_MEASURED, _measured_cells) if speed else (_CUT, _cut_cells) if cut else (_STORED, _cells)
    for name in (evaluation.unit, *names):
        table.add_column(name, justify="right")
    for row, timed in zip(evaluation.rows, speed.rows if speed else evaluation.rows, strict=True):
        table.add_row(evaluation.method, *cells(row, timed))
    table.add_section()
    for name, rows in (("target", evaluation.targets), ("dense", [evaluation.dense] if evaluation.dense else [])):
        for row in rows:
            table.add_row(name, *cells(row, None))
    if speed:
        table.add_row("plain", f"{speed.dense.value:g}", "", "", "", *_speed_cells(speed.dense))
    (console or optional.require("rich.console").Console()).print(table)


def _cells(row: Row, _: object) -> tuple[str, ...]:
    return (
        f"{row.value:g}",
        f"{row.alpha:g}",
        f"{row.accuracy:.2%}",
        f"{row.loss:.4f}",
        f"{row.sparsity:.2%}",
        f"{row.stored_bytes / 1024:,.1f}",
        f"{row.stored_bytes / row.dense_bytes:.1%}",
    )


def _cut_cells(row: Row, _: object) -> tuple[str, ...]:
    macs = "" if row.macs is None else f"{row.macs / 1e6:,.2f}"
    return *_cells(row, None)[:-1], f"{row.parameters:,}", macs


def _measured_cells(row: Row, timed: Speed | None) -> tuple[str, ...]:
    value, _, accuracy, _, sparsity, stored, _ = _cells(row, None)
    return value, accuracy, sparsity, stored, *(_speed_cells(timed) if timed else [""] * 5)


def _speed_cells(timed: Speed) -> tuple[str, ...]:
    return (
        f"{timed.median_ms:.2f}",
        f"{timed.p90_ms:.2f}",
        "fell back" if timed.speedup is None else f"{'' if timed.undisturbed >= 3 else '~'}{timed.speedup:.2f}x",
        f"{timed.resident_bytes / 1024:,.1f}",
        f"{timed.packed_layers}/{timed.compressed_layers}",
    )


def _explained(speed: Measurement) -> str:
    images, threads = ("" if n == 1 else "s" for n in (speed.batch, speed.threads))
    disturbed = (
        ""
        if min(row.undisturbed for row in (speed.dense, *speed.rows)) >= 3
        else (
            " ~: other processes took the cores during nearly all calls of the row: measure again on a quiet machine."
        )
    )
    return (
        f"KiB: as stored in a file; resident: KiB of a level in memory; packed: layers that run an op of this package. "
        f"Median and p90 ms of a call of {speed.batch} image{images}, {speed.rounds} of each row "
        f"in turn, on {speed.device}, {speed.threads} thread{threads}; speed-up over `plain`: "
        "torch's own layers, all weights kept." + disturbed
    )
