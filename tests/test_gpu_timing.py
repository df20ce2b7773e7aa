"""The measuring part of `make gpu-check`, with a host's clock in place of CUDA's events and small sizes."""

import contextlib
import json
import math
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from lcs_kernels.benchmarks.gpu import convolutions, decoders, measurements, op_rows, probes, rates, report, timing
from lcs_kernels.benchmarks.harness import Row

from lcs_kernels import _build, _measured

from .simt.host import HERE as SIMT
from .test_cuda import needs_nvcc

GPU = SimpleNamespace(L2_cache_size=1 << 16, multi_processor_count=2, major=9, minor=0, total_memory=1 << 30)


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class Graph:
    def replay(self):
        Graph.replays += 1


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A CPU that answers as a card; returns the rows that are noted."""
    Graph.replays = 0
    Graph.modes = modes = []
    fakes = {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": lambda graph: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "set_sync_debug_mode": modes.append,
        "get_device_properties": lambda device: GPU,
        "set_stream": lambda stream: None,
        "current_stream": lambda: SimpleNamespace(cuda_stream=0),
        "empty_cache": lambda: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(timing, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "SAMPLES", 7)
    monkeypatch.setattr(timing, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setenv("LCS_STAGE_RESULT", str(tmp_path / "rows"))
    yield lambda: [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert modes[::2] == ["error"] * (len(modes) // 2) and set(modes[1::2]) <= {"default"}


def test_how_a_candidate_is_timed(card):
    def waits():
        if Graph.modes[-1:] == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")

    def sleeps():
        time.sleep(2e-3)

    found = timing.measure({"records": lambda: None, "sleeps": sleeps}, timing.Flush())
    assert found["records"]["clock"] == "graph" and found["records"]["samples"] == 7 and Graph.replays > 7
    assert found["sleeps"]["eager_us"] >= 2000
    assert timing.measure({"sleeps": sleeps}, lambda: None, 1 << 31)["sleeps"]["clock"] == "eager call, large"
    assert timing.waits_for_the_device(waits)
    assert timing.prepared({"waits": waits}, False)["waits"][1] == "eager call, waits for the device"
    with pytest.raises(RuntimeError, match="another"):
        timing.waits_for_the_device(lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_a_slow_candidate_has_fewer_samples(card, monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.01)
    times = timing.cold({"slow": lambda: time.sleep(3e-3), "fast": lambda: None}, lambda: None)
    assert len(times["slow"]) == timing.LEAST and len(times["fast"]) == 7 and min(times["slow"]) >= 3000


def wrong():
    raise AssertionError("the op's result differs from its reference")


def rows_of():
    calls = {"lcs": lambda: time.sleep(1e-3), "torch": lambda: time.sleep(4e-3)}
    for case, check in (("right", lambda: None), ("wrong", wrong), ("also right", lambda: None)):
        yield Row("quantize", case, calls, None, 1000, check)


def test_rows_of_an_op(card, monkeypatch):
    monkeypatch.setattr(op_rows.importlib, "import_module", lambda name: SimpleNamespace(rows=rows_of))
    monkeypatch.setattr(timing, "graph_of", lambda call: call)
    assert op_rows.main("quantize") == 1
    first, right, failed, last = card()
    assert first["copy_tb_per_s"] == 1 and first["floor_us"] > 0 and first["backend"].startswith("c++")
    assert (right["case"], last["case"]) == ("right", "also right")
    times = right["candidates"]
    ours = times["lcs"]["cold_us"]
    assert math.isclose(times["torch"]["ratio"], times["torch"]["cold_us"] / ours)
    assert math.isclose(right["fraction"], 1000 / 1e12 / ours * 1e6) and math.isclose(right["tb_per_s"], 1e-3 / ours)
    assert failed["failure"] == "AssertionError: the op's result differs from its reference"
    assert op_rows.main("quantize", "0") == 0 and card()[-1] == {"op": "quantize", "left_out": "rows after 0 s"}


@pytest.mark.parametrize("op", ["interpolate_prune", "interpolate_prune_foreach", "interpolate_quantize", "quantize"])
def test_rows_follow_the_default_device(op, monkeypatch):
    """Whatever a row makes, it makes there: of a device that computes nothing the tensors are all that is seen."""
    module = op_rows.importlib.import_module(f"lcs_kernels.benchmarks.{op}")
    with torch.device("meta"):
        row = next(module.rows())
    inside = [cell.cell_contents for cell in row.candidates["lcs"].__closure__]
    tensors = [t for part in inside if isinstance(part, tuple) for t in torch.utils._pytree.tree_leaves(part)]
    tensors = [t for t in tensors if isinstance(t, torch.Tensor)]
    assert len(tensors) >= 4 and {t.device.type for t in tensors} == {"meta"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The probe kernels on the CPU."""
    import ctypes

    output = tmp_path_factory.mktemp("probes") / "probes.so"
    csrc = _build.csrc_dir()
    flags = ["-O1", "-std=c++20", "-fPIC", "-shared", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-DSIMT_RUNTIME"]
    includes = [f"-I{folder}" for folder in (csrc / "cuda", csrc / "include", SIMT)]
    source = probes.HERE / "probes.cu"
    subprocess.run([*_build.find_compiler(), *flags, *includes, "-x", "c++", source, "-o", output], check=True)
    return ctypes.CDLL(str(output))


SMALL = {
    rates: {"SHAPES": ((64, 32),), "SIDE": 32, "ITERATIONS": 1, "GRID_SYNCS": 2},
    decoders: {"TILES": 3, "WEIGHTS": 128 * 256 * 2},
    timing: {"SAMPLES": 2, "WARM_CALLS": 1, "graph_of": lambda call: call},
}


@pytest.mark.parametrize("name", ["launches", "delta_producer", "nest_producer", "small_products", "peaks"])
def test_measurements(card, library, monkeypatch, name):
    monkeypatch.setattr(probes, "kernels", lambda architecture: library)
    if name == "launches":
        monkeypatch.setattr(probes, "must", lambda code: None)  # a CPU holds fewer blocks at once
    for module, values in SMALL.items():
        for constant, value in values.items():
            monkeypatch.setattr(module, constant, value)
    if name == "peaks":
        monkeypatch.setattr(rates, "instruction_rates", lambda: iter(()))
    assert measurements.main(name) == 0
    rows = card()
    assert len(rows) == {"launches": 4, "delta_producer": 3, "nest_producer": 3, "small_products": 3, "peaks": 4}[name]
    assert all(row["predicted"] and row["outcome"] is not None and row["unit"] for row in rows)
    if name.endswith("producer"):
        assert {row["verdict"] for row in rows} <= {"go", "no-go"}


def test_a_decoder_that_is_wrong_is_not_timed(card, library, monkeypatch):
    monkeypatch.setattr(probes, "kernels", lambda architecture: library)
    monkeypatch.setattr(decoders, "WEIGHTS", 128 * 256)
    monkeypatch.setattr(probes, "total", lambda sums: 1)
    with pytest.raises(AssertionError, match="nest8 to registers, 2 bits: decoded to 1, not to"):
        next(decoders.nest_producer(lambda: None))


@needs_nvcc
@pytest.mark.parametrize("architecture", ["80", "90a"])
def test_the_probes_compile(architecture):
    assert probes.kernels(architecture).probe_delta


def test_cudnn_that_is_not_here_is_named(card, tmp_path):
    with pytest.raises(probes.CudnnNotFoundError, match="holds no libcudnn.so.9"):
        probes.cudnn(tmp_path)


def test_kernels_of_a_convolution_on_a_card(card, monkeypatch):
    monkeypatch.setattr(convolutions, "CONVOLUTIONS", ((1, 16, 4),))
    monkeypatch.setattr(convolutions, "kernels_of", lambda call: {"a copy": 1.0} if call() is not None else {})
    monkeypatch.setattr(timing, "graph_of", lambda call: call)
    (row,) = convolutions.hidden_copy(lambda: None)
    assert row["kernels"] == {"sliced": {"a copy": 1.0}, "copied": {"a copy": 1.0}} and row["outcome"] > 0


def content(cuda=1.0, triton=2.0, status="ok"):
    def times(us):
        lcs = dict.fromkeys(("cold_us", "p20_us", "p80_us", "warm_us", "eager_us"), us) | {
            "ratio": 1.0,
            "clock": "graph",
        }
        return [{"op": "an_op", "case": "a case", "tb_per_s": 2.0, "fraction": 0.5, "candidates": {"lcs": lcs}}]

    stages = [("an_op: cuda", status, []), ("an_op: triton", "ok", []), ("memcheck: cuda", "could not run", [])]
    stages += [("times of an_op: cuda", "ok", times(cuda)), ("times of an_op: triton", "ok", times(triton))]
    return {
        "date": "2026-12-01",
        "machine": {"gpu": "NVIDIA H200"},
        "stages": [{"stage": n, "status": s, "seconds": 1.0, "rows": r} for n, s, r in stages],
    }


def test_which_back_end_is_used_follows_the_times():
    assert report.fastest(content()) == "cuda" and report.fastest(content(3.0)) == "triton"
    assert report.checked(content()) == ["cuda", "triton"]
    for stage, status in ((2, "timed out"), (3, "no time left")):  # a tool's, times
        found = content()
        found["stages"][stage]["status"] = status
        assert report.checked(found) == ["cuda", "triton"]
    assert report.checked(content(status="timed out")) == ["triton"]
    assert report.checked(content(status="failed")) == ["triton"] and report.fastest(content(status="failed")) is None
    lines = report.table(content()).splitlines()
    assert "  an_op, a case: 2.00 TB/s, 50% of the copy's bandwidth" in lines
    assert any("cold L2        1.0 us [1.0 .. 1.0] by graph" in line for line in lines)
    outcome = timing.outcome("a thing", "us", 1.5, 2.0, verdict="go")
    assert report._row(outcome) == ["a thing: 2 us (predicted 1.5)", "  verdict go"]


def test_what_is_known_of_the_back_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(_measured, "FOLDERS", (tmp_path / "none", tmp_path))
    for text, expected in (
        (None, ["not yet run on a GPU"] * 2),
        (content(), ["passed its tests on NVIDIA H200, 2026-12-01" + more for more in ("; the faster there", "")]),
        (content(status="failed"), [f"{p} its tests on NVIDIA H200, 2026-12-01" for p in ("did not pass", "passed")]),
    ):
        if text:
            text |= {"checked": report.checked(text), "fastest": report.fastest(text)}
            report.write(text, tmp_path)
        _measured.latest.cache_clear()
        assert [_measured.words(backend) for backend in ("cuda", "triton")] == expected
    _measured.latest.cache_clear()
