"""Every CUDA source compiles for every GPU that the library is built for, and no kernel keeps registers in memory."""

import re
import subprocess
from pathlib import Path

import pytest

from lcs_kernels import _build

CSRC = _build.csrc_dir()
SOURCES = [name for name in _build.sources(CSRC, "_C_cuda") if name.startswith("cuda/")]
needs_nvcc = pytest.mark.skipif(
    not any(_build.shutil.which(name) for name in ("nvcc", "/usr/local/cuda/bin/nvcc")),
    reason="no nvcc on PATH, nor /usr/local/cuda/bin/nvcc",
)


@needs_nvcc
@pytest.mark.parametrize("name", SOURCES)
def test_no_kernel_spills(name, tmp_path):
    command = [*_build.find_nvcc(), *_build.NVCC_FLAGS, "-Xptxas=-v", f"-I{CSRC / 'include'}", "-c", str(CSRC / name)]
    done = subprocess.run([*command, "-o", str(tmp_path / "a.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled = re.findall(r"Compiling entry function '(\S+)' for '(sm_\w+)'", done.stderr)
    kernels = len(re.findall(r"^__global__", (CSRC / name).read_text(), re.MULTILINE))
    for architecture in _build.ARCHITECTURES:
        assert len([a for _, a in compiled if a == f"sm_{architecture}"]) >= kernels > 0
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(memory) >= len(compiled) and set(memory) == {("0", "0", "0")}


def test_every_cuda_source_is_tested():
    assert sorted(CSRC / name for name in SOURCES) == sorted(CSRC.rglob("*.cu"))
    assert all(Path(name).stem.endswith(("_cuda", "_sm90")) for name in SOURCES)
