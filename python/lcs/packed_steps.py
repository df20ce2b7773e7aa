"""Quantised convolutions, pooling and a classifier after each other, at a level of integers one call of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lcs_kernels import packed_network
from lcs_kernels.formats import Dense, MaxPool, Mean, Network
from lcs_kernels.ops._convolution import output_size

from .hooks import watched
from .in_place import relu_into
from .layers import SubspaceLayer
from .layers.frozen_batch_norm import has_statistics, scale_and_shift
from .layers.frozen_quantized import FrozenQuantizedConv2d
from .packing import RUNNING, Packed

_NETWORKS = 1024  # sizes of images that a level remembers


class PackedSteps(nn.Module):
    """`steps`, a graph of one input. At a level whose weights and inputs are all rounded, `packed_network` runs it,
    with the same bits but for the sums of a mean and of a float32 classifier, which may come in another order, and of a
    norm before that mean, which rounds in other places; and `steps` itself elsewhere: inputs of other types, gradients.
    """

    def __init__(self, steps: fx.GraphModule) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, input: Tensor) -> Tensor:
        running = RUNNING.get(None)
        if isinstance(running, Packed) and self._takes(input):
            network = self._known(running.networks, input)
            if network is not None:
                return packed_network(input, network)
        return self.steps(input)

    def _known(self, networks: dict, x: Tensor) -> Network | None:
        """That of images of such a size, of the level's `networks`: the same one for all that it fits."""
        found = networks.get(key := (self, x.shape[1:]), ...)  # in one step, as other threads may clear them
        if found is ...:
            if len(networks) >= _NETWORKS:
                networks.clear()
            found = self._network(x)
            found = networks[key] = found and networks.setdefault(self, found)
        return found

    def _takes(self, x: Tensor) -> bool:
        wants_grad = x.requires_grad and torch.is_grad_enabled()
        return x.dtype == torch.float32 and x.is_cpu and x.dim() == 4 and not wants_grad

    def _network(self, x: Tensor) -> Network | None:
        """None: a step is no integer product at this level, or adds what `packed_network` does not."""
        steps, values = [], {}  # of a node the value that it makes, and its shape
        norms: dict[fx.Node, tuple] = {}  # of a node that is part of a mean: what comes first
        modules = dict(self.steps.named_modules())
        for node in self.steps.graph.nodes:
            if node.op == "placeholder":
                values[node] = 0, tuple(x.shape)
            elif node.op != "output":
                value, shape = values[node.args[0]]
                if flattens(node):
                    continue  # the last one
                if is_relu(node, modules) or is_norm(node, modules):
                    values[node] = value, shape
                    first = norms.get(node.args[0])
                    norms[node] = (*first, True) if first else (scale_and_shift(modules[node.target]),)
                    if len(norms[node][0][0]) != shape[1]:
                        return None
                    continue
                if node.target is F.adaptive_avg_pool2d:
                    found = Mean(value, *norms.get(node.args[0], ())), (*shape[:2], 1, 1)
                elif node.op == "call_function":
                    found = _pooling(value, shape, *node.args[1:4])
                elif is_linear(layer := self.steps.get_submodule(node.target)):
                    found = _dense(layer, value, shape, **node.kwargs)
                else:
                    options = dict(node.kwargs)
                    residual = values.get(options.pop("residual", None))
                    found = layer.step(value, shape, residual, **options)
                if found is None:
                    return None
                steps.append(found[0])
                values[node] = len(steps), found[1]
        return Network.of(steps, any(map(flattens, self.steps.graph.nodes)))


def _pooling(value: int, shape: tuple[int, ...], kernel_size, stride, padding) -> tuple[MaxPool, tuple[int, ...]]:
    kernel, steps, padded = (
        (n, n) if isinstance(n, int) else tuple(n) for n in (kernel_size, stride or kernel_size, padding)
    )
    return MaxPool(value, kernel, steps, padded), (*shape[:2], *output_size(shape, kernel, steps, padded))


def _dense(
    layer: nn.Conv2d, value: int, shape: tuple[int, ...], *, norm: bool = False, residual=None, relu: bool = False, **_
) -> tuple[Dense, tuple[int, ...]] | None:
    subspace = isinstance(layer, SubspaceLayer)
    weight, bias, *bits = layer.slot.tensors(layer) if subspace else (layer.weight, layer.bias)
    if norm or residual is not None or bits:
        return None
    return Dense(value, weight.flatten(1), bias, relu), (shape[0], layer.out_channels, 1, 1)


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a float32 linear layer of each position, at every level."""
    return (
        isinstance(layer, nn.Conv2d)
        and (type(layer) is nn.Conv2d or isinstance(layer, FrozenQuantizedConv2d))
        and not getattr(layer, "compressed", False)
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
        and layer.groups == 1
        and layer.weight.dtype == torch.float32
    )


def is_norm(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a batch norm that does the same to every input, and that nobody watches."""
    layer = modules.get(node.target) if node.op == "call_module" else None
    return has_statistics(layer) and _of_one(node) and not node.kwargs and not watched(layer)


def is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a ReLU, in place or not, that nobody watches."""
    if not _of_one(node) or node.kwargs.keys() - {"inplace"}:
        return False
    if node.op == "call_module":
        layer = modules.get(node.target)  # not of a run that has been put together
        return type(layer) is nn.ReLU and not watched(layer)
    return node.target in (F.relu, torch.relu, torch.relu_, relu_into, "relu", "relu_")


def _of_one(node: fx.Node) -> bool:
    return len(node.args) == 1 and isinstance(node.args[0], fx.Node)


def averages(node: fx.Node) -> bool:
    """Whether a node is the mean of all positions."""
    return node.target is F.adaptive_avg_pool2d and node.args[1:] in ((1,), ((1, 1),)) and not node.kwargs


def flattens(node: fx.Node) -> bool:
    """Whether a node makes (n, channels) of (n, channels, 1, 1), or more."""
    return node.args[1:] == (1,) and not node.kwargs and node.target in ("flatten", torch.flatten)


@dataclass(frozen=True)
class _Taken:
    """Which nodes a run may hold: methods, as functions that call each other are a cycle, which keeps the modules.

    pooling: the function of the graph's max pooling.
    """

    modules: dict[str, nn.Module]
    pooling: Callable

    def takes(self, node: fx.Node) -> bool:
        """A mean, with the norm and the ReLU before it, only where no rounding comes after, which would make a
        difference of the last bit larger."""
        if node.op == "call_function" and node.target is self.pooling:
            return node.args[4] in (1, (1, 1)) and not node.args[5]
        if averages(node):
            return all(self.linear(user) for user in node.users)
        if is_relu(node, self.modules):
            return self.averaged(node) and is_norm(node.args[0], self.modules) and len(node.args[0].users) == 1
        if is_norm(node, self.modules):
            (user,) = node.users if len(node.users) == 1 else (None,)
            return self.averaged(node) or (user is not None and is_relu(user, self.modules) and self.takes(user))
        if flattens(node):
            return self.linear(node.args[0])
        layer = self.modules[node.target] if node.op == "call_module" else None
        if not isinstance(layer, FrozenQuantizedConv2d) or not layer.takes_codes() or watched(layer):
            return self.linear(node)
        return True

    def averaged(self, node: fx.Node) -> bool:
        """Whether a node's mean alone is read."""
        return len(node.users) == 1 and all(averages(user) and self.takes(user) for user in node.users)

    def linear(self, node: fx.Node) -> bool:
        layer = self.modules[node.target] if node.op == "call_module" else None
        return layer is not None and is_linear(layer) and not watched(layer) and averages(node.args[0])


def gather(graph: fx.Graph, modules: dict[str, nn.Module], pooling: Callable) -> dict[str, PackedSteps]:
    """Puts one module, by the name returned, in the place of each run of two or more such steps in `graph` that starts
    from one value and ends in one. `pooling`: the function of the graph's max pooling."""
    found, nodes, taken = {}, list(graph.nodes), _Taken(modules, pooling)
    while nodes:
        run = next(_closed(nodes, taken.takes, modules), None)
        if run is None:
            nodes.pop(0)
            continue
        name = f"packed_steps_{len(found)}"
        found[name] = _replace(graph, run, name, modules)
        nodes = nodes[len(run) :]
    return found


def _closed(
    nodes: list[fx.Node], takes: Callable[[fx.Node], bool], modules: dict[str, nn.Module]
) -> Iterator[list[fx.Node]]:
    """The runs from the first node on, the longest first, that read one value and give one, no codes, by several
    convolutions and linear layers, of which they make all that they average."""

    def before_mean(node: fx.Node) -> bool:
        return is_norm(node, modules) or is_relu(node, modules)

    def averaged(node: fx.Node) -> fx.Node:
        while before_mean(node):
            node = node.args[0]
        return node

    length = next((i for i, node in enumerate(nodes) if not takes(node)), len(nodes))
    for end in range(length, 1, -1):
        run = nodes[:end]
        inside = set(run)
        read = {node for each in run for node in each.all_input_nodes} - inside
        given = [node for node in run if set(node.users) - inside]
        several = sum(node.op == "call_module" and not before_mean(node) for node in run) > 1
        made = all(averaged(node.args[0]) in inside for node in run if averages(node)) and not before_mean(run[-1])
        if len(read) == 1 and given == run[-1:] and several and made and "codes" not in run[-1].kwargs:
            yield run


def _replace(graph: fx.Graph, run: list[fx.Node], name: str, modules: dict[str, nn.Module]) -> PackedSteps:
    (source,) = {node for each in run for node in each.all_input_nodes} - set(run)
    steps = fx.Graph()
    copies = {source: steps.placeholder("input")}
    for node in run:
        copies[node] = steps.node_copy(node, copies.__getitem__)
    steps.output(copies[run[-1]])
    with graph.inserting_before(run[0]):
        new = graph.call_module(name, (source,))
    run[-1].replace_all_uses_with(new)
    for node in reversed(run):
        graph.erase_node(node)
    return PackedSteps(module_of({n.target: modules[n.target] for n in run if n.op == "call_module"}, steps))


def module_of(read: dict[str, nn.Module | Tensor], graph: fx.Graph) -> fx.GraphModule:
    """The module that runs `graph`; it is freed after its last use, where fx's own and its graph hold each other."""
    made = fx.GraphModule(read, graph)
    made.graph.owning_module = None
    made.__dict__["forward"] = _direct(made)
    return made


def _direct(module: fx.GraphModule) -> Callable:
    """Its forward, which runs those of the modules that nobody watches, without what `nn.Module` does around them."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    read = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            value = attrgetter(node.target)(module)
            if node.op == "call_module" and not watched(value):
                value, node.target = value.forward, f"_forward_{len(read)}"
            read[node.target] = value
    made = fx.GraphModule(read, graph)
    made.graph.owning_module = None
    return made.forward
