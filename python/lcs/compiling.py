"""`torch.compiler.disable`, without the import of torch._dynamo, which takes as long as torch's own."""

import functools
import sys
from collections.abc import Callable

import torch


def disabled(function: Callable) -> Callable:
    """`function`, which torch.compile leaves alone, and which runs no slower where nothing is ever compiled."""

    uncompiled = None

    @functools.wraps(function)
    def call(*args, **kwargs):
        return (function if "torch._dynamo" not in sys.modules else made())(*args, **kwargs)

    def made() -> Callable:
        nonlocal uncompiled
        if uncompiled is None:
            uncompiled = torch.compiler.disable(function)
        return uncompiled

    call._torchdynamo_disable = True  # a graph ends before the call
    return call
