"""Recordings in a forked process, which may lack the thread that held a lock."""

import os
import subprocess
import sys

FORKED = """
import os, torch
from torch.utils._python_dispatch import TorchDispatchMode
from lcs_kernels import replay, sparse_conv2d
from lcs_kernels.formats import SparseWeight
from lcs_kernels.ops.replay import Recorder, Recording

torch.set_num_threads(1)
torch.set_grad_enabled(False)
weight = SparseWeight.pack(torch.randn(8, 3, 3, 3))
x = torch.randn(1, 3, 16, 16)
sparse_conv2d(x, weight)
with Recorder() as recorder:
    y = sparse_conv2d(x, weight)
recording, calls, ops = Recording.of(recorder.calls, [x], [y]), [], torch.ops.lcs


def spied(name):
    op = getattr(ops, name)
    setattr(ops, name, lambda *args: (calls.append(name), op(*args))[1])


for name in ("replay_keep", "replay_kept", "replay_forget"):
    spied(name)
assert torch.equal(replay([x], recording)[0], y) and calls == ["replay_keep", "replay_kept"], calls
pid = os.fork()
if pid == 0:
    same = torch.equal(replay([x], recording)[0], y)
    del recording
    os._exit(0 if same and calls == ["replay_keep", "replay_kept"] else 1)
assert os.waitpid(pid, 0)[1] == 0
assert torch.equal(replay([x], recording)[0], y)
del recording
assert calls == ["replay_keep", *["replay_kept"] * 2, "replay_forget"], calls
"""


def test_a_forked_process_opens_no_lock_of_the_kept_recordings():
    """Which another thread may have held when it was forked."""
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, env=os.environ, timeout=120)
    assert run.returncode == 0, run.stderr
