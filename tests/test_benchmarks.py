"""The benchmarks' figures are computed as they say, and the README shows what was measured."""

import json
import subprocess
import time
import types
from pathlib import Path

import pytest
import torch
from lcs_kernels.benchmarks import __main__ as main
from lcs_kernels.benchmarks import harness, losses, machine, markdown
from lcs_kernels.benchmarks.peers import PeerError
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def row_of(limit, flops=0):
    return harness.Row("an_op", "a case", {"lcs": lambda: None, "peer": lambda: None}, limit, 600, lambda: None, flops)


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


def test_operations_are_compared_with_one_peak(monkeypatch):
    monkeypatch.setattr(harness, "peak_flops", lambda threads: 4e9)
    found = harness.result(row_of(None, flops=2000), {"lcs": timing(2e-6), "peer": timing(3e-6)})
    assert (found["limited_by"], round(found["fraction_of_limit"], 9)) == ("FMA", 0.25)


def test_the_peak_is_that_of_products_of_matrices():
    with FlopCounterMode(display=False) as counter:
        begin = time.perf_counter()
        peak = harness.peak_flops.__wrapped__(1)
        elapsed = time.perf_counter() - begin
    assert peak >= counter.get_total_flops() / elapsed


@pytest.fixture
def bench(monkeypatch):
    """`lcs bench` of an op whose rows are `rows`, as far as they come."""

    def bench(rows, *arguments):
        monkeypatch.setattr(main.importlib, "import_module", lambda *_: types.SimpleNamespace(rows=rows))
        return main.main(["--op", "quantize", "--rounds", "3", "--threads", str(torch.get_num_threads()), *arguments])

    return bench


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [(KeyboardInterrupt(), 130, "stopped"), (AssertionError("wrong"), 1, "wrong"), (PeerError("gone"), 1, "gone")],
)
def test_what_was_measured_before_a_stop_is_kept(stop, code, said, bench, tmp_path, capsys):
    def rows():
        yield row_of(None)
        raise stop

    file = tmp_path / "found.json"
    assert bench(rows, "--json", str(file)) == code
    assert capsys.readouterr().err.strip() == f"bench: {said}; the rows before are in {file}"
    content = json.loads(file.read_text())
    assert [row["op"] for row in content["rows"]] == ["an_op"] and content["machine"]["cpu_id"] is not None
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_and_a_device_is_refused(bench, tmp_path, capsys):
    file, link = tmp_path / "found.json", tmp_path / "link"
    link.symlink_to(file)
    assert bench(lambda: [row_of(None)], "--json", str(link)) == 0 and link.is_symlink() and file.is_file()
    assert bench(lambda: [], "--json", "/dev/null") == 1 and "no regular file" in capsys.readouterr().err
    assert bench(lambda: [], "--json", str(tmp_path / ("n" * 250))) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--markdown", "a", "--json", "b"], "--markdown takes no --json"),
        (["--calibrate", "--op", "quantize"], "--calibrate takes no --op"),
        (["--peer", "openvino=a", "--peer", "openvino=b"], "openvino is given more than once"),
    ],
)
def test_options_that_would_be_ignored_are_refused(argv, words, capsys):
    with pytest.raises(SystemExit):
        main.parse(argv)
    assert words in capsys.readouterr().err


def test_losses_count_each_of_our_networks():
    table = losses.losses_table(RESULTS)
    assert ", first layer float | openvino-int8 |" in table and "| lcs" not in table


def test_pages_that_the_readme_quotes_have_enough_samples():
    for page in losses.PAGES:
        for cpu in losses.CPUS:
            for row in json.loads((RESULTS / f"{cpu}-2-cores-{page}.json").read_text())["rows"]:
                assert all(c["samples"] >= 15 for c in row["candidates"]), (cpu, page, row["case"])


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


def test_the_commit_is_of_a_checkout_that_holds_the_package(monkeypatch, tmp_path):
    def git(*command):
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(
            ["git", *names, *command], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    installed = tmp_path / "venv" / "machine.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(machine, "__file__", str(installed))
    assert machine.commit() is None
    git("init")
    git("commit", "--allow-empty", "--message", "another project's")
    assert machine.commit() is None
    git("add", "venv")
    git("commit", "--message", "its own")
    head = git("rev-parse", "HEAD").strip()
    assert machine.commit() == head
    installed.write_text("changed")
    assert machine.commit() == f"{head}+"
