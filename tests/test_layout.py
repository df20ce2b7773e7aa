"""One op, one word: its files are found by name in every layer."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import lcs_kernels
from lcs_kernels import ops

ROOT = Path(__file__).parents[1]
# Benchmarks that measure the layer.
LAYER_ROWS = (
    *("accuracy.py", "training_step.py", "network.py"),
    *("network_bits.py", "network_cifar.py", "network_width.py"),
)
# Ops that fuse others, by their files, and which.
FUSED = {"sparse_conv2d_norm": {"sparse_conv2d", "line_norm"}, "width_conv2d_norm": {"width_conv2d", "line_norm"}}
# What the layer takes of the engine that is not public: a convolution's size and error, how the library was loaded.
PRIVATE = {
    "lcs_kernels._jit",
    "lcs_kernels._load",
    "lcs_kernels.ops._convolution.output_size",
    "lcs_kernels.ops._winograd.rounding_bound",
    "lcs_kernels.ops._winograd.strided_rounding_bound",
}


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


def entries(source: str) -> set[str] | None:
    """What a source calls of torch.ops.lcs, by whatever name; None where it does not mention it."""
    if "torch.ops.lcs" not in source.replace("under torch.ops.lcs", ""):
        return None
    return set(re.findall(r"\blcs\.(\w+)\(", source))


def test_only_an_ops_own_file_calls_its_dispatcher_entry():
    files = [path for folder in ("lcs_kernels", "python/lcs") for path in (ROOT / folder).rglob("*.py")]
    called = {path.name: found for path in files if (found := entries(path.read_text())) is not None}
    # `define` hands an op its own entry.
    allowed = {
        "_library.py": set(),
        "isa.py": {"max_isa", "multiplies_pairs", "set_max_isa"},
        "memory.py": {"release_memory"},
        "replay.py": {"replay_keep", "replay_kept", "replay_forget"},  # which only the CPU's kernels have
    }
    assert called == {**allowed, **{f"{op}.py": fused for op, fused in FUSED.items()}}


@pytest.mark.parametrize(("op", "fused"), FUSED.items(), ids=str)
def test_the_reference_of_an_op_that_fuses_others_is_written_in_theirs(op, fused):
    module = import_module(f"lcs_kernels.ops.{op}")
    assert entries(inspect.getsource(module.reference)) == fused
    assert not entries(inspect.getsource(module).replace(inspect.getsource(module.reference), ""))


def test_the_layer_imports_the_engine_by_public_names():
    private = set()
    for path in (ROOT / "python" / "lcs").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lcs_kernels":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.partition(".")[0] == "lcs_kernels"]
            private |= {name for name in names if re.search(r"\._(?!_)", name)}
    assert private == PRIVATE


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
