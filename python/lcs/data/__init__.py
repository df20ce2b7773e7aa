"""Labelled images by name: digits, cifar10, imagenet, synthetic. Each name is a file of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .. import optional
from .augment import crop_and_flip, normalize, shuffled, uniform

NAMES = ("digits", "cifar10", "imagenet", "synthetic")
_FROM_ROOT = ("cifar10", "imagenet")

__all__ = ["NAMES", "Data", "Split", "load"]


class Split(Protocol):
    """Labelled images, addressed by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], *, epoch: int, seed: int, augment: bool) -> tuple[Tensor, Tensor]:
        """Images float32 (N, C, H, W), normalised, and labels int64 (N,).

        The augmentation of image i depends only on (seed, epoch, i). Raises IndexError outside [0, len).
        """
        ...


@dataclass(frozen=True)
class Data:
    """A data set: its two splits and what a model for it needs to know."""

    name: str
    train: Split
    test: Split
    num_classes: int
    in_channels: int
    image_size: int

    @property
    def sizes(self) -> dict[str, int]:
        """How much of it there is."""
        return {
            "training images": len(self.train),
            "test images": len(self.test),
            "classes": self.num_classes,
        }


def load(
    name: str,
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    seed: int = 0,
    limit: int | tuple[int, int] | None = None,
) -> Data:
    """Load a data set by name.

    root: folder of cifar10 and imagenet; digits and synthetic have none.
    image_size: height and width in pixels; by default 32, for imagenet 224. cifar10 is always 32.
    seed: of the images of synthetic and of the order that `limit` takes; the split of digits is always the same.
    limit: use at most this many images of each split, or (train, test): the first of a shuffled order.

    Raises ValueError for an unknown name, a root that does not hold what is expected, or a size or limit below 1;
    ImportError where a package of the `train` extra is missing.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size of {name} must be at least 1, got {image_size}")
    if root is not None and name not in _FROM_ROOT:
        raise ValueError(f"{name} takes no root, got {str(root)!r}; a root is for {' and '.join(_FROM_ROOT)}")
    for package in ("PIL", "rich") if name in _FROM_ROOT else ():
        optional.require(package)
    module = import_module(f"lcs.data.{name}")
    if name not in _FROM_ROOT:
        return _limit(module.load(image_size, seed), limit, seed)
    root = None if root is None else Path(root).expanduser().resolve()
    if root is None or not root.is_dir() or not any(root.iterdir()):
        state = "no root was given" if root is None else f"{root} is not a folder, or is empty"
        raise ValueError(f"{name}: {state}. {module.LAYOUT}")
    return _limit(module.load(root, image_size), limit, seed)


def _limit(data: Data, limit: int | tuple[int, int] | None, seed: int) -> Data:
    if limit is None:
        return data
    splits = limit if isinstance(limit, (tuple, list)) else (limit, limit)
    if len(splits) != 2 or not all(isinstance(n, int) for n in splits):
        raise TypeError(f"limit of {data.name} must be a whole number or two, of (train, test), got {limit!r}")
    train, test = splits
    if train < 1 or test < 1:
        raise ValueError(f"limit of {data.name} must be at least 1 for each split, got {limit}")
    return replace(data, train=_Subset.first(data.train, train, seed), test=_Subset.first(data.test, test, seed))


@dataclass(frozen=True, eq=False)
class _Subset:
    """Some images of a split; each keeps the augmentation it has in the whole."""

    split: Split
    indices: np.ndarray

    @classmethod
    def first(cls, split: Split, n: int, seed: int) -> _Subset:
        return cls(split, shuffled(len(split), seed)[:n])

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int], *, epoch: int, seed: int, augment: bool) -> tuple[Tensor, Tensor]:
        chosen = self.indices[check_indices(indices, len(self))]
        return self.split.batch(chosen, epoch=epoch, seed=seed, augment=augment)


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Images uint8 (N, C, H, W) in memory and labels int64 (N,); shifted by up to `pad` pixels and flipped."""

    images: np.ndarray
    labels: np.ndarray
    mean: Sequence[float]
    std: Sequence[float]
    pad: int
    flip: bool

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, epoch: int, seed: int, augment: bool) -> tuple[Tensor, Tensor]:
        chosen = check_indices(indices, len(self))
        images = self.images[chosen]
        if augment:
            images = crop_and_flip(images, uniform(seed, epoch, chosen, 3), self.pad, self.flip)
        return normalize(images, self.mean, self.std), torch.from_numpy(self.labels[chosen])


def check_indices(indices: Sequence[int], n: int) -> np.ndarray:
    """The indices as int64 (N,). Raises IndexError if one is outside [0, n)."""
    result = np.asarray(indices, dtype=np.int64)
    outside = result[(result < 0) | (result >= n)]
    if len(outside):
        raise IndexError(f"index {outside[0]} is outside a split of {n} images")
    return result
