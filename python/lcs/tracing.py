"""Traces of a model's forward as graphs, one at a time in a process.

Neither the model nor other threads notice, but for what torch.compile has made, whose calls torch refuses meanwhile.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import os
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .arguments import same

AUGMENTED = (  # assignments, as functions
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow),
    *(operator.imatmul, operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift),
)
_HELD = ("_parameters", "_buffers", "_modules")
_KINDS = (OrderedDict, dict, list, deque, set)
Container = dict | list | deque | set
_PATIENCE = 60.0  # seconds to wait for another thread, whose forward may wait for this one

_lock = threading.RLock()
_running: Tracer | None = None


def _renew() -> None:
    """In a forked process, without the threads of the other one, one of which may have been tracing."""
    global _lock
    _lock = threading.RLock()
    if _running is not None and _running.thread != threading.get_ident():
        _running.thread = None


os.register_at_fork(after_in_child=_renew)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    lock = _lock
    if not lock.acquire(timeout=_PATIENCE):
        raise RuntimeError(f"another thread has been tracing a model for {_PATIENCE:.0f} s, and may wait for this one")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings. In one thread at a time: what is to be warned of is one setting of the process, and who put it
    back last would keep another thread's."""
    with _alone(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def defaults_of(model: nn.Module) -> dict[str, object]:
    """The parameters of its forward that have a default, with it."""
    parameters = inspect.signature(model.forward).parameters.items()
    return {name: p.default for name, p in parameters if p.default is not inspect.Parameter.empty}


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[list[str]]:
    """A trace runs the forward, which may count its calls or keep what it computes, here a proxy: all modules'
    attributes, what is in those that are containers, and the values of their buffers are afterwards what they were,
    their classes' containers hold no proxy, and torch's generator on the CPU is as before. Gives a list, which then
    names those that had changed."""
    changed: list[str] = []
    with _alone():
        before = {m: (dict(vars(m)), {name: dict(vars(m)[name]) for name in _HELD}) for m in model.modules()}
        values = [(name, buffer, _version(buffer), buffer.clone()) for name, buffer in model.named_buffers()]
        own = _contents(map(vars, model.modules()))
        shared = _contents(map(vars, _classes(model)))
        try:
            with torch.random.fork_rng(devices=[]):
                yield changed
        finally:
            for name, container, items in own:
                if not _same_items(container, items):
                    changed.append(name)
                    _refill(container, items)
            for name, container, _ in shared:  # which other threads may fill meanwhile
                left = [item for item in _items(container) if not _has_proxy(item, set())]
                if len(left) < len(container):
                    changed.append(name)
                    _refill(container, left)
            for name, buffer, version, value in values:
                if _changed(buffer, version, value):
                    changed.append(name)
                    with torch.no_grad():
                        buffer.copy_(value)
            for module, (attributes, held) in before.items():
                changed += _put_back(module, attributes, held)


def _put_back(module: nn.Module, attributes: dict, held: dict[str, dict]) -> list[str]:
    """Names those that had changed."""
    now = {name: vars(module)[name] for name in _HELD}
    names = {*vars(module), *attributes} - {*_HELD}
    changed = [name for name in names if vars(module).get(name, ...) is not attributes.get(name, ...)]
    for kind, items in held.items():
        changed += [name for name in {*now[kind], *items} if now[kind].get(name, ...) is not items.get(name, ...)]
    vars(module).clear()
    vars(module).update(attributes)
    for name, items in held.items():
        attributes[name].clear()
        attributes[name].update(items)
    return changed


def _contents(owners: Iterable[Mapping]) -> list[tuple[str, Container, list]]:
    """Of all containers in these attributes, and those inside them: the attribute's name, the container, and what is in
    it."""
    waiting = [(name, value) for owner in owners for name, value in owner.items() if not name.startswith("__")]
    found: dict[int, tuple[str, Container, list]] = {}
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, tuple):
            waiting += [(name, item) for item in value]
        elif isinstance(value, Container) and name not in _HELD and id(value) not in found:
            found[id(value)] = name, value, _items(value)
            waiting += [(name, item) for item in (value.values() if isinstance(value, dict) else value)]
    return list(found.values())


def _classes(model: nn.Module) -> set[type]:
    """The modules' own."""
    every = {kind for m in model.modules() for kind in type(m).__mro__}
    return {kind for kind in every if not kind.__module__.startswith(("builtins", "torch.", "lcs."))}


def _items(container: Container) -> list:
    return list(container.items() if isinstance(container, dict) else container)


def _has_proxy(value: object, seen: set[int]) -> bool:
    if isinstance(value, fx.Proxy):
        return True
    if not isinstance(value, (Container, tuple)) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_has_proxy(item, seen) for item in (value if isinstance(value, tuple) else _items(value)))


def _same_items(container: Container, items: list) -> bool:
    if len(container) != len(items):
        return False
    if isinstance(container, dict):
        return all(a is c and b is d for (a, b), (c, d) in zip(container.items(), items, strict=True))
    if isinstance(container, set):
        return {id(item) for item in container} == {id(item) for item in items}
    return all(a is b for a, b in zip(container, items, strict=True))


def _refill(container: Container, items: list) -> None:
    """Whatever a subclass makes of it, as a Counter would count."""
    kind = next(kind for kind in _KINDS if isinstance(container, kind))
    kind.clear(container)
    kind.extend(container, items) if kind in (list, deque) else kind.update(container, items)


def _version(tensor: Tensor) -> int | None:
    """Torch's count of writes; None where it keeps none."""
    return None if tensor.is_inference() else tensor._version


def _changed(tensor: Tensor, version: int | None, value: Tensor) -> bool:
    """Since it had a version and a value."""
    if version is None and not tensor.is_meta:
        return not same(tensor, value)
    return _version(tensor) != version


class _Proxy(fx.Proxy):
    """Records augmented assignments as what they are: torch's own takes `x += y` for `x = x + y`, which leaves what
    else holds x as it was."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("data", "grad", "requires_grad"):
            raise fx.proxy.TraceError(f"the forward sets the {name} of a tensor, which no graph holds")
        super().__setattr__(name, value)


def _recorded(assignment: Callable) -> Callable:
    def run(self: _Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", assignment, (self, other), {})

    return run


for _assignment in AUGMENTED:
    setattr(_Proxy, f"__{_assignment.__name__}__", _recorded(_assignment))


class Tracer(fx.Tracer):
    """While it traces, torch sends every module's call in the process through it: those of other threads pass, unless
    they are part of the trace.

    Keeps its graph alone after the trace: torch's own holds itself, and so the model's memory, until Python looks for
    cycles."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def trace(self, root: nn.Module, concrete_args: dict | None = None) -> fx.Graph:
        global _running
        try:
            with _alone():
                outer, _running = _running, self
                try:
                    return super().trace(root, concrete_args)
                finally:
                    _running = outer
        finally:
            graph = {name: value for name, value in vars(self).items() if name == "graph"}
            self.__dict__ = {**graph, "thread": None, "_autowrap_function_ids": set()}  # for calls that have begun

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict):
        if threading.get_ident() != self.thread and not self._traces((args, kwargs)):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _traces(self, given: object) -> bool:
        return any(isinstance(leaf, fx.Proxy) and leaf.tracer is self for leaf in pytree.tree_leaves(given))

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]):
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)
