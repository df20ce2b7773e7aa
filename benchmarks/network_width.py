"""Rows of a whole network at a width: frozen ResNet-18, one packed weight for all, against networks built for each.

The peers have one width: their weights are sliced, laid out and compiled for it. Networks have instance norm, as
subspaces of widths are trained with it, or batch norm with running statistics, as slimmable ones are (arXiv
1812.08928), which engines fold into the weights; next to the first there are engines with batch norm, too.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import lcs
from lcs.measure import check_layers

from .harness import Row
from .network import SIZE, compiled, model_of
from .peers import Model

WIDTHS = (1.0, 0.5, 0.25)


def subspace_of(norm: str) -> lcs.Subspace:
    model = model_of(norm)
    line = norm == "instance"
    options = {"init": "independent"} if line else {"norm": "keep"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the statistics, which all widths share
        return lcs.convert(model, lcs.Structured(line=line), dense=[model.classifier_name], **options)


def alone(subspace: lcs.Subspace, width: float) -> nn.Module:
    """The plain network of this width."""
    return lcs.unconvert(copy.deepcopy(subspace), width=width).requires_grad_(False).eval()


def row(frozen: lcs.Frozen, named: str, torchs: dict[str, Callable], batch: nn.Module, x: Tensor, width: float) -> Row:
    level = frozen.at(width=width)
    candidates = {"lcs": lambda: level(x), **torchs}
    return Row(
        op="network_width",
        case=f"ResNet-18, {len(x)} x 3 x {SIZE} x {SIZE}, width {width:g}{named}",
        candidates={name: torch.no_grad()(call) for name, call in candidates.items()},
        limit=None,
        bytes=0,
        check=lambda: check_layers(frozen, x, level.level),
        model=Model(batch, x),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    instance, batch = subspace_of("instance"), subspace_of("batch")
    lines, kept = instance.freeze(), batch.freeze()
    for images in (1, 16):
        x = torch.randn(images, 3, SIZE, SIZE)
        for width in WIDTHS:
            torch._dynamo.reset()  # it compiles the forward of one class a limited number of times
            line, norms = alone(instance, width), alone(batch, width)
            own, folded = compiled(line, x), compiled(norms, x)
            torchs = {"torch eager": functools.partial(line, x), "torch.compile": own}
            yield row(lines, "", torchs | {"torch.compile, batch norm": folded}, norms, x, width)
            torchs = {"torch eager": functools.partial(norms, x), "torch.compile": folded}
            yield row(kept, " with batch norms", torchs, norms, x, width)
