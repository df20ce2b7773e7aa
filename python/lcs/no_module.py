"""What is called like a module and is none."""

from torch import nn


class NoModule:
    """Base: what is missing of a module is an AttributeError that says what to do instead."""

    def __getattr__(self, name: str):
        kind = type(self).__name__
        if hasattr(nn.Module, name):
            raise AttributeError(
                f"a {kind} is no nn.Module and has no {name}: move or convert the lcs.Subspace before its `freeze`, or "
                "give lcs.load a device; its parameters are those of lcs.Frozen.model"
            )
        raise AttributeError(f"{kind!r} object has no attribute {name!r}")
