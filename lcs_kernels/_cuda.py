"""Loads `_C_cuda`, the kernels in CUDA C++, where torch sees a GPU and LCS_CUDA_BACKEND=cuda asks for them.

They have not run on a GPU yet: so far they are run on the CPU by tests/simt and compiled for all architectures.
"""

import os

import torch

from . import _build, _load
from .errors import LcsUnavailableError

CHOICES = ("cuda", "triton")

_loaded = False


def load() -> None:
    """At import, after `_load.load_installed()`. Starts no CUDA context.

    Raises ValueError where LCS_CUDA_BACKEND is neither unset nor one of CHOICES, and LcsUnavailableError where it is
    "cuda" on a machine with a GPU and this install holds no `_C_cuda`, or one that does not load.
    """
    global _loaded
    choice = os.environ.get("LCS_CUDA_BACKEND") or "triton"
    if choice not in CHOICES:
        raise ValueError(f"LCS_CUDA_BACKEND: {choice!r} is not a back end; use cuda or triton")
    if _loaded or choice != "cuda" or _load.status().backend == "reference" or torch.cuda.device_count() == 0:
        return
    path = _build.find_binary("_C_cuda")
    if path is None:
        raise LcsUnavailableError(
            "lcs_kernels: LCS_CUDA_BACKEND is cuda and this install holds no _C_cuda: build it with "
            f"`python {_build.__file__} cuda`, which needs nvcc, or set LCS_CUDA_BACKEND=triton"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise LcsUnavailableError(
            f"lcs_kernels: {path} does not load into torch {torch.__version__}: {error}. "
            "Build it again, or set LCS_CUDA_BACKEND=triton"
        ) from None
    _loaded = True


def has(op: str) -> bool:
    """Whether `_C_cuda` is loaded and holds a kernel of this op."""
    return _loaded and is_written(op)


def is_written(op: str) -> bool:
    """Whether `_C_cuda` holds a kernel of this op, where it is built."""
    source = f"torch/{op.removesuffix('_foreach')}_cuda_op.cpp"
    return source in _build.sources(_build.csrc_dir(), "_C_cuda")
