"""What a conversion would do to each module of a model, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from torch import nn

import lcs_kernels

from .channels import Channels
from .layers import SubspaceLayer
from .layers.norms import without_batch_statistics
from .layers.support import base_of, is_batch_norm, read_by_parents, refusal
from .layers.weights import WEIGHT_LAYERS
from .reading import read_by_forwards
from .recipe import Recipe
from .select import Pattern, Patterns, select

# Why a point leaves layers as they are, which else would be lines.
KEPT = "dense: a point keeps it as it is", "a point keeps its norms"
Action = Literal["compress", "dense line", "dense", "norm", "leave"]


@dataclass(frozen=True)
class Row:
    """One module: its name, type, number of weights, what becomes of it, the op that makes its weights, and why."""

    name: str
    kind: str
    weights: int
    action: Action
    kernel: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The rows in the model's order; `print` shows them as a table."""

    rows: tuple[Row, ...]
    backend: str  # what makes the compressed weights, and by which kernel

    def __str__(self) -> str:
        counts = Counter(row.action for row in self.rows)
        total = ", ".join(f"{action}: {counts[action]}" for action in counts)
        return columns(Row, self.rows, f"{total}; {self.backend}")


def columns(kind: type, rows: Sequence, last: str) -> str:
    """Rows of the dataclass `kind`, all of whose fields are strings and ints, under its names, and a last line."""
    head = tuple(column.name for column in fields(kind))
    body = [tuple(f"{value:,}" if isinstance(value, int) else value for value in vars(row).values()) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *body)]
    return "\n".join(line.rstrip() for line in [*lines, last])


@dataclass(frozen=True)
class Choice:
    """The user's patterns, resolved to modules. `include` None is every module."""

    include: set[nn.Module] | None
    exclude: set[nn.Module]
    dense: set[nn.Module]


@dataclass(frozen=True)
class Planner:
    """Decides for each module of `model`."""

    model: nn.Module
    recipe: Recipe
    choice: Choice
    norm: str
    readers: Mapping[nn.Module, str]  # of modules whose weights a type of module reads itself

    def rows(self) -> tuple[Row, ...]:
        return tuple(self._row(name, module) for name, module in self.model.named_modules() if _concerns(module))

    def _row(self, name: str, module: nn.Module) -> Row:
        action, reason = self._decide(module)
        kernel = "" if action == "leave" else "torch" if action == "norm" else self.recipe.op
        return Row(name, type(module).__name__, _weights(module), action, kernel, reason)

    def refusal(self, module: nn.Module) -> str | None:
        if module in self.readers:
            return f"{self.readers[module]} reads its weight itself"
        return refusal(module)

    def _decide(self, module: nn.Module) -> tuple[Action, str]:
        choice = self.choice
        if module in choice.exclude:
            return "leave", "excluded"
        if (reason := self.refusal(module)) is not None:
            return "leave", reason
        if choice.include is not None and module not in choice.include | choice.dense:
            return "leave", "not included"
        return self._decide_weight(module) if isinstance(module, tuple(WEIGHT_LAYERS)) else self._decide_norm(module)

    def _decide_weight(self, module: nn.Module) -> tuple[Action, str]:
        if module not in self.choice.dense:
            return "compress", ""
        if self.recipe.cuts:
            return "dense", "dense: all of its outputs"
        return ("dense line", "dense") if self.recipe.line else ("leave", KEPT[0])

    def _decide_norm(self, module: nn.Module) -> tuple[Action, str]:
        if is_batch_norm(module) and self.norm != "keep":
            layer = without_batch_statistics(module, self.norm)
            return "norm", f"becomes {type(layer).__name__}" + (
                f" of {layer.num_groups} groups" if self.norm == "group" else ""
            )
        if base_of(module) is nn.SyncBatchNorm:
            return "leave", "SyncBatchNorm cannot be a line"
        if self.recipe.cuts:
            return "norm", "cut to what arrives"
        if not self.recipe.line:
            return "leave", KEPT[1]
        if module.weight is None:
            return "leave", "it has no scale to interpolate"
        return "norm", "batch statistics shared by all levels" if is_batch_norm(module) else ""


def make_plan(
    model: nn.Module, recipe: Recipe, include: Patterns | None, exclude: Patterns, dense: Patterns, norm: str
) -> Plan:
    """The plan, after every check that needs no change of the model."""
    _check_model(model)
    included = None if include is None else select(model, include, "include")
    densed = select(model, dense, "dense")
    choice = Choice(
        None if included is None else _union(included), _union(select(model, exclude, "exclude")), _union(densed)
    )
    planner = Planner(model, recipe, choice, norm, read_by_forwards(model) | read_by_parents(model))
    for argument, found in (("include", included or []), ("dense", densed)):
        _check_convertible(planner, argument, found)
    rows = planner.rows()
    modules = dict(model.named_modules())
    _check_shared(model, {modules[row.name] for row in rows if row.action != "leave"})
    if not any(row.action == "compress" for row in rows):
        raise ValueError(f"nothing of {type(model).__name__} would be compressed:\n{Plan(rows, '-')}")
    found = arriving(model, recipe, rows)
    if norm == "instance":
        _check_deviations(modules, found)
    folded(model, recipe, rows, norm)
    device = next(model.parameters()).device.type
    kernels = lcs_kernels.backends().get(recipe.op)
    backend = f": {kernels.get(device, f'reference on {device}')}" if kernels else " operators"
    return Plan(rows, recipe.op + backend)


def arriving(model: nn.Module, recipe: Recipe, rows: Sequence[Row]) -> Mapping[str, Channels | None]:
    """The recipe's `incoming` for the layers that `rows` convert."""
    return recipe.incoming(model, _converted(rows))


def folded(model: nn.Module, recipe: Recipe, rows: Sequence[Row], norm: str) -> Mapping[str, str]:
    """The recipe's `folded` for the layers that `rows` convert, of the batch norms with running statistics that stay
    such."""
    replaced = {row.name for row in rows if row.action == "norm"} if norm != "keep" else ()
    norms = [
        name
        for name, m in model.named_modules()
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.running_var is not None and name not in replaced
    ]
    return recipe.folded(model, _converted(rows), norms)


def _converted(rows: Sequence[Row]) -> dict[str, bool]:
    """The layers that `rows` convert, and whether they are compressed."""
    return {row.name: row.action == "compress" for row in rows if row.action != "leave"}


def _concerns(module: nn.Module) -> bool:
    own = any(parameter is not None for parameter in module._parameters.values())
    return own or base_of(module) is not None or refusal(module) == "quantised"


def _weights(module: nn.Module) -> int:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return 0 if weight is None or nn.parameter.is_lazy(weight) else weight.numel()


def _union(found: list[tuple[Pattern, set[nn.Module]]]) -> set[nn.Module]:
    return set().union(*(modules for _, modules in found))


def _check_model(model: nn.Module) -> None:
    kind = type(model).__name__
    if any(isinstance(module, SubspaceLayer) for module in model.modules()):
        raise ValueError(f"{kind} is converted already; build it anew, or lcs.unconvert its lcs.Subspace first")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        raise ValueError(f"the model is wrapped in {kind}: convert it first, then wrap or compile it")
    if base_of(model) is not None:
        raise ValueError(f"the model is itself a {kind} and cannot be converted in place: pass nn.Sequential(model)")


def _check_convertible(planner: Planner, argument: str, found: list[tuple[Pattern, set[nn.Module]]]) -> None:
    for pattern, modules in found:
        refusals = {name: planner.refusal(m) for name, m in planner.model.named_modules() if m in modules}
        if None not in refusals.values():
            name = next(iter(refusals))
            raise ValueError(
                f"{argument}: {pattern!r} covers no module that can be converted ({name}: {refusals[name]})"
            )


def _check_deviations(modules: Mapping[str, nn.Module], found: Mapping[str, Channels | None]) -> None:
    """An instance norm in the place of a batch norm needs several values of each channel."""
    for name, x in found.items():
        if is_batch_norm(modules[name]) and x is not None and x.dim == -1:
            group = f"nn.GroupNorm(1, {modules[name].num_features})"
            raise ValueError(
                f"{name} would be an instance norm of what {x.layer} makes, one value a channel, which has no "
                f"deviation: put {group} there before lcs.convert, or give it norm='keep'"
            )


def _check_shared(model: nn.Module, converted: set[nn.Module]) -> None:
    """A Parameter of two modules would have one second end per module, or none in the module left alone."""
    owners = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            first, owner, _ = owners.setdefault(id(parameter), (f"{name}.{key}", module, parameter))
            if owner is not module and (module in converted or owner in converted):
                raise ValueError(f"{first} and {name}.{key} are one Parameter: exclude both modules, or untie them")
