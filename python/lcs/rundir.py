"""A run directory: config.yaml, environment.json, metrics.jsonl, checkpoints/, and the final weights.safetensors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcs_kernels import isa

from . import checkpoint, strict_json
from .config import TrainConfig
from .config import load as load_config
from .environment import environment

_RESULTS = ("environment.json", "metrics.jsonl", "weights.safetensors", "evaluation.json", "evaluation.png")


class RunError(ValueError):
    """A run directory cannot be used; the message names it and says what to do."""


class RunDirectory:
    """The files of one run. Only the main process writes them."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config_path = self.path / "config.yaml"
        self.environment_path = self.path / "environment.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.weights_path = self.path / "weights.safetensors"

    def exists(self) -> bool:
        return self.config_path.is_file()

    def config(self) -> TrainConfig:
        """The settings that the run was started with. Raises RunError where there is no run."""
        if self.path.is_file():
            raise RunError(
                f"{self.path}: is a file, not the --out directory of lcs train; lcs.load({str(self.path)!r}) opens one "
                "that lcs freeze wrote, which is measured as the run that it was frozen from"
            )
        if not self.exists():
            raise RunError(f"{self.path}: holds no run (no config.yaml); give the --out directory of lcs train")
        return load_config(self.config_path)

    @contextlib.contextmanager
    def prepared(self, config: TrainConfig) -> Iterator[None]:
        """Makes the directory ready for `config`, before any training. No other process can train into it meanwhile.

        Raises RunError if one does, if it holds a run or other files and neither resume nor overwrite is set, or if it
        cannot be written.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._locked())
                self._prepare(config)
            except OSError as error:
                raise RunError(
                    f"{self.path}: cannot be written: {error.strerror or error}; choose another directory with --out"
                ) from error
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock goes with its process."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path}: another process trains into it; wait for its end, or stop it") from error
            except OSError:
                pass  # a file system without locks
            yield
        finally:
            os.close(handle)

    def _prepare(self, config: TrainConfig) -> None:
        self._check_free(config)
        if config.overwrite:
            self._clear()
        self.checkpoints.mkdir(exist_ok=True)
        for directory in (self.path, self.checkpoints):
            checkpoint.sweep(directory)
        if not self.exists():
            checkpoint.write_atomic(self.config_path, config.to_yaml().encode())
        checkpoint.write_atomic(self.environment_path, self._environments(config))

    def _check_free(self, config: TrainConfig) -> None:
        if self.exists():
            if config.overwrite:
                self.config()  # raises, and nothing is removed, where the file is not a run's
            elif not config.resume:
                raise RunError(f"{self.path}: already holds a run; go on with --resume, replace it with --overwrite")
            return
        strangers = [entry for entry in self.path.iterdir() if entry != self.checkpoints and entry.suffix != ".tmp"]
        if strangers or checkpoint.paths(self.checkpoints):
            raise RunError(f"{self.path}: is not empty and holds no run; choose another directory with --out")

    def _clear(self) -> None:
        """Removes the run's files, and last the one that says that it is a run; other files stay."""
        for path in checkpoint.paths(self.checkpoints):
            path.unlink()
        for name in (*_RESULTS, self.config_path.name):
            (self.path / name).unlink(missing_ok=True)

    def _environments(self, config: TrainConfig) -> bytes:
        text = self.environment_path.read_text() if self.environment_path.exists() else "[]"
        try:
            earlier = json.loads(text)
        except ValueError as error:
            raise RunError(f"{self.environment_path}: damaged ({error}); remove it and go on with --resume") from error
        return json.dumps([*earlier, {**environment(config.threads), "isa": isa.max_name()}], indent=2).encode()


class Metrics:
    """metrics.jsonl: one JSON object a line, flushed line by line; each has a `kind` and a `step`."""

    def __init__(self, path: Path, step: int):
        """Opens `path` for lines after `step`, dropping later ones and a torn last one."""
        self.path = path
        checkpoint.write_atomic(path, b"".join(line + b"\n" for line in _lines_up_to(path, step)))
        self._file = path.open("ab", buffering=0)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Raises RunError where the disk is full."""
        line = strict_json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n"
        with self._named():
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Waits until the disk has every line: before a checkpoint that vouches for them."""
        with self._named():
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"cannot be written: {error.strerror or error}"
            raise RunError(f"{self.path}: {reason}; free some space, then go on with --resume") from error

    def close(self) -> None:
        self._file.close()


def _lines_up_to(path: Path, step: int) -> list[bytes]:
    kept = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}: line {number} is damaged; remove it and go on with --resume") from error
    return kept
