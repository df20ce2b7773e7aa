"""Checkpoints: one safetensors file each, replaced atomically, checked as a whole on load, never pickled.

The file's metadata holds a JSON manifest and the BLAKE2b hash of the whole file, taken with the hash's own 64 digits as
zeros. So any flipped bit and any missing byte is found, and any safetensors reader still opens the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from . import optional

FORMAT_VERSION = 1
KEPT = 2
_PREFIX = b'"blake2b":"'
_DIGITS = 64
_NAME = re.compile(r"step-(\d{9})\.safetensors")
_TEMPORARY = ".tmp"
_NEVER_SYNCED = errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP  # of directories, on some file systems


class CheckpointError(ValueError):
    """A checkpoint cannot be written, is damaged, or is not this run's; the message names file and reason."""


def write_atomic(path: Path, data: bytes) -> None:
    """Puts `data` at `path` so that a crash at any moment leaves the old file or the new one, of the old one's
    permissions. Links are followed. What is no regular file, as a device or a pipe, is written to instead.

    Raises OSError naming `path`, and CheckpointError where the new file is in place but may not outlast a power cut.
    """
    with _named(path):
        replaced = _replaced(path)
        if replaced is None:
            with open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
                file.write(data)
            return
        target, mode = replaced
        sweep(target.parent, _start(target))
        with _temporary(target, mode) as (name, file):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(name, target)
    _sync_directory_of(target)


def check_writable(path: Path) -> None:
    """Raises OSError naming `path` where `write_atomic` could not put a file."""
    with _named(path):
        replaced = _replaced(path)
        if replaced is not None:
            with _temporary(*replaced):
                return
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replaced(path: Path) -> tuple[Path, int | None] | None:
    """The file behind all links, and its permissions, if there is one yet; None where what is there is not to be
    replaced, as it is no regular file, or one that is open, as what /dev/stdout leads to."""
    target = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return target, None
    is_open = Path(os.path.abspath(path)).parts[1:2] in (("dev",), ("proc",))
    return (target, mode & 0o777) if stat.S_ISREG(mode) and target.exists() and not is_open else None


def _start(target: Path) -> str:
    """Of the names of its temporary files: short, as its own may be as long as a name can be."""
    return hashlib.blake2b(os.fsencode(target.name), digest_size=6).hexdigest() + "-"


@contextlib.contextmanager
def _temporary(target: Path, mode: int | None) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `target`, removed unless it is renamed. While it is written it is locked, which tells it from
    one that a killed writer left."""
    made = False
    while not made:
        name = target.with_name(f"{_start(target)}{secrets.token_hex(6)}{_TEMPORARY}")
        handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else mode)
        with open(handle, "wb") as file:
            try:
                with contextlib.suppress(OSError):  # a file system without locks, where nothing is swept
                    fcntl.flock(file, fcntl.LOCK_EX)
                made = name.exists()  # else it was swept before it was locked
                if made:
                    if mode is not None:
                        os.fchmod(handle, mode)
                    yield name, file
            finally:
                name.unlink(missing_ok=True)


def _sync_directory_of(path: Path) -> None:
    try:
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NEVER_SYNCED:
            raise CheckpointError(
                f"{path}: is in place, but may not outlast a power cut: its directory cannot be synced: "
                f"{error.strerror or error}"
            ) from error


def sweep(directory: Path, start: str = "") -> list[Path]:
    """Removes and returns the temporary files, of names with this start, that a killed writer left in `directory`."""
    return [path for path in sorted(directory.glob(f"{start}*{_TEMPORARY}")) if path.is_file() and _removed(path)]


def _removed(path: Path) -> bool:
    """Whether it could be, and nobody writes to it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True


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
    return blank.replace(_PREFIX + b"0" * _DIGITS, _PREFIX + _digest(blank), 1)


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
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError, error_of) as error:
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
