"""Which implementation each op runs on here, and why."""

import torch

from . import _cuda, _load, _measured, _triton, isa, ops


def backends() -> dict[str, dict[str, str]]:
    """{op: {device: implementation}}, as the dispatcher would choose now. Builds nothing."""
    return {op: {"cpu": _cpu(f"lcs::{op}"), "cuda": _on_cuda(op)} for op in ops.names()}


def _cpu(op: str) -> str:
    if torch._C._dispatch_has_kernel_for_dispatch_key(op, "CPU"):
        return f"c++ ({isa.max_name()})"
    return f"reference ({_load.status()})"


def _on_cuda(op: str) -> str:
    if _cuda.has(op):
        return f"c++ ({_measured.words('cuda')})"
    chosen = _triton.register()
    return chosen if torch._C._dispatch_has_kernel_for_dispatch_key(f"lcs::{op}", "CUDA") else f"reference ({chosen})"
