"""Measurements of the card itself: what its units and libraries reach, and what a launch and a barrier cost."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from . import probes, timing
from .timing import outcome, time_of

SHAPES = ((4096, 4096), (4096, 11008), (8192, 28672))  # inputs, outputs
SIDE = 8192
ITERATIONS = 4096
GRID_SYNCS = 100

Rows = Iterator[dict]


def normal() -> torch.Tensor:
    return torch.randn(SIDE, SIDE, device=timing.DEVICE, dtype=torch.bfloat16)


def bfloat16() -> timing.Call:
    a, b = normal(), normal()
    return lambda: a @ b.t()


def int8() -> timing.Call:
    a, b = ((normal() * 32).clamp(-127, 127).to(torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b.t())


def fp8() -> timing.Call:
    a, b = (normal().to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=timing.DEVICE)
    return lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)


def two_of_four() -> timing.Call:
    a, b = normal(), normal()
    a = torch.sparse.to_sparse_semi_structured(a * (torch.arange(SIDE, device=timing.DEVICE) % 4 < 2))
    return lambda: torch.mm(a, b.t())


PRODUCTS = {bfloat16: 790, int8: 1580, fp8: 1470, two_of_four: 1000}  # the last as if it were dense


def peaks(flush: timing.Call) -> Rows:
    """A library may refuse a product on this card; then that is the outcome."""
    for make, predicted in PRODUCTS.items():
        found: object
        try:
            found = 2 * SIDE**3 / time_of(make(), flush, graph=False) * 1e-12
        except (RuntimeError, NotImplementedError) as error:
            found = f"refused: {str(error).splitlines()[0][:200]}"
        yield outcome(f"{make.__name__} {SIDE}^3", "TFLOP/s", predicted, found)
    yield from instruction_rates()


def instruction_rates() -> Rows:
    library, blocks = probes.kernels(probes.architecture()), probes.multiprocessors()
    for which, (name, predicted) in enumerate((("POPC", 16.0), ("LOP3", 64.0), ("16-bit scatter to shared", 9.0))):
        clocks = torch.zeros(blocks, dtype=torch.int64, device=timing.DEVICE)
        sums = torch.zeros(blocks * 1024, dtype=torch.int32, device=timing.DEVICE)
        to = probes.address(clocks), probes.address(sums)
        for _ in range(2):  # the second one counts
            probes.must(library.probe_rate(which, blocks, ITERATIONS, *to, probes.stream()))
        each = 4 * 1024 * ITERATIONS / float(clocks.double().median())
        yield outcome(name, "threads' instructions a clock and multiprocessor", predicted, each)


def small_products(flush: timing.Call) -> Rows:
    bandwidth = timing.copy_bandwidth()
    for inputs, outputs in SHAPES:
        w = torch.randn(outputs, inputs, device=timing.DEVICE, dtype=torch.bfloat16)
        for rows in (1, 16, 64):
            x = torch.randn(rows, inputs, device=timing.DEVICE, dtype=torch.bfloat16)
            size = w.nbytes + x.nbytes + 2 * rows * outputs
            seconds = time_of(lambda x=x, w=w: F.linear(x, w), flush)
            predicted = size / bandwidth / (2e-6 + size / (0.9 * bandwidth))
            name = f"cuBLAS bfloat16, {rows} x {inputs} by {inputs} x {outputs}"
            yield outcome(name, "of the copy's bandwidth", predicted, size / bandwidth / seconds, us=seconds * 1e6)


def launches(flush: timing.Call) -> Rows:
    library, processors = probes.kernels(probes.architecture()), probes.multiprocessors()

    def empty(cooperative: int):
        return lambda: probes.must(library.probe_empty(processors, cooperative, probes.stream()))

    def syncs(blocks: int, count: int):
        return lambda: probes.must(library.probe_sync(blocks, count, probes.stream()))

    yield outcome("an empty kernel in a graph", "us", 2.0, time_of(empty(0), flush) * 1e6)
    yield outcome("an empty cooperative kernel in a graph", "us", 3.0, time_of(empty(1), flush) * 1e6)
    for each, predicted in ((1, 1.3), (2, 1.6)):
        blocks = each * processors
        without, with_all = (time_of(syncs(blocks, n), flush) for n in (0, GRID_SYNCS))
        yield outcome(f"a barrier of {blocks} blocks", "us", predicted, (with_all - without) / GRID_SYNCS * 1e6)
