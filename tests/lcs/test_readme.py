"""What the README shows is what the code does."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from lcs_kernels.benchmarks.losses import CPUS, losses_table

import lcs
import lcs_kernels
from lcs import models
from lcs.cli import COMMANDS, EvaluateArguments, FreezeArguments, ReportArguments, parse_train
from lcs.config import presets_table
from lcs_kernels import ops

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMAND_LINES = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("lcs ")]


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 7])
    names = {
        "model": models.build("cpreresnet20", 10, seed=0),
        "loader": [(images, labels)] * 2,
        "criterion": torch.nn.functional.cross_entropy,
        "w0": torch.randn(40),
        "w1": torch.randn(40),
    }
    before = {name: p.detach().clone() for name, p in names["model"].named_parameters()}
    for block in blocks("python"):
        exec(block, names)
    assert names["y"].shape == (2, 10) and names["y"].isfinite().all()
    lines = names["subspace"].lines()
    assert {"conv1", "fc", "layer1.0.conv1"} <= lines.keys()
    for name, layer in lines.items():
        assert not torch.equal(layer.weight, before[f"{name}.weight"]), name
        assert not torch.equal(layer.weight_1, layer.weight), name
    assert names["w"].count_nonzero() == 4
    assert names["y_sparse"].shape == names["y_packed"].shape == (4, 64)


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def ratios(result: str, case: str, peer: str) -> list[str]:
    contents = (json.loads((RESULTS / f"{cpu}-2-cores-{result}.json").read_text()) for cpu in CPUS)
    rows = [row for content in contents for row in content["rows"] if f"{case}," in f"{row['case']},"]
    found = [c["ratio"] for row in rows for c in row["candidates"] if c["name"] == peer]
    return [f"{ratio:.2f}x" for ratio in found]


@pytest.mark.parametrize(
    ("result", "level", "peer", "words"),
    [
        ("network", "density 0.1", "torch.compile", "the dense network by torch.compile"),
        ("network", "density 0.1", "deepsparse", "DeepSparse at this density"),
        ("bits-network", "4 bits", "openvino-int8", "OpenVINO int8, of 8 bits"),
        ("width-network", "width 0.5", "torch.compile", "a network of that width, by torch.compile"),
    ],
)
def test_speeds_are_those_of_the_results(result, level, peer, words):
    cells = [" / ".join(ratios(result, f"{n} x 3 x 224 x 224, {level}", peer)) for n in (1, 16)]
    assert f"| {words} | {cells[0]} | {cells[1]} |" in README


def test_every_row_that_loses_is_shown():
    table = losses_table(RESULTS)
    assert table in (RESULTS / "README.md").read_text() and "](benchmarks/results/README.md)" in README
    assert "| **0." in table and "| **1." not in table


def test_every_public_name_is_listed():
    text = README[README.index("## Names") : README.index("## Training and evaluating")]
    for name in lcs.__all__:
        assert f"`lcs.{name}`" in text, name
    for name in set(lcs_kernels.__all__) - set(ops.names()) - {"backends"}:
        assert f"`lcs_kernels.{name}`" in text or f"`{name}`" in text, name
    for name in lcs_kernels.formats.__all__:
        assert f"`{name}`" in text, name


def test_presets_are_listed():
    assert presets_table() in README


def test_every_command_is_shown():
    assert {line.split()[1] for line in COMMAND_LINES} | {"demo"} == COMMANDS.keys()


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_line_is_understood(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, *arguments = shlex.split(line, comments=True)[1:]
    if command == "train":
        assert parse_train(arguments).out.parent == Path("runs")
    elif command == "eval":
        import tyro

        parsed = tyro.cli(EvaluateArguments, args=arguments, config=(tyro.conf.PositionalRequiredArgs,))
        assert parsed.run.parent == Path("runs") and parsed.problem() is None
    elif command == "freeze":
        import tyro

        parsed = tyro.cli(FreezeArguments, args=arguments, config=(tyro.conf.PositionalRequiredArgs,))
        assert parsed.run.parent == Path("runs") and parsed.out.suffix == ".lcs"
    elif command == "report":
        import tyro

        parsed = tyro.cli(ReportArguments, args=arguments, config=(tyro.conf.PositionalRequiredArgs,))
        assert {run.parent for run in parsed.runs} == {Path("runs")}
    elif command == "bench":
        from lcs_kernels.benchmarks.__main__ import parse
        from lcs_kernels.benchmarks.peer_worker import ENGINES

        parsed = parse(arguments)
        assert parsed.calibrate or (parsed.op and all(peer.partition("=")[0] in ENGINES for peer in parsed.peer))
    else:
        assert not arguments
