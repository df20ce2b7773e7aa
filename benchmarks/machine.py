"""The fingerprint of the machine that a result was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import lcs_kernels

SETTINGS = ("LCS_", "ATEN_CPU_CAPABILITY", "ONEDNN_", "DNNL_", "MKL_", "OMP_", "KMP_", "GOMP_")  # variables


def cpu_model() -> str:
    """The processor as the operating system names it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def cpu_id() -> str:
    """Family, model and stepping, as models of one name differ by them."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return " ".join(f"{word} {n}" for word, n in re.findall(r"^(cpu family|model|stepping)\s*: (\d+)", text, re.M)[:3])


def commit() -> str | None:
    """That of the checkout which holds this file, with "+" where files differ; None where there is none."""

    def git(*command: str) -> str | None:
        folder = str(Path(__file__).parent)
        try:
            done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", Path(__file__).name):
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!benchmarks/results")
    return f"{git('rev-parse', 'HEAD')}{'+' if changed else ''}"


def fingerprint() -> dict:
    """Plain data: processor, instruction set in use, threads, versions, settings, and each op's back end."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "isa": lcs_kernels.isa.max_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "cpu_id": cpu_id(),
        "commit": commit(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(SETTINGS)},
        "backends": lcs_kernels.backends(),
    }
