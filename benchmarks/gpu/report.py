"""The text table of a result, and where both are kept."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

FINE = ("ok", "could not run")
BESIDE = ("times of ", "training: ", "memcheck: ", "racecheck: ")  # stages that begin so are no tests of results
UNFINISHED = ("could not run", "timed out", "no time left")
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


def checked(content: dict) -> list[str]:
    """The back ends that passed every stage of theirs; what came to no end beside the tests says nothing."""
    found = []
    for backend in ("cuda", "triton"):
        own = [s for s in content["stages"] if s["stage"].partition(": ")[2] in (backend, f"{backend} in tiles")]
        own = [s for s in own if not (s["status"] in UNFINISHED and s["stage"].startswith(BESIDE))]
        found += [backend] if own and {s["status"] for s in own} == {"ok"} else []
    return found


def fastest(content: dict) -> str | None:
    """Of two back ends that passed, the one whose times have the lower geometric mean over the rows that both have."""
    times: dict[str, dict] = {"cuda": {}, "triton": {}}
    for stage in content["stages"]:
        backend = stage["stage"].rpartition(": ")[2]
        for row in stage["rows"]:
            if "candidates" in row and backend in times:
                times[backend][row["op"], row["case"]] = next(iter(row["candidates"].values()))["cold_us"]
    both = times["cuda"].keys() & times["triton"].keys()
    if not both or set(checked(content)) != {"cuda", "triton"}:
        return None
    return "cuda" if sum(math.log(times["cuda"][r] / times["triton"][r]) for r in both) < 0 else "triton"


def _row(row: dict) -> list[str]:
    if "candidates" in row:
        return _times(row)
    if "predicted" in row:
        rest = {k: v for k, v in row.items() if k not in ("what", "unit", "predicted", "outcome")}
        line = f"{row['what']}: {_text(row['outcome'])} {row['unit']} (predicted {_text(row['predicted'])})"
        return [line, *(f"  {name} {_text(value)}" for name, value in rest.items())]
    return [", ".join(f"{name} {_text(value)}" for name, value in row.items())]


def _times(row: dict) -> list[str]:
    lines = [f"{row['op']}, {row['case']}: {row['tb_per_s']:.2f} TB/s, {row['fraction']:.0%} of the copy's bandwidth"]
    for name, t in row["candidates"].items():
        cold = f"cold L2 {t['cold_us']:10.1f} us [{t['p20_us']:.1f} .. {t['p80_us']:.1f}] by {t['clock']}"
        lines.append(
            f"  {name:34}{cold}, warm {t['warm_us']:.1f}, eager call {t['eager_us']:.1f}, {t['ratio']:.2f}x our time"
        )
    return lines


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
