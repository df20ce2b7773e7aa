import json

import pytest
import torch

import lcs_kernels
from lcs import doctor, self_test
from lcs.cli import main


def test_all_is_well(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "ok"
    assert all(op in shown for op in lcs_kernels.backends())


def test_json(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["self_test"] == {op: "ok" for op in doctor.operators()}
    assert found["backends"] == lcs_kernels.backends()
    assert found["environment"]["versions"]["torch"] and found["environment"]["cpu"]
    assert found["isa"]["used"] == lcs_kernels.isa.max_name()
    assert set(found["cache"]) == {"directory", "libraries", "writable"}


def test_every_public_op_has_a_self_test():
    assert set(doctor.operators()) == set(self_test.CASES)
    assert set(doctor.operators()) == set(lcs_kernels.backends())


@pytest.mark.parametrize("op", self_test.CASES)
def test_a_wrong_value_fails(op, monkeypatch, capsys):
    results, expected = self_test.CASES[op]()
    results = [r.clone() for r in results]
    results[0][(-1,) * results[0].dim()] += 1
    monkeypatch.setitem(self_test.CASES, op, lambda: (results, expected))
    total = sum(e.numel() for e in expected)
    assert self_test.self_test_of(op) == f"failed: 1 of {total} values differ from the reference"
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "NOT ok"


def test_a_test_that_raises_or_gives_another_shape_fails_alone(monkeypatch, capsys):
    def raises():
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(self_test.CASES, "quantize", raises)
    monkeypatch.setitem(self_test.CASES, "replay", lambda: ([torch.zeros(2)], [torch.zeros(3)]))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "  quantize: failed: RuntimeError: no such kernel\n" in said
    assert "  replay: failed: torch.float32 of shape (2,), the reference torch.float32 of (3,)\n" in said
    assert said.count(": ok\n") == len(self_test.CASES) - 2


def test_op_without_a_case_fails(monkeypatch):
    monkeypatch.delitem(self_test.CASES, "interpolate_prune")
    assert doctor.diagnose()["self_test"]["interpolate_prune"].startswith("failed")
    assert not doctor.diagnose()["ok"]


def test_no_kernels_at_all_is_reported(monkeypatch, capsys):
    def unavailable():
        raise lcs_kernels.LcsUnavailableError("no binary and no compiler: install one")

    monkeypatch.setattr(doctor, "_instruction_sets", unavailable)
    assert main(["doctor"]) == 1
    assert "problem: no binary and no compiler: install one" in capsys.readouterr().out


def test_leaves_the_instruction_set_as_it_was():
    before = lcs_kernels.isa.max_name()
    doctor.diagnose()
    assert lcs_kernels.isa.max_name() == before


def test_cache_state(tmp_path, monkeypatch):
    monkeypatch.setenv("LCS_CACHE", str(tmp_path / "cache"))
    library = tmp_path / "cache" / "jit" / "key" / "lcs_kernels.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"")
    cache = doctor.diagnose()["cache"]
    assert cache == {"directory": str(tmp_path / "cache"), "libraries": ["jit/key/lcs_kernels.so"], "writable": True}
