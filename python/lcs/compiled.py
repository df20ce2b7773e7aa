"""torch.compile of a model's forward, put in its place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


class CompiledForward:
    """Runs `forward`, a method, compiled with `options`. A copy of the model, and what is pickled of it, has one of its
    own, which runs the copy: torch's compiled function would go on with the model that it was made of."""

    def __init__(self, forward: Callable, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, forward)
        self._parts = forward, options
        self._run = torch.compile(forward, **options)

    def __call__(self, *args, **kwargs):
        return self._run(*args, **kwargs)

    def __reduce__(self) -> tuple:
        return CompiledForward, self._parts
