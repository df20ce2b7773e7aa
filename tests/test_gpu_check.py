"""What `make gpu-check` does on a card, as far as a machine without one can show it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lcs_kernels.benchmarks import gpu_check
from lcs_kernels.benchmarks.gpu import correctness, graphs, report, sanitizer, stages, training
from lcs_kernels.benchmarks.gpu.stages import Stage

from lcs_kernels import _triton, ops

from .conftest import part_of

ROOT = Path(__file__).parents[1]
NOTE = "import os; open(os.environ['LCS_STAGE_RESULT'], 'a').write({!r} + '\\n'); "  # as `note`, without torch
A_ROW = NOTE.format('{"a": 1.5}')
MACHINE = NOTE.format('{"gpu": "NVIDIA H200", "torch": "2.11.0"}')


def stage(code, seconds=60.0, name="planted"):
    return Stage(name, ["-c", code], seconds)


def soon(seconds=60.0):
    return time.monotonic() + seconds


def test_without_a_card(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu_check.py", "--out", tmp_path]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "LCS_CUDA_BACKEND": "cuda"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("gpu-check: nothing was checked: torch ") and "sees no GPU" in done.stderr
    assert not done.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "status", "output"),
    [
        (A_ROW, "ok", None),
        (A_ROW + "print('x is not y'); raise SystemExit(1)", "failed", "x is not y"),
        (A_ROW + "raise ValueError('an illegal address')", "failed", "ValueError: an illegal address"),
        (A_ROW + "print('no tool'); raise SystemExit(3)", "could not run", "no tool"),
        (A_ROW + "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)", None),
        (A_ROW + "print('last words'); import time; time.sleep(100)", "timed out", "last words"),
    ],
    ids=["ok", "fails", "raises", "cannot", "crashes", "hangs"],
)
def test_a_stage_is_lost_alone(code, status, output):
    begin = time.monotonic()
    found = stages.run(stage(code, 6 if status == "timed out" else 60), soon())
    assert (found["stage"], found["status"], found["rows"]) == ("planted", status, [{"a": 1.5}])
    assert time.monotonic() - begin < 60
    assert output is None or found["output"][-1] == output
    assert ("output" in found) == (status != "ok")


def test_what_a_stage_started_ends_with_it(tmp_path):
    mark = tmp_path / "alive"
    code = f"import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 3; touch {mark}']); time.sleep(100)"
    assert stages.run(stage(code, 1), soon())["status"] == "timed out"
    time.sleep(3)
    assert not mark.exists()


def test_stages_end_with_the_budget():
    found = stages.run_together([stage("import time; time.sleep(100)"), stage("")], soon(2), at_once=1)
    assert [f["status"] for f in found] == ["timed out", "no time left"]


def test_every_op_is_checked_on_each_of_its_back_ends():
    names = [s.name for together in gpu_check.plan() for s in together]
    for op in ops.names():
        assert any(name.startswith((f"{op}: ", f"{op} 1 of ")) for name in names), op
        assert Path(correctness.test_file(op, "ops")).is_file()
    for op in ("interpolate_prune", "interpolate_prune_foreach"):
        assert f"{op}: cuda" in names and f"{op}: triton" in names
    assert "quantize: triton" in names and "sparse_pack: reference" in names
    for op in _triton.OPS:
        assert f"{op}: triton in tiles" in names and f"times of {op}: triton" in names
        assert Path(correctness.test_file(op, "triton")).is_file()


def test_parts_hold_every_test_once():
    for parts in (1, 2, 3, 7):
        assert sum((part_of(list(range(100)), f"{i}/{parts}") for i in range(1, parts + 1)), []) == list(range(100))


def checked(*options):
    code = "import sys; from lcs_kernels.benchmarks.gpu import correctness; sys.exit(correctness.main(*sys.argv[1:]))"
    return stages.run(Stage("ops", ["-c", options[0] + code, *options[1:]], 200), soon(200))


@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("quantize", ["ops", "cpu", "-k", "stride", "--twins", "--part=1/1"]),
        (
            "packed_linear",
            ["ops", "cpu", "-k", "gradients or any_batch or any_shape or fewer or extreme", "--first", "--twins"],
        ),
        ("packed_conv2d", ["ops", "cpu", "-k", "codes_of_fewer or spoils or step_or_an_end", "--first", "--twins"]),
        ("interpolate_prune", ["triton", "cpu", "-k", "stride or bad_arguments"]),
        ("interpolate_prune", ["ops", "cpu", "--first", "--largest=20000", "--most=5"]),
    ],
    ids=["twins", "twins of a packed op", "of another layout", "tiles", "small"],
)
def test_an_ops_tests_run_on_a_device(op, options, monkeypatch):
    """On the CPU, with Triton's interpreter or without."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = checked("", op, "triton", *options)
    assert found["status"] == "ok", found
    counts = found["rows"][-1]
    assert counts["passed"] >= 3 and counts["failed"] == 0
    assert counts["calls_on_the_device"] >= (3 if options[0] == "ops" else 0)


def test_a_wrong_result_on_the_device_is_found():
    plant = """
import tests.on_device as module, torch
right = module.run_on
def wrong(*args):
    found = right(*args)
    found[0].view(torch.int32).flatten()[-1:].bitwise_xor_(1)
    return found
module.run_on = wrong
"""
    found = checked(plant, "interpolate_prune", "cuda", "ops", "cpu", "-k", "half_weights or stride")
    assert found["status"] == "failed"
    assert "values differ" in found["rows"][1]["failure"] and found["rows"][-1]["failed"] >= 3


@pytest.mark.parametrize("together", [True, False])
def test_levels_between_replays(together, monkeypatch):
    shapes = [(7,), (0,), (130, 33)]
    assert graphs.check("cpu", together, shapes) == []
    reference = graphs.op.reference
    monkeypatch.setattr(graphs.op, "reference", lambda w0s, w1s, alpha, keep: reference(w0s, w1s, alpha, keep + 1))
    wrong = graphs.check("cpu", together, shapes)
    assert len(wrong) >= 3 and "tensors differ" in wrong[0]


def test_training_finds_the_layer_where_it_is_not_installed():
    (found,) = (s for together in gpu_check.plan() for s in together if s.name == "training: cuda")
    other = "import sys; sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder)]"
    code = f"{other}; import lcs; print(lcs.__file__)"
    command, environment = [sys.executable, "-c", code], {**os.environ, **found.environment}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True).stdout
    assert Path(shown.strip()) == ROOT / "python" / "lcs" / "__init__.py"


def test_training_steps_are_timed(monkeypatch):
    monkeypatch.setattr(training, "STEPS", 2)
    (row,) = training.rows("cpu", (("cpreresnet20", 2, 16, 1.05),))
    assert row["case"].startswith("cPreResNet20, batch 2, 16x16") and row["wanted"] == 1.05
    assert row["ratio"] == row["lcs_ms"] / row["dense_ms"] and row["lcs_images_per_s"] * row["lcs_ms"] == pytest.approx(
        2e3
    )


def run_check(monkeypatch, tmp_path, *plan):
    monkeypatch.setattr(gpu_check, "module", lambda name, *_: ["-c", MACHINE] if name == "card" else [])
    monkeypatch.setattr(gpu_check, "plan", lambda: plan)
    return gpu_check.main(["--out", str(tmp_path), "--budget", "30"])


def test_all_that_was_found_is_kept(monkeypatch, tmp_path, capsys):
    hangs = stage(A_ROW + "import time; time.sleep(100)", 4, "hangs")
    no_tool = stage("print('no compute-sanitizer'); raise SystemExit(3)", name="memcheck")
    fails = stage("print('1 of 2 differ'); raise SystemExit(1)", name="prune")
    assert run_check(monkeypatch, tmp_path, [hangs, no_tool], [fails]) == 1
    text = (tmp_path / "h200.txt").read_text()
    assert text in capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].endswith("gpu NVIDIA H200, torch 2.11.0") and lines[1] == "NOT ok"
    for words in ("hangs: timed out (4 s)", "  a 1.5", "memcheck: could not run", "  | no compute-sanitizer"):
        assert any(line.startswith(words) for line in lines), words
    assert lines[-1] == "  | 1 of 2 differ"
    assert (tmp_path / "h200.json").exists()


def test_a_missing_tool_is_no_failure(monkeypatch, tmp_path):
    assert run_check(monkeypatch, tmp_path, [stage("raise SystemExit(3)")], [stage("")]) == 0
    assert report.file_name("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", 0, ""),
        ("echo 'Invalid __global__ write'; echo '========= ERROR SUMMARY: 2 errors'", 1, "Invalid __global__ write"),
        ("echo 'Device not supported'; exit 1", 3, "could not run: memcheck gave no summary, exit code 1"),
        ("sleep 20", 3, "could not run: did not end within 1 s"),
    ],
    ids=["nothing", "errors", "refuses", "slow"],
)
def test_what_the_sanitizer_says(script, code, words, monkeypatch, tmp_path, capsys):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LCS_STAGE_RESULT", str(tmp_path / "rows"))
    assert sanitizer.run(["true"], "memcheck", 1) == code
    assert words in capsys.readouterr().out


def test_hazards_are_counted():
    said = "RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)"
    assert re.search(sanitizer.SUMMARY["racecheck"], said)[1] == "2"


def test_without_a_sanitizer(monkeypatch, capsys):
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    assert sanitizer.run(["true"], "memcheck", 1) == 3 and "no compute-sanitizer" in capsys.readouterr().out
