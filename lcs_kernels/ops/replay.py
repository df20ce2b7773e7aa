"""Ops after each other in one call, with the arguments of a run before it and without a dispatch for each."""

from __future__ import annotations

import functools
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _len_torch_dispatch_stack

from lcs_kernels._load import ensure_loaded
from lcs_kernels.isa import max_name

from ._library import FLOATS, define, wants_grad

# In the kernels' order; torch's, which networks end with, without another dtype.
OPS = (
    *("sparse_conv2d", "sparse_conv2d_norm", "width_conv2d", "width_conv2d_norm", "line_norm"),
    *("aten::mean.dim", "aten::as_strided_", "aten::view"),
)


@dataclass(frozen=True, eq=False)
class Call:
    """An op that has run: its overload, what it was given, and what it returned."""

    op: torch._ops.OpOverload
    args: tuple
    kwargs: dict
    result: object

    @property
    def name(self) -> str:
        """As in `OPS`: of the engine's ops without their namespace, of others with their overload."""
        return self.op.name().removeprefix("lcs::")

    @property
    def can_replay(self) -> bool:
        """Whether it is one of `OPS`."""
        return self.name in OPS and not any(isinstance(value, torch.dtype) for value in self.given.values())

    @property
    def shares(self) -> bool:
        """Whether it returns memory that it is given."""
        return any(r.alias_info is not None for r in self.op._schema.returns)

    @property
    def given(self) -> dict[str, object]:
        """All arguments by the schema's names and in its order, with the defaults of those that are not given."""
        names = [a.name for a in self.op._schema.arguments]
        defaults = {a.name: a.default_value for a in self.op._schema.arguments}
        return defaults | dict(zip(names, self.args, strict=False)) | self.kwargs

    @property
    def reads(self) -> list[Tensor]:
        return list(_tensors([self.args, *self.kwargs.values()]))

    @property
    def makes(self) -> list[Tensor]:
        return list(_tensors(self.result))


class Recorder(TorchDispatchMode):
    """`with Recorder() as recorder:` keeps what runs inside, on whatever device, in `recorder.calls`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler for it

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        self.calls.append(Call(op, args, kwargs or {}, result))
        return result


@dataclass(frozen=True, eq=False)
class Recording:
    """Calls made ready to run again on other inputs. Not to be saved or changed: the ops trust weights made ready for
    them, which a changed code could exchange, and the CPU's kernels keep both from the first replay on.

    constants: tensors that the calls read and none of them makes.
    code: int64, 1-d: the number of steps; for each its op's place in `OPS`, its arguments by the schema, and the number
        and the places of the values that nothing reads later; the number of results, and these. A tensor is 2 * i for
        the value i or 2 * i + 1 for the constant i; values are the inputs, then what each step makes. What may be
        absent is 0, or 1 and what it is; a list is its length and its elements; a float is its bits as a double.
    made: of each result its dtype's place in `FLOATS`, its number of dimensions, its shape and its strides.
    """

    constants: list[Tensor]
    code: Tensor
    made: list[int]

    @functools.cached_property
    def kept(self) -> int:
        """Its number among the recordings that the CPU's kernels keep ready, as long as this one lives."""
        with torch._C._DisableTorchDispatch():  # no call of those that are recorded or traced
            number = torch.ops.lcs.replay_keep(self.constants, self.code)
        weakref.finalize(self, _forget, number).atexit = False
        return number

    def __reduce__(self):
        return Recording, (self.constants, self.code, self.made)  # a copy is kept by a number of its own

    @classmethod
    def of(cls, calls: Sequence[Call], inputs: Sequence[Tensor], results: Sequence[Tensor]) -> Recording:
        """Of `calls`, which read `inputs` and make `results`: of each call the first that it makes is kept. Raises
        ValueError for an op that is not in `OPS`, one that returns memory that no call before has made, and a result
        that no call makes."""
        for call in calls:
            if not call.can_replay:
                raise ValueError(f"replay: {call.op} is none of {', '.join(OPS)}")
        values = {id(t): i for i, t in enumerate(inputs)}  # where it is last: ops in place return what they read
        kept, made = {id(t) for t in results}, {id(call.makes[0]) for call in calls}
        if kept - made:
            raise ValueError("replay: a result is not what one of the calls makes first")
        constants: list[Tensor] = []
        places: dict[int, int] = {}

        def place(t: Tensor) -> int:
            if id(t) in values:
                return 2 * values[id(t)]
            if id(t) not in places:
                places[id(t)] = len(constants)
                constants.append(t)
            return 2 * places[id(t)] + 1

        last = {}  # step that reads a value last, or makes it
        for step, call in enumerate(calls):
            last[id(call.makes[0])] = step
            last |= {id(t): step for t in call.reads if id(t) in values or id(t) in made}
        code = [len(calls)]
        for step, call in enumerate(calls):
            code.append(OPS.index(call.name))
            if call.shares and values.get(id(call.reads[0]), -1) < len(inputs):
                raise ValueError(f"replay: {call.op} returns memory that no call before has made")
            for argument, value in zip(call.op._schema.arguments, call.given.values(), strict=True):
                _write(code, argument.type, value, place)
            made_of = values.get(id(call.makes[0]))  # an op in place
            values[id(call.makes[0])] = len(inputs) + step
            unread = [values[t] for t, at in last.items() if at == step and t not in kept]
            unread += [] if made_of is None else [made_of]
            code += [len(unread), *unread]
        code += [len(results), *(place(t) for t in results)]
        shapes = [n for t in results for n in (FLOATS.index(t.dtype), t.dim(), *t.shape, *t.stride())]
        return cls(constants, torch.tensor(code, dtype=torch.int64, device="cpu"), shapes)


_forked = False  # then a lock of the kept recordings may be held for ever, by a thread that is not in this process


def _mark_forked() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_mark_forked)


def _forget(number: int) -> None:
    if _forked:
        return
    with torch._C._DisableTorchDispatch():
        torch.ops.lcs.replay_forget(number)


def reference(inputs: list[Tensor], constants: list[Tensor], code: Tensor, made: Sequence[int]) -> list[Tensor]:
    """Step by step, through the dispatcher."""
    numbers, values = iter(code.tolist()), list(inputs)

    def tensor(place: int) -> Tensor:
        return (constants if place % 2 else values)[place // 2]

    for _ in range(next(numbers)):
        op = _overload(OPS[next(numbers)])
        result = op(**{a.name: _read(numbers, a.type, tensor) for a in op._schema.arguments})
        values.append(result if isinstance(result, Tensor) else result[0])
        for _ in range(next(numbers)):
            values[next(numbers)] = None
    return [tensor(next(numbers)) for _ in range(next(numbers))]


def fake(inputs: list[Tensor], constants: list[Tensor], code: Tensor, made: Sequence[int]) -> list[Tensor]:
    results, rest = [], list(made)
    while rest:
        dtype, n, *rest = rest
        results.append(inputs[0].new_empty_strided(rest[:n], rest[n : 2 * n], dtype=FLOATS[dtype]))
        rest = rest[2 * n :]
    return results


_op = define(
    "replay(Tensor[] inputs, Tensor[] constants, Tensor code, SymInt[] made) -> Tensor[]",
    reference,
    fake,
)


def replay(inputs: Sequence[Tensor], recording: Recording) -> list[Tensor]:
    """What the recorded ops make of other inputs, with the same other arguments: the same bits as one by one.

    On the CPU, sparse convolutions and norms after each other hand on float32 images in an order of their own, so that
    none transposes them. Threads share every step of such a chain; or, of eight images or more that are small enough,
    each thread takes a few at a time through all steps, which stay in its core's caches. Ops that follow each other
    share one fork of the threads. What is decided for inputs is kept with the recording for the next of their kind.

    Args:
        inputs: of the shapes, dtypes, strides and device of those that were recorded. They have no gradient here.
        recording: see `Recording.of`. A result may be a view of another, as it was of that.

    Raises:
        ValueError: a wanted gradient.
        RuntimeError: inputs that do not fit; the op that they do not fit says it.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    if wants_grad(*inputs):
        raise ValueError("replay: recorded ops have no gradient; call it under torch.no_grad()")
    if _takes_kept(inputs):
        return torch.ops.lcs.replay_kept(list(inputs), recording.kept)
    return _op(list(inputs), recording.constants, recording.code, recording.made)


def _takes_kept(inputs: Sequence[Tensor]) -> bool:
    """Whether the CPU's kernels run it, in no forked process, and nobody is to see what they read: no compiler, tracer
    or mode."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing() or _len_torch_dispatch_stack()
    if watched or _forked or max_name() == "reference":
        return False
    return bool(inputs) and all(type(t) is Tensor and t.is_cpu for t in inputs)


def _overload(name: str) -> torch._ops.OpOverload:
    namespace, _, name = name.rpartition("::")
    name, _, overload = name.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace or "lcs"), name), overload or "default")


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _tensors(element)


def _write(code: list[int], kind: torch._C.JitType, value, place) -> None:
    if isinstance(kind, torch._C.OptionalType):
        code.append(int(value is not None))
        if value is not None:
            _write(code, kind.getElementType(), value, place)
    elif isinstance(kind, torch._C.ListType):
        code.append(len(value))
        for element in value:
            _write(code, kind.getElementType(), element, place)
    elif isinstance(kind, torch._C.TensorType):
        code.append(place(value))
    elif isinstance(kind, torch._C.FloatType):
        code.append(struct.unpack("<q", struct.pack("<d", value))[0])
    else:
        code.append(int(value))


def _read(numbers: Iterator[int], kind: torch._C.JitType, tensor):
    if isinstance(kind, torch._C.OptionalType):
        return _read(numbers, kind.getElementType(), tensor) if next(numbers) else None
    if isinstance(kind, torch._C.ListType):
        return [_read(numbers, kind.getElementType(), tensor) for _ in range(next(numbers))]
    if isinstance(kind, torch._C.TensorType):
        return tensor(next(numbers))
    if isinstance(kind, torch._C.FloatType):
        return struct.unpack("<d", struct.pack("<q", next(numbers)))[0]
    return bool(next(numbers)) if isinstance(kind, torch._C.BoolType) else next(numbers)
