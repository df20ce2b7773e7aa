"""`torch.compiler.disable`, without the import of torch._dynamo, which takes as long as torch's own."""

import functools
import sys
from collections.abc import Callable

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback


def disabled(function: Callable) -> Callable:
    """`function`, which torch.compile leaves alone, and which runs no slower where nothing is compiled."""

    uncompiled = None

    @functools.wraps(function)
    def call(*args, **kwargs):
        return (made() if compiles() else function)(*args, **kwargs)

    def compiles() -> bool:
        if torch.compiler.is_compiling():  # whose tracer does not know the next call
            return True
        return "torch._dynamo" in sys.modules and get_eval_frame_callback() is not None

    def made() -> Callable:
        nonlocal uncompiled
        if uncompiled is None:
            uncompiled = torch.compiler.disable(function)
        return uncompiled

    call._torchdynamo_disable = True  # a graph ends before the call
    return call
