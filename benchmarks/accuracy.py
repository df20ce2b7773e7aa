"""Trains every method of width and of bit width alike and compares them: python -m lcs_kernels.benchmarks.accuracy."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lcs import cli

RUNS = {
    "dense": ["--method", "dense"],
    **{f"width-{m}": ["--compression", "structured", "--method", m] for m in ("lcs_l", "lcs_p", "us", "ns", "lec")},
    **{f"bits-{m}": ["--compression", "quantized", "--method", m] for m in ("lcs_l", "lcs_p")},
    "bits-lcs_l-nested": ["--compression", "quantized", "--method", "lcs_l", "--nested"],
    **{f"bits-target{b}": ["--compression", "quantized", "--method", "target", "--target-bits", b] for b in "3468"},
}


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m lcs_kernels.benchmarks.accuracy",
        description="Trains every method of width and of bit width and compares them; started again, it goes on.",
        epilog="Every other option goes to each `lcs train`: --epochs 8 --optimizer muon --lr 0.03 --limit 10000",
    )
    parser.add_argument("--data", default="cifar10", help="as of lcs train (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the tables and the plots")
    parser.add_argument("--only", choices=RUNS, nargs="+", default=list(RUNS), help="these runs alone")
    return parser.parse_known_args(argv)


def lcs(*args: str | Path) -> None:
    code = cli.main([*map(str, args)])
    if code:
        raise SystemExit(code)  # lcs has said what is wrong


def train(out: Path, name: str, options: list[str]) -> None:
    print(f"\n{name}", flush=True)
    started = any((out / name / "checkpoints").glob("*.safetensors"))
    lcs("train", *(["--resume"] if started else [*RUNS[name], *options]), "--out", out / name)


def compare(out: Path, kind: str, names: list[str]) -> str:
    """Writes KIND.json and KIND.png of the runs and returns their table in Markdown."""
    lcs("report", *(out / name for name in names), "--json", out / f"{kind}.json", "--png", out / f"{kind}.png")
    runs = json.loads((out / f"{kind}.json").read_text())["runs"]
    accuracies = {Path(run["run"]).name: {row["value"]: row["accuracy"] for row in run["rows"]} for run in runs}
    dense = accuracies.pop("dense", {})
    levels = sorted(set().union(*accuracies.values()))
    lines = [[kind, *(name.removeprefix(f"{kind}-") for name in accuracies)], ["---"] * (1 + len(accuracies))]
    for level in levels:
        found = (accuracies[name].get(level) for name in accuracies)
        lines.append([f"{level:g}", *("" if value is None else f"{value:.1%}" for value in found)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    images = f"Accuracy on {runs[0]['images']:,} test images by {kind}"
    uncompressed = "".join(f"; the dense network's is {value:.1%}" for value in dense.values())
    return f"{images}{uncompressed}.\n\n{table}\n\n![accuracy over {kind}]({kind}.png)\n"


def main(argv: list[str]) -> None:
    arguments, options = parse(argv)
    names = [name for name in RUNS if name in arguments.only]
    for name in names:
        train(arguments.out, name, ["--data", arguments.data, *options])
    kinds = {kind: [name for name in names if name.startswith(f"{kind}-")] for kind in ("width", "bits")}
    dense = [name for name in names if name == "dense"]
    parts = [compare(arguments.out, kind, runs + dense) for kind, runs in kinds.items() if runs]
    (arguments.out / "README.md").write_text("\n".join(parts))
    print(f"\nwrote {arguments.out / 'README.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
