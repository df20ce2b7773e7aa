"""The text table of a result, and where both are kept."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

FINE = ("ok", "could not run")
LINES = 6  # of what a stage printed


def is_ok(content: dict) -> bool:
    return all(stage["status"] in FINE for stage in content["stages"])


def file_name(gpu: str) -> str:
    """`NVIDIA H100 80GB HBM3` is kept as h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia ")).strip("-")


def write(content: dict, folder: Path) -> None:
    """The JSON and the table, each whole at any time."""
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name(content["machine"]["gpu"])
    for suffix, text in ((".json", json.dumps(content, indent=1)), (".txt", table(content))):
        partial = folder / f"{name}{suffix}.partial"
        partial.write_text(text + "\n")
        os.replace(partial, folder / f"{name}{suffix}")


def table(content: dict) -> str:
    return "\n".join(_lines(content))


def _lines(content: dict) -> Iterator[str]:
    yield f"{content['date']}, {', '.join(f'{k} {v}' for k, v in content['machine'].items())}"
    yield "ok" if is_ok(content) else "NOT ok"
    for stage in content["stages"]:
        yield ""
        yield f"{stage['stage']}: {stage['status']} ({stage['seconds']:.0f} s)"
        for row in stage["rows"]:
            yield from (f"  {line}" for line in _row(row))
        for line in stage.get("output", [])[-LINES:]:
            yield f"  | {line}"


def _row(row: dict) -> list[str]:
    return [", ".join(f"{name} {_text(value)}" for name, value in row.items())]


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
