"""Interleaved timing: every candidate of a row runs in turn, so that a slow second slows them all alike."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch

from .peer_worker import waited
from .peers import Model, Peer

SAMPLE_SECONDS = 0.004  # a sample repeats its candidate for at least so long
WARM_SECONDS = 0.02  # that a candidate runs before a sample, if it is as short: threads awake, caches its own
HANDOVER = 0.005  # seconds after which the threads of a process that has worked sleep
DISTURBED = 0.02  # samples whose threads waited for a core longer than this share are dropped
PEAK_TRIES = 20  # of each size


@dataclass(frozen=True)
class Row:
    """One shape of one op: our kernel, its peers at the same work, and what bounds them all."""

    op: str
    case: str
    candidates: dict[str, Callable[[], object]]  # the first is ours
    limit: Callable[[], object] | None  # what bounds it by memory: a pass of torch's over the same bytes
    bytes: int
    check: Callable[[], None]  # raises where our result is not the oracle's
    flops: int = 0  # floating point operations of the sums as they are defined, where these bound it; no limit then
    model: Model | None = None  # for engines outside this process


@dataclass
class Timing:
    """Seconds a call: all samples, and those that no other process disturbed."""

    every: list[float] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)

    def add(self, seconds: float, undisturbed: bool) -> None:
        """What `sample` returns."""
        self.every.append(seconds)
        if undisturbed:
            self.clean.append(seconds)

    @property
    def samples(self) -> list[float]:
        return self.clean if len(self.clean) >= 3 else self.every

    @property
    def median(self) -> float:
        return median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """10th and 90th percentile."""
        if len(self.samples) < 2:
            return self.median, self.median
        cuts = quantiles(self.samples, n=10, method="inclusive")
        return cuts[0], cuts[-1]


def sample(call: Callable[[], object] | Peer, repeats: int, first: int = 0) -> tuple[float, bool]:
    """Seconds a call, and whether the process that ran it had its cores meanwhile. `first`: calls before, not timed."""
    if isinstance(call, Peer):
        time.sleep(HANDOVER)
        elapsed, delayed = call.seconds(repeats, first)
        time.sleep(HANDOVER)
        return elapsed / repeats, delayed <= DISTURBED * elapsed
    for _ in range(first):
        call()
    before, begin = waited(), time.perf_counter()
    for _ in range(repeats):
        call()
    elapsed = time.perf_counter() - begin
    return elapsed / repeats, waited() - before <= DISTURBED * elapsed


def _calls(call: Callable[[], object] | Peer) -> tuple[int, int]:
    """How many calls a sample is, and how many come before it."""
    sample(call, 1)
    best = min(sample(call, 1)[0] for _ in range(3))
    return max(1, int(SAMPLE_SECONDS / best)), int(WARM_SECONDS / best)


@functools.cache
def peak_flops(threads: int) -> float:
    """Float32 operations a second that this machine's multipliers do: the best of torch's products of square matrices,
    measured once. `threads`: those of torch."""
    best = 0.0
    for side in (512, 1024, 1536):
        a, b, out = (torch.randn(side, side) for _ in range(3))
        for _ in range(PEAK_TRIES):
            begin = time.perf_counter()
            torch.mm(a, b, out=out)
            best = max(best, 2 * side**3 / (time.perf_counter() - begin))
    return best


def keep_freed_memory() -> None:
    """Lets malloc hand out again what was freed, so that no candidate pays for the faults of new pages."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 32 << 20)  # the most that it takes
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def measure(
    row: Row, rounds: int, progress: Callable[[int], None] = lambda done: None, peers: Sequence[Peer] = ()
) -> dict[str, Timing]:
    """Checks the row, then times its candidates, its model in `peers`, and its limit as "limit".

    Calls `progress` after every round.
    """
    row.check()
    calls: dict[str, Callable[[], object] | Peer] = dict(row.candidates)
    if row.model:
        for peer in peers:
            peer.load(row.model)
            calls[peer.name] = peer
    if row.limit:
        calls["limit"] = row.limit
    numbers = {name: _calls(call) for name, call in calls.items()}
    timings = {name: Timing() for name in calls}
    for done in range(1, rounds + 1):
        for name, call in calls.items():
            timings[name].add(*sample(call, *numbers[name]))
        progress(done)
    return timings


def result(row: Row, timings: dict[str, Timing]) -> dict:
    """What a measured row says, as plain data. `ratio`: the peer's time over ours, above 1 where ours is faster."""
    ours = timings[next(iter(row.candidates))].median
    limit = timings["limit"].median if row.limit else None
    if row.flops:
        limit = row.flops / peak_flops(torch.get_num_threads())
    return {
        "op": row.op,
        "case": row.case,
        "bytes": row.bytes,
        "gb_per_s": row.bytes / ours * 1e-9,
        "limited_by": "FMA" if row.flops else "memory",
        "fraction_of_limit": limit / ours if limit else None,
        "candidates": [
            {
                "name": name,
                "median_us": t.median * 1e6,
                "p10_us": t.spread[0] * 1e6,
                "p90_us": t.spread[1] * 1e6,
                "clean_samples": len(t.clean),
                "samples": len(t.every),
                "ratio": t.median / ours,
            }
            for name, t in timings.items()
        ],
    }
