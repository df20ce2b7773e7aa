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
from collections.abc import Iterable, Iterator
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder
os.environ.pop("LCS_CUDA_BACKEND", None)  # each stage has its own
os.environ.pop("LCS_REFERENCE", None)

from lcs_kernels.benchmarks.gpu import report, sanitizer, stages  # noqa: E402
from lcs_kernels.benchmarks.gpu.measurements import MEASUREMENTS  # noqa: E402
from lcs_kernels.benchmarks.gpu.stages import ROOT, Stage  # noqa: E402

from lcs_kernels import _cuda, _triton, ops  # noqa: E402

NO_GPU = 3
AT_ONCE = 14  # children that share the card
PARTS = {"packed_conv2d": 3, "packed_linear": 2}  # of the tests of an op whose kernels take long to compile
TIMED_FIRST = ("interpolate_prune_foreach", "interpolate_prune")
SANITIZER_SECONDS = 80.0
ROW_SECONDS = 60.0  # after which no row of an op begins: one that compiles takes seconds


def module(name: str, *arguments: str) -> list[str]:
    return ["-m", f"lcs_kernels.benchmarks.gpu.{name}", *arguments]


def backends_of(op: str) -> list[str]:
    """What an op's CUDA tensors run on, at choice."""
    found = ["cuda"] if _cuda.is_written(op) else []
    return found + (["triton"] if op in _triton.OPS else []) or ["reference"]


def chosen(backend: str) -> dict[str, str]:
    return {"LCS_CUDA_BACKEND": "cuda" if backend == "cuda" else "triton", "LCS_DISABLE_JIT": "1"}


WITH_KERNELS = [op for op in ops.names() if backends_of(op) != ["reference"]]


def checks_of(op: str, backend: str) -> Iterator[Stage]:
    # An error shows in the test that made it; the oracles share the cores.
    environment = chosen(backend) | {"CUDA_LAUNCH_BLOCKING": "1", "OMP_NUM_THREADS": "2"}
    parts = PARTS.get(op, 1) if backend == "triton" else 1
    for i in range(1, parts + 1):
        name = f"{op} {i} of {parts}" if parts > 1 else op
        command = module("correctness", op, backend, "ops", "cuda", f"--part={i}/{parts}")
        yield Stage(f"{name}: {backend}", command, 200, environment)
    if backend == "triton":
        yield Stage(f"{op}: triton in tiles", module("correctness", op, backend, "triton"), 200, environment)


def times_of(op: str) -> Iterator[Stage]:
    for backend in backends_of(op):
        yield Stage(
            f"times of {op}: {backend}", module("op_rows", op, str(ROW_SECONDS)), ROW_SECONDS + 30, chosen(backend)
        )


def alone(stages_of_ops: Iterable[Iterator[Stage]]) -> Iterator[list[Stage]]:
    for stages_of_op in stages_of_ops:
        yield from ([stage] for stage in stages_of_op)


def sanitized(tool: str, backend: str) -> Stage:
    under = ",".join(op for op in ops.names() if backend in backends_of(op))
    more = {"CUDA_LAUNCH_BLOCKING": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor an allocation of its own
    command = module("sanitizer", tool, backend, under, str(SANITIZER_SECONDS))
    return Stage(f"{tool}: {backend}", command, SANITIZER_SECONDS + 15, chosen(backend) | more)


def plan() -> Iterator[list[Stage]]:
    """Stages that run together, the most telling first."""
    build = str(ROOT / "lcs_kernels" / "_build.py")
    yield [Stage(f"build {name}", [build, name], 240) for name in ("cuda", "cpu")]
    yield [check for op in WITH_KERNELS for backend in backends_of(op) for check in checks_of(op, backend)]
    yield [Stage(f"levels in a CUDA graph: {b}", module("graphs"), 60, chosen(b)) for b in ("cuda", "triton")]
    yield from alone(times_of(op) for op in TIMED_FIRST)
    layer = {"PYTHONPATH": os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])}
    yield from ([Stage(f"training: {b}", module("training"), 60, chosen(b) | layer)] for b in ("cuda", "triton"))
    yield from ([Stage(f"measurement: {name}", module("measurements", name), 60)] for name in MEASUREMENTS)
    yield from alone(times_of(op) for op in WITH_KERNELS if op not in TIMED_FIRST)
    yield [sanitized(tool, backend) for tool in sanitizer.SUMMARY for backend in ("cuda", "triton")]
    yield [check for op in ops.names() if op not in WITH_KERNELS for check in checks_of(op, "reference")]


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
        content |= {"checked": report.checked(content), "fastest": report.fastest(content)}
        report.write(content, options.out)
    print("\n" + report.table(content))
    return 0 if report.is_ok(content) else 1


if __name__ == "__main__":
    sys.exit(main())
