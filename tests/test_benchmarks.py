"""The benchmarks' figures are computed as they say, and the README shows what was measured."""

import json
from pathlib import Path

import pytest
from lcs_kernels.benchmarks import harness, markdown
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def row_of(limit):
    return harness.Row("an_op", "a case", {"lcs": lambda: None, "peer": lambda: None}, limit, 600, lambda: None)


def timing(seconds):
    return harness.Timing([seconds] * 3, [seconds] * 3)


def test_ratio_and_fraction():
    found = harness.result(row_of(lambda: None), {"lcs": timing(2e-6), "peer": timing(3e-6), "limit": timing(1e-6)})
    assert [round(c["ratio"], 9) for c in found["candidates"]] == [1, 1.5, 0.5]
    assert round(found["fraction_of_limit"], 9) == 0.5 and round(found["gb_per_s"], 9) == 0.3
    text = markdown.table(
        {"machine": {"cpu": "c", "threads": 2, "isa": "avx2", "torch": "t"}, "date": "d", "rows": [found]}
    )
    assert text.splitlines()[-1] == "| `an_op` | a case | 0.002 | 50% memory | peer 1.50x |"


def test_a_wrong_result_is_not_timed():
    def check():
        raise AssertionError("wrong")

    calls = []
    row = harness.Row("an_op", "a case", {"lcs": lambda: calls.append(1)}, None, 0, check)
    with pytest.raises(AssertionError, match="wrong"):
        harness.measure(row, 3)
    assert not calls


def test_multiply_adds_counts_them():
    flops = 2 * 512 * 512 * 300
    with FlopCounterMode(display=False) as counter:
        harness.multiply_adds(flops)()
    assert counter.get_total_flops() == flops


def test_results_are_shown():
    """Each in the README, or in a file of its own that the README links."""
    readme = (ROOT / "README.md").read_text()
    paths = sorted(RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        table, page = markdown.table(json.loads(path.read_text())), path.with_suffix(".md")
        if page.is_file():
            assert page.read_text() == table + "\n" and f"]({page.relative_to(ROOT)})" in readme, path
        else:
            assert table in readme, path
