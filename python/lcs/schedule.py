"""What happens at a step: learning rate, density warm-up, and every random draw, each a pure function of the step.

Nothing here keeps state, so a resumed run and every process of a distributed run draw the same (arXiv 2110.04252).
"""

import hashlib
import math
from fractions import Fraction

import torch

WARMUP_EPOCHS = 5


def learning_rate(peak: float, epoch: int, epochs: int, lr_warmup: str = "at_most_half") -> float:
    """The rate of `epoch` (from 0): linear to `peak`, then cosine towards 0.

    lr_warmup: "five" epochs as in the paper, also in a run that ends before them, or "at_most_half" of a shorter run.
    """
    warmup = WARMUP_EPOCHS if lr_warmup == "five" else min(WARMUP_EPOCHS, epochs // 2)
    if epoch < warmup:
        return peak * (epoch + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """The last, smaller batch counts."""
    return -(-images // batch_size)


def warmup_steps(fraction: float, epochs: int, images: int, batch_size: int) -> int:
    """T = ceil(fraction * epochs * images / batch_size), `fraction` read as the decimal that it prints as."""
    return math.ceil(Fraction(repr(float(fraction))) * epochs * images / batch_size)


def warmup_progress(step: int, warmup_steps: int) -> float:
    """t / T in [0, 1]; 1 where there is no warm-up."""
    return min(step / warmup_steps, 1.0) if warmup_steps else 1.0


def generator(purpose: str, seed: int, index: int = 0) -> torch.Generator:
    """A CPU generator that depends on its arguments only; different purposes draw independently."""
    digest = hashlib.blake2b(f"{purpose}/{seed}/{index}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def level_generator(seed: int, step: int) -> torch.Generator:
    """Draws the levels of `step`."""
    return generator("level", seed, step)


def epoch_order(seed: int, epoch: int, images: int) -> list[int]:
    """A permutation of range(images)."""
    return torch.randperm(images, generator=generator("order", seed, epoch)).tolist()


def batches(seed: int, epoch: int, images: int, batch_size: int) -> list[list[int]]:
    """The image indices of every step of `epoch`; the last batch may be smaller."""
    order = epoch_order(seed, epoch, images)
    return [order[i : i + batch_size] for i in range(0, images, batch_size)]


def rank_slice(indices: list[int], rank: int, world_size: int) -> list[int]:
    """The part of a global batch that process `rank` computes; parts differ by one image at most."""
    return indices[rank::world_size]
