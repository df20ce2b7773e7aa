"""The 8x8 handwritten digits that ship with scikit-learn, enlarged: 1,797 grey images, stored with 3 equal channels."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from .. import optional
from . import ArraySplit, Data
from .augment import shuffled

_SPLIT_SEED = 0
_TEST_FRACTION = 0.2
_MEAN = (0.3050,) * 3  # of the training images at 32x32
_STD = (0.3231,) * 3


def load(image_size: int | None, seed: int) -> Data:
    """All digits; the split into train and test, stratified by class, is the same for every seed."""
    size = image_size or 32
    grey, labels = _read()
    images = np.repeat(_enlarge(grey, size), 3, axis=1)
    test = _is_test(labels)
    train_split, test_split = (
        ArraySplit(images[part], labels[part], _MEAN, _STD, pad=size // 16, flip=False) for part in (~test, test)
    )
    return Data("digits", train_split, test_split, num_classes=10, in_channels=3, image_size=size)


def _read() -> tuple[np.ndarray, np.ndarray]:
    bunch = optional.require("sklearn.datasets").load_digits()
    return bunch.images, bunch.target.astype(np.int64)


def _enlarge(grey: np.ndarray, size: int) -> np.ndarray:
    """(N, 8, 8) in [0, 16] -> uint8 (N, 1, size, size), bilinear."""
    images = torch.from_numpy(grey).double()[:, None]
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return images.mul_(255 / 16).round_().to(torch.uint8).numpy()


def _is_test(labels: np.ndarray) -> np.ndarray:
    test = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        test[members[shuffled(len(members), _SPLIT_SEED)][: round(_TEST_FRACTION * len(members))]] = True
    return test
