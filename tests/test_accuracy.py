import json
from pathlib import Path

import pytest
from lcs_kernels.benchmarks import accuracy

QUICK = ["--data", "digits", "--limit", "64", "--epochs", "1", "--threads", "2"]


def test_runs_are_trained_once_and_compared(tmp_path):
    options = ["--out", str(tmp_path), "--only", "dense", "bits-target3", *QUICK]
    accuracy.main(options)
    page = (tmp_path / "README.md").read_text()
    assert "| bits | target3 |" in page and "the dense network's is" in page
    found = json.loads((tmp_path / "bits.json").read_text())["runs"]
    assert [(Path(run["run"]).name, [row["value"] for row in run["rows"]]) for run in found] == [
        ("bits-target3", [3]),
        ("dense", [1]),
    ]
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*")}
    assert len(written) >= 2
    accuracy.main(options)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*")}
    assert page == (tmp_path / "README.md").read_text()


def test_what_cannot_train_ends_it(tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        accuracy.main(["--out", str(tmp_path), "--data", "cifar10", "--data-root", str(tmp_path / "none")])
    assert ended.value.code and "cifar10" in capfd.readouterr().err
