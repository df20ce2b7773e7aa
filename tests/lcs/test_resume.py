"""A run that is killed (SIGKILL) and resumed, several times over, ends with the bits of a run that never stopped."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lcs import checkpoint
from lcs.train import train

EPOCHS = 3


def command(out: Path, *flags: str) -> list[str]:
    settings = ["--data", "synthetic", "--image-size", "16", "--limit", "20", "--batch-size", "4", "--device", "cpu"]
    settings += ["--threads", "1", "--epochs", str(EPOCHS), "--checkpoint-interval", "2", "--evaluation-interval", "0"]
    return [sys.executable, "-m", "lcs", "train", *settings, "--out", str(out), *flags]


def lines(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def writing(out: Path) -> bool:
    directory = out / "checkpoints"
    return directory.exists() and any(directory.glob("*.tmp"))


def begun(out: Path) -> int:
    """When a run last began."""
    noted = out / "environment.json"
    return noted.stat().st_mtime_ns if noted.exists() else 0


def kill_when(process: subprocess.Popen, out: Path, moment: Callable[[], bool]) -> None:
    """Kills at `moment`, which may be short, of a process that has just started: made sure of while it is stopped."""
    before = begun(out)
    while process.poll() is None and begun(out) == before:
        time.sleep(0.01)
    while process.poll() is None:
        if moment():
            process.send_signal(signal.SIGSTOP)
            if moment():
                process.kill()
                process.wait()
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0)
    pytest.fail(f"the run ended before the moment to kill it: {process.stdout.read()}")


def start(out: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(command(out, *flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    from lcs.cli import parse_train

    out = tmp_path_factory.mktemp("whole") / "run"
    return train(parse_train(command(out)[4:]))


def digest(out: Path) -> str:
    return hashlib.sha256((out / "weights.safetensors").read_bytes()).hexdigest()


def test_killed_after_the_first_step_between_checkpoints_and_while_writing_one(uninterrupted, tmp_path):
    out = tmp_path / "run"
    checkpoints = out / "checkpoints"

    process = start(out)
    kill_when(process, out, lambda: lines(out) == 1 and not checkpoint.paths(checkpoints) and not writing(out))

    process = start(out, "--resume")
    kill_when(process, out, lambda: lines(out) == 3 and len(checkpoint.paths(checkpoints)) == 1 and not writing(out))
    assert checkpoint.load_newest(checkpoints)[1]["step"] == 2

    process = start(out, "--resume")
    kill_when(process, out, lambda: lines(out) >= 7 and writing(out))
    assert writing(out)
    checkpoint.load_newest(checkpoints)

    result = subprocess.run(command(out, "--resume"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "resuming at step" in result.stdout
    assert digest(out) == digest(uninterrupted)
    assert not writing(out)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 5 * EPOCHS + 1))
    assert (out / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()
    assert len(json.loads((out / "environment.json").read_text())) == 4


def test_resume_of_a_finished_run_changes_nothing(uninterrupted):
    before = digest(uninterrupted)
    (uninterrupted / "weights.safetensors").unlink()
    from lcs.cli import main

    assert main(["train", "--resume", "--out", str(uninterrupted)]) == 0
    assert digest(uninterrupted) == before


def test_killed_before_the_settings_are_written_it_starts_again(uninterrupted, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "config.yamlabc.tmp").write_bytes(b"model: cpre")
    from lcs.cli import main

    assert main(command(out, "--resume")[3:]) == 1
    assert main(command(out)[3:]) == 0
    assert digest(out) == digest(uninterrupted)
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
