import json
from dataclasses import replace

import pytest
from PIL import Image

from lcs import checkpoint
from lcs import report as module
from lcs.cli import main
from lcs.config import TrainConfig
from lcs.evaluate import evaluate
from lcs.report import Report, plot_report, print_report, report
from lcs.rundir import RunError
from lcs.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def make(name, **changes):
        settings = {"data": "synthetic", "image_size": 16, "limit": 20, "batch_size": 8, "epochs": 1, "device": "cpu"}
        return train(
            TrainConfig(**{**settings, "out": folder / name, "threads": 1, "evaluation_interval": 0, **changes})
        )

    return {
        "line": make("line", density=(0.2, 1.0)),
        "target": make("target", method="target", target_density=0.2),
        "widths": make("widths", compression="structured", method="us", width=(0.5, 1.0)),
        "dense": make("dense", method="dense"),
        "other": make("other", method="dense", limit=10),
    }


@pytest.fixture(scope="module")
def found(runs):
    return report([runs["line"], runs["target"], runs["widths"], runs["dense"]])


def test_numbers_are_those_of_evaluate(runs, found):
    assert [run.rows for run in found.runs] == [evaluate(runs[n]).rows for n in ("line", "target", "widths", "dense")]
    assert json.loads((runs["line"] / "evaluation.json").read_text())["rows"][0]["value"] == 0.2


def test_what_is_evaluated_is_not_evaluated_again(runs, found, monkeypatch):
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    assert report([runs["line"], runs["dense"]]).runs == [found.runs[0], found.runs[3]]


def test_an_evaluation_of_an_older_checkpoint_is_made_anew(runs, found):
    path, told = runs["line"] / "evaluation.json", []
    path.write_text(replace(found.runs[0], step=1, rows=[]).to_json())
    assert report([runs["line"]], tell=told.append).runs == [found.runs[0]]
    assert told == [f"evaluating {runs['line']}"]


def test_a_run_directory_that_cannot_be_written_is_named_before_evaluating(runs, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (runs["other"] / "evaluation.json").unlink(missing_ok=True)
    monkeypatch.setattr(checkpoint, "check_writable", refuse)  # modes of files do not bind root
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("evaluated before it looked"))
    with pytest.raises(RunError, match="other/evaluation.json: cannot be written: Permission denied; make the run"):
        report([runs["other"]])


@pytest.mark.parametrize("damage", ["", "[]", '{"run": "x"}'])
def test_a_damaged_evaluation_is_named_and_stays(runs, found, damage):
    path = runs["line"] / "evaluation.json"
    intact = path.read_text()
    path.write_text(damage)
    with pytest.raises(RunError, match="evaluation.json: is damaged or of another version"):
        report([runs["line"]])
    assert path.read_text() == damage
    path.write_text(intact)


def test_tables(found, capsys):
    print_report(found)
    shown = capsys.readouterr().out
    density, width = shown.split("accuracy at each width")
    assert "line" in density and "target" in density and "widths" not in density
    assert "widths" in width and f"dense: dense {found.runs[3].rows[0].accuracy:.2%}" in width
    row = next(line for line in density.splitlines() if " 0.2 " in line)
    assert f"{found.runs[0].rows[0].accuracy:.2%}" in row and f"{found.runs[1].rows[0].accuracy:.2%}" in row


def test_a_dense_run_that_was_pruned_is_not_taken_for_the_dense_one(runs, found, tmp_path):
    whole = (runs["dense"] / "evaluation.json").read_text()
    try:
        (runs["dense"] / "evaluation.json").write_text(evaluate(runs["dense"], [0.05]).to_json())
        with pytest.raises(RunError, match="is of other levels than density 1, .* lcs eval"):
            report([runs["line"], runs["dense"]])
        (runs["dense"] / "evaluation.json").write_text(evaluate(runs["dense"], [0.05, 1.0]).to_json())
        plotted = report([runs["line"], runs["dense"]])
        assert module._whole(plotted.runs[1]) == found.runs[3].rows[0]
    finally:
        (runs["dense"] / "evaluation.json").write_text(whole)


@pytest.mark.filterwarnings("error")
def test_a_run_whose_inputs_are_not_rounded_yet_says_so(tmp_path):
    settings = {"data": "synthetic", "image_size": 16, "limit": 8, "batch_size": 8, "device": "cpu", "threads": 1}
    more = {"compression": "quantized", "warmup_fraction": 1.0, "epochs": 1, "evaluation_interval": 0}
    run = train(TrainConfig(**settings, **more, out=tmp_path / "run"))
    with pytest.warns(UserWarning, match="inputs are not rounded yet"):
        evaluate(run, [3])


@pytest.mark.parametrize("log_x", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize(
    "over, names", [("level", (0, 1, 3)), ("level", (3,)), ("bytes", (0, 1, 2, 3)), ("macs", (2, 3))]
)
def test_plots(found, tmp_path, over, names, log_x):
    plot_report(Report([found.runs[i] for i in names]), tmp_path / "plot.png", over=over, log_x=log_x)
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (1050, 660)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_no_axis_in_common(found, tmp_path):
    with pytest.raises(RunError, match="levels of density and width have no axis in common; give --over macs"):
        plot_report(found, tmp_path / "plot.png")
    with pytest.raises(
        RunError, match="line: its levels of density leave the operations as they are; give --over bytes"
    ):
        plot_report(found, tmp_path / "plot.png", over="macs")


def test_runs_that_cannot_be_compared(runs, tmp_path):
    with pytest.raises(RunError, match="other: cannot be compared: its limit is 10, that of .*line is 20"):
        report([runs["line"], runs["other"]])
    with pytest.raises(RunError, match="two runs are named line; rename"):
        report([runs["line"], runs["line"]])
    with pytest.raises(RunError, match="holds no run"):
        report([tmp_path])
    with pytest.raises(RunError, match="at least one run"):
        report([])


def test_command(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs["widths"]), str(runs["dense"]), "--over", "macs"]) == 0
    assert "plot: report.png" in capsys.readouterr().out
    assert [run["method"] for run in json.loads((tmp_path / "report.json").read_text())["runs"]] == ["us", "dense"]
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["report", str(runs["line"]), "--json", "absent/file"]) == 1
    assert "absent/file: cannot be written" in capsys.readouterr().err
    assert main(["report", str(runs["line"]), "--batch-size", "0"]) == 2
    assert main(["report"]) == 1
    assert "at least one run" in capsys.readouterr().err
