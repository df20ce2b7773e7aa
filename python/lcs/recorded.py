"""A call of a frozen network as it ran once: the ops that it dispatched, without the modules around them.

Those of the engine that follow each other, and means and views of torch's among them, are one call of it,
`lcs_kernels.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _len_torch_dispatch_stack

from lcs_kernels import replay
from lcs_kernels.ops.replay import Call, Recorder, Recording

from .arguments import same

_NOT_REPEATED = {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

Step = Callable[[list], None]  # from values to more of them, in their places


class Unrecorded(Enum):
    """Why there is no recording of a call: it has run once only, or cannot be repeated."""

    ONCE = 1
    NEVER = 2


def can_record(args: tuple, kwargs: dict) -> bool:
    """Whether a call is of one plain tensor on the CPU, without a gradient, that nobody else watches."""
    if len(args) != 1 or kwargs or type(args[0]) is not Tensor or not args[0].is_cpu:
        return False
    if args[0].layout is not torch.strided:
        return False
    differentiates = (args[0].requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0
    watched = _len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None
    return not differentiates and not watched


def record(forward: Callable[[Tensor], object], x: Tensor) -> tuple[object, Recorded | None]:
    """What `forward` makes of x, a graph of ops that are the same for every x of its shape, dtype and strides; and a
    recording of it, where that makes the same again: there is none of ops that draw at random, that Python reads the
    result of, or that write to x or to what outlives the call."""
    with Recorder() as recorder:
        output = forward(x)
    if not _repeatable(recorder.calls, x):
        return output, None
    recorded = _Places(recorder.calls, x).recorded(output)
    return output, recorded if same(recorded(x), output) else None


@dataclass(frozen=True, eq=False)
class Recorded:
    """A network for inputs of one kind: `steps` on a list of values, of which the first is the input."""

    steps: tuple[Step, ...]
    values: int
    outputs: list  # leaves, and a `_Value` for each that is computed
    structure: pytree.TreeSpec | None  # None: the only leaf is the result
    weights: tuple[tuple[Tensor, int], ...]  # shared by levels, with torch's counts of writes to them

    def __call__(self, x: Tensor) -> object:
        values: list = [None] * self.values
        values[0] = x
        for step in self.steps:
            step(values)
        results = [_filled(place, values) for place in self.outputs]
        return results[0] if self.structure is None else pytree.tree_unflatten(results, self.structure)

    @property
    def is_current(self) -> bool:
        """Whether the weights are what they were."""
        return all(weight._version == version for weight, version in self.weights)


def _repeatable(calls: Sequence[Call], x: Tensor) -> bool:
    """Whether calls depend on nothing but what they are given, want no gradient, return no tensor that was there before
    them, and write to nothing that they have not allocated."""
    if torch.is_grad_enabled() and any(t.requires_grad for call in calls for t in call.reads):
        return False
    own: set[int] = set()  # tensors in such memory
    computed, before = {id(x)}, set()
    for call in calls:
        before.update(id(t) for t in call.reads if id(t) not in computed)
        if any(id(t) in before for t in call.makes):
            return False
        computed.update(id(t) for t in call.makes)
        schema = call.op._schema
        leaves = pytree.tree_leaves(call.result)
        if _NOT_REPEATED.intersection(call.op.tags) or not all(isinstance(t, (Tensor, type(None))) for t in leaves):
            return False
        written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        for leaf in pytree.tree_leaves([call.given[name] for name in written]):
            if isinstance(leaf, Tensor) and id(leaf) not in own:
                return False
        if not call.shares or all(id(t) in own for t in call.reads):
            own.update(id(t) for t in call.makes)
    return True


@dataclass(frozen=True)
class _Value:
    index: int


def _filled(place, values: list):
    if type(place) is _Value:
        return values[place.index]
    return [_filled(element, values) for element in place] if type(place) is list else place


def _is_computed(place) -> bool:
    return type(place) is _Value or (type(place) is list and any(map(_is_computed, place)))


class _Places:
    """Where x and what calls return lie among the values."""

    def __init__(self, calls: Sequence[Call], x: Tensor) -> None:
        self._calls, self._at = calls, {id(x): 0}
        for call in calls:
            for t in call.makes:
                self._at.setdefault(id(t), len(self._at))

    def recorded(self, output: object) -> Recorded:
        leaves, structure = pytree.tree_flatten(output)
        outputs = [self._given(leaf) for leaf in leaves]
        needed = {place.index for place in outputs if type(place) is _Value}
        steps: list[Step] = []
        for ours, run in reversed(self._runs()):
            reads = {self._at[id(t)] for t in self._computed(run)}
            writes = {self._at[id(t)] for call in run for t in call.makes}
            drops = sorted(reads - needed)  # that nothing reads later
            if ours:
                given = {self._at[id(t)] for t in self._given_to(run)}
                steps.append(self._replayed(run, sorted(given), sorted(writes & needed), drops))
            else:
                steps.append(self._called(run[0], drops))
            needed |= reads
        weights = tuple((weight, weight._version) for weight in _shared_weights(self._calls))
        given = None if pytree.tree_is_leaf(output) else structure
        return Recorded(tuple(reversed(steps)), len(self._at), outputs, given, weights)

    def _runs(self) -> list[tuple[bool, list[Call]]]:
        """Calls that one step makes, and whether `replay` can: of ours those that follow each other, but for what
        shares memory with values from before."""
        runs: list[tuple[bool, list[Call]]] = []
        made: set[int] = set()  # in the last run
        for call in self._calls:
            ours = call.can_replay and (not call.shares or id(call.reads[0]) in made)
            if not (ours and runs and runs[-1][0]):
                ours = call.can_replay and not call.shares
                runs.append((ours, []))
                made = set()
            runs[-1][1].append(call)
            made.update(id(t) for t in call.makes[:1])  # what `replay` keeps
        return runs

    def _computed(self, run: list[Call]) -> list[Tensor]:
        return [t for call in run for t in call.reads if id(t) in self._at]

    def _given_to(self, run: list[Call]) -> Iterator[Tensor]:
        """What is computed before a run and read in it."""
        made: set[int] = set()
        for call in run:
            yield from (t for t in self._computed([call]) if id(t) not in made)
            made.update(id(t) for t in call.makes)

    def _given(self, argument):
        """An argument, in which a `_Value` stands for what is computed."""
        if isinstance(argument, Tensor):
            return _Value(self._at[id(argument)]) if id(argument) in self._at else argument
        if isinstance(argument, (list, tuple)) and any(isinstance(element, Tensor) for element in argument):
            return [self._given(element) for element in argument]
        return argument

    def _replayed(self, run: list[Call], reads: list[int], writes: list[int], drops: list[int]) -> Step:
        tensors = {self._at[id(t)]: t for t in (*self._computed(run), *(t for call in run for t in call.makes))}
        recording = Recording.of(run, [tensors[i] for i in reads], [tensors[i] for i in writes])

        def step(values: list) -> None:
            results = replay([values[i] for i in reads], recording)
            for i, result in zip(writes, results, strict=True):
                values[i] = result
            for i in drops:
                values[i] = None

        return step

    def _called(self, call: Call, drops: list[int]) -> Step:
        op, args = call.op, [self._given(arg) for arg in call.args]
        kwargs = {name: self._given(arg) for name, arg in call.kwargs.items()}
        computed = [i for i, arg in enumerate(args) if _is_computed(arg)]
        computed_named = [name for name, arg in kwargs.items() if _is_computed(arg)]
        alone = isinstance(call.result, Tensor)
        writes = [self._at.get(id(leaf)) for leaf in pytree.tree_leaves(call.result)]

        def step(values: list) -> None:
            given, named = args.copy(), kwargs.copy()
            for i in computed:
                given[i] = _filled(given[i], values)
            for name in computed_named:
                named[name] = _filled(named[name], values)
            result = op(*given, **named)
            for i, leaf in zip(writes, [result] if alone else pytree.tree_leaves(result), strict=True):
                if i is not None:
                    values[i] = leaf
            for i in drops:
                values[i] = None

        return step


def _shared_weights(calls: Sequence[Call]) -> Iterator[Tensor]:
    """Those that `WidthWeight.check_unchanged` looks after."""
    for call in calls:
        if call.name in ("width_conv2d", "width_conv2d_norm"):
            weight = call.given["weight"]
            if not weight.is_inference():  # of which torch counts no writes
                yield weight
