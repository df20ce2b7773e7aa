"""An evaluation as a table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import optional

if TYPE_CHECKING:
    from rich.console import Console

    from .evaluate import Evaluation, Row


def print_table(evaluation: Evaluation, console: Console | None = None) -> None:
    """Prints the run's rows, then its baselines'."""
    table = optional.require("rich.table").Table(
        title=f"{evaluation.run}: {evaluation.method}, step {evaluation.step:,}, {evaluation.images:,} test images"
    )
    table.add_column("run")
    for name in ("density", "alpha", "accuracy", "loss", "sparsity", "KiB", "of dense"):
        table.add_column(name, justify="right")
    baselines = [("target", row) for row in evaluation.targets]
    baselines += [("dense", evaluation.dense)] if evaluation.dense else []
    for row in evaluation.rows:
        table.add_row(*_cells(evaluation.method, row))
    table.add_section()
    for name, row in baselines:
        table.add_row(*_cells(name, row))
    (console or optional.require("rich.console").Console()).print(table)


def _cells(name: str, row: Row) -> tuple[str, ...]:
    return (
        name,
        f"{row.density:g}",
        f"{row.alpha:g}",
        f"{row.accuracy:.2%}",
        f"{row.loss:.4f}",
        f"{row.sparsity:.2%}",
        f"{row.stored_bytes / 1024:,.1f}",
        f"{row.stored_bytes / row.dense_bytes:.1%}",
    )
