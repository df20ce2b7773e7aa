"""Which implementation each op runs on here, and why."""

import torch

from . import _load, isa


def backends() -> dict[str, dict[str, str]]:
    """{op: {device: implementation}}, as the dispatcher would choose now. Builds nothing."""
    ops = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("lcs::"))
    return {op.removeprefix("lcs::"): {"cpu": _cpu(op), "cuda": _cuda(op)} for op in ops if not op.endswith("max_isa")}


def _cpu(op: str) -> str:
    if torch._C._dispatch_has_kernel_for_dispatch_key(op, "CPU"):
        return f"c++ ({isa.max_name()})"
    return f"reference ({_load.status()})"


def _cuda(op: str) -> str:
    if torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"):
        return "cuda"
    return "reference (no CUDA kernel in this build)" if torch.cuda.is_available() else "no GPU"
