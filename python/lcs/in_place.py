"""Sums and ReLUs in the memory of their first argument, which nothing else reads; not where a gradient comes back."""

from torch import Tensor


def relu_into(a: Tensor, cap: float | None = None) -> Tensor:
    """relu(a), which ends at `cap`."""
    if a.requires_grad:
        return a.relu() if cap is None else a.clamp(0, cap)
    return a.relu_() if cap is None else a.clamp_(0, cap)


def add_into(a: Tensor, b: Tensor) -> Tensor:
    """a + b; in memory of its own where that would be laid out in another way."""
    alike = isinstance(b, Tensor) and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    return a.add_(b) if alike and not a.requires_grad else a + b


def add_relu_into(a: Tensor, b: Tensor) -> Tensor:
    """relu(a + b), likewise."""
    return relu_into(add_into(a, b))
