"""The instruction set that the CPU kernels use: what the machine has, capped by LCS_MAX_ISA or by `set_max`."""

import torch

from ._load import ensure_loaded

NAMES = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")


def max_name() -> str:
    """The best instruction set in use, one of `NAMES`; "reference" where no binary is loaded (LCS_REFERENCE=1)."""
    return torch.ops.lcs.max_isa() if ensure_loaded() != "reference" else "reference"


max_name._dynamo_marked_constant = True  # as ensure_loaded is


def set_max(name: str) -> None:
    """Caps the CPU kernels at instruction set `name`; more than the machine has means all it has. Not per thread."""
    if name not in NAMES:
        raise ValueError(f"isa.set_max: no instruction set is named {name!r}; the names are {', '.join(NAMES)}")
    if ensure_loaded() != "reference":
        torch.ops.lcs.set_max_isa(name)
