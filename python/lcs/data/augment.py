"""Augmentation that depends only on (seed, epoch, index of the image): the same in any batch, worker or process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

_MASK = (1 << 64) - 1


def _splitmix64(state: np.ndarray) -> np.ndarray:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed: int, epoch: int, indices: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each index, float64 (len(indices), count), hashed from (seed, epoch, index)."""
    state = _splitmix64(np.array([seed & _MASK], np.uint64))
    state = _splitmix64(state + np.uint64(epoch & _MASK))
    state = _splitmix64(state + np.asarray(indices).astype(np.uint64))
    state = _splitmix64(state[:, None] + np.arange(count, dtype=np.uint64))
    return (state >> np.uint64(11)) * 2.0**-53


def shuffled(n: int, seed: int) -> np.ndarray:
    """A permutation of range(n), int64, that depends on n and seed alone."""
    return np.argsort(uniform(seed, 0, np.arange(n), 1)[:, 0], kind="stable")


def crop_and_flip(images: np.ndarray, numbers: np.ndarray, pad: int, flip: bool) -> np.ndarray:
    """Pad (N, C, H, W) with zeros, cut a random H x W window and mirror half of the images if `flip`.

    `numbers` (N, 3) in [0, 1) choose row, column and mirror of each image.
    """
    n, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = (numbers[:, :2] * (2 * pad + 1)).astype(np.int64).T
    result = sliding_window_view(padded, (height, width), (2, 3))[np.arange(n), :, rows, columns]
    if flip:
        mirrored = numbers[:, 2] < 0.5
        result[mirrored] = result[mirrored, ..., ::-1]
    return result


def normalize(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (N, C, H, W) -> float32 (image / 255 - mean) / std, mean and std per channel."""
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    result = torch.from_numpy(images).float()
    return result.mul_(scale.float()[:, None, None]).add_(shift.float()[:, None, None])
