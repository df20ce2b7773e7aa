from math import inf
from pathlib import Path

import pytest
import torch

import lcs_kernels
from lcs_kernels import _triton
from lcs_kernels import isa as instruction_sets

from .on_device import OF_THE_CPU, OF_TORCH, OnDevice, triton_on

PAIRS = "avx512_bf16", "amx"  # instruction sets that multiply pairs of bfloat16
KERNELS = Path(__file__).parents[1] / "csrc" / "cpu"


def machine_isas() -> list[str]:
    """The instruction sets this machine can run, from scalar up."""
    best = torch.ops.lcs.machine_isa() if lcs_kernels.isa.max_name() != "reference" else "scalar"
    return list(instruction_sets.NAMES[: instruction_sets.NAMES.index(best) + 1])


def isas_of(path: Path) -> list[str]:
    """Those for which the op that a test's file, test_OP.py, is named after has kernels, the machine's own in place of
    the best of them. Ops of one first word share kernels; a file of none is of all."""
    word, names = path.stem.removeprefix("test_").split("_")[0], machine_isas()
    written = {file.stem.rsplit("_", 1)[1] for file in KERNELS.glob(f"{word}_*.cpp")}
    own = [name for name in names if name.removeprefix("avx512_") in written or name in written]
    return [*own[:-1], names[-1]] if own else names


def pytest_addoption(parser):
    parser.addoption("--device", help="run every call of an op on copies of its arguments there")
    parser.addoption("--first", action="store_true", help="with --device: each test with its first parameters alone")
    parser.addoption("--part", default="1/1", help="with --device: I/N, the I-th of N parts of the tests")
    parser.addoption("--largest", type=int, default=inf, help="with --device: of a call that runs there, the elements")
    parser.addoption("--most", type=int, default=inf, help="with --device: of a test, the calls that run there")
    parser.addoption("--twins", action="store_true", help="with --device cpu: in Triton's interpreter, where it can")


def pytest_configure(config):
    device = config.getoption("--device")
    limits = {name: config.getoption(f"--{name}") for name in ("largest", "most", "twins")}
    config.on_device = OnDevice(device, **limits) if device else None
    if device:
        _triton.kernel = triton_on(device)


def part_of(items: list, part: str) -> list:
    """`part`: I/N."""
    i, n = map(int, part.split("/"))
    return items[len(items) * (i - 1) // n : len(items) * i // n]


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        isas = isas_of(metafunc.definition.path)
        metafunc.parametrize("isa", isas[-1:] if metafunc.config.on_device else isas, indirect=True)


def pytest_collection_modifyitems(config, items):
    if config.on_device:
        kept = [item for item in items if not OF_TORCH & set(item.function.__code__.co_names)]
        kept = [item for item in kept if not item.function.__name__.startswith(OF_THE_CPU)]
        if config.getoption("--first"):
            kept = list({(item.path, item.function.__qualname__): item for item in reversed(kept)}.values())[::-1]
        kept = part_of(kept, config.getoption("--part"))
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    if pyfuncitem.config.on_device is None:
        return (yield)
    mode = pyfuncitem.config.on_device
    mode.left = mode.most
    with mode:
        return (yield)


@pytest.fixture
def isa(request):
    """Runs the test once per instruction set (`isas_of`)."""
    before = instruction_sets.max_name()
    instruction_sets.set_max(request.param)
    assert instruction_sets.max_name() == request.param
    yield request.param
    instruction_sets.set_max(before)


@pytest.fixture
def isas(request):
    """Sets each instruction set (`isas_of`) in turn: for results with one reference, which takes longer than all.

    Where one of them fails, it is the last that the captured output names.
    """
    before, names = instruction_sets.max_name(), isas_of(request.path)

    def turns():
        for name in names[-1:] if request.config.on_device else names:
            instruction_sets.set_max(name)
            assert instruction_sets.max_name() == name
            print(f"instruction set: {name}")
            yield name

    yield turns
    instruction_sets.set_max(before)


@pytest.fixture
def pairs(monkeypatch):
    """Has pairs of bfloat16 multiplied wherever they can be, if in more time than floats, too."""
    monkeypatch.setattr(instruction_sets, "multiplies_pairs", lambda: instruction_sets.max_name() in PAIRS)


def as_it_is() -> list[str]:
    """In place of the fixture `isas`: one turn, on whatever instruction set is in use."""
    return ["as it is"]


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
