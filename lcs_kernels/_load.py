"""Loads the compiled kernels, once per process: the installed binary at import, else the JIT's at the first op."""

import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from . import _build, _jit
from .errors import LcsUnavailableError


@dataclass(frozen=True)
class Status:
    """What runs the ops: backend "aot", "jit", "reference" or, before the first op, "none"; and why in words."""

    backend: str
    path: Path | None
    reason: str

    def __str__(self) -> str:
        return self.reason


_NOT_YET = Status("none", None, "no binary installed; the first op builds the kernels")
_lock = threading.Lock()
_status = _NOT_YET
_error: LcsUnavailableError | None = None


def status() -> Status:
    """The present state; loads and builds nothing."""
    return _status


def load_installed() -> None:
    """At import: takes the reference where LCS_REFERENCE asks for it, else the installed binary, if it loads.

    Raises ValueError where LCS_REFERENCE is neither yes nor no.
    """
    global _status, _error
    with _lock:
        try:
            _status = _installed() or _NOT_YET
        except LcsUnavailableError as error:
            _error, _status = error, Status("none", None, str(error))


def ensure_loaded() -> str:
    """Before an op: the backend in use, after loading or building it if need be. Raises LcsUnavailableError."""
    return _status.backend if _status.backend != "none" else _load()


# What torch.compiler.assume_constant_result does, which would first import all of torch._dynamo.
ensure_loaded._dynamo_marked_constant = True


def _load() -> str:
    global _status, _error
    with _lock:
        if _error is None and _status.backend == "none":
            try:
                _status = _built()
            except LcsUnavailableError as error:
                _error, _status = error, Status("none", None, str(error))
        if _error is not None:
            raise type(_error)(str(_error))
        return _status.backend


def _installed() -> Status | None:
    if _build.bool_getenv("LCS_REFERENCE"):
        return Status("reference", None, "LCS_REFERENCE is set")
    path = _build.find_binary()
    return _opened("aot", path, f"the installed {path}") if path else None


def _built() -> Status:
    path = _jit.build()
    return _opened("jit", path, f"built on this machine: {path}")


def _opened(backend: str, path: Path, reason: str) -> Status:
    try:
        if backend == "aot":  # of what the JIT builds the hash has been checked
            _build.check_whole(path)
        torch.ops.load_library(path)
    except OSError as error:
        raise LcsUnavailableError(
            f"lcs_kernels: {path} does not load into torch {torch.__version__} (2.10 or later is needed): {error}. "
            "Install lcs-kernels again, or set LCS_REFERENCE=1 to run the slow PyTorch reference"
        ) from None
    return Status(backend, path, reason)
