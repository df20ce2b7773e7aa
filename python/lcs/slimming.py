"""Network slimming (arXiv 1708.06519), the LEC baseline of arXiv 2110.04252: channels go by the scales of their norms.

Training adds `l1 * sign(scale)` to the gradient of every scale. Afterwards the smallest scales of all norms together
are dropped, and the network is built anew without the channels that they leave at zero.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lcs_kernels import keep_count

from .channels import trace
from .layers import SubspaceLayer
from .layers.norms import BATCH_NORMS, INSTANCE_NORMS
from .layers.structured import narrow
from .layers.support import replace_modules
from .planning import columns

Selection = Literal["exact", "strict"]
_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS.values())
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
# Steps that keep each channel apart, and one that is 0 everywhere at 0.
_KEEPING = {
    *(F.relu, F.relu_, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    *(torch.relu, torch.max_pool2d, "relu", "relu_", "contiguous"),
    *(nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Identity, nn.Dropout),
}


class ChannelSelection(nn.Module):
    """The channels `index` of (N, channels, ...) images, in that order."""

    def __init__(self, index: Tensor, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("index", index)

    def forward(self, input: Tensor) -> Tensor:
        return input.index_select(1, self.index)

    def extra_repr(self) -> str:
        return f"{len(self.index)} of {self.channels} channels"


@dataclass(frozen=True)
class NormRow:
    """One norm: its channels, those whose scales were large enough, those that are left, and why these differ."""

    norm: str
    channels: int
    chosen: int
    left: int
    why: str


@dataclass(frozen=True)
class Slimmed:
    """What `slim` made: plain modules, and a row for each norm; `print` shows them as a table."""

    model: nn.Module
    rows: tuple[NormRow, ...]

    @property
    def selection_bytes(self) -> int:
        """Bytes that say which channels the selections choose: a bit for each one that they choose among."""
        return sum((s.channels + 7) // 8 for s in self.model.modules() if isinstance(s, ChannelSelection))

    def __str__(self) -> str:
        chosen, left, channels = (sum(getattr(r, name) for r in self.rows) for name in ("chosen", "left", "channels"))
        return columns(NormRow, self.rows, f"{chosen:,} of {channels:,} channels chosen, {left:,} left")


@dataclass(eq=False)
class _Group:
    """Channels that are present together: those of the sum of `norms`. `whole`: why none of them may be missing."""

    norms: list[str] = field(default_factory=list)
    whole: str = ""


@torch.no_grad()
def slim(model: nn.Module, width: float, *, selection: Selection = "exact") -> Slimmed:
    """A copy of a plain `model` in evaluation mode, without the channels whose norm scales are among the smallest.

    The scales of all batch and instance norms are ranked together by magnitude, and `width` in (0, 1] of them are
    chosen. The result computes what `model` does where the scale and the bias of each norm channel that is not left are
    0; no weights of such a channel remain, neither before nor after. A convolution loses the outputs that only such a
    norm reads. Where others read them too (a residual sum), the norm is preceded by a `ChannelSelection`. Norms that
    meet in a sum keep a channel that any of them does; where a sum or another step takes all channels, all are kept.
    The rows say so. No layer is removed as a whole: the largest channel is left.

    selection: "exact" chooses round(width * n) of n scales (half to even; of equal ones the later), "strict" those
        strictly above the one at place int((1 - width) * n) in ascending order, which drops one even at width 1.

    Raises ValueError where width or selection is none, the model has no such norm, or its forward cannot be traced.
    """
    if not 0.0 < width <= 1.0:
        raise ValueError(f"slim: width must lie in (0, 1], got {width}")
    if selection not in ("exact", "strict"):
        raise ValueError(f"slim: selection must be exact or strict, got {selection!r}")
    if any(isinstance(m, SubspaceLayer) for m in model.modules()):
        raise ValueError(f"slim: {type(model).__name__} is converted; lcs.unconvert its lcs.Subspace first")
    network = copy.deepcopy(model).eval()
    modules = dict(network.named_modules())
    norms = {name: m for name, m in modules.items() if isinstance(m, _NORMS) and m.weight is not None}
    if not norms:
        raise ValueError(f"slim: {type(model).__name__} has no batch or instance norm with a scale")
    walk = _Walk(modules, norms)
    layers = [name for name, m in modules.items() if isinstance(m, (*_CONVOLUTIONS, *_NORMS))]
    walk.run(trace(network, layers, "lcs.slim"))
    chosen = _chosen({name: m.weight.abs() for name, m in norms.items()}, width, selection)
    left = {name: _left(walk.groups[name], norms, chosen) for name in norms}
    rows = tuple(_row(name, walk.groups[name], chosen, left[name]) for name in norms)
    replace_modules(network, {modules[name]: _rebuilt(name, walk, left) for name in [*norms, *walk.inputs]})
    return Slimmed(network, rows)


def _chosen(scales: dict[str, Tensor], width: float, selection: Selection) -> dict[str, Tensor]:
    """A mask of each norm's channels."""
    every = torch.cat(list(scales.values()))
    n, order = len(every), every.argsort(stable=True)
    if selection == "exact":
        mask = torch.zeros(n, dtype=torch.bool, device=every.device)
        mask[order[n - keep_count(width, n) :]] = True
    else:
        mask = every > every[order[min(int(n * (1 - width)), n - 1)]]
    return dict(zip(scales, mask.split([len(scale) for scale in scales.values()]), strict=True))


def _left(group: _Group, norms: dict[str, nn.Module], chosen: dict[str, Tensor]) -> Tensor:
    """The indices of the channels that remain, in order."""
    mask = torch.stack([chosen[name] for name in group.norms]).any(0)
    if group.whole:
        mask = torch.ones_like(mask)
    elif not mask.any():
        mask[torch.stack([norms[name].weight.abs() for name in group.norms]).amax(0).argmax()] = True
    return mask.nonzero().squeeze(1)


def _row(name: str, group: _Group, chosen: dict[str, Tensor], left: Tensor) -> NormRow:
    count, why = int(chosen[name].sum()), ""
    if len(left) != count:
        others = [other for other in chosen if other in group.norms and other != name]
        why = group.whole or (f"added to {', '.join(others)}" if others else "the largest, as none was chosen")
    return NormRow(name, len(chosen[name]), count, len(left), why)


class _Walk:
    """Which norms make up each step of a graph, and which convolutions only a norm reads."""

    def __init__(self, modules: dict[str, nn.Module], norms: dict[str, nn.Module]) -> None:
        self.modules, self.norms = modules, norms
        self.groups: dict[str, _Group] = {}  # of the norms' outputs
        self.inputs: dict[str, _Group] = {}  # of the convolutions and linear layers
        self.readers: dict[str, str] = {}  # of a convolution's outputs, where it is one norm alone

    def run(self, graph: fx.Graph) -> None:
        self.values: dict[fx.Node, _Group] = {}
        calls = [node.target for node in graph.nodes if node.op == "call_module"]
        self.repeated = {name for name in calls if calls.count(name) > 1}
        for node in graph.nodes:
            self.values[node] = self._step(node)
        for name in self.norms:
            if name not in self.groups:
                why = "called twice" if name in self.repeated else "not called by the forward"
                self.groups[name] = _Group([name], why)

    def _step(self, node: fx.Node) -> _Group:
        given = [self.values[n] for n in node.all_input_nodes]
        if node.op == "call_module" and len(given) == 1 and node.target not in self.repeated:
            module, source = self.modules[node.target], node.all_input_nodes[0]
            if node.target in self.norms:
                return self._norm(node.target, source)
            if isinstance(module, _CONVOLUTIONS) and getattr(module, "groups", 1) == 1:
                self.inputs[node.target] = given[0]
                return _Group(whole=f"added to {node.target}")
            if type(module) in _KEEPING:
                return given[0]
        elif node.op != "output" and node.target in _KEEPING and len(given) == 1:
            return given[0]
        elif node.target in _SUMS and len(given) == len(node.args) == 2 and not node.kwargs:
            return self._joined(*given)
        for group in given:
            group.whole = group.whole or f"read by {node.target if node.op != 'output' else 'the model output'}"
        return _Group(whole=f"made by {node.target}")

    def _norm(self, name: str, source: fx.Node) -> _Group:
        before = source.target if source.op == "call_module" else None
        if before in self.inputs and len(source.users) == 1:
            self.readers[before] = name
        else:
            self.values[source].whole = self.values[source].whole or f"read by {name}"
        group = self.groups[name] = _Group([name])
        return group

    def _joined(self, a: _Group, b: _Group) -> _Group:
        if a is not b:
            a.norms += b.norms
            a.whole = a.whole or b.whole
            if len({self.norms[name].num_features for name in a.norms}) > 1:
                a.whole = "added to as many channels of another number"
            for place in (self.values, self.groups, self.inputs):
                place.update({key: a for key, group in place.items() if group is b})
        return a


def _rebuilt(name: str, walk: _Walk, left: dict[str, Tensor]) -> nn.Module:
    module = walk.modules[name]
    if name not in walk.norms:
        norms = walk.inputs[name].norms  # where they are whole, `left` has all of them
        return _cut(module, left.get(walk.readers.get(name)), left[norms[0]] if norms else None)
    channels, kept = module.num_features, left[name]
    small = _cut(module, kept, None)
    if len(kept) == channels or name in walk.readers.values():
        return small
    return nn.Sequential(ChannelSelection(kept, channels), small)


def _cut(module: nn.Module, outputs: Tensor | None, inputs: Tensor | None) -> nn.Module:
    """`module` in place, of some of its outputs (a norm's channels) and inputs."""
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is None or not tensor.dim():
                continue
            data = tensor.detach()
            data = data if outputs is None else data.index_select(0, outputs)
            data = data if inputs is None or data.dim() < 2 else data.index_select(1, inputs)
            tensors[name] = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    narrow(module, len(module.weight) if isinstance(module, _NORMS) else module.weight.shape[1])
    return module
