"""Engines in other environments: the protocol, and what goes wrong on the way, with an engine made of numpy."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from lcs_kernels.benchmarks import harness, peers

X = torch.arange(6.0).reshape(2, 3)
LINEAR = torch.nn.Linear(3, 4, bias=False).requires_grad_(False)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker whose engine "openvino" computes `result`, a Python expression of x and w."""

    made = []

    def make(result):
        path = tmp_path / "worker.py"
        path.write_text(
            textwrap.dedent(f"""
            import runpy, sys, numpy
            module = runpy.run_path({str(peers.WORKER)!r})
            w = numpy.array({LINEAR.weight.tolist()}, dtype="float32")
            module["ENGINES"]["openvino"] = lambda path, x, threads: lambda: {result}
            module["NEEDS"]["openvino"] = ("numpy",)
            module["serve"](sys.argv[1], int(sys.argv[2]), sys.stdin, sys.stdout)
            """)
        )
        monkeypatch.setattr(peers, "WORKER", path)
        monkeypatch.setattr(peers, "_export", lambda model, path: None)
        made.append(peers.Peer("openvino", sys.executable, 1))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def test_a_peer_is_timed_like_the_others(worker):
    peer = worker("x @ w.T")
    row = harness.Row("op", "case", {"lcs": lambda: None}, None, 0, lambda: None, model=peers.Model(LINEAR, X))
    timings = harness.measure(row, 3, peers=[peer])
    assert list(timings) == ["lcs", "openvino"] and len(timings["openvino"].every) == 3
    assert timings["openvino"].median > 0 and peer.versions == {"numpy": np.__version__}


def test_another_result_is_refused(worker):
    with pytest.raises(peers.PeerError, match="openvino: its result is not that of the model"):
        worker("1.1 * x @ w.T").load(peers.Model(LINEAR, X))


def test_a_result_that_is_no_number_is_refused(worker):
    peer = worker("numpy.nan * x @ w.T")
    peer.name = "openvino-int8"
    with pytest.raises(peers.PeerError, match="openvino-int8: its result is not that of the model: off by nan%"):
        peer.load(peers.Model(LINEAR, X))


def test_what_an_engine_raises_is_named(worker):
    with pytest.raises(peers.PeerError, match="openvino: ZeroDivisionError: "):
        worker("1 / 0").load(peers.Model(LINEAR, X))


def test_an_engine_that_dies_is_named(worker):
    with pytest.raises(peers.PeerError, match="its process ended"):
        worker("__import__('os')._exit(3)").load(peers.Model(LINEAR, X))


def test_an_environment_without_the_engine_is_named(monkeypatch):
    monkeypatch.setattr(peers, "_export", lambda model, path: None)
    with pytest.raises(peers.PeerError, match="deepsparse: ModuleNotFoundError: "):
        peers.Peer("deepsparse", sys.executable, 1)


def test_wrong_names_are_named():
    with pytest.raises(peers.PeerError, match="no engine 'sparse'; there are deepsparse, "):
        peers.Peer("sparse", sys.executable, 1)
    with pytest.raises(peers.PeerError, match="--peer openvino=PYTHON"):
        peers.Peer("openvino", "", 1)
    with pytest.raises(peers.PeerError, match="openvino: cannot start .*nowhere"):
        peers.Peer("openvino", "/nowhere/python", 1)
    command = [sys.executable, "-m", "lcs_kernels.benchmarks", "--op", "sparse_linear", "--peer", "openvino=/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "cannot start /nowhere" in done.stderr and "Traceback" not in done.stderr


def test_the_worker_needs_nothing_of_this_project(tmp_path):
    """It runs in environments that have neither torch nor lcs_kernels."""
    path = tmp_path / "worker.py"
    path.write_text(peers.WORKER.read_text())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(path), "openvino", "1"],
        input=json.dumps({"repeats": 0, "first": 0}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 2
