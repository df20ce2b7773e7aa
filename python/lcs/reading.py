"""Which weights a forward reads itself, as in `F.linear(x, self.fc.weight)`: no layer in their place would run.

A trace of the model shows them, as far as it gets, and where it fails, traces of the parts of the model.
"""

from __future__ import annotations

from torch import fx, nn

from .layers.support import base_of
from .tracing import Tracer, defaults_of, quiet, untouched

_FACTS = {"shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_cuda", "is_meta", "is_leaf"}
_ASKS = {"size", "dim", "numel", "stride", "is_contiguous", "is_floating_point", "element_size", "data_ptr"}
_NEW = {"new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"}
_LIKE = {"to", "type_as", "view_as", "expand_as", "reshape_as"}


def read_by_forwards(model: nn.Module) -> dict[nn.Module, str]:
    """Modules of the supported types whose parameters a forward around them reads, with the type that it is of."""
    found, waiting = {}, [model]
    while waiting:
        module = waiting.pop()
        graph, whole = _traced(module)
        for node in graph.nodes if graph is not None else ():
            owner = module.get_submodule(node.target.rpartition(".")[0]) if node.op == "get_attr" else None
            if owner is not None and base_of(owner) is not None and any(_computes(user, node) for user in node.users):
                inside = list(node.meta.get("nn_module_stack", {}))
                found[owner] = type(module.get_submodule(inside[-1]) if inside else module).__name__
        if not whole:
            waiting.extend(child for child in module.children() if base_of(child) is None)
    return found


def _traced(model: nn.Module) -> tuple[fx.Graph | None, bool]:
    """The forward of `model` as far as a trace of it gets, and whether that is to its end."""
    tracer = _Tracer()
    try:
        with untouched(model), quiet():
            return tracer.trace(model, concrete_args=defaults_of(model)), True
    except Exception:  # a forward is any Python, and may fail on a proxy in any way
        return getattr(tracer, "graph", None), False


def _computes(user: fx.Node, weight: fx.Node) -> bool:
    """Whether a step takes in a weight's values, not its shape, dtype and the like alone."""
    if user.target is getattr:
        return user.args[1] not in _FACTS
    if user.op == "call_method":
        of_it = bool(user.args) and user.args[0] is weight
        return user.target not in (_ASKS | _NEW if of_it else _LIKE)
    return True


class _Tracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return base_of(m) is not None or super().is_leaf_module(m, module_qualified_name)
