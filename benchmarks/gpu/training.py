"""The stage that trains on the card: steps of a line of densities, in bfloat16, next to those of the plain network."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from lcs_kernels.benchmarks.training_step import CLASSES, NAMES, dense_step, density_step

from .stages import note

CASES = (("resnet18", 256, 224, 1.05), ("cpreresnet20", 128, 32, None))  # the ratio that is wanted
WARM_UP, STEPS = 3, 20
Step = Callable[[], float]


def in_bfloat16(step: Step, device: str) -> Step:
    def run() -> float:
        with torch.autocast(device, torch.bfloat16):
            return step()

    return run


def seconds(step: Step) -> float:
    """Of one step, to the end: it reads its loss."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def steps_of(name: str, batch: int, size: int, device: str) -> dict[str, Step]:
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (batch,), device=device)
    steps = {
        "lcs": density_step(name, x, y),
        "dense": dense_step(name, x, y, format=torch.channels_last),
    }
    return {k: in_bfloat16(step, device) for k, step in steps.items()}


def rows(device: str, cases: tuple = CASES) -> Iterator[dict]:
    """`ratio`: the median step of the line over that of the plain network; they take turns."""
    for name, batch, size, wanted in cases:
        steps = steps_of(name, batch, size, device)
        for step in steps.values():
            for _ in range(WARM_UP):
                step()
        times = {key: [] for key in steps}
        for _ in range(STEPS):
            for key, step in steps.items():
                times[key].append(seconds(step))
        lcs, dense = median(times["lcs"]), median(times["dense"])
        yield {
            "case": f"{NAMES[name]}, batch {batch}, {size}x{size} images, bfloat16, channels last",
            "lcs_ms": lcs * 1e3,
            "dense_ms": dense * 1e3,
            "ratio": lcs / dense,
            "wanted": wanted,
            "lcs_images_per_s": batch / lcs,
            "dense_images_per_s": batch / dense,
        }


def main(device: str = "cuda") -> int:
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    for row in rows(device):
        note(**row)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
