"""Times on a GPU: kernels alone with a cold or a warm L2 by replaying a CUDA graph, and a call as eager code makes it.

Before each cold sample a buffer of four times the L2 is read, not written: what is left there is clean. The reading
takes longer than the host needs to queue the sample, so that no gap of the host's is in it. The floor, a graph of one
kernel on one element timed alike, is given with the results and not taken off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles

import torch

DEVICE = "cuda"
Call = Callable[[], object]
SAMPLES = 100
SECONDS = 0.6  # after so many, a candidate has had its samples
LEAST = 5
GRAPH_BYTES = 1 << 30  # a row that moves more is timed without a graph, whose launches do not matter there
WARM_CALLS = 20


class Flush:
    def __init__(self):
        size = 4 * torch.cuda.get_device_properties(0).L2_cache_size
        self._buffer = torch.randn(size // 4, device=DEVICE)

    def __call__(self) -> None:
        self._buffer.sum()


def waits_for_the_device(call: Call) -> bool:
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def graph_of(call: Call) -> Call:
    """One replay of what the call launches. Raises RuntimeError where a graph cannot hold it."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            results = call()
    finally:
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own

    def replay():
        graph.replay()
        return results  # whose memory stays as long as this function

    return replay


def prepared(calls: dict[str, Call], many_bytes: bool) -> dict[str, tuple[Call, str]]:
    """What is timed of each candidate, and by which clock: its graph's, or that of the call and why."""
    found = {}
    for name, call in calls.items():
        for _ in range(2):  # compiles, fills caches, chooses algorithms
            call()
        torch.cuda.synchronize()
        if many_bytes:
            found[name] = call, "eager call, large"
        elif waits_for_the_device(call):
            found[name] = call, "eager call, waits for the device"
        else:
            try:
                found[name] = graph_of(call), "graph"
            except RuntimeError as error:
                found[name] = call, f"eager call, no graph: {str(error).splitlines()[0][:80]}"
        torch.cuda.synchronize()
    return found


def sample(call: Call, before: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before()
    begin.record()
    call()
    end.record()
    return begin, end


def cold(calls: dict[str, Call], flush: Call) -> dict[str, list[float]]:
    """Microseconds of each sample; the candidates take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for i in range(SAMPLES):
        due = {name: call for name, call in calls.items() if i < LEAST or spent[name] < SECONDS}
        events = {name: sample(call, flush) for name, call in due.items()}
        torch.cuda.synchronize()
        for name, (begin, end) in events.items():
            times[name].append(begin.elapsed_time(end) * 1e3)
            spent[name] += times[name][-1] * 1e-6
    return times


def warm(call: Call, each: float) -> float:
    """Microseconds a call, one after another."""
    repeats = max(1, min(WARM_CALLS, int(2e5 / each)))

    def several():
        for _ in range(repeats):
            call()

    begin, end = sample(several, lambda: None)
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3 / repeats


def eager(call: Call, each: float) -> float:
    """Microseconds a call on the host's clock, launches and their overhead included."""
    repeats = max(1, min(WARM_CALLS, int(2e5 / each)))
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats * 1e6


def measure(calls: dict[str, Call], flush: Call, bytes_moved: int = 0) -> dict[str, dict]:
    """{candidate: times in microseconds}, cold ones as median, 20th and 80th percentile."""
    ways = prepared(calls, bytes_moved > GRAPH_BYTES)
    times = cold({name: call for name, (call, _) in ways.items()}, flush)
    found = {}
    for name, (call, clock) in ways.items():
        middle, cuts = median(times[name]), quantiles(times[name], n=5, method="inclusive")
        found[name] = {
            "clock": clock,
            "cold_us": middle,
            "p20_us": cuts[0],
            "p80_us": cuts[-1],
            "samples": len(times[name]),
            "warm_us": warm(call, middle),
            "eager_us": eager(calls[name], middle),
        }
    return found


def floor(flush: Call) -> float:
    """Microseconds of a graph that does next to nothing."""
    one = torch.ones(1, device=DEVICE)
    return measure({"floor": lambda: one.add_(1)}, flush)["floor"]["cold_us"]


def copy_bandwidth(size: int = 1 << 32) -> float:
    """Bytes a second, read and written, of the best of several large copies within the device's memory."""
    source = torch.randn(size // 4, device=DEVICE)
    to = torch.empty_like(source)
    events = [sample(lambda: to.copy_(source), lambda: None) for _ in range(10)]
    torch.cuda.synchronize()
    return 2 * size / min(begin.elapsed_time(end) * 1e-3 for begin, end in events)


def time_of(call: Call, flush: Call, graph: bool = True) -> float:
    """Seconds of one call, in the median, with a cold L2."""
    return measure({"it": call}, flush, 0 if graph else GRAPH_BYTES + 1)["it"]["cold_us"] * 1e-6


def outcome(what: str, unit: str, predicted: object, found: object, **more: object) -> dict:
    """A row of a measurement, next to what was predicted."""
    return {"what": what, "unit": unit, "predicted": predicted, "outcome": found, **more}
