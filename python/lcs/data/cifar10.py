"""CIFAR-10, from its binary version or from an image folder that is decoded once into a cache file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from filelock import FileLock
from rich.progress import track

from lcs_kernels import _jit

from . import ArraySplit, Data
from .imagenet import decode, list_splits

LAYOUT = (
    "Expected either the files data_batch_1.bin to data_batch_5.bin and test_batch.bin, or an image folder with "
    "train/<class>/ and test/<class>/ of 32x32 .jpg, .jpeg or .png files, the same classes in both. The original is "
    "the 'CIFAR-10 binary version' on Alex Krizhevsky's page at the University of Toronto."
)
IMAGES_PER_FILE = 10_000
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2023, 0.1994, 0.2010)
_Images = tuple[np.ndarray, np.ndarray]  # uint8 (N, 3, 32, 32) and labels int64 (N,)


def load(root: Path, image_size: int | None) -> Data:
    """Read `root` into memory."""
    if image_size not in (None, 32):
        raise ValueError(f"cifar10 images are 32x32, got image_size {image_size}; leave it out")
    classes, *parts = _read_binary_version(root) if any(root.glob("*.bin")) else _read_folder(root)
    train, test = (ArraySplit(images, labels, _MEAN, _STD, pad=4, flip=True) for images, labels in parts)
    return Data("cifar10", train, test, classes, in_channels=3, image_size=32)


def _read_binary_version(root: Path) -> tuple[int, _Images, _Images]:
    train = _read_binary(root, *(f"data_batch_{i}.bin" for i in range(1, 6)))
    return 10, train, _read_binary(root, "test_batch.bin")


def _read_binary(root: Path, *names: str) -> _Images:
    """Records of one label byte and 3,072 pixel bytes (3, 32, 32)."""
    for name in names:
        size = (root / name).stat().st_size if (root / name).is_file() else None
        if size != IMAGES_PER_FILE * _RECORD:
            state = "is missing" if size is None else f"has {size} bytes, not {IMAGES_PER_FILE * _RECORD}"
            raise ValueError(f"cifar10: {root / name} {state}. {LAYOUT}")
    records = np.concatenate([np.fromfile(root / name, np.uint8).reshape(-1, _RECORD) for name in names])
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        file, row = divmod(int(labels.argmax()), IMAGES_PER_FILE)
        raise ValueError(f"cifar10: image {row} of {root / names[file]} has label {labels.max()}, above 9")
    return np.ascontiguousarray(records[:, 1:]).reshape(-1, *_SHAPE), labels


def _read_folder(root: Path) -> tuple[int, _Images, _Images]:
    classes, (train, train_labels), (test, test_labels) = list_splits(root, LAYOUT)
    images = _cached(root, [*train, *test])
    n = len(train)
    return len(classes), (images[:n], train_labels), (images[n:], test_labels)


def _cached(root: Path, files: list[str]) -> np.ndarray:
    """The decoded images, mapped from the cache file of this state of the folder."""
    folder = _jit.cache_dir() / "data"
    path = folder / f"{_key(root, files)}.npy"
    try:
        if not path.exists():
            _make(path, files)
    except OSError as error:
        raise OSError(f"cannot write the cache folder {folder} ({error}); set LCS_CACHE to one that can be") from error
    return _map(path, len(files))


def _make(path: Path, files: list[str]) -> None:
    """Whoever holds the lock makes the file, others wait for it. The lock goes with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            _save(path, _decode_all(files))


def _key(root: Path, files: list[str]) -> str:
    digest = hashlib.sha256(os.fsencode(root))
    for file in files:
        state = os.stat(file)
        digest.update(os.fsencode(f"\0{os.path.relpath(file, root)}\0{state.st_size}\0{state.st_mtime_ns}"))
    return digest.hexdigest()[:32]


def _decode_all(files: list[str]) -> np.ndarray:
    images = np.empty((len(files), *_SHAPE), np.uint8)
    for image, file in track(zip(images, files, strict=True), "Decoding images, once", total=len(files)):
        picture = decode(file)
        if picture.size != (32, 32):
            raise ValueError(f"cifar10 images are 32x32, {file} is {picture.width}x{picture.height}")
        image[:] = np.asarray(picture).transpose(2, 0, 1)
    return images


def _save(path: Path, images: np.ndarray) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, images)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _map(path: Path, n: int) -> np.ndarray:
    try:
        images = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"the cache file {path} is damaged ({error}); delete it") from error
    if images.shape != (n, *_SHAPE) or images.dtype != np.uint8:
        raise ValueError(f"the cache file {path} holds {images.dtype} {images.shape}, not {n} images; delete it")
    return images
