"""A model into a subspace, in place, and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from .layers import SubspaceLayer
from .layers.norms import without_batch_statistics
from .layers.support import is_batch_norm, layer_type, replace_modules
from .layers.weights import WEIGHT_LAYERS
from .planning import KEPT, Action, Plan, arriving, folded, make_plan
from .recipe import Recipe
from .select import Patterns
from .snapshot import made_weights
from .subspace import Subspace

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .levels import Level, Setting

_INITS = ("copy", "independent")


def plan(
    model: nn.Module,
    recipe: Recipe,
    *,
    dense: Patterns = (),
    exclude: Patterns = (),
    include: Patterns | None = None,
    norm: Literal["group", "instance", "keep"] | None = None,
    init: Literal["copy", "independent"] = "copy",
    perturb: float = 0.0,
    generator: torch.Generator | None = None,
) -> Plan:
    """What `convert` would do with the same arguments, as a table. Changes nothing, raises what `convert` would."""
    if not isinstance(model, nn.Module) or not isinstance(recipe, Recipe):
        raise TypeError(
            "expected an nn.Module and a recipe (lcs.Unstructured, lcs.Structured, lcs.Quantized), got "
            f"{model!r} and {recipe!r}"
        )
    norm = norm or recipe.norm
    for name, value, allowed in (("norm", norm, recipe.norms), ("init", init, _INITS)):
        if value not in allowed:
            why = ": groups of channels do not divide every width" if (name, value) == ("norm", "group") else ""
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{why}")
    if perturb < 0 or (perturb > 0 and init == "independent"):
        raise ValueError(f"perturb must be at least 0, and 0 with init='independent'; got {perturb} with {init!r}")
    return make_plan(model, recipe, include, exclude, dense, norm)


def convert(
    model: nn.Module,
    recipe: Recipe,
    *,
    dense: Patterns = (),
    exclude: Patterns = (),
    include: Patterns | None = None,
    norm: Literal["group", "instance", "keep"] | None = None,
    init: Literal["copy", "independent"] = "copy",
    perturb: float = 0.0,
    generator: torch.Generator | None = None,
) -> Subspace:
    """Makes `model` a compressible subspace, in place: its Linear, Conv1d, Conv2d and norm modules become layers.

    A module whose weight a forward reads itself, `F.linear(x, self.fc.weight)`, is left alone where a trace of the
    model shows it; where the forward cannot be traced, that weight is read as it is: `exclude` such a module.

    A pattern is a qualified name, a glob over qualified names, or a module type; it covers what it matches and all
    inside that. Parameters keep their names and identity as the first end; `weight_1` and `bias_1` are the second.

    Args:
        dense: layers that become lines but are never compressed (on a point: stay as they are). Usually the first and
            the last layer (arXiv 2110.04252, section 4).
        exclude: modules to leave alone; stronger than the other two.
        include: the only modules to convert; None is every supported one.
        norm: what a batch norm becomes (the recipe's `norm` unless given), as batch statistics of one level are wrong
            at another: "group" is GroupNorm with the most groups up to 32 that divide the channels (one group after
            BatchNorm1d, whose input may have one value per channel; not with `lcs.Structured`, as groups do not divide
            every width), "instance" InstanceNorm, "keep" a batch norm still. Other norms keep their kind.
        init: second ends. "copy" of the first; the regulariser's gradient is 0 while they are equal, see `perturb`.
            "independent": weights Kaiming-normal (fan in, ReLU), scales 1, biases 0, then
            `model.reset_second_end(layers, generator)` where the model has it.
        perturb: with "copy", standard deviation of the noise on the second ends that the regulariser counts, in units
            of the layer's own; of a norm's scales (`lcs.Structured`), of their root mean square.
        generator: for the second ends, on the CPU; None is torch's default one.

    Raises:
        ValueError: a pattern that matches nothing or nothing convertible, two modules that share a Parameter, a model
            that is converted or wrapped already, nothing to compress, an argument out of range, or with
            `lcs.Structured` channels that meet where no width fits (`lcs.channels`), or a batch norm of one value a
            channel that would be an instance norm, naming the layers.
    """
    rows = plan(
        model,
        recipe,
        dense=dense,
        exclude=exclude,
        include=include,
        norm=norm,
        init=init,
        perturb=perturb,
        generator=generator,
    ).rows
    modules = dict(model.named_modules())
    inputs = {modules[name]: x for name, x in arriving(model, recipe, rows).items()}
    norms = folded(model, recipe, rows, norm or recipe.norm)
    new = {modules[r.name]: _layer(modules[r.name], r.action, recipe, norm) for r in rows if r.action != "leave"}
    for module, layer in new.items():
        layer.incoming, layer.traced = inputs.get(module), module in inputs
        if recipe.has_second_end(layer):
            layer.add_second_end()
        recipe.prepare(layer)
    for name, norm_name in norms.items():
        kept = modules[norm_name]
        new[modules[name]].__dict__["folded"] = new.get(kept, kept)  # not as a module of it
    replace_modules(model, new)
    subspace = Subspace(model, recipe, kept=[row.name for row in rows if row.reason in KEPT])
    _draw_second_ends(subspace, init, perturb, generator)
    _warn_of_batch_statistics(model, recipe)
    return subspace


@torch.no_grad()
def unconvert(subspace: Subspace, level: Level | None = None, **setting: Unpack[Setting]) -> nn.Module:
    """Bakes in the weights of one level, given as to `Subspace.at`: the model, in place, is made of plain torch modules
    again, and returned.

    `subspace` is spent after it. A replaced batch norm stays the norm that replaced it. Raises TypeError for what is no
    Subspace, RuntimeError for a spent one.
    """
    if not isinstance(subspace, Subspace):
        raise TypeError(
            f"lcs.unconvert takes the lcs.Subspace that lcs.convert returned, got a {type(subspace).__name__}"
        )
    layers, level, recipe = list(subspace._layers().values()), subspace._resolve(level, setting), subspace.recipe
    weights = made_weights(layers, level, recipe)
    return put_in_place(subspace, {layer: recipe.plain(layer, level, weights.get(layer)) for layer in layers})


def put_in_place(subspace: Subspace, plain: Mapping[SubspaceLayer, nn.Module]) -> nn.Module:
    """The model of `subspace`, which is spent, with plain modules in the places of its layers."""
    replace_modules(subspace.model, plain)
    for hook in subspace._hooks:
        hook.remove()
    return subspace.model


def _layer(module: nn.Module, action: Action, recipe: Recipe, norm: str | None) -> SubspaceLayer:
    if is_batch_norm(module) and (norm or recipe.norm) != "keep":
        plain = without_batch_statistics(module, norm or recipe.norm)
        return layer_type(plain, recipe.layers).of(plain, was_batch_norm=True)
    return layer_type(module, recipe.layers).of(module, compressed=action == "compress")


@torch.no_grad()
def _draw_second_ends(subspace: Subspace, init: str, perturb: float, generator: torch.Generator | None) -> None:
    lines = subspace.lines()
    for layer in lines.values():
        has_weights = isinstance(layer, tuple(WEIGHT_LAYERS))
        if init == "independent":
            _draw_independent(layer, has_weights, generator)
        elif perturb > 0 and subspace.recipe.is_regularized(layer):
            noise = torch.empty(layer.weight.shape).normal_(generator=generator)
            unit = layer.weight.std(correction=0) if has_weights else layer.weight.square().mean().sqrt()
            layer.weight_1 += (noise.to(layer.weight) * unit).mul_(perturb)
    if lines and init == "independent" and hasattr(subspace.model, "reset_second_end"):
        subspace.model.reset_second_end(lines, generator)


def _draw_independent(layer: SubspaceLayer, has_weights: bool, generator: torch.Generator | None) -> None:
    """Drawn on the CPU in float32, so that the device and the dtype do not change what is drawn."""
    if has_weights:
        drawn = torch.empty(layer.weight.shape)
        layer.weight_1.copy_(nn.init.kaiming_normal_(drawn, nonlinearity="relu", generator=generator))
    else:
        layer.weight_1.fill_(1.0)
    if layer.bias is not None:
        layer.bias_1.zero_()


def _warn_of_batch_statistics(model: nn.Module, recipe: Recipe) -> None:
    names = [name for name, m in model.named_modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    if names and recipe.target is None:
        warnings.warn(
            f"running statistics are kept for all levels together and are valid for none of them: {', '.join(names)}; "
            f"let lcs.convert replace such norms (norm={recipe.norm!r}, and none excluded), or train for one level "
            "(target=...)",
            UserWarning,
            stacklevel=3,
        )
