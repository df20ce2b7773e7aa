"""The machine and the software that a run or a report was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from datetime import datetime, timezone
from typing import Any

import torch
from lcs_kernels.benchmarks.machine import commit, cpu_model

_PACKAGES = ("lcs-kernels", "numpy", "triton", "accelerate", "safetensors", "pydantic", "rich", "matplotlib")


def environment(threads: int | None = None) -> dict[str, Any]:
    """What a run's speed and last bits depend on besides its settings. `threads`: None is torch's choice."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": versions(),
        "cpu": cpu_model(),
        "threads": threads or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "git_commit": commit(),
    }


def versions() -> dict[str, str | None]:
    """Of torch, this package and what it uses; None where not installed."""
    return {"torch": torch.__version__, **{name: package_version(name) for name in _PACKAGES}}


def package_version(name: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
