"""What every module of a converted model shares: its ends, and how it takes the tensors of the level."""

import torch
from torch import Tensor, nn

_SECOND = {"weight": "weight_1", "bias": "bias_1"}
_BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class SubspaceLayer(nn.Module):
    """Mixed into a torch module: `weight` and `bias` are the first end; a line also has `weight_1` and `bias_1`.

    `forward` reads neither: it asks the slot that all layers of the subspace share for the tensors of the level.
    """

    original: type[nn.Module]  # what `plain` makes
    was_batch_norm: bool  # its statistics in a state_dict are then ignored
    compressed: bool  # pruned at a level; else kept whole
    takes_ends: bool = False  # its forward blends the ends itself; in a snapshot they are both, and alpha
    incoming: object = None  # lcs.channels.Channels, where a level changes how many channels arrive
    traced: bool = False  # whether `incoming` is known: None is then that all channels arrive
    slot: object  # lcs.snapshot.Slot
    index: int  # this layer's place in a snapshot

    @classmethod
    def of(cls, module: nn.Module, *, was_batch_norm: bool = False, compressed: bool = False) -> "SubspaceLayer":
        """`module` as a layer with the same Parameter objects (an optimizer still holds them), buffers and hooks."""
        layer = cls.__new__(cls)
        layer.__dict__ = module.__dict__ | {name: dict(module.__dict__[name]) for name in ("_parameters", "_buffers")}
        layer.original, layer.was_batch_norm, layer.compressed = type(module), was_batch_norm, compressed
        return layer

    def plain(self, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
        """A module of the original type that holds `weight` and `bias`, in place of the ends."""
        module = self.original.__new__(self.original)
        own = ("original", "was_batch_norm", "compressed", "incoming", "traced", "slot", "index")
        module.__dict__ = {name: value for name, value in self.__dict__.items() if name not in own}
        module._parameters = {"weight": _parameter(weight, self.weight), "bias": _parameter(bias, self.bias)}
        module._buffers = dict(self._buffers)
        return module

    @property
    def line(self) -> bool:
        return "weight_1" in self._parameters or "bias_1" in self._parameters

    def add_second_end(self) -> None:
        """`weight_1` and `bias_1`, copies of `weight` and `bias`."""
        for name in ("weight", "bias"):
            if (end := getattr(self, name)) is not None:
                self.register_parameter(f"{name}_1", nn.Parameter(end.detach().clone(), end.requires_grad))

    def ends(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Both ends of "weight" or "bias"; the second is None on a point, both are None where the layer has none."""
        return getattr(self, name), getattr(self, _SECOND[name], None)

    def tensors(self) -> tuple[Tensor | None, Tensor | None]:
        """weight and bias at the level that is set."""
        return self.slot.tensors(self)

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), "line" if self.line else "point", *["compressed"] * self.compressed])

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Fills what a dense model's state_dict lacks: the second end from the first, and each width's own running
        statistics from the first channels of its."""
        for name in ("weight", "bias"):
            first, second = prefix + name, f"{prefix}{name}_1"
            if f"{name}_1" in self._parameters and first in state_dict and second not in state_dict:
                state_dict[second] = state_dict[first].clone()
        for name, own in self._buffers.items():
            whole = prefix + name.rpartition("_")[0]
            if own is not None and name not in _BATCH_STATISTICS and prefix + name not in state_dict:
                if whole in state_dict and whole.removeprefix(prefix) in _BATCH_STATISTICS:
                    state_dict[prefix + name] = state_dict[whole][: len(own)].clone()
        if self.was_batch_norm:
            for name in _BATCH_STATISTICS:
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def blend(p0: Tensor | None, p1: Tensor | None, alpha: float) -> Tensor | None:
    """(1 - alpha) * p0 + alpha * p1 in float32 (float64 for float64), in p0's dtype; p0 itself on a point."""
    if p1 is None:
        return p0
    wide = torch.promote_types(p0.dtype, torch.float32)
    a = torch.tensor(alpha, dtype=wide)  # 1 - a in `wide`, as for the weights
    return ((1 - a) * p0.to(wide) + a * p1.to(wide)).to(p0.dtype)


def _parameter(value: Tensor | None, like: nn.Parameter | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(value.detach().clone(), like.requires_grad)
