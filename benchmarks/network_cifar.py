"""Rows of a small network: frozen cPreResNet20 of 32 x 32 images, which the paper trains (arXiv 2110.04252), at one
level of each kind, next to engines.

Networks have batch norms, which engines fold into convolutions where they come behind them: those of the one at bit
widths do, the others' come before. Beside that at a density stands one with group norms, as the paper trains. Peers
have float32 weights but for OpenVINO int8; those at a width are built for it.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import lcs
from lcs.measure import check_layers
from lcs.models import build
from lcs.recipe import Recipe

from .harness import Row
from .network import compiled
from .network_bits import check_network, see_ranges
from .peers import Model

SIZE, CLASSES = 32, 10
IMAGES = (1, 16, 128)


def model_of(norm: str = "batch", **order: bool) -> nn.Module:
    model = build("cpreresnet20", CLASSES, in_channels=3, seed=0, norm=norm, **order)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: not the identity
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def subspace_of(recipe: Recipe, model: nn.Module) -> lcs.Subspace:
    dense = [model.classifier_name] if recipe.unit == "width" else [model.stem_name, model.classifier_name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the statistics, which all levels share
        return lcs.convert(model, recipe, norm="keep", dense=dense)


def quantized() -> lcs.Subspace:
    """With the ranges of its activations, as training leaves them."""
    subspace = subspace_of(lcs.Quantized(line=False, nested=True), model_of(norm_after=True))
    see_ranges(subspace, torch.randn(16, 3, SIZE, SIZE))
    return subspace


def row(
    subspace: lcs.Subspace,
    level: lcs.FrozenLevel,
    words: str,
    plain: nn.Module,
    x: Tensor,
    beside: lcs.Subspace | None,
) -> Row:
    def check() -> None:
        check_layers(level.frozen, x, level.level)
        if subspace.recipe.unit == "bits":
            check_network(level, subspace, plain, x)

    torch._dynamo.reset()  # it compiles the forward of one class a limited number of times
    candidates = {
        "lcs": functools.partial(level, x),
        "torch eager": functools.partial(plain, x),
        "torch.compile": compiled(plain, x),
    }
    if beside is not None:
        grouped = plain_of(beside, level.level)
        candidates["lcs, group norm"] = functools.partial(beside.freeze().at(level.level), x)
        candidates["torch.compile, group norm"] = compiled(grouped, x)
    return Row(
        op="network_cifar",
        case=f"cPreResNet20, {len(x)} x 3 x {SIZE} x {SIZE}, {words}",
        candidates={name: torch.no_grad()(call) for name, call in candidates.items()},
        limit=None,
        bytes=0,
        check=check,
        model=Model(plain, x),
    )


def plain_of(subspace: lcs.Subspace, level: lcs.Level) -> nn.Module:
    return lcs.unconvert(copy.deepcopy(subspace), level).requires_grad_(False).eval()


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    point, dense = lcs.Unstructured(line=False), model_of()
    networks = (
        (
            "density 0.1",
            subspace_of(point, copy.deepcopy(dense)),
            {"density": 0.1},
            subspace_of(point, model_of("group")),
        ),
        ("width 0.5", subspace_of(lcs.Structured(line=False), copy.deepcopy(dense)), {"width": 0.5}, None),
        ("4 bits", quantized(), {"bits": 4}, None),
    )
    for images in IMAGES:
        x = torch.randn(images, 3, SIZE, SIZE)
        for words, subspace, level, beside in networks:
            at = subspace.recipe.full() if "bits" in level else subspace.recipe.level(**level)
            yield row(subspace, subspace.freeze().at(**level), words, plain_of(subspace, at), x, beside)
