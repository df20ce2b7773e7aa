"""One op, one word: its files are found by name in every layer."""

import re
from pathlib import Path

import pytest
import torch

import lcs_kernels
from lcs_kernels import ops

ROOT = Path(__file__).parents[1]
# Benchmarks that measure the layer.
LAYER_ROWS = ("accuracy.py", "training_step.py", "network.py", "network_bits.py", "network_width.py")


@pytest.mark.parametrize("op", ops.names())
def test_an_op_is_one_word_in_every_layer(op):
    assert callable(getattr(lcs_kernels, op))
    assert hasattr(torch.ops.lcs, op)
    for path in (f"csrc/torch/{op}_op.cpp", f"tests/ops/test_{op}.py", f"benchmarks/{op}.py"):
        assert (ROOT / path).is_file(), path
    assert f"| `{op}` |" in (ROOT / "README.md").read_text()


def test_every_environment_variable_that_is_read_is_in_the_readme():
    files = [path for folder in ("lcs_kernels", "python", "csrc") for path in (ROOT / folder).rglob("*")]
    text = "".join(path.read_text() for path in (*files, ROOT / "setup.py") if path.suffix in (".py", ".cpp", ".h"))
    read = set(re.findall(r'(?:environ\.get\(|environ\[|getenv\()"(LCS_\w+)"', text))
    rows = re.findall(r"^\| `(LCS_\w+)[`=]", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert read == set(rows) and len(rows) == len(read)


def test_only_an_ops_own_file_touches_its_dispatcher_entry():
    for folder in ("lcs_kernels", "python/lcs"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name != "ops" and path.name not in ("isa.py", "_load.py"):
                assert "torch.ops.lcs" not in path.read_text().replace("under torch.ops.lcs", ""), path


def test_the_engine_knows_nothing_of_the_layer():
    for folder in ("lcs_kernels", "benchmarks", "csrc"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".inl") and path.name not in LAYER_ROWS:
                text = path.read_text()
                assert "import lcs\n" not in text and "from lcs " not in text and "from lcs." not in text, path


def test_files_are_small():
    sizes = sorted(
        len(path.read_text().splitlines())
        for folder in ("lcs_kernels", "python", "csrc", "benchmarks", "tests", "triton_kernels")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h", ".inl", ".cu")
    )
    assert sizes[-1] <= 900 and sizes[len(sizes) // 2] <= 160
