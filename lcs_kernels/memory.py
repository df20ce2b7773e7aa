"""Memory that the CPU kernels keep."""

from __future__ import annotations

import torch

from ._load import ensure_loaded


def release_memory() -> int:
    """Give memory of results back to the system; returns how many bytes.

    Results of convolutions and norms of 128 KiB and more on the CPU lie in memory that is kept for the next ones once
    no tensor holds it, at most 128 MiB, as fresh memory costs more time than many a kernel (torch 2.11 and later). What
    tensors hold stays. Such results cannot be resized in place.

    Raises:
        LcsUnavailableError: no compiled kernels and no way to build them (see `lcs doctor`).
    """
    if ensure_loaded() == "reference":
        return 0  # torch's own allocator holds what the references make
    return torch.ops.lcs.release_memory()
