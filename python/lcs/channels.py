"""Which channels reach each layer of a model at a width, found by tracing its forward; what no width fits is an error.

A compressed layer has the first `max(1, round(width * C))` of its C output channels, so two layers of as many channels
agree at every width (arXiv 2110.04252, section 4). The trace follows these channels through the steps that keep them
the first ones, and refuses every other step.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import fx, nn

from .layers.norms import NORM_LAYERS
from .layers.weights import WEIGHT_LAYERS
from .tracing import Tracer, defaults_of, untouched


@dataclass(frozen=True)
class Channels:
    """The first channels of a tensor are there, as many as `layer` has outputs at the width.

    count: outputs of `layer` at width 1. times: channels of the tensor for each of them.
    dim: of the channels, from the end. rank: of the tensor; None is unknown.
    flat: the positions of an image lie along `dim` too, each channel's together, and how many is not known.
    """

    layer: str
    count: int
    times: int = 1
    dim: int = -1
    rank: int | None = None
    flat: bool = False

    def agrees(self, other: Channels) -> bool:
        return (self.count, self.times, self.dim, self.flat) == (other.count, other.times, other.dim, other.flat)


@dataclass(frozen=True)
class Whole:
    """A tensor that is the same size at every width. source: what it comes from."""

    source: str


Value = Channels | Whole

_ELEMENTWISE = {
    *(F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.softplus, F.hardtanh, F.hardswish),
    *(F.hardsigmoid, F.sigmoid, F.tanh, F.dropout, torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.clone),
    *("relu", "relu_", "sigmoid", "tanh", "clamp", "clone", "contiguous", "detach", "float", "double", "half", "to"),
}
_IMAGES = {
    *(F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.interpolate, F.dropout2d, torch.max_pool2d),
    *(torch.adaptive_avg_pool1d, torch.avg_pool1d),
}
_BINARY = {
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul),
    *(operator.truediv, operator.itruediv),
    *(torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum),
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"),
}
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, torch.squeeze, "mean", "sum", "amax", "squeeze"}
_FLATTENINGS = {torch.flatten, "flatten", torch.reshape, "view", "reshape"}
_SHAPES = {"size", "dim", getattr, len}
_MODULES = ("activation", "pooling", "dropout", "linear.Identity", "padding", "upsampling")
_CHANNELS_APART = (nn.Softmax2d, nn.MultiheadAttention, nn.GLU, nn.PReLU, nn.Softmax, nn.LogSoftmax, nn.Softmin)


def incoming(model: nn.Module, converted: Mapping[str, bool]) -> dict[str, Channels | None]:
    """What reaches each module of `converted`, which says whether its own outputs are cut; None is all channels.

    Modules that the forward does not call are left out. Raises ValueError naming the layers and the step where widths
    cannot be applied.
    """
    graph = trace(model, converted, "lcs.Structured")
    walk = _Walk(dict(model.named_modules()), converted)
    values: dict[fx.Node, Value | None] = {}
    for node in graph.nodes:
        given = [values[n] for n in node.all_input_nodes if values[n] is not None]
        values[node] = walk.step(node, given)
    return walk.found


def trace(model: nn.Module, layers: Iterable[str], caller: str) -> fx.Graph:
    """The forward of `model`, in which the modules named `layers` stay whole. Raises ValueError naming `caller`."""
    whole = {model.get_submodule(name) for name in layers}
    try:
        with untouched(model):
            return _Tracer(whole).trace(model, concrete_args=defaults_of(model))
    except Exception as error:  # a forward is any Python, and may fail on a proxy in any way
        raise ValueError(
            f"{caller}: the forward of {type(model).__name__} cannot be traced, so it is not known which "
            f"channels meet where: {type(error).__name__}: {error}"
        ) from error


class _Tracer(Tracer):
    def __init__(self, layers: set[nn.Module]) -> None:
        super().__init__()
        self.layers = layers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.layers or super().is_leaf_module(m, module_qualified_name)


class _Walk:
    """From the channels that go into each step of a graph to those that come out."""

    def __init__(self, modules: dict[str, nn.Module], converted: Mapping[str, bool]) -> None:
        self.modules, self.converted = modules, converted
        self.found: dict[str, Channels | None] = {}

    def step(self, node: fx.Node, given: list[Value]) -> Value | None:
        cut = [value for value in given if isinstance(value, Channels)]
        if node.op == "placeholder":
            return Whole("the model's input")
        if node.op == "get_attr":
            return Whole(str(node.target))
        if node.op == "call_module" and node.target in self.converted:
            return self._layer(node, given)
        if node.op != "output" and node.target in _SHAPES:
            return None
        if not cut:
            weighted = node.op == "call_module" and any(True for _ in self.modules[node.target].parameters())
            return Whole(node.target if weighted else given[0].source) if given else None
        if node.op == "output":
            _refuse(cut, "are outputs of the model, which would lose them")
        return self._through(node, given, cut)

    def _layer(self, node: fx.Node, given: list[Value]) -> Value:
        name, module = node.target, self.modules[node.target]
        x = given[0] if given else Whole("the model's input")
        is_norm = isinstance(module, tuple(NORM_LAYERS))
        if isinstance(x, Channels):
            x = _check_norm(name, module, x) if is_norm else _check_weights(name, module, x)
        found = x if isinstance(x, Channels) else None
        if name in self.found and not _same(self.found[name], found):
            _refuse([v for v in (found, self.found[name]) if v], f"both go into {name}, at different widths")
        self.found[name] = found
        return x if is_norm else self._outputs(name, module, x)

    def _outputs(self, name: str, module: nn.Module, x: Value) -> Value:
        out, images = module.weight.shape[0], module.weight.dim() - 2
        if is_depthwise(module):
            return replace(x, times=x.times * (out // module.groups)) if isinstance(x, Channels) else Whole(name)
        if not self.converted[name]:
            return Whole(name)
        if getattr(module, "groups", 1) > 1:
            raise ValueError(
                f"lcs.Structured: {name} has {module.groups} groups, which a width would cut through: "
                f"pass dense=[{name!r}], whose inputs must then be whole too"
            )
        rank = images + 2 if images else x.rank if isinstance(x, Channels) else None
        return Channels(name, out, 1, -1 - images, rank)

    def _through(self, node: fx.Node, given: list[Value], cut: list[Channels]) -> Value:
        module = self.modules[node.target] if node.op == "call_module" else None
        if len(given) == 1:
            if node.target in _ELEMENTWISE or (module is not None and _keeps_channels(module, cut[0])):
                return cut[0]
            if node.target in _IMAGES and cut[0].dim < -_positions(node.target.__name__):
                return cut[0]
            if node.target in _REDUCTIONS and (value := _reduced(node, cut[0])):
                return value
        if (isinstance(module, nn.Flatten) or node.target in _FLATTENINGS) and _flattens(node, module, cut[0]):
            return replace(cut[0], dim=-1, rank=2, flat=cut[0].flat or cut[0].dim < -1)
        if node.target in _BINARY:
            return _met(node, given, cut)
        if isinstance(module, (*WEIGHT_LAYERS, *NORM_LAYERS)):
            _refuse(cut, f"go into {node.target}, which is left as it is")
        _refuse(cut, f"go into {_name(node)}, which is not known to keep them the first ones")


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel is convolved alone: the outputs then follow the inputs."""
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == module.in_channels


def _check_weights(name: str, module: nn.Module, x: Channels) -> Channels:
    images = module.weight.dim() - 2
    if x.dim != -1 - images:
        _refuse([x], f"go into {name} along another dimension than its own")
    if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
        _refuse([x], f"go into {name}, whose {module.groups} groups a width would cut through")
    return _resolved(name, module.in_channels if images else module.in_features, x)


def _check_norm(name: str, module: nn.Module, x: Channels) -> Channels:
    if isinstance(module, nn.LayerNorm):
        if x.dim != -1 or len(module.normalized_shape) != 1:
            _refuse([x], f"go into {name}, a layer norm of other dimensions too")
        count = module.normalized_shape[0]
    elif isinstance(module, nn.GroupNorm):
        count = module.num_channels
        if module.num_groups not in (1, count):
            _refuse(
                [x],
                f"go into {name}, whose {module.num_groups} groups do not divide every width: make it an instance norm",
            )
    else:
        count = module.num_features
    return _resolved(name, count, x)


def _resolved(name: str, inputs: int, x: Channels) -> Channels:
    """`x` as the `inputs` of a layer."""
    times, rest = divmod(inputs, x.count)
    if rest or times % x.times or (not x.flat and times != x.times):
        _refuse([x], f"go into {name}, whose {inputs} inputs they are not")
    return replace(x, times=times, flat=False)


def _same(a: Channels | None, b: Channels | None) -> bool:
    return a is b or (a is not None and b is not None and a.agrees(b))


def _keeps_channels(module: nn.Module, x: Channels) -> bool:
    kind = type(module)
    place = f"{kind.__module__.removeprefix('torch.nn.modules.')}.{kind.__name__}"
    if not place.startswith(_MODULES) or isinstance(module, _CHANNELS_APART):
        return False
    return x.dim < -_positions(kind.__name__) or place.startswith(("activation", "dropout", "linear"))


def _positions(name: str) -> int:
    """Over how many last dimensions pooling, padding and the like of this name work, at least."""
    return int(name[-2]) if name[-1] == "d" and name[-2].isdigit() else 1


def _reduced(node: fx.Node, x: Channels) -> Channels | None:
    """Of a mean, sum, maximum or squeeze over dimensions after the channels'."""
    names = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
    dims = names.get("dim")
    dims = (dims,) if isinstance(dims, int) else dims
    if not dims or x.rank is None or not all(isinstance(d, int) for d in dims):
        return None
    dims = {d - x.rank if d >= 0 else d for d in dims}
    if min(dims) <= x.dim:
        return None
    gone = 0 if names.get("keepdim") else len(dims)
    return replace(x, dim=x.dim + gone, rank=x.rank - gone)


def _flattens(node: fx.Node, module: nn.Module | None, x: Channels) -> bool:
    """Whether a step joins all dimensions but the first, the channels' before the others."""
    if x.rank is None or x.dim != 1 - x.rank:
        return False
    if module is not None:
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in (torch.flatten, "flatten"):
        names = dict(zip(("input", "start_dim", "end_dim"), node.args, strict=False)) | node.kwargs
        return (names.get("start_dim", 0), names.get("end_dim", -1)) == (1, -1)
    sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    return len(sizes) == 2 and isinstance(sizes[0], fx.Node) and sizes[1] == -1


def _met(node: fx.Node, given: list[Value], cut: list[Channels]) -> Channels:
    whole = [value for value in given if isinstance(value, Whole)]
    if whole:
        _refuse(cut, f"meet all those of {whole[0].source} in {_name(node)}: compress both, or neither")
    wide = [value for value in cut if value.count * value.times > 1] or cut
    for other in wide[1:]:
        if not other.agrees(wide[0]):
            _refuse([wide[0], other], f"meet in {_name(node)}, but are not as many at every width")
    return wide[0]


def _refuse(cut: Iterable[Channels], why: str) -> NoReturn:
    layers = list(dict.fromkeys(value.layer for value in cut))
    raise ValueError(
        f"lcs.Structured: widths cannot be applied: the channels of {' and '.join(layers)} {why}. "
        f"dense={layers!r} keeps them at every width"
    )


def _name(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    inside = list(node.meta.get("nn_module_stack", {}))
    return f"{target} of {inside[-1]}" if inside and node.op != "call_module" else target
