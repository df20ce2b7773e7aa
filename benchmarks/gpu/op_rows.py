"""The stage that times the rows of one op on the GPU, each once its result has been checked."""

from __future__ import annotations

import gc
import importlib
import sys
import time
from math import inf

import torch

import lcs_kernels

from . import timing
from .stages import note


def measured(row, flush: timing.Call, bandwidth: float) -> dict:
    """`fraction`: the time that the row's bytes take at the copy's bandwidth, over ours; `ratio`: theirs over ours."""
    row.check()
    times = timing.measure(row.candidates, flush, row.bytes)
    ours = times[next(iter(row.candidates))]["cold_us"]
    for found in times.values():
        found["ratio"] = found["cold_us"] / ours
    return {
        "op": row.op,
        "case": row.case,
        "bytes": row.bytes,
        "tb_per_s": row.bytes / ours * 1e-6,
        "fraction": row.bytes / bandwidth / ours * 1e6,
        "candidates": times,
    }


def main(op: str, seconds: float = inf) -> int:
    """`seconds`: after so many no row begins."""
    end = time.monotonic() + float(seconds)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    torch.manual_seed(0)
    flush, bandwidth = timing.Flush(), timing.copy_bandwidth()
    note(
        backend=lcs_kernels.backends()[op][timing.DEVICE], copy_tb_per_s=bandwidth * 1e-12, floor_us=timing.floor(flush)
    )
    failed, rows = 0, importlib.import_module(f"lcs_kernels.benchmarks.{op}").rows()
    while time.monotonic() < end:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            with torch.device(timing.DEVICE):
                row = next(rows, None)
            if row is None:
                return failed
            note(**measured(row, flush, bandwidth))
        except (AssertionError, RuntimeError) as error:
            failed = 1
            note(op=op, failure=f"{type(error).__name__}: {error}"[-2000:])
        row = None
    note(op=op, left_out=f"rows after {seconds} s")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
