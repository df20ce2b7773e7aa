import subprocess
import sys

import pytest

from lcs_kernels import _triton

CODE = """
import sys, torch
torch.cuda.device_count = lambda: 1
import lcs_kernels
from lcs_kernels import _triton
print(_triton.register())
print(_triton.register())
has = torch._C._dispatch_has_kernel_for_dispatch_key
print({has(f"lcs::{name}", "CUDA") for names in _triton.OPS.values() for name in names}, "triton" in sys.modules)
"""


def registered(*environment):
    command = ["env", "-u", "LCS_CUDA_BACKEND", "-u", "LCS_REFERENCE", *environment, sys.executable, "-c", CODE]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_where_there_is_a_gpu():
    assert registered() == ["triton (not yet run on a GPU)"] * 2 + ["{True} False"]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [("LCS_REFERENCE=1", "LCS_REFERENCE is set")],
)
def test_not_where_another_back_end_is_asked_for(environment, reason):
    assert registered(environment) == [reason] * 2 + ["{False} False"]


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert _triton.register() == "torch sees no GPU"


def test_without_triton(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(_triton, "find_spec", lambda name: None)
    assert _triton.register() == "triton is not installed"
