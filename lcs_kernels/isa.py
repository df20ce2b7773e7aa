"""The instruction set that the CPU kernels use: what the machine has, capped by LCS_MAX_ISA or by `set_max`."""

import torch

from ._load import ensure_loaded

NAMES = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")


_name: str | None = None  # what `max_name` found
_pairs: bool | None = None  # what `multiplies_pairs` found


def max_name() -> str:
    """The best instruction set in use, one of `NAMES`; "reference" where no binary is loaded (LCS_REFERENCE=1)."""
    global _name
    if ensure_loaded() == "reference":
        return "reference"
    if _name is None:
        with torch._C._DisableTorchDispatch():  # no call of those that are recorded or traced
            _name = torch.ops.lcs.max_isa()
    return _name


def multiplies_pairs() -> bool:
    """Whether it multiplies pairs of bfloat16 and is taken to do so in less time than floats.

    AMX is, which has not been measured, and AVX512_BF16, but for that of Intel's cores, which takes longer.
    """
    global _pairs
    if max_name() == "reference":
        return False
    if _pairs is None:
        with torch._C._DisableTorchDispatch():
            _pairs = torch.ops.lcs.multiplies_pairs()
    return _pairs


max_name._dynamo_marked_constant = True  # as ensure_loaded is


def set_max(name: str) -> None:
    """Caps the CPU kernels at instruction set `name`; more than the machine has means all it has. Not per thread."""
    global _name, _pairs
    if name not in NAMES:
        raise ValueError(f"isa.set_max: no instruction set is named {name!r}; the names are {', '.join(NAMES)}")
    if ensure_loaded() != "reference":
        torch.ops.lcs.set_max_isa(name)
        _name = _pairs = None
