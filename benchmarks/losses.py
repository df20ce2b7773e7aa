"""The rows of whole networks that an engine wins: `python -m lcs_kernels.benchmarks.losses benchmarks/results`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

CPUS = {"zen3": "Zen 3", "emerald-rapids": "Emerald Rapids"}  # measured in at least 15 rounds
OWN_FLOAT = "lcs, first layer float"  # a slower network of ours, next to which engines stand in a line of its own
PAGES = ("network", "bits-network", "width-network", "cifar-network")
ENGINES = ("torch", "deepsparse", "openvino")  # how the names of peers begin that are not rows of our own


def losses_table(results: Path) -> str:
    """Markdown: each case and engine that is faster on a CPU of `results`, with its time over ours on every CPU."""
    ratios: dict[tuple[str, str], dict[str, float]] = {}
    for page in PAGES:
        for cpu in CPUS:
            path = results / f"{cpu}-2-cores-{page}.json"
            for row in json.loads(path.read_text())["rows"] if path.exists() else ():
                own = {c["name"]: c["ratio"] for c in row["candidates"] if c["name"] in ("lcs", OWN_FLOAT)}
                for peer in row["candidates"]:
                    for name in own if peer["name"].startswith(ENGINES) else ():
                        case = row["case"] + name.removeprefix("lcs")
                        ratios.setdefault((case, peer["name"]), {})[cpu] = peer["ratio"] / own[name]
    lines = [f"| network | next to | {' | '.join(CPUS.values())} |", "| --- | --- | --- | --- |"]
    for (case, peer), found in ratios.items():
        if any(map(loses, found.values())):
            lines.append(f"| {case} | {peer} | {' | '.join(_cell(found.get(cpu)) for cpu in CPUS)} |")
    return "\n".join(lines)


def loses(ratio: float) -> bool:
    """As it is printed."""
    return round(ratio, 2) < 1


def _cell(ratio: float | None) -> str:
    if ratio is None:
        return ""
    text = f"{ratio:.2f}x"
    return f"**{text}**" if loses(ratio) else text


if __name__ == "__main__":
    if len(sys.argv) != 2 or not list(Path(sys.argv[1]).glob("*-cores-*.json")):
        sys.exit("usage: python -m lcs_kernels.benchmarks.losses FOLDER, which holds result files")
    print(losses_table(Path(sys.argv[1])))
