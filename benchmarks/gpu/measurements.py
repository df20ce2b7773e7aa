"""What decides the next kernels: each outcome stands next to what was predicted before any card was at hand.

Each of MEASUREMENTS is a stage of its own, in this order. Predictions are for an H200, of 4.3 TB/s and 790 bfloat16
TFLOP/s.
"""

from __future__ import annotations

import sys

import torch

from . import timing
from .convolutions import hidden_copy, strided_filters
from .decoders import delta_producer, nest_producer
from .probes import CudnnNotFoundError
from .rates import launches, peaks, small_products
from .stages import COULD_NOT_RUN, note

MEASUREMENTS = {
    m.__name__: m
    for m in (small_products, launches, peaks, hidden_copy, delta_producer, nest_producer, strided_filters)
}


def main(name: str) -> int:
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    try:
        for found in MEASUREMENTS[name](timing.Flush()):
            note(**found)
    except CudnnNotFoundError as error:
        print(error)
        return COULD_NOT_RUN
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
