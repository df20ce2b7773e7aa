import pytest
import torch

import lcs_kernels
from lcs_kernels import isa as instruction_sets


def machine_isas() -> list[str]:
    """The instruction sets this machine can run, from scalar up."""
    best = torch.ops.lcs.machine_isa() if lcs_kernels.isa.max_name() != "reference" else "scalar"
    return list(instruction_sets.NAMES[: instruction_sets.NAMES.index(best) + 1])


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", machine_isas(), indirect=True)


@pytest.fixture
def isa(request):
    """Runs the test once per instruction set this machine has."""
    before = instruction_sets.max_name()
    instruction_sets.set_max(request.param)
    assert instruction_sets.max_name() == request.param
    yield request.param
    instruction_sets.set_max(before)


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
