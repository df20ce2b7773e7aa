"""The fingerprint of the machine that a result was measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

import lcs_kernels


def cpu_model() -> str:
    """The processor as the operating system names it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def fingerprint() -> dict:
    """Plain data: processor, instruction set in use, threads, versions, and each op's back end."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "isa": lcs_kernels.isa.max_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "backends": lcs_kernels.backends(),
    }
