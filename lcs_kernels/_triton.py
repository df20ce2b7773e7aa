"""Registers the Triton kernels as the CUDA back end of their ops.

They have not run on a GPU yet: so far they are tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch

from . import _cuda, _load, _measured

# With an <op>_backward beside.
TRAINED = ("interpolate_prune", "interpolate_prune_foreach", "interpolate_quantize", "line_norm")
ALONE = ("packed_conv2d", "packed_linear", "quantize", "width_conv2d")
OPS = {op: (op, f"{op}_backward") for op in TRAINED} | {op: (op,) for op in ALONE}

_LIBRARY = torch.library.Library("lcs", "IMPL", "CUDA")
_registered = False


def register() -> str:
    """Once torch sees a GPU and triton is installed, gives CUDA tensors the Triton kernels; says so, or why not.

    The ops that `_C_cuda` has registered stay with it. Call it after `_load.load_installed()` and `_cuda.load()`.
    Imports no triton, which the first CUDA op does, and starts no CUDA context. Never raises.
    """
    global _registered
    reason = None if _registered else _obstacle()
    if reason is not None:
        return reason
    if not _registered:
        for op, names in OPS.items():
            for name in names if not _cuda.has(op) else ():
                _LIBRARY.impl(name, kernel(op, name))
        _registered = True
    return f"triton ({_measured.words('triton')})"


def kernel(op: str, name: str) -> Callable:
    """The function `name` of triton_kernels/<op>.py, imported when first called."""

    def run(*args, **kwargs):
        return getattr(import_module(f"lcs_kernels.triton_kernels.{op}"), name)(*args, **kwargs)

    return run


def _obstacle() -> str | None:
    if _load.status().backend == "reference":
        return str(_load.status())
    if torch.cuda.device_count() == 0:  # unlike is_available(), asks the driver without starting it: fork stays safe
        return "torch sees no GPU"
    return "triton is not installed" if find_spec("triton") is None else None
