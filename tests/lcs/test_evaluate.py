import json

import pytest
import torch
from PIL import Image

from lcs import checkpoint, evaluate
from lcs import measure as speed
from lcs.checkpoint import CheckpointError
from lcs.config import TrainConfig
from lcs.levels import Level
from lcs.network import build, load_data
from lcs.plot import plot
from lcs.rundir import RunError
from lcs.table import print_table
from lcs.train import train


def make_run(folder, **changes):
    settings = {"data": "synthetic", "image_size": 16, "limit": 20, "batch_size": 8, "epochs": 1, "device": "cpu"}
    return train(TrainConfig(**{**settings, "out": folder, "threads": 1, "evaluation_interval": 0, **changes}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "line": make_run(folder / "line"),
        "target": make_run(folder / "target", method="target", target_density=0.1),
        "dense": make_run(folder / "dense", method="dense"),
    }


def test_default_densities_are_the_papers_grid():
    grid = [0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0]
    assert evaluate.values_of(TrainConfig()) == grid
    assert evaluate.values_of(TrainConfig(density=(0.005, 0.05))) == [0.005, 0.025, 0.05]
    assert evaluate.values_of(TrainConfig(method="target", target_density=0.3)) == [0.3]
    assert evaluate.values_of(TrainConfig(method="dense")) == [1.0]


def test_measure_counts_as_a_plain_loop_does(tiny):
    config = tiny(precision="fp64").resolved()
    data = load_data(config)
    subspace = build(config, data)
    level = Level(0.3, 0.3)
    subspace.model.train()
    sums = evaluate.measure(subspace, data.test, level, batch_size=7)
    assert subspace.model.training
    images, labels = data.test.batch(range(20), epoch=0, seed=0, augment=False)
    with torch.no_grad(), subspace.at(level):
        logits = subspace.model.eval()(images.double())
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert sums[0] == (logits.argmax(1) == labels).sum()
    assert abs(sums[1] - losses.sum()) <= 2 * 20 * torch.finfo(torch.float64).eps * losses.sum()
    parts = [evaluate.measure(subspace, data.test, level, batch_size=7, rank=r, world_size=3) for r in range(3)]
    assert sum(part[0] for part in parts) == sums[0]


def test_rows_with_baselines(runs):
    found = evaluate.evaluate(runs["line"], [0.1, 1.0], targets=[runs["target"]], dense=runs["dense"])
    assert [(row.value, row.alpha) for row in found.rows] == [(0.1, 0.1), (1.0, 1.0)]
    assert [(row.value, row.alpha) for row in found.targets] == [(0.1, 0.0)]
    assert found.dense.value == 1.0 and found.dense.sparsity == 0.0
    assert (found.step, found.images, found.method) == (3, 20, "lcs_l")
    for row in [*found.rows, *found.targets, found.dense]:
        assert row.accuracy * 20 == pytest.approx(round(row.accuracy * 20), abs=1e-12)
    assert found.rows[0].stored_bytes < found.rows[1].stored_bytes
    assert found.rows[0].sparsity == found.targets[0].sparsity


def test_sparsity_is_the_papers(runs):
    """Of cPreResNet20: 96.15, 93.68, 88.75 and 49.31 %, truncated counts: at most 21 weights apart."""
    found = evaluate.evaluate(runs["line"], [0.025, 0.05, 0.1, 0.5])
    for row, papers in zip(found.rows, (0.9615, 0.9368, 0.8875, 0.4931), strict=True):
        assert abs(row.sparsity - papers) <= 21 / 216_752 + 0.00005


def test_evaluating_twice_gives_the_same_numbers(runs):
    assert evaluate.evaluate(runs["line"], [0.5]) == evaluate.evaluate(runs["line"], [0.5], batch_size=256)


def test_training_reports_the_same_accuracy(tmp_path):
    run = make_run(tmp_path / "run", evaluation_interval=1)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    reported = [(line["density"], line["accuracy"]) for line in lines if line["kind"] == "test"]
    found = evaluate.evaluate(run, [0.025, 1.0])
    assert reported == [(row.value, row.accuracy) for row in found.rows]


@pytest.mark.parametrize("log_x", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize("baselines", [False, True], ids=["alone", "with baselines"])
def test_json_table_and_plot(runs, tmp_path, capsys, log_x, baselines):
    beside = {"targets": [runs["target"]], "dense": runs["dense"]} if baselines else {}
    found = evaluate.evaluate(runs["line"], [0.1, 1.0], **beside)
    values = json.loads(found.to_json())
    assert [row["value"] for row in values["rows"]] == [0.1, 1.0]
    assert (values["dense"] is not None) == baselines
    print_table(found)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("density", "sparsity", "KiB", "lcs_l"))
    assert ("dense" in shown.splitlines()[-2]) == baselines
    plot(found, tmp_path / "plot.png", log_x=log_x)
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (1050, 660)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="absent: holds no run"):
        evaluate.evaluate(tmp_path / "absent")


def test_nothing_trained_yet(runs, tmp_path):
    (tmp_path / "config.yaml").write_text((runs["line"] / "config.yaml").read_text())
    with pytest.raises(RunError, match="has no checkpoint yet"):
        evaluate.evaluate(tmp_path)


def test_damaged_checkpoint_is_told(tmp_path):
    run = make_run(tmp_path / "run", epochs=2)
    newest = checkpoint.paths(run / "checkpoints")[0]
    newest.write_bytes(b"")
    with pytest.warns(UserWarning, match=f"damaged, taking the checkpoint before: .*{newest.name}"):
        assert evaluate.evaluate(run, [1.0]).step == 3


def test_damaged_checkpoints(tmp_path):
    run = make_run(tmp_path / "run")
    for path in checkpoint.paths(run / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        evaluate.evaluate(run)


def test_baselines_must_be_what_they_are_called(runs):
    with pytest.raises(RunError, match="dense: is a dense run, a target run is wanted here"):
        evaluate.evaluate(runs["line"], [1.0], targets=[runs["dense"]])
    with pytest.raises(RunError, match="target: is a target run, a dense run is wanted here"):
        evaluate.evaluate(runs["line"], [1.0], dense=runs["target"])


def test_baseline_of_other_data(runs, tmp_path):
    other = make_run(tmp_path / "other", method="dense", limit=10)
    with pytest.raises(RunError, match="other: cannot be compared: its limit is 10, the evaluated run's is 20"):
        evaluate.evaluate(runs["line"], [1.0], dense=other)


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_density_out_of_range(runs, density):
    with pytest.raises(ValueError, match=r"density must lie in \[0, 1\]"):
        evaluate.evaluate(runs["line"], [density])


def test_unknown_device(runs):
    with pytest.raises(RunError, match="device: 'toaster' is not a PyTorch device"):
        evaluate.evaluate(runs["line"], [1.0], device="toaster")


STRUCTURED = [{"method": m} for m in ("lcs_l", "lcs_p", "us", "ns", "dense")] + [
    {"method": "target", "target_width": 0.5}
]


@pytest.mark.parametrize("settings", STRUCTURED, ids=lambda settings: settings["method"])
def test_structured_runs(tmp_path, capsys, settings):
    run = make_run(tmp_path / "run", compression="structured", evaluation_interval=1, **settings)
    found = evaluate.evaluate(run)
    grid = {"dense": [1.0], "target": [0.5], "ns": [0.25, 0.5, 0.75, 1.0]}
    widths = grid.get(settings["method"], [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])
    assert found.unit == "width" and [row.value for row in found.rows] == widths
    assert all(row.macs and row.stored_bytes < row.dense_bytes for row in found.rows if row.value < 1)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tested = {line["width"]: line["accuracy"] for line in lines if line["kind"] == "test"}
    assert tested.items() <= {row.value: row.accuracy for row in found.rows}.items() and tested
    print_table(found)
    assert "MMACs" in capsys.readouterr().out


def test_structured_runs_are_timed_from_one_buffer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    monkeypatch.setattr(speed, "ROUNDS", (3, 3))
    found = evaluate.evaluate(make_run(tmp_path / "run", compression="structured"), [0.25, 1.0], measure_batch=2)
    low, high = (row.resident_bytes for row in found.speed.rows)
    assert low < high < 1.01 * low  # the norms' scales and shifts, and the classifier's inputs
    assert all(row.packed_layers == row.compressed_layers == 22 and row.speedup for row in found.speed.rows)
    print_table(found)
    assert "packed" in capsys.readouterr().out
    plot(found, tmp_path / "plot.png")


QUANTIZED = {"lcs_l": ("group", {}), "lcs_p": ("group", {}), "target": ("batch", {"target_bits": 4})}


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_runs_by_the_papers_rules(tmp_path, method):
    norm, settings = QUANTIZED[method]
    run = make_run(
        tmp_path / "run", compression="quantized", preset="paper", method=method, warmup_fraction=0.4, **settings
    )
    config, data, subspace, _ = evaluate.load_run(run)
    assert (config.norm, config.norm_place, config.lr_warmup) == (norm, "after", "five")
    assert config.bits_drawn == ("per_layer" if method == "lcs_p" else None)
    block = subspace.model.layer2[0]
    folds = [block.conv1.folded is block.norm1, block.conv3.folded is block.norm3]
    assert folds == [method == "target"] * 2 and block.conv1.input_known
    levels = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (levels[-1]["mixed"] is not None) == (method == "lcs_p") and levels[0]["mixed"] is None
    found = evaluate.evaluate(run)
    assert [row.value for row in found.rows] == ([4] if method == "target" else [3, 4, 5, 6, 7, 8])
