"""A subspace made ready to serve: immutable levels, packed once, any level per call from any thread."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from . import compiling
from .arguments import channels_last, copied, same, signature, telling
from .compiled import CompiledForward
from .frozen_level import FrozenLevel
from .frozen_report import NORM, Counters, FrozenReport, LayerReport
from .fusing import NotTraceable, fused
from .hooks import hooks_of, watched
from .layers import SubspaceLayer
from .layers.support import replace_modules
from .layers.weights import WEIGHT_LAYERS
from .level_cache import LevelCache
from .levels import UNITS, Level, Setting
from .no_module import NoModule
from .packing import RUNNING, Choice, Choices, FrozenSlot, Packed, Packer, Shape, Trace, nbytes, pack
from .quantized import Quantized
from .quantized_packing import QuantizedPacker
from .recipe import Recipe
from .recorded import Recorded, Unrecorded, can_record, record
from .shortage import ShortageError, is_shortage
from .sparse_packing import SparsePacker
from .structured import Structured
from .unstructured import Unstructured
from .width_packing import WidthPacker

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .subspace import Subspace

CACHE_BYTES = 512 << 20
PACKERS: dict[type[Recipe], type[Packer]] = {
    Quantized: QuantizedPacker,
    Structured: WidthPacker,
    Unstructured: SparsePacker,
}
LEVELS = 128  # that are held at most
_REMEMBERED = 1024  # inputs, and inputs at levels, whose choices are kept
_RECORDED = 64  # kinds of inputs that a level keeps recordings for
_RECORDINGS = 512  # of all levels


class Frozen(NoModule):
    """What `Subspace.freeze` returns: `fast(x, density=0.1)`, a level per call, thread safe.

    Every level is made from the two stored ends, once, when it is first asked for, and never changed. A call looks its
    level up once; all layers read that one object, whatever other threads run or drop meanwhile. Each layer runs the
    sparse op where `lcs_kernels.costs` expects it to be faster for the shapes at hand, and convolutions of few products
    up to a quarter or half of their weights, else a dense op on the whole weight, torch's or, where that is faster,
    `width_conv2d`; the first call with a new input shape runs two to four more forwards, on torch's ops, to learn the
    layers' shapes and to see that the fused forward (`lcs.fusing`) gives the model's own result; from the third call
    with one tensor like it on, the ops of the second run again without the modules around them (`lcs.recorded`), unless
    they draw at random or write to what outlives the call. Feature maps that the model returns may lie in memory with
    channels last.

    A level of widths holds no convolution's weight: all of them read one packed copy, the first channels of it.

    Calls run in the dtype of the weights, whatever autocast says, and in evaluation mode. Gradients reach x alone.

    model: a private, converted model; its parameters are the ends, which nothing trains. Calls remember what they have
        read of it: nothing may be written to it, replaced in it or moved after the first one.
    kept: modules that a point has left as they are (`Subspace.kept`); convolutions and norms among them run as layers.
    cache_bytes: of the levels held besides the ends, with what the kernels derive from them; the least recently used
        are dropped, as of more than 128. The level used last is always held. Calls that run again are not in it: of all
        levels the 512 newest are remembered.
    strict: raise where a layer has no packed kernel for its type, dtype or device, instead of running it dense.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        kept: Iterable[str] = (),
        cache_bytes: int = CACHE_BYTES,
        strict: bool = False,
    ) -> None:
        if type(recipe) not in PACKERS:
            known = ", ".join(f"lcs.{kind.__name__}" for kind in PACKERS)
            raise TypeError(f"a subspace of one of {known} can be frozen, got {type(recipe).__name__}")
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must be at least 0, got {cache_bytes}")
        self.model, self.recipe, self.strict = model, recipe, strict
        slot, self._packer = FrozenSlot(), PACKERS[type(recipe)](recipe)
        self.kept, modules = tuple(kept), dict(model.named_modules())
        replace_modules(model, self._packer.kept([modules[name] for name in self.kept if name in modules]))
        self._named = {name: m for name, m in model.named_modules() if isinstance(m, SubspaceLayer)}
        self._layers = list(self._named.values())
        self._packer.check(self._named)
        for index, layer in enumerate(self._layers):
            layer.slot, layer.index = slot, index
            layer.__class__ = self._packer.frozen(layer)
        self._cpu = (device := next(model.parameters()).device.type) == "cpu"
        self._parameters = inspect.signature(model.forward)
        values = self._parameters.parameters.values()
        self._alone = sum(p.default is inspect.Parameter.empty for p in values) == 1  # without a default
        self._fused, self._unfused = _fuse(model, device)
        self._hooks = [hooks for m in model.modules() if not watched(m) for hooks in hooks_of(m)]
        self._forwards: dict[tuple, None] = {}  # inputs for which the fused forward gives what the model gives
        self._takes_channels_last: dict[tuple, bool] = {}  # inputs: to both forwards; False: to the fused one alone
        self._contiguous = ""
        self._device = device if torch.amp.is_autocast_available(device) else None
        self._cache: LevelCache[Packed] = LevelCache(cache_bytes, LEVELS)
        self._recordings: deque[tuple[weakref.ref[Packed], tuple]] = deque()  # the oldest first
        self._shapes: dict[tuple, dict[int, Shape]] = {}
        self._choices: dict[tuple[Level | None, tuple], Choices] = {}
        self._ready: dict[tuple, tuple[tuple, bool]] = {}  # of levels and tensors with recordings: see _find
        self._level = functools.lru_cache(LEVELS)(recipe.level)
        self._dense: Counter[tuple[str, bool]] = Counter()
        self._counting = threading.Lock()
        self._tracing = threading.RLock()  # for a hook on the model may call the network

    @compiling.disabled
    def __call__(self, *args, level: Level | None = None, **kwargs):
        """`model(*args, **kwargs)` at a level, given as to `Subspace.at`.

        density=, width=, bits= and alpha= are the level's and do not reach the model.
        """
        return self._call(self._taken(level, kwargs), args, kwargs)

    def at(self, level: Level | None = None, **setting: Unpack[Setting]) -> FrozenLevel:
        """This network at one level, to be called like a module. It costs nothing and shares all that is stored."""
        return FrozenLevel(self, self._resolve(level, setting))

    @compiling.disabled
    def prepare(self, *args, level: Level | None = None, **kwargs) -> None:
        """Makes a level ahead of a call with these arguments, where it is not held."""
        level = self._taken(level, kwargs)
        self._packed(level, self._chosen(level, signature(args, kwargs), args, kwargs))

    def report(self, *args, level: Level | None = None, fused: bool = True, **kwargs) -> FrozenReport:
        """Which kernel each layer runs at a level on these arguments of the model, and why. Runs the model on them;
        not `fused`: by its own forward, in which each layer does its own work alone."""
        level = self._taken(level, kwargs)
        self._call(level, args, kwargs, fused)
        inputs = signature(args, kwargs)
        choices = self._chosen(level, inputs, args, kwargs)
        packed = self._packed(level, choices)
        return FrozenReport(
            level,
            tuple(
                LayerReport(
                    name, _kernel(layer, choice), choice.why, self._stored(layer, level), nbytes(weight) + nbytes(bias)
                )
                for (name, layer), choice, (weight, bias, *_) in zip(
                    self._named.items(), choices.layers, packed.tensors, strict=True
                )
            ),
        )

    @property
    def counters(self) -> Counters:
        """Levels built, reused and dropped since it was frozen, and the layers and forwards that fell back."""
        cache = self._cache
        with self._counting:
            dense = dict(self._dense)
        return Counters(
            cache.hits,
            cache.builds,
            cache.evictions,
            len(cache),
            cache.nbytes,
            {name: n for (name, _), n in dense.items()},
            {name: n for (name, fallback), n in dense.items() if fallback},
            self._unfused or ("somebody has registered a hook since it was frozen" if self._watched() else ""),
            self._contiguous,
        )

    @property
    def layers(self) -> dict[str, SubspaceLayer]:
        """The layers that `convert` made, by their names in the model."""
        return dict(self._named)

    @property
    def nbytes(self) -> int:
        """Bytes of the model's parameters and buffers: both ends. Levels come on top (`counters.nbytes`)."""
        return sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers()))

    def eval(self) -> Frozen:
        """Itself: it is never in training mode."""
        return self

    def train(self, mode: bool = True) -> Frozen:
        """Raises, unless mode is False: train the subspace, and freeze it again."""
        if mode:
            raise RuntimeError("a frozen network cannot train; train the subspace that it came from, and freeze again")
        return self

    def __reduce__(self):
        return _rebuild, (self.model, self.recipe, self.kept, self._cache.limit, self.strict)

    def __repr__(self) -> str:
        return f"Frozen({type(self.model).__name__}, {self.recipe}, {len(self._cache)} levels held)"

    def _taken(self, level: Level | None, kwargs: dict) -> Level:
        """Takes what names a level out of the keywords of a call."""
        setting = {name: kwargs.pop(name) for name in (*UNITS, "alpha") if name in kwargs}
        if level is None and not setting:  # what is not the model's either may be a mistyped name
            setting = {name: kwargs[name] for name in kwargs if name not in self._parameters.parameters}
        return self._resolve(level, setting)

    def _resolve(self, level: Level | None, setting: Setting) -> Level:
        if level is None and len(setting) == 1:
            value = setting.get(self.recipe.unit)
            if type(value) in (float, int):
                return self._level(value)
        return self.recipe.resolve(level, setting)

    def _call(self, level: Level, args: tuple, kwargs: dict, fused: bool = True):
        if fused and (found := self._find(level, args, kwargs)):
            recorded, x = found
            return recorded(x)
        with _autocast_off(self._device):
            inputs = signature(args, kwargs)
            choices = self._chosen(level, inputs, args, kwargs)
            packed = self._packed(level, choices)
            fused = fused and inputs in self._forwards and not self._watched()
            bound = self._bound(args, kwargs) if fused else None
            given = (args, kwargs) if bound is None else bound
            last = self._takes_channels_last.get(inputs)
            moves = last is not None and (last or bound is not None)
            given = channels_last(*given) if moves else given
            output = _run(self.model, packed, *given) if bound is None else self._run_recorded(packed, given)
        if inputs not in packed.inputs:
            _remember(packed.inputs, inputs, None)
            self._cache.settle()
        elif bound is not None and can_record(args, kwargs) and _recording(packed, *given[0]):
            _remember(self._ready, (level, _kind(*args)), (choices.key(level), moves))
        return output

    def _find(self, level: Level, args: tuple, kwargs: dict) -> tuple[Recorded, Tensor] | None:
        """The recording of calls like this one, and the tensor as that takes it; None where the call would not end in
        that recording."""
        if not can_record(args, kwargs) or self._watched() or _autocasts(self._device):
            return None
        (x,) = args
        key, moves = self._ready.get((level, _kind(x)), (None, False))
        packed = self._cache.held(key)
        if packed is None:
            return None
        if moves and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        recorded = _recording(packed, x)
        if recorded is None:
            self._ready.pop((level, _kind(args[0])), None)
            return None
        self._cache.use(key)
        return recorded, x

    def _packed(self, level: Level, choices: Choices) -> Packed:
        return self._cache.get(choices.key(level), lambda: self._pack(level, choices))

    def _pack(self, level: Level, choices: Choices) -> Packed:
        _check_real(level)
        packed = pack(self._layers, level, self._packer, choices.kernels)
        with self._counting:
            for name, layer, choice in zip(self._named, self._layers, choices.layers, strict=True):
                if layer.compressed and (choice.dense or not choice.packed):
                    self._dense[f"{name}: {choice.why}", choice.fallback] += 1
        return packed

    def _chosen(self, level: Level, inputs: tuple, args: tuple, kwargs: dict) -> Choices:
        key = level if self._packer.by_level else None, inputs
        choices = self._choices.get(key)
        if choices is None:
            with self._tracing:
                shapes = self._shapes.get(inputs) or self._trace(level, inputs, args, kwargs)
            made = tuple(self._choose(layer, shapes.get(i), level) for i, layer in enumerate(self._layers))
            choices = Choices.of(made)
            self._check(choices)
            if inputs in self._shapes:
                _remember(self._choices, key, choices)
        return choices

    def _trace(self, level: Level, inputs: tuple, args: tuple, kwargs: dict) -> dict[int, Shape]:
        _check_real(level)
        trace = Trace(pack(self._layers, level, self._packer, ["torch"] * len(self._layers)).tensors)
        with torch.no_grad():
            expected = _run(self.model, trace, *copied(args, kwargs))
            try:
                if self._fused is not None:
                    self._try_fused(inputs, expected, trace, args, kwargs)
                if inputs in self._forwards and (given := telling(args, kwargs)):
                    self._try_again(inputs, trace, *given)
                if self._packer.channels_last and self._cpu:
                    self._try_channels_last(inputs, trace, args, kwargs)
            except ShortageError:  # the next call finds out
                return trace.shapes
        _remember(self._shapes, inputs, trace.shapes)
        return trace.shapes

    def _try_fused(self, inputs: tuple, expected, trace: Trace, args: tuple, kwargs: dict) -> None:
        """Runs the fused forward on such inputs from now on, if it computes what the model itself does."""
        if self._bound(args, kwargs) is None:
            self._unfused = "the fused forward takes tensors, and no other values than the forward's defaults"
            return
        try:
            found = self._run_fused(trace, self._bound(*copied(args, kwargs)))
            if not self._packer.keeps_layout:
                self._run_fused(trace, self._bound(*channels_last(*copied(args, kwargs))))
        except Exception as error:  # a graph is traced from one path through the forward, and may not fit another
            if is_shortage(error):
                raise ShortageError from error
            self._unfused = f"the fused forward fails: {type(error).__name__}: {error}"
            return
        if same(expected, found):
            _remember(self._forwards, inputs, None)
        else:
            self._unfused = "the fused forward gives another result"

    def _try_again(self, inputs: tuple, trace: Trace, args: tuple, kwargs: dict) -> None:
        """On numbers that tell more, unless the model is not made for such."""
        try:
            expected = _run(self.model, trace, *copied(args, kwargs))
        except Exception as error:
            if is_shortage(error):
                raise ShortageError from error
            return
        del self._forwards[inputs]
        self._try_fused(inputs, expected, trace, args, kwargs)

    def _try_channels_last(self, inputs: tuple, trace: Trace, args: tuple, kwargs: dict) -> None:
        """Gives such inputs to the model with channels last from now on, if it takes them."""
        try:
            if inputs in self._forwards:
                self._run_fused(trace, self._bound(*channels_last(*copied(args, kwargs))))
                _remember(self._takes_channels_last, inputs, False)
            _run(self.model, trace, *channels_last(*copied(args, kwargs)))
        except Exception as error:  # as a view does that fits one layout
            if is_shortage(error):
                raise ShortageError from error
            if inputs not in self._takes_channels_last:
                self._contiguous = f"the forward fails on channels last: {type(error).__name__}: {error}"
        else:
            _remember(self._takes_channels_last, inputs, True)

    def _watched(self) -> bool:
        """Whether somebody has registered a hook since it was frozen, or one for all modules."""
        return any(self._hooks) or bool(_has_any_global_hook())

    def _run_fused(self, running: Packed | Trace, bound: tuple[tuple, dict]):
        return _run(self._fused.forward, running, *bound)

    def _run_recorded(self, packed: Packed, bound: tuple[tuple, dict]):
        """The fused forward; from the third tensor of a kind on, the ops that it ran for the second. For the first one
        it may have run others, to make weights ready."""
        if not can_record(*bound):
            return self._run_fused(packed, bound)
        (x,), _ = bound
        kind = _kind(x)
        found = packed.recorded.get(kind)  # in one step, as other threads may clear them
        if found is None:
            output = self._run_fused(packed, bound)
            if kind not in packed.recorded:  # only now: another thread would record what makes weights ready
                _remember(packed.recorded, kind, Unrecorded.ONCE, _RECORDED)
            return output
        if found is Unrecorded.ONCE:
            output, found = record(lambda x: self._run_fused(packed, ((x,), {})), x)
            _remember(packed.recorded, kind, found or Unrecorded.NEVER, _RECORDED)
            self._recordings.append((weakref.ref(packed), kind))
            if len(self._recordings) > _RECORDINGS:
                first, kind = self._recordings.popleft()
                if (level := first()) is not None:
                    level.recorded.pop(kind, None)
            return output
        elif recorded := _recording(packed, x):
            return recorded(x)
        return self._run_fused(packed, bound)

    def _bound(self, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """A call's arguments as a graph takes them, which is traced for tensors and the forward's own defaults; None
        where there are others."""
        if self._alone and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            return args, kwargs
        try:
            given = self._parameters.bind(*args, **kwargs).arguments
        except TypeError:
            return None  # the model says it better
        required = []
        for name, value in given.items():
            default = self._parameters.parameters[name].default
            if default is inspect.Parameter.empty:
                required.append(value)
            elif value is not default and not (type(value) is type(default) and value == default):
                return None
        tensors = all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(required))
        return (tuple(required), {}) if tensors else None

    def _stored(self, layer: SubspaceLayer, level: Level) -> int:
        return self._packer.stored(layer, level) if layer.compressed else _size(layer)

    def _choose(self, layer: SubspaceLayer, x_shape: Shape | None, level: Level) -> Choice:
        if layer.compressed or (self._packer.dense and type(layer) in self._packer.layers.values()):
            return self._packer.choose(layer, x_shape, level)
        return Choice("torch", "never compressed" if isinstance(layer, tuple(WEIGHT_LAYERS)) else "norm")

    def _check(self, choices: Choices) -> None:
        failed = [f"{name}: {c.why}" for name, c in zip(self._named, choices.layers, strict=True) if c.fallback]
        if self.strict and failed:
            raise RuntimeError(f"strict: {len(failed)} layers cannot run packed: {'; '.join(failed)}")


def freeze(subspace: Subspace, *, cache_bytes: int = CACHE_BYTES, strict: bool = False) -> Frozen:
    """`subspace` as it is now, on a copy of its model. See `Frozen`."""
    with torch.inference_mode(False):
        model = copy.deepcopy(subspace.model, _detached(subspace.model))
    for handle, hooks in zip(subspace._hooks, (model._forward_pre_hooks, model._forward_hooks), strict=True):
        hooks.pop(handle.id)
        model._forward_hooks_always_called.pop(handle.id, None)
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, CompiledForward) or hasattr(forward, "_torchdynamo_orig_callable"):
            del module.forward  # torch's compiled functions would run the original model
    options = {"kept": subspace.kept, "cache_bytes": cache_bytes, "strict": strict}
    return Frozen(model.requires_grad_(False).eval(), subspace.recipe, **options)


def _detached(model: nn.Module) -> dict[int, Tensor]:
    """For a copy: what a forward of training has left on its modules, which torch copies only without its graph."""
    kept = [value for m in model.modules() for name, value in vars(m).items() if not name.startswith("_")]
    return {id(t): t.detach() for t in pytree.tree_leaves(kept) if isinstance(t, Tensor) and not t.is_leaf}


def _fuse(model: nn.Module, device: str) -> tuple[nn.Module | None, str]:
    if device == "meta":
        return None, "tensors on meta hold no data to compare"
    if watched(model):
        return None, "somebody has registered a hook on the model"
    try:
        return fused(model), ""
    except NotTraceable as error:
        return None, str(error)


def _check_real(level: Level) -> None:
    """Raises where what is made now, and held, would be of torch.export's tensors without data."""
    if torch.compiler.is_exporting():
        raise RuntimeError(f"before torch.export, call the frozen network once on such inputs at {level}")


def _run(model: Callable, running: Packed | Trace, args: tuple, kwargs: dict):
    token = RUNNING.set(running)
    try:
        return model(*args, **kwargs)
    finally:
        RUNNING.reset(token)


def _kernel(layer: SubspaceLayer, choice: Choice) -> str:
    return NORM if layer.takes_ends else choice.kernel


def _size(layer: SubspaceLayer) -> int:
    return 0 if layer.weight is None else layer.weight.numel()


def _remember(memory: dict, key, value, most: int = _REMEMBERED) -> None:
    if len(memory) >= most and key not in memory:
        memory.clear()
    memory[key] = value


def _kind(x: Tensor) -> tuple:
    """All that a recording depends on."""
    return x.shape, x.stride(), x.dtype


def _recording(packed: Packed, x: Tensor) -> Recorded | None:
    found = packed.recorded.get(_kind(x))
    return found if isinstance(found, Recorded) and found.is_current else None


def _autocasts(device: str | None) -> bool:
    return device is not None and torch.is_autocast_enabled(device)


def _autocast_off(device: str | None):
    return torch.autocast(device, enabled=False) if _autocasts(device) else contextlib.nullcontext()


def _rebuild(model: nn.Module, recipe: Recipe, kept: tuple[str, ...], cache_bytes: int, strict: bool) -> Frozen:
    return Frozen(model, recipe, kept=kept, cache_bytes=cache_bytes, strict=strict)
