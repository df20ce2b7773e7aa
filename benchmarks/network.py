"""Rows of a whole network: frozen ResNet-18 at each density, against the engines that networks are deployed with.

All run one network with batch norms, which subspaces may keep and engines fold into convolutions; those named "group
norm" its twin with the norm that subspaces are trained with unless told.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import lcs
from lcs.measure import check_layers
from lcs.models import build

from .harness import Row
from .peers import Model
from .sparse_linear import fast_bfloat16

SIZE = 224
DENSITIES = (1.0, 0.2, 0.1, 0.05, 0.02)


def model_of(norm: str) -> nn.Module:
    model = build("resnet18", 1000, in_channels=3, seed=0, norm=norm)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: not the identity
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def subspace_of(norm: str) -> lcs.Subspace:
    model = model_of(norm)
    options = {"dense": [model.stem_name, model.classifier_name], "init": "independent"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the statistics, which all levels share
        return lcs.convert(model, lcs.Unstructured(), norm="keep", **options)


def plain(subspace: lcs.Subspace, density: float) -> nn.Module:
    return lcs.unconvert(copy.deepcopy(subspace), density=density).requires_grad_(False).eval()


def compiled(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """By torch.compile with its weights frozen, which lets it fold, prepack and fuse; compiled here."""
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        fast = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=False)
        fast(x)
    return lambda: fast(x)


def dense_engines(group: nn.Module, batch: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """torch's ways to run the network, which take no notice of zeros: made once for all densities."""
    engines = {
        "torch eager": lambda: batch(x),
        "torch.compile": compiled(batch, x),
        "torch.compile, group norm": compiled(group, x),
    }
    if fast_bfloat16():
        engines["torch.compile, bfloat16"] = compiled(copy.deepcopy(batch).bfloat16(), x.bfloat16())
    return engines


def row(group: lcs.Subspace, batch: lcs.Subspace, x: Tensor, density: float, engines: dict) -> Row:
    level, grouped = (subspace.freeze().at(density=density) for subspace in (batch, group))
    candidates = {"lcs": lambda: level(x), "lcs, group norm": lambda: grouped(x), **engines}
    return Row(
        op="network",
        case=f"ResNet-18, {len(x)} x 3 x {SIZE} x {SIZE}, density {density:g}",
        candidates={name: torch.no_grad()(call) for name, call in candidates.items()},
        limit=None,
        bytes=0,
        check=lambda: check_layers(level.frozen, x, level.level),
        model=Model(plain(batch, density), x),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    group, batch = subspace_of("group"), subspace_of("batch")
    for images in (1, 16):
        x = torch.randn(images, 3, SIZE, SIZE)
        engines = dense_engines(plain(group, 1.0), plain(batch, 1.0), x)
        for density in DENSITIES:
            yield row(group, batch, x, density, engines)
