"""Checkpoints: one safetensors file each, replaced atomically, checked as a whole on load, never pickled.

The file's metadata holds a JSON manifest and the BLAKE2b hash of the whole file, taken with the hash's own 64 digits as
zeros. So any flipped bit and any missing byte is found, and any safetensors reader still opens the file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from . import optional

FORMAT_VERSION = 1
KEPT = 2
_PREFIX = b'"blake2b":"'
_DIGITS = 64
_NAME = re.compile(r"step-(\d{9})\.safetensors")
_TEMPORARY = ".tmp"


class CheckpointError(ValueError):
    """A checkpoint cannot be written, is damaged, or is not this run's; the message names file and reason."""


def write_atomic(path: Path, data: bytes) -> None:
    """Puts `data` at `path` so that a crash at any moment leaves the old file or the new one. Raises OSError naming
    `path`."""
    handle, name = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_directory(path.parent)


def check_writable(path: Path) -> None:
    """Raises OSError naming `path` where `write_atomic` could not put a file."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    handle, name = _temporary(path)
    os.close(handle)
    os.unlink(name)


def _temporary(path: Path) -> tuple[int, str]:
    try:
        return tempfile.mkstemp(prefix=path.name, suffix=_TEMPORARY, dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(directory: Path) -> list[Path]:
    """Removes and returns the temporary files that a killed writer left in `directory`."""
    orphans = sorted(directory.glob(f"*{_TEMPORARY}"))
    for orphan in orphans:
        orphan.unlink()
    return orphans


def paths(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, newest first."""
    found = [path for path in directory.glob("*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, reverse=True)


def path_for(directory: Path, step: int) -> Path:
    return directory / f"step-{step:09d}.safetensors"


def save(path: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Writes `tensors` and `manifest` (JSON values) to `path`, then removes all but the newest `KEPT` beside it.

    Raises CheckpointError where the disk is full or cannot be written; earlier checkpoints are then untouched.
    """
    try:
        write_atomic(path, encode(tensors, manifest))
    except OSError as error:
        raise CheckpointError(
            f"{path}: the checkpoint cannot be written: {error.strerror or error}; earlier checkpoints are kept. "
            "Free some space or mend the directory, then go on with --resume"
        ) from error
    for old in paths(path.parent)[KEPT:]:
        old.unlink()


def encode(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> bytes:
    """A file's bytes, which `load` reads. Of a tensor with several names each has a copy."""
    others = [f"{name} is a {type(value).__name__}" for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"a file holds tensors alone, and of the state {', '.join(others)}")
    manifest = json.dumps({"format_version": FORMAT_VERSION, **manifest}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    times = Counter(t.untyped_storage().data_ptr() for t in plain.values())
    blank = optional.require("safetensors.torch").save(
        {name: t.clone() if times[t.untyped_storage().data_ptr()] > 1 else t for name, t in plain.items()},
        metadata={"blake2b": "0" * _DIGITS, "manifest": manifest},
    )
    return blank.replace(_field(b"0" * _DIGITS), _field(_digest(blank)), 1)


def _field(digits: bytes) -> bytes:
    return _PREFIX + digits


def _digest(*blank: bytes | memoryview) -> bytes:
    made = hashlib.blake2b(digest_size=_DIGITS // 2)
    for part in blank:
        made.update(part)
    return made.hexdigest().encode()


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and manifest in `path`. Raises CheckpointError naming the file if a single bit of it is wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    start = data.find(_PREFIX) + len(_PREFIX)
    if start < len(_PREFIX):
        raise CheckpointError(f"{path}: no hash in its header: not a file of lcs, or a damaged one")
    view = memoryview(data)  # a file may take half of the memory
    if _digest(view[:start], b"0" * _DIGITS, view[start + _DIGITS :]) != data[start : start + _DIGITS]:
        raise CheckpointError(f"{path}: its {len(data)} bytes do not match their hash: truncated or damaged")
    read, error_of = optional.require("safetensors.torch").load, optional.require("safetensors").SafetensorError
    try:  # another program may have made the hash
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        manifest = json.loads(header["__metadata__"]["manifest"])
        version = manifest.get("format_version")
        tensors = read(data) if version == FORMAT_VERSION else {}
    except (AttributeError, KeyError, TypeError, ValueError, error_of) as error:
        raise CheckpointError(
            f"{path}: its hash is right, but not its header: {type(error).__name__}: {error}"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: has format version {version}; this version of lcs reads {FORMAT_VERSION}")
    return tensors, manifest


def load_newest(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """The newest intact checkpoint and a notice for each damaged one; None where there is no checkpoint at all.

    Raises CheckpointError if every checkpoint is damaged.
    """
    notices: list[str] = []
    for path in paths(directory):
        try:
            return *load(path), notices
        except CheckpointError as error:
            notices.append(str(error))
    if notices:
        raise CheckpointError("; ".join(notices) + "; no intact checkpoint is left: start again with --overwrite")
    return None


def check_identity(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises CheckpointError naming every setting in which a checkpoint's run differs from the one wanted."""
    names = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    if names:
        changes = ", ".join(f"{name} {stored.get(name)!r} there and {wanted.get(name)!r} here" for name in names)
        raise CheckpointError(f"{path}: belongs to another run: {changes}")


def check_tensors(path: Path, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError naming the first tensor whose presence, shape or dtype differs."""
    for name in sorted({*stored, *wanted}):
        there, here = (_describe(tensors.get(name)) for tensors in (stored, wanted))
        if there != here:
            raise CheckpointError(f"{path}: is of another model: tensor {name} is {there} there and {here} here")


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")
