"""Memory that ran out while a frozen network found out how to run: it says nothing of what failed."""

import torch

_WORDS = ("allocate memory", "aoti_torch_empty", "torch_parallel_for")  # torch's, of kernels' results, in their loops


class ShortageError(Exception):
    """What failed may work at the next call."""


def is_shortage(error: Exception) -> bool:
    """Whether an error is for want of memory, as far as its words say."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in _WORDS)
