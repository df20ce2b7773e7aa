"""The forward of a frozen network in cheaper steps that give the same bits.

Sums and ReLUs become part of the norm before them, or happen in place; a norm becomes part of a convolution of all
widths before it; pooling runs in vectors. A quantised convolution takes in the batch norm that is folded into it, and
what follows: at a level of integers, whose sums are then rounded fewer times, its result is that of the model within
rounding, and otherwise the same bits. Several of them run as one (`lcs.packed_steps`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .layers import SubspaceLayer
from .layers.frozen_quantized import FrozenQuantizedConv2d
from .layers.frozen_width import FrozenWidthConv2d
from .layers.norms import FusedNorm
from .packed_steps import gather
from .packed_steps import watched as _hooked


class NotTraceable(Exception):
    """The model's forward cannot be drawn as a graph; it runs as it is."""


def fused(model: nn.Module) -> nn.Module:
    """`model` with the same modules and another forward. Raises NotTraceable naming why there is none."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # a forward is any Python, and may fail on a proxy in any way
        raise NotTraceable(f"{type(error).__name__}: {error}") from error
    modules = dict(model.named_modules())
    for node in list(graph.nodes):
        _rewrite(graph, node, modules)
    for node in list(graph.nodes):
        _norm_behind(graph, node, modules)
    for node in graph.nodes:
        _keep_codes(graph, node, modules)
    packed = gather(graph, modules, max_pool2d)
    called = {node.target: modules[node.target] for node in graph.nodes if node.target in modules}
    read = {node.target: operator.attrgetter(node.target)(model) for node in graph.nodes if node.op == "get_attr"}
    return fx.GraphModule(called | read | packed, graph)


class _Tracer(fx.Tracer):
    """Layers of the subspace, and modules that somebody watches, stay whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SubspaceLayer) or _hooked(m) or super().is_leaf_module(m, module_qualified_name)


def _rewrite(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    step, args = _step(node, modules)
    if step == "norm":
        _extend(graph, args[0], node, norm=True)
    elif step == "relu" and _norm(args[0], modules):
        _extend(graph, args[0], node, relu=True)
    elif step == "relu" and _fresh(args[0], modules):
        before = args[0]
        if before.target is add_into:  # one pass for both
            before.target = add_relu_into
            node.replace_all_uses_with(before)
            graph.erase_node(node)
        else:
            _replace(graph, node, torch.relu_, args)
    elif step == "add" and _norm(args[0], modules) and "residual" not in args[0].kwargs and args[0] is not args[1]:
        _extend(graph, args[0], node, residual=args[1])
    elif step == "add" and _norm(args[1], modules) and "residual" not in args[1].kwargs and args[0] is not args[1]:
        _extend(graph, args[1], node, residual=args[0])
    elif step == "add" and _fresh(args[0], modules) and args[0] is not args[1]:
        _replace(graph, node, add_into, args)
    elif step == "add" and _fresh(args[1], modules) and args[0] is not args[1]:
        _replace(graph, node, add_into, args[::-1])
    elif step == "max_pool2d":
        _replace(graph, node, max_pool2d, args)


def _step(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[str, tuple]:
    """What a node does, if it is rewritten at all, and its arguments."""
    plain = not node.kwargs or node.kwargs == {"inplace": False}
    if node.op == "call_module":
        module = modules[node.target]
        if type(module) is nn.ReLU and not _hooked(module):
            return "relu", node.args
        if not _hooked(module) and any(
            _fresh(arg, modules) and getattr(_called(arg, modules), "folded", None) is module for arg in node.args
        ):
            return "norm", node.args
        if type(module) is nn.MaxPool2d and not _hooked(module) and not module.return_indices:
            pool = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
            return "max_pool2d", (*node.args, *pool)
    elif plain and (node.target in (F.relu, torch.relu) or (node.op == "call_method" and node.target == "relu")):
        return "relu", node.args[:1]
    elif plain and node.target in (operator.add, torch.add) and all(isinstance(a, fx.Node) for a in node.args):
        return "add", node.args
    elif node.target in (F.max_pool2d, torch.max_pool2d):
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = dict(zip(("input", *names), node.args, strict=False)) | node.kwargs
        if not given.pop("return_indices", False):
            defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
            return "max_pool2d", tuple((defaults | given)[name] for name in ("input", *names))
    return "", ()


def _fresh(node: object, modules: dict[str, nn.Module]) -> bool:
    """Whether a node's result is a new tensor that nothing else reads, nor a backward pass."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.op == "call_module":
        return isinstance(modules[node.target], SubspaceLayer) and not _hooked(modules[node.target])
    return node.target is add_into


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[node.target] if node.op == "call_module" else None


def _norm(node: object, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a norm, or a quantised convolution, that can take in what comes next: no ReLU yet, and nothing
    else reads it."""
    taking = (FusedNorm, FrozenQuantizedConv2d)
    return _fresh(node, modules) and isinstance(_called(node, modules), taking) and "relu" not in node.kwargs


def _norm_behind(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Lets a convolution of all widths do the norm that alone reads its result."""
    norm = _called(node, modules)
    before = node.args[0] if isinstance(norm, FusedNorm) and not _hooked(norm) else None
    if not _fresh(before, modules) or not isinstance(_called(before, modules), FrozenWidthConv2d):
        return
    layer = _called(before, modules)
    if before not in node.kwargs.values() and _once(graph, layer, modules) and _once(graph, norm, modules):
        layer.__dict__["behind"] = norm  # not as a module of it
        with graph.inserting_before(node):
            new = graph.call_module(before.target, before.args, {**node.kwargs, "normed": True})
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        graph.erase_node(before)


def _once(graph: fx.Graph, module: nn.Module, modules: dict[str, nn.Module]) -> bool:
    return sum(_called(node, modules) is module for node in graph.nodes) == 1


def _keep_codes(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Lets a convolution round its result for the convolution that alone reads it."""
    if not _fresh(node, modules) or not isinstance(_called(node, modules), FrozenQuantizedConv2d):
        return
    (reader,) = node.users
    layer, successor = _called(node, modules), _called(reader, modules)
    once = _once(graph, layer, modules) and _once(graph, successor, modules)
    if once and isinstance(successor, FrozenQuantizedConv2d) and not _hooked(successor) and reader.args == (node,):
        if layer.compressed and successor.takes_codes() and node not in reader.kwargs.values():
            layer.__dict__["successor"] = successor  # not as a module of it
            node.kwargs = {**node.kwargs, "codes": True}


def _extend(graph: fx.Graph, taking: fx.Node, node: fx.Node, **what) -> None:
    """Lets `taking` do what `node` does, in its place."""
    with graph.inserting_before(node):
        new = graph.call_module(taking.target, taking.args, taking.kwargs | what)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    graph.erase_node(taking)


def _replace(graph: fx.Graph, node: fx.Node, target: Callable, args: tuple) -> None:
    with graph.inserting_before(node):
        new = graph.call_function(target, args)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def add_into(a: Tensor, b: Tensor) -> Tensor:
    """a + b, in the memory of `a` where it fits."""
    return a.add_(b) if _fits(a, b) else a + b


def add_relu_into(a: Tensor, b: Tensor) -> Tensor:
    """relu(a + b), in the memory of `a` where it fits."""
    return add_into(a, b).relu_()


def _fits(a: Tensor, b: Tensor) -> bool:
    """Whether a + b would be laid out as `a` is, too."""
    return isinstance(b, Tensor) and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def max_pool2d(x: Tensor, kernel_size, stride, padding, dilation, ceil_mode: bool) -> Tensor:
    """F.max_pool2d. NCHW images on the CPU go by rows, then columns, in vectors; torch takes their pixels one by one.

    A gradient is torch's: ties would share it here.
    """
    (kh, kw), (ph, pw) = _pair(kernel_size), _pair(padding)
    sh, sw = _pair(stride) if stride else (kh, kw)
    fast = x.device.type == "cpu" and x.is_floating_point() and x.dim() == 4 and x.is_contiguous()
    valid = fast and all(k <= n + 2 * p and 2 * p < k for k, n, p in zip((kh, kw), x.shape[2:], (ph, pw), strict=True))
    if not valid or x.requires_grad or dilation not in (1, (1, 1)) or ceil_mode:
        return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_along(_max_along(x, 2, kh, sh, ph), 3, kw, sw, pw)


def _max_along(x: Tensor, dim: int, kernel: int, stride: int, padding: int) -> Tensor:
    """The largest of each window along `dim`; less than half of a window is padding."""
    size = x.shape[dim]
    count = (size + 2 * padding - kernel) // stride + 1

    def tap(offset: int, first: int, last: int) -> Tensor:
        return (
            x.narrow(dim, first * stride + offset, (last - first - 1) * stride + 1).unfold(dim, 1, stride).squeeze(-1)
        )

    largest = tap(0, 0, count).clone(memory_format=torch.contiguous_format)
    for offset in (i for i in range(-padding, kernel - padding) if i != 0):
        first, last = max(-(offset // stride), 0), min((size - 1 - offset) // stride + 1, count)
        if first < last:
            part = largest.narrow(dim, first, last - first)
            torch.maximum(part, tap(offset, first, last), out=part)
    return largest


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
