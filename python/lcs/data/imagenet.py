"""ImageNet, or any image folder `<split>/<class>/<image>`, decoded image by image."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import Data, check_indices
from .augment import normalize, uniform

LAYOUT = (
    "Expected a folder with train/<class>/ and val/<class>/ (or test/<class>/) of .jpg, .jpeg or .png files, the same "
    "classes in both. ImageNet (ILSVRC 2012) can be had from its own site after registration; sort the validation "
    "images into one folder per class."
)
EXTENSIONS = (".jpg", ".jpeg", ".png")
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_TRIES = 10


def load(root: Path, image_size: int | None) -> Data:
    """List the images of `root`; they are decoded batch by batch."""
    size = image_size or 224
    classes, train, test = list_splits(root, LAYOUT)
    return Data("imagenet", FolderSplit(*train, size), FolderSplit(*test, size), len(classes), 3, size)


def list_splits(
    root: Path, layout: str
) -> tuple[list[str], tuple[list[str], np.ndarray], tuple[list[str], np.ndarray]]:
    """Classes in order of name, and for train and for val or test: file names in order and labels int64 (N,).

    Raises ValueError for a missing or empty folder, classes that differ, or a file that is not an image.
    """
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise ValueError(f"{root} has no {'train' if test else 'val or test'} folder. {layout}")
    classes, test_classes = _classes(root / "train", layout), _classes(test, layout)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise ValueError(f"{root / 'train'} and {test} differ in their classes, at {', '.join(odd[:5])}. {layout}")
    return classes, _list_images(root / "train", classes), _list_images(test, classes)


def _classes(folder: Path, layout: str) -> list[str]:
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if not classes:
        raise ValueError(f"{folder} holds no class folders. {layout}")
    return classes


def _list_images(folder: Path, classes: list[str]) -> tuple[list[str], np.ndarray]:
    files: list[str] = []
    counts = []
    for name in classes:
        names = sorted(entry for entry in os.listdir(folder / name) if entry[0] != ".")
        foreign = next((entry for entry in names if not entry.lower().endswith(EXTENSIONS)), None)
        if foreign or not names:
            problem = f"{folder / name / foreign} is not an image" if foreign else f"{folder / name} holds no image"
            raise ValueError(f"{problem} ({', '.join(EXTENSIONS)}); {'remove it' if foreign else 'add some'}")
        files += [os.path.join(folder, name, entry) for entry in names]
        counts.append(len(names))
    return files, np.repeat(np.arange(len(classes)), counts)


def decode(file: str) -> Image.Image:
    """The image as RGB, of 16 bits the upper 8. Raises ValueError with the name of a file that cannot be decoded."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I;16"):  # which convert would clip
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:
        raise ValueError(f"cannot decode the image {file}: {error}; replace or remove the file") from error


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Image files and labels int64 (N,), cut to size x size pixels."""

    files: list[str]
    labels: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int], *, epoch: int, seed: int, augment: bool) -> tuple[Tensor, Tensor]:
        chosen = check_indices(indices, len(self))
        images = np.empty((len(chosen), self.size, self.size, 3), np.uint8)
        numbers = uniform(seed, epoch, chosen, 1 + 4 * _TRIES)
        for image, index, row in zip(images, chosen, numbers, strict=True):
            picture = decode(self.files[index])
            image[:] = random_resized_crop(picture, row, self.size) if augment else centre_crop(picture, self.size)
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return normalize(images, _MEAN, _STD), torch.from_numpy(self.labels[chosen])


def random_resized_crop(picture: Image.Image, numbers: np.ndarray, size: int) -> Image.Image:
    """A window of 8 to 100% of the area and aspect 3/4 to 4/3, resized (bilinear), mirrored half of the time.

    `numbers` (41,) in [0, 1) choose the mirror, then area, aspect, row and column of up to 10 windows; the first that
    lies in the picture is taken, else the largest central one of allowed aspect.
    """
    result = picture.crop(_window(*picture.size, numbers[1:].reshape(_TRIES, 4))).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    return result.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if numbers[0] < 0.5 else result


def _window(width: int, height: int, tries: np.ndarray) -> tuple[int, int, int, int]:
    for area, aspect, row, column in tries.tolist():
        pixels = width * height * (0.08 + 0.92 * area)
        ratio = (3 / 4) ** (1 - 2 * aspect)
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(column * (width - w + 1)), int(row * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """Resize the short side to size * 256 / 224 (bilinear) and cut the central size x size window."""
    short = round(size * 256 / 224)
    scale = short / min(picture.size)
    width, height = (max(short, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
