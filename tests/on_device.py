"""Tests of the ops on another device: every call of an op runs there, on copies of its arguments."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lcs_kernels import _triton

# A test that names one of these looks at what torch makes of an op, and has been through it on the CPU.
OF_TORCH = {"opcheck", "compile", "gradcheck", "CompileCounterWithBackend", "copies_of"}
# What the CPU's binding refuses, in its words; Triton's twins have theirs in tests/triton.
OF_THE_CPU = "test_the_op_refuses"


def moved(t: Tensor, device: str) -> Tensor:
    """A copy of `t` at the same place of a copy of its storage, so that strides and alignment stay."""
    if t.device.type == "meta":
        return t
    storage = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).to(device, copy=True)
    return torch.empty(0, dtype=t.dtype, device=device).set_(
        storage.untyped_storage(), t.storage_offset(), t.shape, t.stride()
    )


def run_on(device: str, function, args, kwargs):
    """function(...) with all tensors moved to `device`, and its results here. No memory that it takes is 0 at first."""
    args, kwargs = tree_map_only(Tensor, lambda t: moved(t, device), (args, kwargs))
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty
    try:
        found = function(*args, **kwargs)
    finally:
        torch.use_deterministic_algorithms(False)
    return tree_map_only(Tensor, lambda t: t.to("cpu", copy=True), found)


class OnDevice(TorchDispatchMode):
    """While it is entered, ops of `lcs` that take tensors run on `device`; `calls` counts them.

    `largest`: calls with more elements stay where they are; `most`: so do all but the first calls of a test.
    `twins`: on the CPU, run the Triton kernels in Triton's interpreter where an op has them.
    """

    def __init__(self, device: str, largest: float = inf, most: float = inf, twins: bool = False):
        super().__init__()
        self.device, self.largest, self.most, self.calls, self.left = device, largest, most, 0, most
        self.twins = {name: op for op, names in _triton.OPS.items() for name in names} if twins else {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.__name__.partition(".")[0]
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        size = sum(t.numel() for t in tensors)
        without_data = any(t.device.type == "meta" for t in tensors)
        if function.namespace != "lcs" or not tensors or without_data or size > self.largest or self.left <= 0:
            return function(*args, **kwargs)
        self.calls += 1
        self.left -= 1
        run = _triton.kernel(self.twins[name], name) if name in self.twins else function
        if self.device != "cpu" or name in self.twins:  # a prepack was laid out for CPUs
            names = (argument.name for argument in function._schema.arguments)
            args = tuple([] if each == "prepack" else given for each, given in zip(names, args, strict=False))
        return run_on(self.device, run, args, kwargs)


def triton_on(device: str):
    """`_triton.kernel`, whose kernels run on `device`."""
    find = _triton.kernel

    def kernel(op: str, name: str):
        return lambda *args, **kwargs: run_on(device, find(op, name), args, kwargs)

    return kernel
