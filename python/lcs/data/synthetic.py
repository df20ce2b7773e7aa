"""Random images that can be learnt: a coarse random pattern per class, plus noise per image."""

from __future__ import annotations

import numpy as np

from . import ArraySplit, Data

_CLASSES = 10
_PATTERN = 4
_NOISE = 64
_MEAN = (0.5,) * 3
_STD = (0.25,) * 3


def load(image_size: int | None, seed: int) -> Data:
    """1,024 training and 256 test images of 10 classes, drawn from `seed`."""
    size = image_size or 32
    seed %= 1 << 64
    cells = np.arange(size) * _PATTERN // size
    patterns = np.random.default_rng([0, seed]).integers(64, 192, (_CLASSES, 3, _PATTERN, _PATTERN))
    patterns = patterns[:, :, cells[:, None], cells]
    train, test = (_split(patterns, n, [part, seed]) for part, n in ((1, 1024), (2, 256)))
    return Data("synthetic", train, test, num_classes=_CLASSES, in_channels=3, image_size=size)


def _split(patterns: np.ndarray, n: int, seed: list[int]) -> ArraySplit:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % len(patterns))
    images = np.empty((n, *patterns.shape[1:]), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:] = patterns[label] + rng.integers(-_NOISE, _NOISE, image.shape)
    return ArraySplit(images, labels, _MEAN, _STD, pad=images.shape[-1] // 16, flip=False)
