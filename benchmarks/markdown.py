"""The table of a result file, as the README shows it."""

from __future__ import annotations

import json
from pathlib import Path

from .output import ResultError


def table(content: dict) -> str:
    """Markdown: a line on the machine, then every measured row; losing rows are printed like winning ones."""
    machine = content["machine"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa'].upper()}, torch {machine['torch']},"
        f" {content['date']}. Peers: their time over ours.",
        "",
        "| op | case | ms | of the limit | peers |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(_row, content["rows"])])


def table_of(path: Path) -> str:
    """`table` of a file that `lcs bench --json` wrote. Raises ResultError naming one that is not."""
    try:
        return table(json.loads(path.read_text()))
    except OSError as error:
        raise ResultError(
            f"{path}: cannot be read: {error.strerror}; name a file that `lcs bench --json` wrote"
        ) from None
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ResultError(
            f"{path}: holds no results ({type(error).__name__}: {error}); name a file that `lcs bench --json` wrote"
        ) from None


def _row(found: dict) -> str:
    ours, *others = found["candidates"]
    peers = ", ".join(f"{c['name']} {_ratio(c['ratio'])}" for c in others if c["name"] != "limit")
    fraction = found["fraction_of_limit"]
    limit = f"{fraction:.0%} {found['limited_by']}" if fraction else ""
    return f"| `{found['op']}` | {found['case']} | {ours['median_us'] / 1000:.3g} | {limit} | {peers} |"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
