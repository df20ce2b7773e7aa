"""What the committed results of `make gpu-check` say: on which card the kernels were checked, and which are faster."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = (HERE / "benchmarks" / "results" / "gpu", HERE.parent / "benchmarks" / "results" / "gpu")


@dataclass(frozen=True)
class Measured:
    """`checked`: of the back ends "cuda" and "triton", those whose tests all passed; `fastest`: of both, if timed."""

    card: str
    date: str
    checked: tuple[str, ...]
    fastest: str | None


@cache
def latest() -> Measured | None:
    """The newest result that this install holds."""
    contents = [json.loads(path.read_text()) for folder in FOLDERS for path in folder.glob("*.json")]
    if not contents:
        return None
    newest = max(contents, key=lambda content: content["date"])
    return Measured(newest["machine"]["gpu"], newest["date"], tuple(newest["checked"]), newest["fastest"])


def words(backend: str) -> str:
    """What is known of a back end's kernels, to stand behind its name."""
    found = latest()
    if found is None:
        return "not yet run on a GPU"
    known = f"{'passed' if backend in found.checked else 'did not pass'} its tests on {found.card}, {found.date}"
    return f"{known}; the faster there" if backend == found.fastest else known
