"""Every CUDA source compiles for every GPU that the library is built for, and no kernel keeps registers in memory."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lcs_kernels import _build, _cuda, _jit, _measured

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


def imported(choice: str, gpus: int = 1, binary: str = "None", **more: str) -> subprocess.CompletedProcess:
    """An import of the package with so many GPUs, which shows what `_C_cuda` it loads and who runs two of the ops."""
    code = f"""
import torch
torch.cuda.device_count = lambda: {gpus}
load, loaded = torch.ops.load_library, []
torch.ops.load_library = lambda path: loaded.append(path) if "_C_cuda" in str(path) else load(path)
import importlib.util, pathlib, sys
path = pathlib.Path(importlib.util.find_spec("lcs_kernels").origin).with_name("_build.py")
spec = importlib.util.spec_from_file_location("lcs_kernels._build", path)
build = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
find, check = build.find_binary, build.check_whole
build.find_binary = lambda library="_C": find() if library == "_C" else {binary}
build.check_whole = lambda path: "_C_cuda" in str(path) or check(path)
import lcs_kernels
found = lcs_kernels.backends()
print(loaded, found["interpolate_prune_foreach"]["cuda"], found["quantize"]["cuda"], sep=";")
"""
    environment = {k: v for k, v in os.environ.items() if k != "LCS_REFERENCE"} | {"LCS_CUDA_BACKEND": choice}
    environment |= more
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_the_choice_of_a_back_end():
    triton = "triton (not yet run on a GPU)"
    assert imported("cuda", binary="pathlib.Path('a/_C_cuda.so')").stdout == (
        f"[PosixPath('a/_C_cuda.so')];c++ (not yet run on a GPU);{triton}\n"
    )
    assert imported("", binary="pathlib.Path('a/_C_cuda.so')").stdout == f"[];{triton};{triton}\n"
    none = "reference (torch sees no GPU)"
    assert imported("cuda", gpus=0, binary="pathlib.Path('a/_C_cuda.so')").stdout == f"[];{none};{none}\n"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("cdua", "ValueError: LCS_CUDA_BACKEND: 'cdua' is not a back end; use cuda or triton"),
        ("cuda", "holds no _C_cuda and no CUDA compiler found .tried no-such-nvcc.*, or set LCS_CUDA_BACKEND=triton"),
    ],
)
def test_a_choice_that_cannot_be_met_is_named(choice, message):
    done = imported(choice, NVCC="no-such-nvcc")
    assert done.returncode == 1 and re.search(message, done.stderr), done.stderr


@needs_nvcc
def test_the_library_is_built_once_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(_build, "NVCC_FLAGS", [f for f in _build.NVCC_FLAGS if "compute_" not in f] + ["-arch=sm_90"])
    monkeypatch.setenv("LCS_CACHE", str(tmp_path))
    lines = []
    library = _jit.build(lines.append, name="_C_cuda")
    assert "compiling 4 files" in lines[0]
    count = len(lines)
    assert _jit.build(lines.append, name="_C_cuda") == library and len(lines) == count
    code = f"import lcs_kernels, torch; torch.ops.load_library({str(library)!r})"
    code += "; print(torch._C._dispatch_has_kernel_for_dispatch_key('lcs::interpolate_prune', 'CUDA'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_a_measured_back_end_is_the_default(monkeypatch):
    """Where the library is there; without it nothing is built."""
    loaded = []
    monkeypatch.delenv("LCS_CUDA_BACKEND", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.ops.load_library", loaded.append)
    monkeypatch.setattr(_build, "check_whole", lambda path: None)
    monkeypatch.setattr(_jit, "build", lambda **_: loaded.append("built"))
    measured = _measured.Measured("NVIDIA H200", "2026-12-01", ("cuda", "triton"), "triton")
    for fastest, binary in (("triton", Path("b")), ("cuda", None), ("cuda", Path("c"))):
        monkeypatch.setattr(_cuda, "_loaded", False)
        monkeypatch.setattr(_build, "find_binary", lambda library, binary=binary: binary)
        monkeypatch.setattr(_measured, "latest", lambda fastest=fastest: replace(measured, fastest=fastest))
        _cuda.load()
    assert loaded == [Path("c")]


def test_a_missing_nvcc_is_named(monkeypatch):
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    with pytest.raises(_build.NvccNotFoundError, match=r"no CUDA compiler found \(tried no-such-nvcc\)"):
        _build.find_nvcc()


def test_nothing_is_loaded_here_without_being_asked_for():
    assert not _cuda.has("interpolate_prune")
