"""The stage that runs small cases of a back end's kernels under compute-sanitizer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from lcs_kernels import _build

from .stages import COULD_NOT_RUN, note

SUMMARY = {
    "memcheck": r"ERROR SUMMARY: (\d+) error",
    "racecheck": r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) error",
}
SMALL = ("--first", "--largest=20000", "--most=5")
REPORTED = 4000  # characters


def find() -> str | None:
    """compute-sanitizer on PATH, else beside nvcc."""
    try:
        beside = str(Path(_build.find_nvcc()[0]).resolve().parent)
    except _build.NvccNotFoundError:
        beside = ""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=beside)


def run(command: list[str], tool: str, seconds: float) -> int:
    """Runs the command under the tool; 1 where it found something, COULD_NOT_RUN where it did not come to its end."""
    sanitizer = find()
    if sanitizer is None:
        print("could not run: no compute-sanitizer on PATH nor beside nvcc")
        return COULD_NOT_RUN
    options = ["--tool", tool, "--print-limit", "10"] + (["--report-api-errors", "no"] if tool == "memcheck" else [])
    try:
        whole = [sanitizer, *options, *command]
        done = subprocess.run(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"could not run: did not end within {seconds:g} s")
        return COULD_NOT_RUN
    found = re.search(SUMMARY[tool], done.stdout)
    if found is None:
        print(f"{done.stdout[-REPORTED:]}\ncould not run: {tool} gave no summary, exit code {done.returncode}")
        return COULD_NOT_RUN
    note(tool=tool, errors=int(found[1]), tests_passed=done.returncode == 0)
    if int(found[1]):
        print(done.stdout[-REPORTED:])
    return 1 if int(found[1]) else 0


def main(tool: str, backend: str, ops: str, seconds: str) -> int:
    """`ops`: with commas between."""
    check = ["-m", "lcs_kernels.benchmarks.gpu.correctness", ops, backend, "ops", "cuda", *SMALL]
    return run([sys.executable, *check], tool, float(seconds))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
