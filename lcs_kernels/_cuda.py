"""Loads `_C_cuda`, the kernels in CUDA C++, where torch sees a GPU and LCS_CUDA_BACKEND=cuda asks for them, or where it
says nothing and they were measured to be faster than Triton's.

They have not run on a GPU yet: so far they are run on the CPU by tests/simt and compiled for all architectures.
"""

import os

import torch

from . import _build, _jit, _load, _measured
from .errors import LcsUnavailableError

CHOICES = ("cuda", "triton")

_loaded = False


def load() -> None:
    """At import, after `_load.load_installed()`. Starts no CUDA context.

    Where LCS_CUDA_BACKEND is "cuda" on a machine with a GPU and this install holds no `_C_cuda`, it is built, once.
    Raises ValueError where LCS_CUDA_BACKEND is neither unset nor one of CHOICES, and LcsUnavailableError where there is
    no compiler to build it or it does not load.
    """
    global _loaded
    asked = os.environ.get("LCS_CUDA_BACKEND") or None
    if asked not in (None, *CHOICES):
        raise ValueError(f"LCS_CUDA_BACKEND: {asked!r} is not a back end; use cuda or triton")
    if _loaded or asked == "triton" or _load.status().backend == "reference" or torch.cuda.device_count() == 0:
        return
    path = _build.find_binary("_C_cuda")
    if asked is None and (path is None or not is_measured_faster()):
        return
    path = path or _jit.build(name="_C_cuda")
    try:
        _build.check_whole(path)
        torch.ops.load_library(path)
    except OSError as error:
        raise LcsUnavailableError(
            f"lcs_kernels: {path} does not load into torch {torch.__version__}: {error}. "
            "Build it again, or set LCS_CUDA_BACKEND=triton"
        ) from None
    _loaded = True


def is_measured_faster() -> bool:
    found = _measured.latest()
    return found is not None and found.fastest == "cuda"


def has(op: str) -> bool:
    """Whether `_C_cuda` is loaded and holds a kernel of this op."""
    return _loaded and is_written(op)


def is_written(op: str) -> bool:
    """Whether `_C_cuda` holds a kernel of this op, where it is built."""
    source = f"torch/{op.removesuffix('_foreach')}_cuda_op.cpp"
    return source in _build.sources(_build.csrc_dir(), "_C_cuda")
