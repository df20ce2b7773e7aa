"""`lcs doctor`: what is installed, which kernels run and why, and whether each op computes what its reference does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lcs_kernels
from lcs_kernels import _jit, _load

from .environment import environment
from .self_test import self_test_of


def diagnose() -> dict[str, Any]:
    """Everything `lcs doctor` prints, as JSON values; `ok` is False where no kernel loads or a self-test fails."""
    problem: str | None = None
    self_test, isa = {}, {}
    try:
        isa = _instruction_sets()
        self_test = {op: self_test_of(op) for op in operators()}
    except lcs_kernels.LcsUnavailableError as error:
        problem = str(error)
    return {
        "environment": environment(),
        "isa": isa,
        "kernels": str(_load.status()),
        "backends": lcs_kernels.backends(),
        "cache": _cache(),
        "self_test": self_test,
        "problem": problem,
        "ok": problem is None and all(result == "ok" for result in self_test.values()),
    }


def operators() -> list[str]:
    """The public ops: those that `lcs_kernels` exports a function for."""
    return [op for op in lcs_kernels.backends() if hasattr(lcs_kernels, op)]


def _instruction_sets() -> dict[str, str]:
    used = lcs_kernels.isa.max_name()
    if used not in lcs_kernels.isa.NAMES:
        return {"used": used, "available": f"unknown: {_load.status()}"}
    lcs_kernels.isa.set_max(lcs_kernels.isa.NAMES[-1])
    available = lcs_kernels.isa.max_name()
    lcs_kernels.isa.set_max(used)
    return {"used": used, "available": available}


def _cache() -> dict[str, Any]:
    directory = _jit.cache_dir()
    libraries = sorted(str(path.relative_to(directory)) for path in directory.glob("jit/*/*.so"))
    parent = next(path for path in (directory, *directory.parents) if path.exists())
    return {"directory": str(directory), "libraries": libraries, "writable": _writable(parent)}


def _writable(directory: Path) -> bool:
    return directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)


def doctor(*, as_json: bool = False) -> int:
    """Prints the diagnosis; returns 0 if all is well, else 1."""
    found = diagnose()
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(_lines(found)))
    return 0 if found["ok"] else 1


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for section in ("environment", "isa", "cache"):
        lines += [section, *(f"  {name}: {_text(value)}" for name, value in found[section].items())]
    lines += [f"kernels: {found['kernels']}", "back ends"]
    for op, devices in found["backends"].items():
        lines.append(f"  {op}: " + ", ".join(f"{device}: {name}" for device, name in devices.items()))
    lines += ["self-test", *(f"  {op}: {result}" for op, result in found["self_test"].items())]
    if found["problem"]:
        lines.append(f"problem: {found['problem']}")
    return [*lines, "ok" if found["ok"] else "NOT ok"]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version or 'not installed'}" for name, version in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
