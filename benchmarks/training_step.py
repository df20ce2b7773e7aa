"""Rows of a training step: LCS+L of density, bit width and width, the plain dense model, and eager PyTorch's ways to do
the same: a sort a layer, and its fake quantisation."""

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
SANDWICH = (0.25, 1.0, 0.5, 0.75)  # both ends, and two between them
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


def model_of(name: str, norm: str = "group") -> nn.Module:
    return build(name, CLASSES, in_channels=3, seed=0, norm=norm)


def subspace_step(name: str, x: Tensor, y: Tensor, recipe: lcs.Unstructured | lcs.Quantized) -> Callable[[], float]:
    model = model_of(name)
    dense = [model.stem_name, model.classifier_name]
    subspace = lcs.convert(model, recipe, dense=dense, init="independent").to(x.device).train()
    x = x.contiguous(memory_format=torch.channels_last)  # as `lcs train` has them

    def loss():
        (level,) = subspace.sample()
        with subspace.at(level):
            return F.cross_entropy(subspace(x), y) + subspace.regularizer()

    return step_of(subspace.parameters(), loss)


def density_step(name: str, x: Tensor, y: Tensor) -> Callable[[], float]:
    return subspace_step(name, x, y, lcs.Unstructured())


def structured_of(name: str) -> lcs.Subspace:
    model = model_of(name, "instance")
    return lcs.convert(model, lcs.Structured(), dense=[model.classifier_name], init="independent")


def sandwich_step(name: str, x: Tensor, y: Tensor) -> Callable[[], float]:
    subspace, x = structured_of(name), x.contiguous(memory_format=torch.channels_last)

    def loss():
        for width in SANDWICH:
            with subspace.at(width=width):
                F.cross_entropy(subspace(x), y).backward()
        return subspace.regularizer()

    return step_of(subspace.parameters(), loss)


def sandwich_work(name: str, x: Tensor) -> float:
    """Operations of all widths of a sandwich over those of the full one."""
    subspace = structured_of(name)
    counts = {width: subspace.statistics(width=width, example=x).macs for width in SANDWICH}
    return sum(counts.values()) / counts[1.0]


def dense_step(
    name: str, x: Tensor, y: Tensor, norm: str = "group", format: torch.memory_format = torch.contiguous_format
) -> Callable[[], float]:
    model, x = model_of(name, norm).to(x.device, memory_format=format), x.contiguous(memory_format=format)
    return step_of(model.parameters(), lambda: F.cross_entropy(model(x), y))


Compress = Callable[[Tensor, Tensor, lcs.Level], Tensor]  # two ends to a weight


def eager_step(
    model: nn.Module, x: Tensor, y: Tensor, recipe: lcs.Unstructured | lcs.Quantized, compress: Compress
) -> Callable[[], float]:
    """Of a line in eager PyTorch."""
    firsts = dict(model.named_parameters())
    others = {k: (p + torch.randn_like(p)).detach().requires_grad_() for k, p in firsts.items()}
    weights = [k for k, p in firsts.items() if p.dim() > 1]
    compressed = set(weights) - {f"{layer}.weight" for layer in (model.stem_name, model.classifier_name)}

    def at(key: str, level: lcs.Level) -> Tensor:
        ends = firsts[key], others[key]
        return compress(*ends, level) if key in compressed else torch.lerp(*ends, level.alpha)

    def loss():
        (level,) = recipe.sample(None)
        logits = torch.func.functional_call(model, {key: at(key, level) for key in firsts}, (x,))
        return F.cross_entropy(logits, y) + eager_cosine_squared(
            *([end[k] for k in weights] for end in (firsts, others))
        )

    return step_of([*firsts.values(), *others.values()], loss)


def sorting_step(name: str, x: Tensor, y: Tensor) -> Callable[[], float]:
    def pruned(first: Tensor, second: Tensor, level: lcs.Level) -> Tensor:
        return eager_sort(first, second, keep_count(level.density, first.numel()), level.alpha)

    return eager_step(model_of(name), x, y, lcs.Unstructured(), pruned)


def fake_quantized(t: Tensor, bits: int) -> Tensor:
    low, high = t.detach().aminmax()
    scale = ((high.clamp(min=0) - low.clamp(max=0)) / (2**bits - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    lowest = -(2 ** (bits - 1))
    zero = (lowest - low.clamp(max=0) / scale).round().int()
    return torch.fake_quantize_per_tensor_affine(t, scale, zero, lowest, lowest + 2**bits - 1)


def fake_quantized_step(name: str, x: Tensor, y: Tensor) -> Callable[[], float]:
    model, bits = model_of(name), [8]
    for layer, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and layer not in (model.stem_name, model.classifier_name):
            module.register_forward_pre_hook(lambda _, inputs: (fake_quantized(inputs[0], bits[0]),))

    def rounded(first: Tensor, second: Tensor, level: lcs.Level) -> Tensor:
        bits[0] = level.bits
        return fake_quantized(torch.lerp(first, second, level.alpha), level.bits)

    return eager_step(model, x.contiguous(memory_format=torch.channels_last), y, lcs.Quantized(), rounded)


def row(name: str, x: Tensor, what: str, candidates: dict[str, Callable[[], float]]) -> Row:
    def check():
        if not all(math.isfinite(step()) for step in candidates.values()):
            raise AssertionError(f"training_step: a loss of {name} is not finite")

    batch, _, *size = x.shape
    return Row(
        op="training_step",
        case=f"{NAMES[name]}, batch {batch}, {size[0]}x{size[1]} images{what}",
        candidates=candidates,
        limit=None,
        bytes=0,
        check=check,
    )


def plain_steps(name: str, x: Tensor, y: Tensor, norm: str) -> dict[str, Callable[[], float]]:
    """With the subspace's norms, and as fast as torch's come."""
    return {
        "plain dense step": dense_step(name, x, y, norm),
        "plain dense step, batch norm": dense_step(name, x, y, "batch"),
        "plain dense step, batch norm, channels last": dense_step(name, x, y, "batch", torch.channels_last),
    }


def density_row(name: str, batch: int, size: int) -> Row:
    x, y = torch.randn(batch, 3, size, size), torch.randint(CLASSES, (batch,))
    candidates = {"lcs": density_step(name, x, y), **plain_steps(name, x, y, "group")}
    return row(name, x, ", a density", {**candidates, "a sort a layer": sorting_step(name, x, y)})


def bits_row(name: str, batch: int, size: int) -> Row:
    x, y = torch.randn(batch, 3, size, size), torch.randint(CLASSES, (batch,))
    candidates = {"lcs": subspace_step(name, x, y, lcs.Quantized()), **plain_steps(name, x, y, "group")}
    return row(name, x, ", a bit width", {**candidates, "torch's fake quantisation": fake_quantized_step(name, x, y)})


def width_row(name: str, batch: int, size: int) -> Row:
    x, y = torch.randn(batch, 3, size, size), torch.randint(CLASSES, (batch,))
    candidates = {"lcs": sandwich_step(name, x, y), **plain_steps(name, x, y, "instance")}
    work = sandwich_work(name, x[:1])
    return row(name, x, f", widths {', '.join(map(str, SANDWICH))}: {work:.2f} times the operations", candidates)


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield density_row("cpreresnet20", 128, 32)
    yield density_row("resnet18", 16, 64)
    yield bits_row("cpreresnet20", 128, 32)
    yield width_row("cpreresnet20", 128, 32)
    yield width_row("resnet18", 16, 64)
