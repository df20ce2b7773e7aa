"""The card that a result was measured on: its fingerprint, as a stage that finds out whether there is one."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec

import torch

from lcs_kernels import _build

from .stages import COULD_NOT_RUN, ROOT, note

QUERY = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,power.limit,temperature.gpu"
SOURCES = ("lcs_kernels", "triton_kernels", "csrc", "benchmarks", "tests")


def output_of(*command: str) -> str | None:
    """What the command prints, or None where it is not here or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else None


def state() -> dict[str, str]:
    """What changes from one moment to the next, and the driver, as nvidia-smi says."""
    found = output_of("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    return dict(zip(QUERY.split(","), found.splitlines()[0].split(", "), strict=True)) if found else {}


def sources_hash() -> str:
    """Names the sources, also where there is no git."""
    total = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".inl", ".cu", ".cuh"):
                total.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def nvcc() -> str | None:
    try:
        found = output_of(*_build.find_nvcc(), "--version")
    except _build.NvccNotFoundError:
        return None
    return found.splitlines()[-1] if found else None


def fingerprint() -> dict:
    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
        "l2_bytes": gpu.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "triton": __import__("triton").__version__ if find_spec("triton") else None,
        "nvcc": nvcc(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": output_of("git", "rev-parse", "HEAD"),
        "sources": sources_hash(),
        **state(),
    }


def main() -> int:
    if not torch.cuda.is_available():
        smi = output_of("nvidia-smi", "--list-gpus") or "nvidia-smi lists none"
        print(f"torch {torch.__version__} (CUDA {torch.version.cuda}) of {sys.executable} sees no GPU; {smi}")
        return COULD_NOT_RUN
    note(**fingerprint())
    return 0


if __name__ == "__main__":
    sys.exit(main())
