"""torch.compile around the layer, and that nothing imports it before."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import lcs
from lcs import compiling

HEAVY = {"torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "sympy", "triton", "pydantic", "matplotlib"}
SERVE = """
import torch, lcs
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 4, 3))
fast, x = lcs.convert(model, lcs.{recipe}(), dense=["3"]).freeze(), torch.randn(2, 3, 8, 8)
with torch.no_grad():
    fast(x, {level}), fast.at({level})(x), fast.prepare(x, {level})
"""
LOAD = """
import lcs, tempfile
model = lcs.models.build("cpreresnet20", 10)
with tempfile.NamedTemporaryFile() as file:
    lcs.save(lcs.convert(model, lcs.Unstructured()).freeze(), file.name)
    lcs.load(file.name)
"""
LIGHT = [
    "import lcs",
    "import lcs.cli; lcs.cli.main(['--help'])",
    SERVE.format(recipe="Unstructured", level="density=0.1"),
    SERVE.format(recipe="Structured", level="width=0.5"),
    SERVE.format(recipe="Quantized", level="bits=4"),
    LOAD,
]


def test_nothing_heavy_is_imported():
    """By one after the other in one process, beside what torch itself imports."""
    tell = "print('imported:', *set(sys.modules) - before)"
    code = "\n".join(["import sys, torch", "before = set(sys.modules)", *(f"{each}\n{tell}" for each in LIGHT)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [line.split() for line in done.stdout.splitlines() if line.startswith("imported: ")]
    for each, (_, *found) in zip(LIGHT, told, strict=True):
        assert "lcs.snapshot" in found and not HEAVY & set(found), each


def test_a_disabled_function_is_not_compiled_for_its_arguments():
    torch._dynamo.reset()
    seen = []

    @compiling.disabled
    def function(x, *, level):
        """Words."""
        seen.append(torch.compiler.is_compiling())
        return (x + level.alpha) * 2

    assert function.__name__ == "function" and function.__doc__ == "Words."
    counter, x = CompileCounter(), torch.ones(3)
    fast = torch.compile(lambda x, levels: function(x * 2, level=levels[0]) + 1, backend=counter)
    frames = []
    for i in range(40):
        level = lcs.Level(i / 40)
        assert torch.equal(fast(x, [level]), (x * 2 + level.alpha) * 2 + 1)
        frames.append(counters["frames"]["total"])
    assert not any(seen) and len(seen) == 40
    assert frames[-1] == frames[3], frames
    torch._dynamo.reset()


def test_exported_at_a_level_that_is_held_and_else_told_to_make_it():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    fast, x = lcs.convert(model, lcs.Unstructured()).freeze(), torch.randn(2, 8)

    class Serving(torch.nn.Module):
        def forward(self, x):
            return fast(x, density=0.5)

    for called in (False, True):
        with pytest.raises(RuntimeError, match="before torch.export, call the frozen network once .*density=0.5"):
            torch.export.export(Serving(), (x,))
        if not called:
            fast(x, density=0.1)
    y = fast(x, density=0.5)
    assert torch.equal(torch.export.export(Serving(), (x,)).module()(x), y)
