"""Builds, checks and measures the GPU kernels on this machine's card: `make gpu-check`, or this file by its path.

Needs a Python with torch and pytest, nvcc and a C++ compiler; neither a network nor .venv. Every stage is a child
process with a time limit; the JSON and the table in --out are written anew after each.

Exit code: 0 where all is well, 1 where a stage failed, crashed, ran out of time or was not reached, 2 for wrong
arguments, 3 where torch sees no GPU. A stage that could not run, as it lacks a tool, is named and fails nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder
os.environ.pop("LCS_CUDA_BACKEND", None)  # each stage has its own
os.environ.pop("LCS_REFERENCE", None)

from lcs_kernels.benchmarks.gpu import report, stages  # noqa: E402
from lcs_kernels.benchmarks.gpu.stages import ROOT, Stage  # noqa: E402

from lcs_kernels import _cuda, _triton, ops  # noqa: E402

NO_GPU = 3
AT_ONCE = 6  # children that share the card


def module(name: str, *arguments: str) -> list[str]:
    return ["-m", f"lcs_kernels.benchmarks.gpu.{name}", *arguments]


def backends_of(op: str) -> list[str]:
    """What an op's CUDA tensors run on, at choice."""
    found = ["cuda"] if _cuda.is_written(op) else []
    return found + (["triton"] if op in _triton.OPS else []) or ["reference"]


def chosen(backend: str) -> dict[str, str]:
    return {"LCS_CUDA_BACKEND": "cuda" if backend == "cuda" else "triton"}


def check_of(op: str, backend: str) -> Stage:
    blocking = {"CUDA_LAUNCH_BLOCKING": "1"}  # an error shows in the test that made it
    return Stage(f"{op}: {backend}", module("correctness", op, backend), 180, chosen(backend) | blocking)


def plan() -> Iterator[list[Stage]]:
    """Stages that run together, the most telling first."""
    build = str(ROOT / "lcs_kernels" / "_build.py")
    yield [Stage(f"build {name}", [build, name], 240) for name in ("cuda", "cpu")]
    yield [check_of(op, backend) for op in ops.names() for backend in backends_of(op)]
    yield [Stage(f"levels in a CUDA graph: {b}", module("graphs"), 60, chosen(b)) for b in ("cuda", "triton")]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu", help="the folder to write")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all stages (default %(default)g)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    end = time.monotonic() + options.budget
    card = stages.run(Stage("card", module("card"), 90), end)
    if card["status"] == "could not run":
        print(f"gpu-check: nothing was checked: {' '.join(card['output'])}", file=sys.stderr)
        return NO_GPU
    if card["status"] != "ok":
        print("\n".join(["gpu-check: the card cannot be used:", *card["output"]]), file=sys.stderr)
        return 1
    content = {"date": time.strftime("%Y-%m-%d"), "machine": card["rows"][0], "stages": []}
    for together in plan():
        for found in stages.run_together(together, end, AT_ONCE):
            content["stages"].append(found)
            print(f"{found['stage']}: {found['status']} ({found['seconds']:.0f} s)", flush=True)
        report.write(content, options.out)
    print("\n" + report.table(content))
    return 0 if report.is_ok(content) else 1


if __name__ == "__main__":
    sys.exit(main())
