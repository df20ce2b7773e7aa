import os
import pickle
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lcs import data
from lcs.data import augment, cifar10, imagenet
from lcs.data.digits import load as load_digits

CLASSES = ("cat", "dog", "ship")


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(root: Path, size: tuple[int, int] = (32, 32), test: str = "test") -> dict[str, np.ndarray]:
    """Four training and two test images per class, as PNG; returns them by relative name."""
    images = {}
    for split, count in (("train", 4), (test, 2)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                file = f"{split}/{name}/{i}.png"
                images[file] = pixels(100 * label + 10 * count + i, size[1], size[0], 3)
                Image.fromarray(images[file]).save(root / file)
    return images


def write_binary(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The binary version with four images per file; returns the records by file."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", 4)
    records = {}
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        records[name] = pixels(i, 4, 3073)
        records[name][:, 0] = (i + np.arange(4)) % 10
        records[name].tofile(root / name)
    return records


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LCS_CACHE", str(folder))
    return folder / "data"


def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.Data:
    return data.load("digits")


def synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.Data:
    return data.load("synthetic")


def cifar10_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.Data:
    write_binary(tmp_path, monkeypatch)
    return data.load("cifar10", tmp_path)


def cifar10_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.Data:
    write_folder(tmp_path)
    return data.load("cifar10", tmp_path)


def imagenet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.Data:
    write_folder(tmp_path, (50, 40), "val")
    return data.load("imagenet", tmp_path, image_size=32)


ALL = pytest.mark.parametrize("make", [digits, synthetic, cifar10_binary, cifar10_folder, imagenet_folder])


@pytest.fixture
def loaded(make: Callable, tmp_path, monkeypatch) -> data.Data:
    return make(tmp_path, monkeypatch)


@ALL
def test_batch_is_float32_images_and_int64_labels(loaded):
    for split in (loaded.train, loaded.test):
        images, labels = split.batch([1, 0, 1], epoch=0, seed=0, augment=True)
        assert images.shape == (3, loaded.in_channels, loaded.image_size, loaded.image_size)
        assert (images.dtype, labels.dtype, labels.shape) == (torch.float32, torch.int64, (3,))
        assert images.is_contiguous() and torch.equal(images[0], images[2])
        empty, none = split.batch([], epoch=0, seed=0, augment=True)
        assert (empty.shape, none.shape) == ((0, *images.shape[1:]), (0,))
        every = split.batch(range(len(split)), epoch=0, seed=0, augment=False)[1]
        assert every.min() >= 0 and every.max() < loaded.num_classes


@ALL
@pytest.mark.parametrize("flag", [False, True])
def test_an_image_is_the_same_in_any_batch(loaded, flag):
    one = {"epoch": 2, "seed": 7, "augment": flag}
    images, labels = loaded.train.batch([3, 5], **one)
    parts = [loaded.train.batch([i], **one) for i in (5, 3)]
    assert torch.equal(images, torch.cat([parts[1][0], parts[0][0]]))
    assert torch.equal(labels, torch.cat([parts[1][1], parts[0][1]]))


@ALL
def test_augmentation_follows_seed_and_epoch_and_nothing_else(loaded):
    def batch(epoch: int, seed: int, flag: bool) -> torch.Tensor:
        return loaded.train.batch(range(8), epoch=epoch, seed=seed, augment=flag)[0]

    base = batch(0, 0, True)
    assert torch.equal(base, batch(0, 0, True))
    assert not torch.equal(base, batch(1, 0, True)) and not torch.equal(base, batch(0, 1, True))
    assert torch.equal(batch(0, 0, False), batch(1, 1, False))


@ALL
def test_a_pickled_split_gives_the_same_batch(loaded):
    copy = pickle.loads(pickle.dumps(loaded.train))
    arguments = {"epoch": 1, "seed": 1, "augment": True}
    assert torch.equal(copy.batch([0, 4], **arguments)[0], loaded.train.batch([0, 4], **arguments)[0])


@ALL
def test_an_index_outside_is_refused(loaded):
    n = len(loaded.test)
    for index in (-1, n):
        with pytest.raises(IndexError, match=f"index {index} is outside a split of {n} images"):
            loaded.test.batch([0, index], epoch=0, seed=0, augment=False)


def test_limit_takes_some_images_and_keeps_their_augmentation():
    whole, part = data.load("digits"), data.load("digits", limit=(100, 50), seed=3)
    assert (len(part.train), len(part.test)) == (100, 50)
    order = augment.shuffled(len(whole.train), 3)[:100]
    arguments = {"epoch": 4, "seed": 5, "augment": True}
    images, labels = part.train.batch(range(100), **arguments)
    expected, expected_labels = whole.train.batch(order, **arguments)
    assert torch.equal(images, expected) and torch.equal(labels, expected_labels)
    assert len(labels.unique()) == 10
    assert not torch.equal(data.load("digits", limit=100, seed=4).train.batch(range(100), **arguments)[1], labels)
    with pytest.raises(IndexError, match="index 100 is outside a split of 100 images"):
        part.train.batch([100], **arguments)


def test_limit_is_an_upper_bound():
    part = data.load("digits", limit=400)
    assert (len(part.train), len(part.test)) == (400, 359)


def test_shuffled_is_a_permutation():
    assert np.array_equal(np.sort(augment.shuffled(1000, 1)), np.arange(1000))
    assert not np.array_equal(augment.shuffled(1000, 1), augment.shuffled(1000, 2))


def splitmix64(state: int) -> int:
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_uniform_is_the_hash_of_seed_epoch_and_index():
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the generator's published first output
    mask = (1 << 64) - 1
    numbers = augment.uniform(-9, 6, np.array([0, 41]), 3)
    for row, index in zip(numbers, (0, 41), strict=True):
        key = splitmix64((splitmix64((splitmix64(-9 & mask) + 6) & mask) + index) & mask)
        assert row.tolist() == [(splitmix64((key + k) & mask) >> 11) / 2**53 for k in range(3)]


def test_uniform_fills_the_interval():
    numbers = augment.uniform(0, 0, np.arange(20_000), 3)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.stack([np.histogram(column, 10, (0, 1))[0] for column in numbers.T])
    assert abs(counts - 2000).max() < 6 * np.sqrt(20_000 * 0.1 * 0.9)
    assert abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 6 / np.sqrt(20_000)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 4])
def test_crop_and_flip_is_a_padded_window(pad, flip):
    images = pixels(0, 40, 3, 8, 6)
    numbers = augment.uniform(1, 2, np.arange(40), 3)
    result = augment.crop_and_flip(images, numbers, pad, flip)
    for image, (row, column, mirror), cut in zip(images, numbers, result, strict=True):
        padded = np.zeros((3, 8 + 2 * pad, 6 + 2 * pad), np.uint8)
        padded[:, pad : pad + 8, pad : pad + 6] = image
        top, left = int(row * (2 * pad + 1)), int(column * (2 * pad + 1))
        window = padded[:, top : top + 8, left : left + 6]
        assert np.array_equal(cut, window[..., ::-1] if flip and mirror < 0.5 else window)


def test_crop_reaches_both_borders():
    numbers = np.array([[0, 0, 0.9], [1 - 2**-53, 1 - 2**-53, 0.9]])
    result = augment.crop_and_flip(np.full((2, 1, 4, 4), 9, np.uint8), numbers, 4, True)
    assert result.sum() == 0


def test_normalize():
    images, mean, std = pixels(0, 2, 3, 4, 4), (0.1, 0.5, 0.9), (0.2, 0.3, 0.5)
    exact = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    # roundings: scale, product, shift and sum, each half an ulp of a term below 8
    assert abs(augment.normalize(images, mean, std).numpy() - exact).max() < 4 * 4 * 2.0**-23


def test_digits_split_is_fixed_and_stratified():
    train, test = (getattr(data.load("digits", seed=1), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    other = data.load("digits", seed=2)
    assert np.array_equal(other.train.images, train.images) and np.array_equal(other.test.labels, test.labels)
    counts = np.bincount(test.labels), np.bincount(train.labels)
    assert abs(counts[0] - 0.2 * (counts[0] + counts[1])).max() <= 0.5


def test_digits_are_the_ones_of_scikit_learn():
    from sklearn.datasets import load_digits as source

    loaded = load_digits(8, 0)
    both = np.concatenate([loaded.train.images, loaded.test.images])
    expected = np.rint(source().images * 255 / 16).astype(np.uint8)
    assert (both == both[:, :1]).all()
    assert sorted(image.tobytes() for image in both[:, 0]) == sorted(image.tobytes() for image in expected)


def test_digits_are_normalised():
    images = data.load("digits").train.batch(range(1438), epoch=0, seed=0, augment=False)[0]
    # mean and deviation (0.3231) are written with four digits, rounded by at most 0.00005
    assert abs(images.mean().item()) < 2e-4 and abs(images.std().item() - 1) < 2e-4


@pytest.mark.parametrize("size", [16, 33])
def test_synthetic_can_be_learnt_and_follows_its_seed(size):
    loaded = data.load("synthetic", image_size=size, seed=-4)
    x, y = loaded.train.batch(range(len(loaded.train)), epoch=0, seed=0, augment=False)
    means = torch.stack([x[y == label].mean(0) for label in range(10)])
    x, y = loaded.test.batch(range(len(loaded.test)), epoch=0, seed=0, augment=False)
    assert (torch.cdist(x.flatten(1), means.flatten(1)).argmin(1) == y).all()
    same, other = (data.load("synthetic", image_size=size, seed=seed).train.images for seed in (-4, 5))
    assert np.array_equal(same, loaded.train.images) and not np.array_equal(other, same)


def test_cifar10_binary_is_read_as_stored(tmp_path, monkeypatch):
    records = write_binary(tmp_path, monkeypatch)
    loaded = data.load("cifar10", tmp_path)
    assert (len(loaded.train), len(loaded.test), loaded.num_classes) == (20, 4, 10)
    train = np.concatenate(list(records.values())[:5])
    assert np.array_equal(loaded.train.images.reshape(20, -1), train[:, 1:])
    assert np.array_equal(loaded.train.labels, train[:, 0])
    assert np.array_equal(loaded.test.images.reshape(4, -1), records["test_batch.bin"][:, 1:])


def test_cifar10_binary_file_of_a_wrong_size(tmp_path, monkeypatch):
    write_binary(tmp_path, monkeypatch)
    os.truncate(tmp_path / "data_batch_3.bin", 3073 * 3)
    with pytest.raises(ValueError, match=r"data_batch_3.bin has 9219 bytes, not 12292"):
        data.load("cifar10", tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_3.bin is missing. Expected either the files data_batch_1.bin"):
        data.load("cifar10", tmp_path)


def test_cifar10_binary_label_above_nine(tmp_path, monkeypatch):
    records = write_binary(tmp_path, monkeypatch)["data_batch_2.bin"]
    records[3, 0] = 10
    records.tofile(tmp_path / "data_batch_2.bin")
    with pytest.raises(ValueError, match=r"image 3 of .*data_batch_2.bin has label 10, above 9"):
        data.load("cifar10", tmp_path)


def test_cifar10_folder_is_decoded_once(tmp_path, monkeypatch, cache):
    images = write_folder(tmp_path)
    first = data.load("cifar10", tmp_path)
    monkeypatch.setattr(cifar10, "decode", lambda file: pytest.fail(f"decoded {file} again"))
    for loaded in (first, data.load("cifar10", tmp_path)):
        assert (len(loaded.train), len(loaded.test), loaded.num_classes) == (12, 6, 3)
        stored = np.concatenate([loaded.train.images, loaded.test.images]).transpose(0, 2, 3, 1)
        assert np.array_equal(stored, np.stack(list(images.values())))
        assert loaded.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert {path.suffix for path in cache.iterdir()} - {".lock"} == {".npy"}


def test_cifar10_folder_that_changed_is_decoded_again(tmp_path):
    write_folder(tmp_path)
    data.load("cifar10", tmp_path)
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(tmp_path / "train/cat/0.png")
    assert (data.load("cifar10", tmp_path).train.images[0] == 7).all()


def test_cifar10_reads_jpeg_and_grey_images(tmp_path):
    write_folder(tmp_path)
    Image.fromarray(np.full((32, 32), 90, np.uint8)).save(tmp_path / "train/cat/9.JPG")
    assert (data.load("cifar10", tmp_path).train.images[4] == 90).all()


def test_of_16_bits_the_upper_8_are_read(tmp_path):
    write_folder(tmp_path)
    Image.fromarray(np.full((32, 32), 90 << 8 | 17, np.uint16)).save(tmp_path / "train/cat/9.png")
    assert (data.load("cifar10", tmp_path).train.images[4] == 90).all()


def test_cifar10_folder_is_decoded_by_one_of_many(tmp_path, monkeypatch):
    write_folder(tmp_path)
    calls = []
    monkeypatch.setattr(cifar10, "decode", lambda file: (calls.append(file), imagenet.decode(file))[1])
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: data.load("cifar10", tmp_path).train.images, range(4)))
    assert len(calls) == 18 and all(np.array_equal(result, results[0]) for result in results)


def test_cifar10_cache_is_whole_or_absent(tmp_path, monkeypatch, cache):
    write_folder(tmp_path)

    def fail(*_):
        raise OSError("No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=r"cannot write the cache folder .*No space.*LCS_"),
    ):
        patch.setattr(cifar10.os, "fsync", fail)
        data.load("cifar10", tmp_path)
    assert {path.suffix for path in cache.iterdir()} <= {".lock"}
    _, (train, _), (test, _) = imagenet.list_splits(tmp_path, "")
    path = cache / f"{cifar10._key(tmp_path, [*train, *test])}.npy"
    path.with_suffix(".tmp").write_bytes(b"left by a killed process")
    assert len(data.load("cifar10", tmp_path).train) == 12
    assert {path.suffix for path in cache.iterdir()} - {".lock"} == {".npy"}


def test_cifar10_damaged_cache_is_named(tmp_path, cache):
    write_folder(tmp_path)
    data.load("cifar10", tmp_path)
    (path,) = cache.glob("*.npy")
    for size in (path.stat().st_size - 1, 20, 0):
        os.truncate(path, size)
        with pytest.raises(ValueError, match=f"the cache file {re.escape(str(path))} is damaged .* delete it"):
            data.load("cifar10", tmp_path)
    np.save(path, np.zeros((17, 3, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"holds uint8 \(17, 3, 32, 32\), not 18 images; delete it"):
        data.load("cifar10", tmp_path)


def test_cifar10_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    write_folder(tmp_path / "images")
    (tmp_path / "file").touch()
    monkeypatch.setenv("LCS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match=r"cannot write the cache folder .*file/cache/data .*set LCS_CACHE"):
        data.load("cifar10", tmp_path / "images")


def test_cifar10_image_of_another_size(tmp_path, cache):
    write_folder(tmp_path)
    Image.fromarray(pixels(0, 31, 32, 3)).save(tmp_path / "test/dog/1.png")
    with pytest.raises(ValueError, match=r"cifar10 images are 32x32, .*test/dog/1.png is 32x31"):
        data.load("cifar10", tmp_path)
    assert not list(cache.glob("*.npy"))


def test_imagenet_evaluates_the_centre(tmp_path):
    images = write_folder(tmp_path, (256, 300), "val")
    loaded = data.load("imagenet", tmp_path)
    assert (loaded.image_size, loaded.num_classes, len(loaded.train), len(loaded.test)) == (224, 3, 12, 6)
    batch, labels = loaded.test.batch([0, 5], epoch=0, seed=0, augment=False)
    centre = np.stack([images[f"val/{name}"][38:262, 16:240] for name in ("cat/0.png", "ship/1.png")])
    centre = np.ascontiguousarray(centre.transpose(0, 3, 1, 2))
    assert torch.equal(batch, augment.normalize(centre, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert labels.tolist() == [0, 2]


@pytest.mark.parametrize("size", [(300, 200), (17, 400), (1, 1)])
def test_imagenet_takes_any_picture(size):
    picture = Image.fromarray(pixels(0, size[1], size[0], 3))
    assert imagenet.centre_crop(picture, 32).size == (32, 32)
    for numbers in augment.uniform(0, 0, np.arange(20), 41):
        assert imagenet.random_resized_crop(picture, numbers, 32).size == (32, 32)


def gradient(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], 2).astype(np.uint8))


def test_random_resized_crop_takes_the_window_that_the_numbers_say():
    numbers = np.zeros(41)
    numbers[0], numbers[1:5] = 0.5, (0.17 / 0.92, 0.5, 0.5, 0.25)  # a quarter of the area, square
    cut = np.asarray(imagenet.random_resized_crop(gradient(40, 40), numbers, 20))
    assert np.array_equal(cut, np.asarray(gradient(40, 40))[10:30, 5:25])
    numbers[0] = 0.49
    assert np.array_equal(np.asarray(imagenet.random_resized_crop(gradient(40, 40), numbers, 20)), cut[:, ::-1])


def test_random_resized_crop_falls_back_to_the_centre():
    numbers = np.ones(41) - 2.0**-53  # the whole area at aspect 4/3 never fits into 12 x 120
    cut = np.asarray(imagenet.random_resized_crop(gradient(120, 12), numbers, 12))
    assert cut[:, 0, 0].min() >= 52 and cut[:, -1, 0].max() <= 67
    assert np.array_equal(cut[:, 0, 1], np.arange(12))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mnist", {}, "unknown data set 'mnist'; choose one of digits, cifar10, imagenet, synthetic"),
        ("digits", {"root": "x"}, "digits takes no root, got 'x'; a root is for cifar10 and imagenet"),
        ("digits", {"image_size": 0}, "image_size of digits must be at least 1, got 0"),
        ("digits", {"limit": 0}, "limit of digits must be at least 1 for each split, got 0"),
        ("digits", {"limit": (5, -1)}, r"limit of digits must be at least 1 for each split, got \(5, -1\)"),
        ("digits", {"limit": 1.5}, "limit of digits must be a whole number or two, of .train, test., got 1.5"),
        ("cifar10", {}, "cifar10: no root was given. Expected either .* 'CIFAR-10 binary version'"),
        ("imagenet", {}, "imagenet: no root was given. Expected a folder with train/<class>/ and val/<class>/"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data.load(name, **arguments)


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn"), ("cifar10", "PIL"), ("imagenet", "PIL")])
def test_missing_package_is_named(monkeypatch, name, package):
    for module in (package, f"{package}.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=package + r", .*lcs-kernels\[train\]"):
        data.load(name)


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_root_that_holds_nothing(tmp_path, name):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=f"{name}: {re.escape(str(root))} is not a folder, or is empty. Expected"):
            data.load(name, root)


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: remove(root / "train"), "has no train folder. Expected"),
        (lambda root: remove(root / "test"), "has no val or test folder. Expected"),
        (lambda root: [remove(root / "test" / c) for c in CLASSES], "test holds no class folders. Expected"),
        (lambda root: remove(root / "test/dog"), "train and .*test differ in their classes, at dog. Expected"),
        (lambda root: (root / "train/dog/notes.txt").touch(), "train/dog/notes.txt is not an image .* remove it"),
        (lambda root: [f.unlink() for f in (root / "test/cat").iterdir()], "test/cat holds no image .* add some"),
    ],
)
def test_folder_of_another_layout(tmp_path, name, damage, message):
    write_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load(name, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_image_that_cannot_be_decoded_is_named(tmp_path, content):
    file = tmp_path / "train/dog/2.png"
    write_folder(tmp_path)
    file.write_bytes(file.read_bytes()[:1000] if content == "half" else content)
    message = f"cannot decode the image {re.escape(str(file))}: .*replace or remove the file"
    with pytest.raises(ValueError, match=message):
        data.load("cifar10", tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load("imagenet", tmp_path).train.batch([6], epoch=0, seed=0, augment=True)


def test_hidden_files_are_not_images(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train/cat/.directory").touch()
    (tmp_path / "train/.hidden").mkdir()
    assert len(data.load("cifar10", tmp_path).train) == 12


def test_cifar10_has_one_size(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match="cifar10 images are 32x32, got image_size 64; leave it out"):
        data.load("cifar10", tmp_path, image_size=64)
