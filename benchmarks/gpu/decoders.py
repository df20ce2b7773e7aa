"""Measurements of decoders with nothing behind them: whether compressed weights reach shared memory or registers as
fast as they come from memory. Each is checked, then timed; less than `least` of the bandwidth is a no-go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from . import probes, timing
from .timing import outcome, time_of

TILES = 1 << 16  # of delta_kernel: more than the L2 holds, in each format
WEIGHTS = 1 << 30  # of nest_kernel

Rows = Iterator[dict]
Case = tuple[str, float, Callable]  # its name, the share predicted, what makes its data


def decoders(kind: str, least: float, cases: Iterable[Case], threads: int, flush: timing.Call) -> Rows:
    library, bandwidth = probes.kernels(probes.architecture()), timing.copy_bandwidth()
    for name, predicted, make in cases:
        data, best = make(), 0.0
        for each in (4, 8, 16):
            blocks = each * probes.multiprocessors()
            sums = torch.zeros(blocks * threads, dtype=torch.int32, device=timing.DEVICE)
            data.run(library, sums, blocks, probes.stream())
            if probes.total(sums) != data.sum % (1 << 32):
                raise AssertionError(f"{kind}, {name}: decoded to {probes.total(sums)}, not to {data.sum}")
            seconds = time_of(lambda d=data, s=sums, b=blocks: d.run(library, s, b, probes.stream()), flush)
            best = max(best, data.bytes / seconds)
        share = best / bandwidth
        more = {"least": least, "verdict": "go" if share >= least else "no-go", "tb_per_s": best * 1e-12}
        yield outcome(f"{kind}, {name}", "of the copy's bandwidth", predicted, share, **more)


def delta_producer(flush: timing.Call) -> Rows:
    counts = (16, 8, 4)
    cases = [(f"density {n / probes.SPAN:g}", 0.65, lambda n=n: probes.Deltas(n, TILES)) for n in counts]
    yield from decoders("sp_delta4 to shared memory", 0.6, cases, probes.RUNS, flush)


def nest_producer(flush: timing.Call) -> Rows:
    shares = {2: 0.7, 4: 0.8, 8: 0.85}
    cases = [(f"{bits} bits", share, lambda bits=bits: probes.Nest(bits, WEIGHTS)) for bits, share in shares.items()]
    yield from decoders("nest8 to registers", 0.7, cases, probes.NEST_THREADS, flush)
