"""What others have registered on modules."""

from torch import nn


def hooks_of(m: nn.Module) -> tuple[dict, ...]:
    """Those that anybody has registered, and will."""
    return m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks


def watched(m: nn.Module) -> bool:
    """Whether somebody has registered a hook."""
    return any(hooks_of(m))
