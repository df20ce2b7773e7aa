import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lcs_kernels.benchmarks import __main__ as bench

import lcs
from lcs import demo as demonstration
from lcs import evaluate, measure
from lcs import report as reports
from lcs.cli import main, parse_train
from lcs.config import PRESETS
from lcs.demo import DemoError
from lcs.evaluate import Evaluation, Row
from lcs.rundir import RunDirectory

TINY = ["--data", "synthetic", "--image-size", "16", "--limit", "20", "--batch-size", "8", "--epochs", "1"]
TINY += ["--threads", "1", "--device", "cpu", "--evaluation-interval", "0"]


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("train", "eval", "freeze", "doctor", "demo"))


@pytest.mark.parametrize("command", ["train", "eval", "freeze", "doctor", "demo"])
def test_help_of_each_command(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"lcs {command}" in capsys.readouterr().out


def test_train_help_tells_the_presets_apart(capsys):
    main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{option.name}: {option.default} | {option.paper}" in shown for option in PRESETS)


@pytest.mark.parametrize(
    "argv, word",
    [
        ([], "a command is missing"),
        (["trian"], "trian"),
        (["train", "--epoks", "3"], "epoks"),
        (["train", "--epochs", "three"], "epochs"),
        (["train", "--epochs", "0"], "epochs: Input should be greater than 0, got 0"),
        (["train", "--lr", "-1"], "lr: Input should be greater than or equal to 0,"),
        (["train", "--method", "target", "--target-width", "0.5"], "give --compression structured"),
        (["train", "--density", "0.5", "1.5"], "density"),
        (["train", "--density", "0.9", "0.1"], "density"),
        (["train", "--method", "target"], "target_density"),
        (["train", "--config"], "--config"),
        (["train", "--config", "absent.yaml"], "absent.yaml"),
        (["eval"], "run"),
        (["eval", "run", "--densities", "1.5"], "densities"),
        (["eval", "run", "--widths", "0"], "widths"),
        (["eval", "run", "--bits", "9"], "bits"),
        (["eval", "run", "--batch-size", "0"], "batch_size"),
        (["eval", "run", "--measure-batch", "0"], "measure_batch"),
        (["eval", "run", "--measure-batch", "16"], "measure_batch: nothing is timed; give --measure"),
        (["freeze"], "run"),
        (["bench", "--threads", "0"], "argument --threads: must be at least 1, got 0"),
        (["bench", "--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        (["bench", "--rounds", "many"], "many"),
        (["doctor", "--yaml"], "--yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_exits_2_and_names_it(argv, word, capsys):
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert word in printed.out + printed.err


def test_wrong_yaml_exits_2_naming_file_and_key(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("epoks: 3")
    assert main(["train", "--config", str(file)]) == 2
    assert f"lcs train: {file}: epoks: no such setting; near it: epochs" in capsys.readouterr().err


def test_flags_override_yaml_and_preset_follows(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 0.3\nepochs: 7\npreset: default\nmethod: target")
    flags = ["--lr", "0.2", "--preset", "paper", "--target-density", "0.1"]
    config = parse_train(["--config", str(file), *flags]).resolved()
    assert (config.lr, config.epochs, config.keep_rounding, config.norm) == (0.2, 7, "truncate", "batch")


def test_contradiction_in_yaml_names_the_file(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("method: target")
    assert main(["train", "--config", str(file)]) == 2
    assert f"{file}: target_density: method target needs one" in capsys.readouterr().err


def test_train_and_eval(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "ROUNDS", (3, 3))
    run, numbers, picture = tmp_path / "run", tmp_path / "numbers.json", tmp_path / "plot.png"
    assert main(["train", *TINY, "--out", str(run)]) == 0
    assert f"run: {run}" in capsys.readouterr().out
    arguments = ["--densities", "0.1", "1", "--x-axis", "log", "--json", str(numbers), "--png", str(picture)]
    assert main(["eval", str(run), *arguments]) == 0
    assert [row["value"] for row in json.loads(numbers.read_text())["rows"]] == [0.1, 1.0]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert main(["eval", str(run), *arguments, "--measure", "--measure-batch", "3"]) == 0
    assert "speed-up" in capsys.readouterr().out
    speed = json.loads(numbers.read_text())["speed"]
    assert speed["batch"] == 3 and [row["value"] for row in speed["rows"]] == [0.1, 1.0]
    assert main(["eval", str(run), "--measure", "--measure-batch", "21"]) == 1
    assert "measure_batch: must lie in 1 to 20" in capsys.readouterr().err
    assert main(["eval", str(run)]) == 0
    assert len(json.loads((run / "evaluation.json").read_text())["rows"]) == 14
    assert (run / "evaluation.png").exists()
    assert main(["train", *TINY, "--out", str(run), "--overwrite"]) == 0
    assert not (run / "evaluation.json").exists()


def test_freeze_writes_a_file_that_loads(tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "model.lcs"
    assert main(["train", *TINY, "--compression", "structured", "--out", str(run)]) == 0
    assert main(["freeze", str(run), "--out", str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"{file.stat().st_size:,} bytes" in shown and "width 0.25 to 1" in shown
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(lcs.load(file)(x, width=0.5), evaluate.load_run(run, "cpu")[2].freeze()(x, width=0.5))
    assert main(["eval", str(file), "--widths", "0.5"]) == 1
    assert f"{file}: is a file, not the --out directory of lcs train; lcs.load('{file}')" in capsys.readouterr().err
    assert main(["freeze", str(run), "--out", str(tmp_path / "absent" / "model.lcs")]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
    assert main(["freeze", str(tmp_path / "absent"), "--out", str(file)]) == 1
    slimmed = ["--compression", "structured", "--method", "lec", "--out", str(tmp_path / "lec")]
    assert main(["train", *TINY, *slimmed]) == 0
    assert main(["freeze", str(tmp_path / "lec"), "--out", str(file)]) == 1
    assert "lcs.slim" in capsys.readouterr().err


def test_widths_of_a_structured_run(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *TINY, "--compression", "structured", "--method", "us", "--out", str(run)]) == 0
    assert main(["eval", str(run), "--widths", "1", "0.3"]) == 0
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    assert [row["value"] for row in rows] == [1.0, 0.3] and rows[1]["macs"] < rows[0]["macs"]
    assert main(["eval", str(run), "--densities", "0.5"]) == 1
    assert "has levels of width; give --widths" in capsys.readouterr().err


def test_bits_of_a_quantized_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "ROUNDS", (3, 3))
    run, target, dense = (tmp_path / name for name in ("run", "target", "dense"))
    quantized = ["train", *TINY, "--compression", "quantized", "--epochs", "2", "--warmup-fraction", "0.5"]
    assert main([*quantized, "--bits", "3", "5", "--nested", "--out", str(run)]) == 0
    assert main([*quantized, "--method", "target", "--target-bits", "4", "--out", str(target)]) == 0
    assert main(["train", *TINY, "--method", "dense", "--out", str(dense)]) == 0
    assert main(["eval", str(run), "--target", str(target), "--dense", str(dense)]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["unit"] == "bits" and [row["value"] for row in found["rows"]] == [3, 4, 5]
    stored = [row["stored_bytes"] for row in found["rows"]]
    assert stored == sorted(stored) and found["targets"][0]["value"] == 4 and found["dense"]["value"] == 32
    assert main(["eval", str(run), "--bits", "5", "3"]) == 0
    assert main(["eval", str(run), "--bits", "8"]) == 1
    assert "bits must lie in [3, 5], got 8" in capsys.readouterr().err
    assert main(["eval", str(run), "--measure"]) == 0
    speed = json.loads((run / "evaluation.json").read_text())["speed"]
    assert [row["value"] for row in speed["rows"]] == [3, 4, 5]
    assert all(row["packed_layers"] == row["compressed_layers"] > 0 for row in speed["rows"])


def test_failures_exit_1_with_one_line(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *TINY, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["train", *TINY, "--out", str(run)]) == 1
    assert capsys.readouterr().err == (
        f"lcs train: {run}: already holds a run; go on with --resume, replace it with --overwrite\n"
    )
    assert main(["eval", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert main(["train", "--data", "cifar10", "--out", str(tmp_path / "other")]) == 1
    assert "cifar10" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "command, flag", [("eval", "json"), ("eval", "png"), ("report", "json"), ("report", "png"), ("freeze", "out")]
)
@pytest.mark.parametrize(
    "place, reason", [("absent/file", "No such file"), ("file/file", "Not a dir"), ("", "Is a dir")]
)
def test_outputs_that_cannot_be_written_are_named_before_the_work(
    command, flag, place, reason, tmp_path, tiny, monkeypatch, capsys
):
    directory = RunDirectory(tiny().out)
    with directory.prepared(tiny().resolved()):
        pass
    (tmp_path / "file").write_text("")
    for module, name in ((evaluate, "evaluate"), (evaluate, "load_run"), (reports, "report")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("worked before it looked"))
    path = tmp_path / place
    assert main([command, str(directory.path), f"--{flag}", str(path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"lcs {command}: {path}: cannot be written: {reason}")
    assert shown.endswith(f"; name another file with --{flag}\n")


@pytest.mark.parametrize("place, reason", [("file/results.json", "File exists"), ("", "it is a folder")])
def test_results_that_cannot_be_written_are_named_before_measuring(place, reason, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(bench, "measure_all", lambda _: pytest.fail("measured before it looked"))
    path = tmp_path / place
    assert main(["bench", "--json", str(path)]) == 1
    assert capsys.readouterr().err == f"bench: {path}: cannot be written: {reason}; name another file or folder\n"


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{}", "holds no results (KeyError: 'machine')"),
        ("[]", "holds no results (TypeError"),
        ("rows", "holds no results (JSONDecodeError"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_without_results_is_named(content, reason, tmp_path, capsys):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert main(["bench", "--markdown", str(path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"bench: {path}: {reason}")
    assert shown.endswith("; name a file that `lcs bench --json` wrote\n")


@pytest.mark.parametrize(
    "model, size, more",
    [
        ("vgg19", 15, []),
        ("vgg19", 16, ["--compression", "structured"]),
        ("resnet18", 32, ["--compression", "structured"]),
    ],
)
def test_images_too_small_for_the_model_are_named_before_training(model, size, more, tmp_path, capsys):
    given = ["--model", model, "--image-size", str(size), *more, "--out", str(tmp_path / "run")]
    assert main(["train", *TINY, *given]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"lcs train: image_size: {model} with ") and shown.count("\n") == 1
    assert f"takes larger images than {size} x {size} pixels" in shown and "--image-size" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("images, batch_size", [(17, 8), (20, 1)])
def test_a_batch_too_small_for_batch_norms_is_named_before_training(images, batch_size, tmp_path, capsys):
    given = ["--model", "resnet18", "--image-size", "32", "--compression", "structured", "--method", "us"]
    given += ["--limit", str(images), "--batch-size", str(batch_size), "--out", str(tmp_path / "run")]
    assert main(["train", *TINY, *given]) == 1
    shown = capsys.readouterr().err
    assert f"batch_size: {batch_size} leaves 1 of {images} images to the last step of an epoch" in shown
    assert not (tmp_path / "run").exists()


def test_resume_takes_the_settings_of_the_run(tmp_path):
    run = tmp_path / "run"
    main(["train", *TINY, "--seed", "5", "--out", str(run)])
    resumed = parse_train(["--resume", "--out", str(run), "--threads", "2"])
    stored = RunDirectory(run).config()
    assert resumed == stored.model_copy(update={"resume": True, "threads": 2})
    assert main(["train", "--resume", "--out", str(run), "--lr", "0.7"]) == 1


def test_missing_package_exits_1_naming_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["train"]) == 1
    assert 'tyro, which is not installed: pip install "lcs-kernels[train]"' in capsys.readouterr().err


SERVE = """
import lcs, lcs.cli, lcs.doctor
from torch import nn
lcs.save(lcs.convert(nn.Sequential(nn.Conv2d(3, 8, 3)), lcs.Unstructured()).freeze(), "model.lcs")
lcs.load("model.lcs", model=nn.Sequential(nn.Conv2d(3, 8, 3)))
"""


def test_serving_needs_no_training_package(tmp_path):
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extra = re.search(r"^train = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)[1]
    imported = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    blocked = [imported.get(name, name) for name in re.findall(r'"([\w-]+)', extra)]
    assert "accelerate" in blocked
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n{SERVE}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_quick_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "ROUNDS", (3, 3))
    monkeypatch.setattr(demonstration, "DENSITIES", (0.1, 1.0))
    monkeypatch.setattr(demonstration, "QUICK", {"epochs": 1, "limit": 32, "device": "cpu"})
    for _ in range(2):
        assert main(["demo", "--quick", "--out", str(tmp_path / "demo")]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "demo" / "evaluation.png") in shown.replace("\n", "")
    found = json.loads((tmp_path / "demo" / "evaluation.json").read_text())
    for rows in (found["rows"], found["speed"]["rows"]):
        assert [row["value"] for row in rows] == list(demonstration.DENSITIES)
    assert "speed-up" in shown
    assert (tmp_path / "demo" / "evaluation.png").exists()


def test_demo_in_a_folder_that_cannot_be_written_names_a_flag_that_it_has(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--quick", "--out", str(tmp_path / "file" / "demo")]) == 1
    shown = capsys.readouterr().err
    assert "demo: cannot be written: Not a directory; choose another directory with --out" in shown


def test_demo_that_misses_its_accuracy_fails():
    def evaluated(accuracy):
        rows = [Row(density, density, accuracy[density], 0.1, 0.5, 1, 2) for density in (0.1, 1.0)]
        return Evaluation("runs/demo", "lcs_l", "density", 1, 100, rows, [], None)

    demonstration._check(evaluated({0.1: 0.95, 1.0: 0.97}))
    with pytest.raises(DemoError, match="runs/demo: test accuracy 94.00% at density 0.1, wanted 95%"):
        demonstration._check(evaluated({0.1: 0.94, 1.0: 0.97}))
