"""The stage that runs the tests of ops with every call of them on the GPU, against the reference on the CPU."""

from __future__ import annotations

import sys

import pytest
import torch

import lcs_kernels

from .stages import COULD_NOT_RUN, ROOT, note

BACKENDS = {"cuda": "c++", "triton": "triton", "reference": "reference"}  # how `backends()` begins to name them
FAILURES = 20  # after so many a run ends


class Recorder:
    """Notes each failure when it happens, and at the end how many tests there were."""

    def __init__(self):
        self.passed = self.failed = 0

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed += 1
            note(test=report.nodeid, failure=str(report.longrepr)[-2000:])
        elif report.when == "call":
            self.passed += 1

    def pytest_sessionfinish(self, session):
        mode = session.config.on_device
        note(passed=self.passed, failed=self.failed, calls_on_the_device=mode.calls)


def test_file(op: str, kind: str) -> str:
    """Of the op, kind "ops", or of its Triton kernel alone, in tiles of several sizes, kind "triton"."""
    return str(ROOT / "tests" / kind / f"test_{op}.py")


def main(ops: str, backend: str, kind: str = "ops", device: str = "cuda", *more: str) -> int:
    """`ops`: with commas between; `kind`: of their tests; `more`: further options of pytest."""
    if not (ROOT / "tests").is_dir():
        print(f"no {ROOT / 'tests'}: the check of the ops needs a checkout")
        return COULD_NOT_RUN
    for op in ops.split(","):
        used = lcs_kernels.backends()[op][device]
        if device == "cuda" and not used.startswith(BACKENDS[backend]):
            print(f"{op} should run on {backend} and runs on {used}")
            return 1
        note(op=op, backend=used)
    torch.backends.cudnn.enabled = False  # the bounds of float sums are those of plain ones
    recorder = Recorder()
    options = ["-q", "-p", "no:cacheprovider", f"--maxfail={FAILURES}", f"--rootdir={ROOT}", f"--device={device}"]
    files = [test_file(op, kind) for op in ops.split(",")]
    code = pytest.main([*options, *more, *files], plugins=[recorder])
    return 0 if code == 0 and recorder.passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
