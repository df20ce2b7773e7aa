"""The command `lcs`. Exit codes: 0 done, 2 wrong usage, 1 anything else that failed, with the reason on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lcs_kernels import LcsUnavailableError

from . import optional

if TYPE_CHECKING:
    from .config import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if not argv or argv[0] not in COMMANDS:
        print(f"lcs: unknown command {argv[0]!r}" if argv else "lcs: a command is missing", file=sys.stderr)
        print(_usage(), file=sys.stderr)
        return 2
    try:
        return COMMANDS[argv[0]](argv[1:])
    except SystemExit as stop:  # of a parser
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as interrupt:
        return _fail(argv[0], str(interrupt) or "interrupted")
    except (ValueError, OSError, ImportError, LcsUnavailableError) as error:
        return _fail(argv[0], str(error))


def _usage() -> str:
    rows = [f"  {name:8}{function.__doc__}" for name, function in COMMANDS.items()]
    return "\n".join(["usage: lcs COMMAND [OPTIONS], each with --help", "", *rows])


def _fail(command: str, reason: str, code: int = 1) -> int:
    print(f"lcs {command}: {reason}", file=sys.stderr)
    return code


def _train(argv: list[str]) -> int:
    """Train a subspace or a baseline."""
    from .config import ConfigError

    try:
        config = parse_train(argv)
    except ConfigError as error:
        return _fail("train", str(error), code=2)
    from .train import leave_processes, train

    path = train(config)
    if os.environ.get("RANK", "0") == "0":
        print(f"run: {path}")
    leave_processes()
    return 0


def parse_train(argv: Sequence[str]) -> TrainConfig:
    """The settings of `lcs train`: defaults, then --config FILE, then flags; with --resume the run's own file."""
    from .config import ConfigError, TrainConfig, load
    from .rundir import RunDirectory

    first = argparse.ArgumentParser(prog="lcs train", add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    known, flags = first.parse_known_args(argv)
    config = _flags(load(known.config) if known.config else TrainConfig(), flags)
    if config.resume and known.config is None and RunDirectory(config.out).exists():
        config = _flags(RunDirectory(config.out).config(), flags)
    try:
        config.resolved()
    except ConfigError as error:
        raise ConfigError(f"{known.config}: {error}" if known.config else str(error)) from error
    return config


def _flags(default: TrainConfig, flags: Sequence[str]) -> TrainConfig:
    from .config import TrainConfig, presets_help

    description = (
        "Train a compressible subspace (arXiv 2110.04252) or a baseline. --config FILE.yaml takes settings from a "
        f"file, by the names below with _ for -; flags override it.\n\n{presets_help()}"
    )
    cli = optional.require("tyro").cli
    return cli(TrainConfig, prog="lcs train", description=description, args=flags, default=default)


@dataclass(frozen=True)
class EvaluateArguments:
    run: Path
    """run directory to evaluate"""
    densities: tuple[float, ...] = ()
    """levels of an unstructured run, each in [0, 1]; the paper's grid within the run's range if not given"""
    widths: tuple[float, ...] = ()
    """levels of a structured run, each in (0, 1]"""
    bits: tuple[int, ...] = ()
    """levels of a quantized run, each from 2 to 8"""
    target: tuple[Path, ...] = ()
    """runs of method target, drawn as points"""
    dense: Path | None = None
    """run of method dense, drawn as a level line"""
    device: str = "auto"
    """cpu, cuda or auto"""
    batch_size: int = 64
    """images at a time"""
    x_axis: Literal["linear", "log"] = "linear"
    """of the plot"""
    measure: bool = False
    """also time the frozen network at each level, next to the dense one"""
    measure_batch: int | None = None
    """images of a timed call; 1 if not given"""
    json: Path | None = None
    """where the numbers go; evaluation.json in the run directory if not given"""
    png: Path | None = None
    """where the plot goes; evaluation.png in the run directory if not given"""

    def values(self, unit: str) -> tuple[float, ...]:
        """The levels given. Raises ValueError where they are of another unit than the run's."""
        given = {
            "density": ("densities", self.densities),
            "width": ("widths", self.widths),
            "bits": ("bits", self.bits),
        }
        for other, (flag, values) in given.items():
            if other != unit and values:
                raise ValueError(f"{flag}: {self.run} has levels of {unit}; give --{given[unit][0]}")
        return given[unit][1]

    def problem(self) -> str | None:
        """What is wrong with a value, naming it."""
        outside = [density for density in self.densities if not 0.0 <= density <= 1.0]
        if outside:
            return f"densities: must lie in [0, 1], got {outside[0]}"
        outside = [width for width in self.widths if not 0.0 < width <= 1.0]
        if outside:
            return f"widths: must lie in (0, 1], got {outside[0]}"
        outside = [bits for bits in self.bits if not 2 <= bits <= 8]
        if outside:
            return f"bits: must lie in 2 to 8, got {outside[0]}"
        for name in ("batch_size", "measure_batch"):
            number = getattr(self, name)
            if number is not None and number < 1:
                return f"{name}: must be at least 1, got {number}"
        if self.measure_batch is not None and not self.measure:
            return "measure_batch: nothing is timed; give --measure, too"
        return None


def _eval(argv: list[str]) -> int:
    """Accuracy, sparsity, bytes and speed of a run over its levels: table, JSON, plot."""
    tyro = optional.require("tyro")
    arguments = tyro.cli(EvaluateArguments, prog="lcs eval", args=argv, config=(tyro.conf.PositionalRequiredArgs,))
    if arguments.problem():
        return _fail("eval", arguments.problem(), code=2)
    from .checkpoint import write_atomic
    from .evaluate import evaluate
    from .plot import plot
    from .rundir import RunDirectory
    from .table import print_table

    values = arguments.values(RunDirectory(arguments.run).config().unit)
    json, png = arguments.json or arguments.run / "evaluation.json", arguments.png or arguments.run / "evaluation.png"
    _check_outputs(json=json, png=png)
    evaluation = evaluate(
        arguments.run,
        values or None,
        targets=arguments.target,
        dense=arguments.dense,
        device=arguments.device,
        batch_size=arguments.batch_size,
        measure_batch=(arguments.measure_batch or 1) if arguments.measure else None,
    )
    print_table(evaluation)
    write_atomic(json, evaluation.to_json().encode())
    plot(evaluation, png, log_x=arguments.x_axis == "log")
    print(f"numbers: {json}\nplot: {png}")
    return 0


@dataclass(frozen=True)
class FreezeArguments:
    run: Path
    """run directory whose newest checkpoint is frozen"""
    out: Path = Path("model.lcs")
    """the file"""


def _freeze(argv: list[str]) -> int:
    """Write a trained run as one file that runs at any level: lcs.load(FILE)."""
    tyro = optional.require("tyro")
    arguments = tyro.cli(FreezeArguments, prog="lcs freeze", args=argv, config=(tyro.conf.PositionalRequiredArgs,))
    from .evaluate import load_run, values_of
    from .model_file import save

    _check_outputs(out=arguments.out)
    config, _, subspace, step = load_run(arguments.run, "cpu")
    if config.method == "lec":
        return _fail("freeze", f"{arguments.run}: a lec run gives another network for each width; make it by lcs.slim")
    save(subspace.freeze(), arguments.out)
    levels = values_of(config, ends=True)
    print(f"{arguments.out}: {config.model} at step {step}, {arguments.out.stat().st_size:,} bytes")
    print(f"trained for {config.unit} {levels[0]:g} to {levels[-1]:g}; it runs as")
    print(f"  lcs.load({str(arguments.out)!r})(images, {config.unit}={levels[0]:g})")
    return 0


@dataclass(frozen=True)
class ReportArguments:
    runs: tuple[Path, ...]
    """run directories on the same data, in the order of the table's columns"""
    over: Literal["level", "macs", "bytes"] = "level"
    """what the plot shows accuracy over"""
    x_axis: Literal["linear", "log"] = "linear"
    """of the plot"""
    device: str = "auto"
    """cpu, cuda or auto, for runs without an evaluation of their newest checkpoint"""
    batch_size: int = 64
    """images at a time, likewise"""
    json: Path = Path("report.json")
    """where the numbers go"""
    png: Path = Path("report.png")
    """where the plot goes"""


def _report(argv: list[str]) -> int:
    """Accuracy of several runs side by side over their levels: table, JSON, plot."""
    tyro = optional.require("tyro")
    arguments = tyro.cli(ReportArguments, prog="lcs report", args=argv, config=(tyro.conf.PositionalRequiredArgs,))
    if arguments.batch_size < 1:
        return _fail("report", f"batch_size: must be at least 1, got {arguments.batch_size}", code=2)
    from .checkpoint import write_atomic
    from .report import plot_report, print_report, report

    _check_outputs(json=arguments.json, png=arguments.png)
    found = report(arguments.runs, device=arguments.device, batch_size=arguments.batch_size)
    print_report(found)
    write_atomic(arguments.json, found.to_json().encode())
    plot_report(found, arguments.png, over=arguments.over, log_x=arguments.x_axis == "log")
    print(f"numbers: {arguments.json}\nplot: {arguments.png}")
    return 0


def _check_outputs(**paths: Path) -> None:
    """Before long work: raises RunError naming the flag of a file that cannot be written. paths: by their flags."""
    from .checkpoint import check_writable
    from .rundir import RunError

    for flag, path in paths.items():
        try:
            check_writable(path)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}; name another file with --{flag}") from error


def _doctor(argv: list[str]) -> int:
    """What is installed, which kernels run and why, and a self-test of each op."""
    parser = argparse.ArgumentParser(prog="lcs doctor", description=_doctor.__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    from .doctor import doctor

    return doctor(as_json=arguments.json)


def _bench(argv: list[str]) -> int:
    """Measure every op against its peers."""
    from lcs_kernels.benchmarks.__main__ import main as bench

    return bench(argv)


def _demo(argv: list[str]) -> int:
    """Train on handwritten digits for some minutes and show accuracy and speed at eight densities."""
    parser = argparse.ArgumentParser(prog="lcs demo", description=_demo.__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps only, seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run directory, replaced (%(default)s)")
    arguments = parser.parse_args(argv)
    from .demo import demo

    demo(arguments.out, quick=arguments.quick)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "eval": _eval,
    "freeze": _freeze,
    "report": _report,
    "bench": _bench,
    "doctor": _doctor,
    "demo": _demo,
}
