"""Measures every op against its peers: `lcs bench`, or `python -m lcs_kernels.benchmarks` without the layer."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time
from pathlib import Path

import torch

import lcs_kernels
from lcs_kernels import costs, ops

from .calibrate import calibrate
from .harness import Row, keep_freed_memory, measure, result
from .machine import fingerprint
from .markdown import table_of
from .output import ResultError, check_writable, write_json
from .peers import Peer, PeerError

# Rows of the layer, beside those of the ops.
LAYER = ("training_step", "network", "network_bits", "network_cifar", "network_width")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lcs bench", description=__doc__.partition(":")[0] + ".")
    parser.add_argument(
        "--op", choices=[*ops.names(), *LAYER], action="append", help="only this one (may be given again)"
    )
    parser.add_argument(
        "--threads", type=count, default=torch.get_num_threads(), help="threads of torch and of our kernels"
    )
    parser.add_argument("--rounds", type=count, default=31, help="samples of each candidate (default %(default)s)")
    parser.add_argument(
        "--peer",
        metavar="ENGINE=PYTHON",
        action="append",
        default=[],
        help="also measure deepsparse, openvino, openvino-bfloat16 or openvino-int8 where a row has a model for it, "
        "in the environment of that Python (may be given again)",
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument(
        "--calibrate", action="store_true", help="measure only where the sparse ops break even, for this machine's use"
    )
    parser.add_argument("--markdown", type=Path, help="measure nothing: print the table of a file that --json wrote")
    arguments = parser.parse_args(argv)
    alone = "--markdown" if arguments.markdown else "--calibrate" if arguments.calibrate else ""
    others = [f"--{name}" for name in ("op", "peer", "json", "calibrate") if getattr(arguments, name)]
    if alone and (ignored := [name for name in others if name != alone]):
        parser.error(f"{alone} takes no {ignored[0]}")
    engines = [given.partition("=")[0] for given in arguments.peer]
    if twice := [name for name in engines if engines.count(name) > 1]:
        parser.error(f"--peer: {twice[0]} is given more than once")
    return arguments


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def show(found: dict) -> None:
    fraction = found["fraction_of_limit"]
    limit = f" ({found['gb_per_s']:.1f} GB/s, {fraction:.0%} of the {found['limited_by']} limit)" if fraction else ""
    print(f"\n{found['op']}: {found['case']}{limit}")
    for c in found["candidates"]:
        times = f"{c['median_us']:12.1f} us  [{c['p10_us']:.1f} .. {c['p90_us']:.1f}]"
        verdict = "" if c["name"] == "lcs" else f"  {c['ratio']:.2f}x our time"
        name = f"the {found['limited_by']} limit" if c["name"] == "limit" else c["name"]
        print(f"  {name:34}{times:42} clean {c['clean_samples']}/{c['samples']}{verdict}")


def run(row: Row, rounds: int, peers: list[Peer]) -> dict:
    def progress(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{row.op}: {row.case}: round {done}/{rounds}\033[K", end="\r", file=sys.stderr)

    try:
        return result(row, measure(row, rounds, progress, peers))
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)


def measure_all(arguments: argparse.Namespace, machine: dict) -> None:
    """Writes what is found after every row, so that whatever stops a long run leaves the rows before."""
    content = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "rows": []}
    with contextlib.ExitStack() as open_peers:
        peers = []
        for name, _, python in (given.partition("=") for given in arguments.peer):
            peers.append(Peer(name, python, arguments.threads))
            open_peers.callback(peers[-1].close)
            machine.setdefault("engines", {}).update(peers[-1].versions)
        for name in arguments.op or [*ops.names(), *LAYER]:
            for row in importlib.import_module(f".{name}", __package__).rows():
                content["rows"].append(run(row, arguments.rounds, peers))
                show(content["rows"][-1])
                if arguments.json:
                    write_json(arguments.json, content)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except (AssertionError, OSError, PeerError, ResultError) as error:  # a check of a result is an AssertionError
        print(f"bench: {error}{_kept(arguments)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"bench: stopped{_kept(arguments)}", file=sys.stderr)
        return 130


def _kept(arguments: argparse.Namespace) -> str:
    return f"; the rows before are in {arguments.json}" if arguments.json and arguments.json.is_file() else ""


def _run(arguments: argparse.Namespace) -> int:
    if arguments.markdown:
        print(table_of(arguments.markdown))
        return 0
    written = costs.calibrated() if arguments.calibrate else arguments.json
    if written:
        check_writable(written)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if lcs_kernels.isa.max_name() == "reference":
        print("bench: LCS_REFERENCE is set, so there are no kernels to measure; unset it", file=sys.stderr)
        return 1
    machine = fingerprint()
    print(f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}, torch {machine['torch']}")
    if arguments.calibrate:
        calibrate(written, arguments.rounds, print)
        print(f"written: {written}")
        return 0
    measure_all(arguments, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
