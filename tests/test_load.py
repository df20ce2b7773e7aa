"""When kernels are loaded, and what is said when they cannot be."""

import os
import signal
import subprocess
import sys
import threading

import pytest

import lcs_kernels
from lcs_kernels import LcsUnavailableError, _build, _jit, _load


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process that holds no binary; counts the builds."""
    monkeypatch.setattr(_load, "_status", _load._NOT_YET)
    monkeypatch.setattr(_load, "_error", None)
    monkeypatch.setattr(_build, "find_binary", lambda: None)
    monkeypatch.delenv("LCS_REFERENCE", raising=False)
    builds = []
    monkeypatch.setattr(_jit, "build", lambda: builds.append(1) or sys.exit("unexpected build"))
    return builds


def test_import_builds_nothing(fresh):
    _load.load_installed()
    assert (_load.status().backend, fresh) == ("none", [])
    assert "first op" in str(_load.status())


def test_first_op_builds_once_for_all_threads(fresh, monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(_jit, "build", lambda: fresh.append(1) or tmp_path / "a.so")
    monkeypatch.setattr("torch.ops.load_library", loaded.append)
    threads = [threading.Thread(target=_load.ensure_loaded) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (fresh, loaded) == ([1], [tmp_path / "a.so"])
    assert _load.ensure_loaded() == "jit"
    assert str(tmp_path / "a.so") in str(_load.status())


@pytest.mark.parametrize(
    "value, backend", [("1", "reference"), ("Yes", "reference"), ("0", "none"), ("false", "none"), ("", "none")]
)
def test_reference_on_request(value, backend, fresh, monkeypatch):
    monkeypatch.setenv("LCS_REFERENCE", value)
    _load.load_installed()
    assert _load.status().backend == backend


def test_neither_yes_nor_no_is_refused(fresh, monkeypatch):
    monkeypatch.setenv("LCS_REFERENCE", "maybe")
    with pytest.raises(ValueError, match="LCS_REFERENCE: 'maybe' is neither yes nor no; use 1"):
        _load.load_installed()


def test_references_keep_no_memory(fresh, monkeypatch):
    monkeypatch.setenv("LCS_REFERENCE", "1")
    _load.load_installed()
    assert lcs_kernels.release_memory() == 0 and not fresh


def test_failure_is_raised_by_each_op_but_tried_once(fresh, monkeypatch):
    def no_compiler():
        fresh.append(1)
        raise LcsUnavailableError("no compiler, install one")

    monkeypatch.setattr(_jit, "build", no_compiler)
    for _ in range(2):
        with pytest.raises(LcsUnavailableError, match="install one"):
            _load.ensure_loaded()
    assert fresh == [1]
    assert "install one" in str(_load.status())


FORK = """
import os, sys, torch, lcs_kernels
torch.set_num_threads(2)
w0, w1 = torch.randn(2, 300_000).unbind()
w = lcs_kernels.interpolate_prune(w0, w1, 0.3, 0.1)  # starts torch's threads, which a child does not have
child = os.fork()
if child == 0:
    again = lcs_kernels.interpolate_prune(w0, w1, 0.3, 0.1)
    os._exit(0 if again.numpy().tobytes() == w.numpy().tobytes() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_runs_ops():
    process = subprocess.Popen([sys.executable, "-c", FORK], start_new_session=True)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


TRUNCATED = """
import shutil, sys
from pathlib import Path
import torch
folder = Path(sys.argv[1])
from importlib.util import find_spec
package = Path(find_spec("lcs_kernels").origin).parent
for name in ("lcs_kernels", "triton_kernels", "benchmarks", "csrc"):
    shutil.copytree(package.parent / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
binary = (package / "_C.so").read_bytes()
(folder / "lcs_kernels" / "_C.so").write_bytes(binary[: len(binary) // 2])
sys.path.insert(0, str(folder))
import lcs_kernels
assert Path(lcs_kernels.__file__).parent == folder / "lcs_kernels"
try:
    lcs_kernels.interpolate_prune(torch.ones(3), None, 0.0, 1.0)
except lcs_kernels.LcsUnavailableError as error:
    print(error)
"""


@pytest.mark.skipif(_build.find_binary() is None, reason="no binary installed")
def test_a_binary_that_is_cut_short_does_not_end_the_process(tmp_path):
    done = subprocess.run([sys.executable, "-c", TRUNCATED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "_C.so does not load into torch" in done.stdout and "it is cut short" in done.stdout


def test_only_the_packages_own_binary_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(_build, "__file__", str(tmp_path / "_build.py"))
    assert _build.find_binary() is None
    (tmp_path / "_C.so").touch()
    assert _build.find_binary() == tmp_path / "_C.so"


def test_broken_binary_does_not_stop_the_import(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_build, "find_binary", lambda: broken)
    _load.load_installed()
    with pytest.raises(LcsUnavailableError, match=r"_C\.so does not load into torch .* Install lcs-kernels again"):
        _load.ensure_loaded()
    assert fresh == []
