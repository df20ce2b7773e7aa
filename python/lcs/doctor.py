"""`lcs doctor`: what is installed, which kernels run and why, and whether each op computes what its reference does."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lcs_kernels
from lcs_kernels import _jit, _load

from .environment import environment


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


Case = tuple[list[Tensor], list[Tensor]]


def self_test_of(op: str) -> str:
    """ "ok" where one small case of `op` equals its reference bit for bit, else what is wrong."""
    case = CASES.get(op)
    if case is None:
        return "failed: no self-test for this op"
    results, expected = case()
    wrong = sum(int((r.view(torch.int32) != e.view(torch.int32)).sum()) for r, e in zip(results, expected, strict=True))
    total = sum(e.numel() for e in expected)
    return f"failed: {wrong} of {total} values differ from the reference" if wrong else "ok"


def _reference(op: str) -> Callable:
    return importlib.import_module(f"lcs_kernels.ops.{op}").reference


def _weights(seed: int, *shape: int) -> Tensor:
    """Normal values with ties, both zeros and a denormal."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(8).round().div(8)
    w.flatten()[:3] = torch.tensor([0.0, -0.0, 1e-40])
    return w


def _interpolate_prune() -> Case:
    w0, w1 = _weights(0, 37, 11), _weights(1, 37, 11)
    expected, _ = _reference("interpolate_prune")(w0, w1, torch.tensor(0.3), torch.tensor(101))
    return [lcs_kernels.interpolate_prune(w0, w1, 0.3, keep=101)], [expected]


def _interpolate_prune_foreach() -> Case:
    w0s, w1s = ([_weights(seed, 5, 7), _weights(seed + 1, 19)] for seed in (0, 2))
    keep = torch.tensor([12, 3])
    expected, _ = _reference("interpolate_prune_foreach")(w0s, w1s, torch.tensor(0.6), keep)
    return lcs_kernels.interpolate_prune_foreach(w0s, w1s, 0.6, keep=keep), expected


def _cosine_squared() -> Case:
    """On small integers, whose sums are exact in any order."""
    w0s, w1s = ([_weights(seed, 7, 11).mul(8).round(), _weights(seed + 1, 23).mul(8).round()] for seed in (0, 2))
    expected, _ = _reference("cosine_squared")(w0s, w1s)
    return [lcs_kernels.cosine_squared(w0s, w1s)], [expected]


CASES: dict[str, Callable[[], Case]] = {
    "cosine_squared": _cosine_squared,
    "interpolate_prune": _interpolate_prune,
    "interpolate_prune_foreach": _interpolate_prune_foreach,
}


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
