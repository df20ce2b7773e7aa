"""A stage of the check: a child process with a time limit, so that a kernel that crashes or hangs loses that alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT_FILE = "LCS_STAGE_RESULT"  # the environment variable that names it to a stage
COULD_NOT_RUN = 3  # exit code: what the stage needs is not here
TAIL = 40  # lines of output that are kept of a stage that is not ok


@dataclass(frozen=True)
class Stage:
    name: str
    command: Sequence[str]  # what follows the Python
    seconds: float  # at most
    environment: dict[str, str] = field(default_factory=dict)


def note(**values) -> None:
    """Called in a stage: adds a row to its result, which stays whatever becomes of the stage."""
    with open(os.environ[RESULT_FILE], "a") as file:
        file.write(json.dumps(values) + "\n")


def run(stage: Stage, end: float) -> dict:
    """Runs the stage until its limit, or until `end` of `time.monotonic()`.

    Status: "ok", "failed", "crashed", "timed out", "could not run" (the stage says so) or "no time left".
    """
    begin = time.monotonic()
    limit = min(stage.seconds, end - begin)
    if limit < 1:
        return {"stage": stage.name, "status": "no time left", "seconds": 0.0, "rows": []}
    with tempfile.TemporaryDirectory(prefix="lcs-gpu-check-") as folder:
        result, output = Path(folder) / "rows", Path(folder) / "output"
        environment = {**os.environ, **stage.environment, RESULT_FILE: str(result), "PYTHONUNBUFFERED": "1"}
        with output.open("w") as file:
            child = subprocess.Popen(
                [sys.executable, *stage.command],
                cwd=ROOT,  # which holds the packages: nothing needs to be installed
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            status = _status(child.wait(limit))
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            _end(child)
        whole = result.read_text().rpartition("\n")[0] if result.exists() else ""
        rows = [json.loads(line) for line in whole.splitlines()]
        found = {"stage": stage.name, "status": status, "seconds": round(time.monotonic() - begin, 1), "rows": rows}
        if status != "ok":
            found["output"] = output.read_text(errors="replace").splitlines()[-TAIL:]
        return found


def run_together(stages: Sequence[Stage], end: float, at_once: int) -> list[dict]:
    """In the order given, so many at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda stage: run(stage, end), stages))


def _status(code: int) -> str:
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return {0: "ok", COULD_NOT_RUN: "could not run"}.get(code, "failed")


def _end(child: subprocess.Popen) -> None:
    """Ends the stage and all that it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
