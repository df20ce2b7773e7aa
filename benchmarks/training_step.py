"""Rows of a training step: LCS+L, the plain dense model with the same norms, and a sort a layer in eager PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lcs
from lcs.models import build
from lcs_kernels import keep_count

from .cosine_squared import eager as eager_cosine_squared
from .harness import Row
from .interpolate_prune import eager_sort

CLASSES = 10
NAMES = {"cpreresnet20": "cPreResNet20", "resnet18": "ResNet-18"}


def step_of(parameters, loss: Callable[[], Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return float(value.detach())

    return step


def model_of(name: str) -> nn.Module:
    return build(name, CLASSES, in_channels=3, seed=0, norm="group")


def subspace_step(name: str, x: Tensor, y: Tensor) -> Callable[[], float]:
    model = model_of(name)
    dense = [model.stem_name, model.classifier_name]
    subspace = lcs.convert(model, lcs.Unstructured(), dense=dense, init="independent")

    def loss():
        (level,) = subspace.sample()
        with subspace.at(level):
            return F.cross_entropy(subspace(x), y) + subspace.regularizer()

    return step_of(subspace.parameters(), loss)


def dense_step(name: str, x: Tensor, y: Tensor) -> Callable[[], float]:
    model = model_of(name)
    return step_of(model.parameters(), lambda: F.cross_entropy(model(x), y))


def sorting_step(name: str, x: Tensor, y: Tensor) -> Callable[[], float]:
    model, recipe = model_of(name), lcs.Unstructured()
    firsts = dict(model.named_parameters())
    others = {k: (p + torch.randn_like(p)).detach().requires_grad_() for k, p in firsts.items()}
    weights = [k for k, p in firsts.items() if p.dim() > 1]
    pruned = set(weights) - {f"{layer}.weight" for layer in (model.stem_name, model.classifier_name)}

    def at(key: str, level: lcs.Level) -> Tensor:
        if key not in pruned:
            return torch.lerp(firsts[key], others[key], level.alpha)
        return eager_sort(firsts[key], others[key], keep_count(level.density, firsts[key].numel()), level.alpha)

    def loss():
        (level,) = recipe.sample(None)
        logits = torch.func.functional_call(model, {key: at(key, level) for key in firsts}, (x,))
        return F.cross_entropy(logits, y) + eager_cosine_squared(
            *([end[k] for k in weights] for end in (firsts, others))
        )

    return step_of([*firsts.values(), *others.values()], loss)


def row(name: str, batch: int, size: int) -> Row:
    x, y = torch.randn(batch, 3, size, size), torch.randint(CLASSES, (batch,))
    steps = {"lcs": subspace_step, "plain dense step": dense_step, "a sort a layer": sorting_step}
    candidates = {label: step(name, x, y) for label, step in steps.items()}

    def check():
        if not all(math.isfinite(step()) for step in candidates.values()):
            raise AssertionError(f"training_step: a loss of {name} is not finite")

    return Row(
        op="training_step",
        case=f"{NAMES[name]}, batch {batch}, {size}x{size} images",
        candidates=candidates,
        limit=None,
        bytes=0,
        check=check,
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield row("cpreresnet20", 128, 32)
    yield row("resnet18", 16, 64)
