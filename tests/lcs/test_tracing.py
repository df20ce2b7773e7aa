"""A trace leaves the model, its caches, and what other threads run as they were."""

import os
import signal
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import lcs
from lcs import tracing
from lcs.tracing import Tracer, untouched

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Waits(nn.Module):
    """Its forward goes on when another thread has run modules of its own."""

    def __init__(self, during):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.__dict__["during"] = during

    def forward(self, x):
        thread = threading.Thread(target=self.during)
        thread.start()
        thread.join()
        return self.conv(x)


def test_modules_of_other_threads_run_as_ever():
    other, found = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(6, 6)), []
    expected = other(X)
    graph = Tracer().trace(Waits(lambda: found.append(other(X))))
    assert torch.equal(found[0], expected)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["conv"]


def test_a_call_that_has_begun_in_a_trace_may_end_after_it():
    calls, other = [], nn.Conv2d(3, 4, 3)
    Tracer().trace(Waits(lambda: calls.append(nn.Module.__call__)))
    assert calls[0] is not nn.Module.__call__ and torch.equal(calls[0](other, X), other(X))


def test_traces_of_several_threads_leave_torch_as_it_was():
    call, get, filters, failed = nn.Module.__call__, nn.Module.__getattr__, warnings.filters[:], []
    subspace = lcs.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)), lcs.Unstructured())

    def freeze():
        try:
            for _ in range(5):
                subspace.freeze()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=freeze) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and warnings.filters == filters
    assert nn.Module.__call__ is call and nn.Module.__getattr__ is get


def test_layers_that_the_forward_calls_in_threads_are_traced():
    class Threads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            with ThreadPoolExecutor(2) as pool:
                return sum(f.result() for f in [pool.submit(self.a, x), pool.submit(self.b, x)])

    graph = Tracer().trace(Threads())
    assert sorted(node.target for node in graph.nodes if node.op == "call_module") == ["a", "b"]


def test_a_forward_that_waits_for_another_trace_fails_in_time(monkeypatch):
    monkeypatch.setattr(tracing, "_PATIENCE", 0.2)
    failed = []

    def during():
        try:
            lcs.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1)), lcs.Structured(), dense=["1"])
        except ValueError as error:
            failed.append(str(error))

    Tracer().trace(Waits(during))
    assert "another thread has been tracing a model" in failed[0]


def test_a_fork_beside_a_trace_runs_modules():
    other, waiting, go = nn.Sequential(nn.ReLU()), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: Tracer().trace(Waits(lambda: (waiting.set(), go.wait()))))
    thread.start()
    waiting.wait()
    child = os.fork()
    if child == 0:
        code = 1
        signal.alarm(60)
        try:
            with ThreadPoolExecutor(4) as pool:  # which have the idents of the parent's threads
                shapes = {f.result().shape for f in [pool.submit(other, X) for _ in range(8)]}
            Tracer().trace(other)
            code = int(shapes != {X.shape})
        finally:
            os._exit(code)
    go.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


class Caches(nn.Module):
    SHARED: dict = {"other": 1}

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(16, 16), nn.Linear(16, 4)
        self.cache, self.seen, self.nested = {"kept": 1}, [], ({"inside": set()},)
        self.calls = Counter(kept=3)
        self.register_buffer("table", torch.randn(16))

    def forward(self, x):
        if "table" not in self.cache:
            self.cache["table"] = self.table.to(x.dtype)
            self.SHARED["table"] = self.cache["table"]
            self.SHARED[x.shape[-1:]] = [(x.mean(), 1)]
            self.nested[0]["inside"].add(self.cache["table"])
            self.calls["filled"] += 1
            self.seen.append(self.cache["table"])
        return self.out(self.fc(x) + self.cache["table"] + self.SHARED["table"])


def is_untouched(model):
    own = model.cache, model.seen, model.nested, model.calls
    return own == ({"kept": 1}, [], ({"inside": set()},), Counter(kept=3)) and Caches.SHARED == {"other": 1}


@pytest.mark.parametrize("recipe", [lcs.Unstructured, lcs.Quantized])
def test_caches_hold_no_proxies(recipe):
    model = Caches()
    lcs.plan(model, recipe(line=False))
    assert is_untouched(model)
    subspace = lcs.convert(model, recipe(line=False))
    assert is_untouched(model)
    fast = subspace.eval().freeze()
    assert is_untouched(fast.model)


def test_a_plan_leaves_a_model_that_runs():
    model, x = Caches(), torch.randn(2, 16)
    with pytest.raises(ValueError, match="widths cannot be applied"):
        lcs.plan(model, lcs.Structured())
    assert is_untouched(model)
    assert torch.equal(model(x), model(x))
    Caches.SHARED.clear()
    Caches.SHARED["other"] = 1


def test_a_frozen_forward_that_fills_a_cache_runs_as_it_is():
    fast, x = lcs.convert(Caches(), lcs.Unstructured(line=False)).eval().freeze(), torch.randn(2, 16)
    assert torch.equal(fast(x, density=1.0), fast(x, density=1.0))
    assert fast.counters.unfused == "its forward changes SHARED and cache and calls and nested and seen"
    Caches.SHARED.clear()
    Caches.SHARED["other"] = 1


class Rebinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.out(self.a(x)) + self.calls


def test_a_buffer_that_the_forward_replaces_is_no_constant():
    fast, x = lcs.convert(Rebinds(), lcs.Unstructured(line=False)).eval().freeze(), torch.randn(1, 4)
    first, second, third = (fast(x, density=1.0) for _ in range(3))
    assert fast.counters.unfused == "its forward changes calls"
    assert torch.allclose(third - second, torch.ones(())) and torch.allclose(second - first, torch.ones(()))


def test_untouched_names_what_changed():
    model = Rebinds()
    with untouched(model) as changed:
        model(torch.randn(1, 4))
    assert changed == ["calls"] and model.calls == 0


class SetsData(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        y.data += 1
        return y


def test_what_no_graph_holds_is_not_fused():
    fast = lcs.convert(SetsData(), lcs.Unstructured(line=False)).eval().freeze()
    fast(X, density=1.0)
    assert "sets the data of a tensor" in fast.counters.unfused
