"""The forward of a frozen network in cheaper steps that give the same bits.

Sums and ReLUs become part of the norm before them, or happen in place; a norm becomes part of a convolution before it,
and so does the max pooling behind that; elsewhere pooling runs in vectors. A convolution takes in the batch norm with
running statistics behind it, a quantised one that which is folded into it, and what follows, ReLU6 too: where its
weight is packed, whose sums are then rounded fewer times, its result is that of the model within rounding, and
otherwise the same bits. Several quantised ones run as one (`lcs.packed_steps`).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterator
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .batch_norm import LoneBatchNorm
from .hooks import watched
from .in_place import add_into, add_relu_into, relu_into
from .layers import SubspaceLayer
from .layers.frozen_batch_norm import BatchNormBehind, has_statistics
from .layers.frozen_norm import NormBehind
from .layers.frozen_quantized import FrozenQuantizedConv2d
from .layers.norms import FusedNorm
from .packed_steps import gather, module_of
from .pooling import max_pool2d
from .tracing import AUGMENTED, Tracer, defaults_of, quiet, untouched

_INPLACE = {*AUGMENTED, operator.iconcat, operator.setitem, operator.delitem, setattr}
_KNOWN = ("torch", "_operator", "math", "builtins", "lcs.")  # whose other functions change nothing in place


class NotTraceable(Exception):
    """The model's forward cannot be traced to a graph; it runs as it is."""


def fused(model: nn.Module) -> nn.Module:
    """`model` with the same modules and another forward, of the parameters without a default alone. Raises NotTraceable
    naming why there is none."""
    graph, read = _traced(model)
    modules = dict(model.named_modules())
    for node in list(graph.nodes):
        _rewrite(graph, node, modules)
    for node in list(graph.nodes):
        _norm_behind(graph, node, modules)
        _pool_behind(graph, node, modules)
    for node in graph.nodes:
        _keep_codes(graph, node, modules)
    packed = gather(graph, modules, max_pool2d)
    called = {node.target: modules[node.target] for node in graph.nodes if node.target in modules}
    return module_of(called | read | packed, graph)


def _traced(model: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The forward as a graph, for the defaults of its parameters, and the tensors that it reads itself."""
    defaults = defaults_of(model)
    for name, value in defaults.items():
        if not isinstance(value, (type(None), bool, int, float, str)):
            raise NotTraceable(f"its {name} is {value!r} by default, a {type(value).__name__}")
    try:
        with untouched(model) as changed, quiet():  # of a graph's being for these defaults alone
            graph = _Tracer().trace(model, concrete_args=defaults)
            read = {node.target: attrgetter(node.target)(model) for node in graph.nodes if node.op == "get_attr"}
    except Exception as error:  # a forward is any Python, and may fail on a proxy in any way
        raise NotTraceable(f"{type(error).__name__}: {error}") from error
    if changed := [name for name in changed if not name.startswith("_tensor_constant")]:
        raise NotTraceable(f"its forward changes {' and '.join(sorted(changed))}")
    if any(name.startswith("_tensor_constant") for name in read):
        raise NotTraceable("its forward makes a tensor, which a graph would hold as it was, at random or not")
    _drop_defaults(graph, defaults)
    return graph, read


def _drop_defaults(graph: fx.Graph, defaults: Collection[str]) -> None:
    """Leaves the parameters that a graph was traced without, and what checks them, out of it."""
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        if node.args and node.name.rpartition("_")[0] in defaults:
            for check in [user for reader in node.users for user in (*reader.users, reader)]:
                graph.erase_node(check)
            graph.erase_node(node)


class _Tracer(Tracer):
    """Layers of the subspace, and modules that somebody watches, stay whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SubspaceLayer) or watched(m) or super().is_leaf_module(m, module_qualified_name)


def _rewrite(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    step, args = _step(node, modules)
    if step == "norm" and _waits(args[0], node, modules):
        _extend(graph, args[0], node, norm=True)
    elif step == "relu" and _takes_more(args[0], modules) and _waits(args[0], node, modules):
        _extend(graph, args[0], node, relu=True)
    elif step == "batch norm" and _waits(args[0], node, modules):
        layer, norm = _called(args[0], modules), _called(node, modules)
        if _once(graph, layer, modules) and _once(graph, norm, modules):
            layer.__dict__["behind"] = norm  # not as a module of it
            _extend(graph, args[0], node, normed=True)
    elif step == "lone batch norm":
        modules[node.target] = LoneBatchNorm(modules[node.target])
    elif step == "relu to a cap" and _takes_more(args[0], modules) and _waits(args[0], node, modules):
        if not isinstance(_called(args[0], modules), FusedNorm):
            _extend(graph, args[0], node, relu=True, cap=args[1])
    elif step == "relu" and _fresh(args[0], modules):
        before = args[0]
        if before.target is add_into:  # one pass for both
            before.target = add_relu_into
            node.replace_all_uses_with(before)
            graph.erase_node(node)
        else:
            _replace(graph, node, relu_into, args)
    elif step == "add" and _adds(args[0], args[1], node, modules):
        _extend(graph, args[0], node, residual=args[1])
    elif step == "add" and _adds(args[1], args[0], node, modules):
        _extend(graph, args[1], node, residual=args[0])
    elif step == "add" and _fresh(args[0], modules) and args[0] is not args[1]:
        _replace(graph, node, add_into, args)
    elif step == "add" and _fresh(args[1], modules) and args[0] is not args[1]:
        _replace(graph, node, add_into, args[::-1])
    elif step == "max_pool2d":
        _replace(graph, node, max_pool2d, args)
    elif step == "view" and not any(_mutates(later, modules) for later in _after(node)):
        node.target = "reshape"  # of channels last, too, which steps above may make


def _step(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[str, tuple]:
    """What a node does, if it is rewritten at all, and its arguments."""
    plain = not node.kwargs or node.kwargs == {"inplace": False}
    if node.op == "call_module":
        module = modules[node.target]
        if node.kwargs:
            return "", ()
        if type(module) is nn.ReLU and not watched(module):
            return "relu", node.args
        if type(module) in (nn.ReLU6, nn.Hardtanh) and module.min_val == 0 < module.max_val and not watched(module):
            return "relu to a cap", (*node.args, float(module.max_val))
        if not watched(module) and any(
            _takes_more(arg, modules) and getattr(_called(arg, modules), "folded", None) is module for arg in node.args
        ):
            return "norm", node.args
        if has_statistics(module) and not watched(module):
            before = node.args[0]
            if _fresh(before, modules) and isinstance(_called(before, modules), BatchNormBehind) and not before.kwargs:
                return "batch norm", node.args
            if not any(isinstance(m, FrozenQuantizedConv2d) for m in modules.values()):  # whose codes are the model's
                return "lone batch norm", ()
        if type(module) is nn.MaxPool2d and not watched(module) and not module.return_indices:
            pool = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
            return "max_pool2d", (*node.args, *pool)
    elif plain and (node.target in (F.relu, torch.relu) or (node.op == "call_method" and node.target == "relu")):
        return "relu", node.args[:1]
    elif plain and node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
        return "view", node.args
    elif plain and node.target is F.relu6:
        return "relu to a cap", (node.args[0], 6.0)
    elif plain and node.target in (operator.add, operator.iadd, torch.add):
        alone = node.target is not operator.iadd or _fresh(node.args[0], modules)  # nobody sees that it is in place
        if alone and all(isinstance(a, fx.Node) for a in node.args):
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
        module = modules[node.target]
        return isinstance(module, (SubspaceLayer, LoneBatchNorm)) and not watched(module)
    return node.target is add_into


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[node.target] if node.op == "call_module" else None


def _takes_more(node: object, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a norm, or a convolution, that can take in what comes next: no ReLU yet, and nothing else reads
    it."""
    known = FusedNorm, LoneBatchNorm, FrozenQuantizedConv2d, BatchNormBehind
    free = _fresh(node, modules) and "relu" not in node.kwargs
    return free and isinstance(_called(node, modules), known)


def _adds(taking: fx.Node, other: fx.Node, node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a sum, `node`, can be a part of `taking`."""
    free = taking is not other and _takes_more(taking, modules) and "residual" not in taking.kwargs
    return free and _waits(taking, node, modules)


def _waits(taking: fx.Node, node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether `taking` gives the same at the later place of `node`: nothing in between may change what it reads."""
    between = itertools.takewhile(lambda later: later is not node, _after(taking))
    return not any(_mutates(later, modules) for later in between)


def _after(node: fx.Node) -> Iterator[fx.Node]:
    """The steps that come after a node."""
    while (node := node.next).op != "root":
        yield node


def _mutates(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a step may change a tensor in place that others read: all that are not known not to."""
    if node.op in ("get_attr", "placeholder") or (node.args and _fresh(node.args[0], modules)):
        return False
    if node.op == "call_module":
        return watched(modules[node.target]) or bool(getattr(modules[node.target], "inplace", False))
    name = node.target if isinstance(node.target, str) else node.target.__name__
    switched = any(option is True for option in (*node.args[1:], node.kwargs.get("inplace")))
    if name.partition(".")[0].endswith("_") or switched or "out" in node.kwargs or node.target in _INPLACE:
        return True
    return node.op == "call_function" and not (node.target.__module__ or "torch").startswith(_KNOWN)


def _norm_behind(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Lets a convolution do the norm that alone reads its result."""
    norm = _called(node, modules)
    before = node.args[0] if isinstance(norm, FusedNorm) and not watched(norm) else None
    if not _fresh(before, modules) or not isinstance(_called(before, modules), NormBehind) or before.kwargs:
        return
    layer = _called(before, modules)
    once = _once(graph, layer, modules) and _once(graph, norm, modules)
    if before not in node.kwargs.values() and once and _waits(before, node, modules):
        layer.__dict__["behind"] = norm  # not as a module of it
        with graph.inserting_before(node):
            new = graph.call_module(before.target, before.args, {**node.kwargs, "normed": True})
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        graph.erase_node(before)


def _pool_behind(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Lets a convolution that does the norm behind it do the max pooling, too, that alone reads its result."""
    if node.target is not max_pool2d or not _fresh(node.args[0], modules):
        return
    before, *pool, dilation, ceil_mode = node.args
    if before.kwargs.get("normed") and "pool" not in before.kwargs and dilation in (1, (1, 1)) and not ceil_mode:
        kernel_size, stride, padding = (tuple(p) if isinstance(p, list) else p for p in pool)
        before.kwargs = {**before.kwargs, "pool": (kernel_size, stride or kernel_size, padding)}
        node.replace_all_uses_with(before)
        graph.erase_node(node)


def _once(graph: fx.Graph, module: nn.Module, modules: dict[str, nn.Module]) -> bool:
    return sum(_called(node, modules) is module for node in graph.nodes) == 1


def _keep_codes(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Lets a convolution round its result for the convolution that alone reads it."""
    if not _fresh(node, modules) or not isinstance(_called(node, modules), FrozenQuantizedConv2d):
        return
    (reader,) = node.users
    layer, successor = _called(node, modules), _called(reader, modules)
    once = _once(graph, layer, modules) and _once(graph, successor, modules)
    if once and isinstance(successor, FrozenQuantizedConv2d) and not watched(successor) and reader.args == (node,):
        cap = node.kwargs.get("cap")
        same = cap is None or successor.rounds_clipped(cap)
        if same and layer.compressed and successor.takes_codes() and node not in reader.kwargs.values():
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
