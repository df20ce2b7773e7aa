"""Rows of `line_norm`: the norm layers of cPreResNet20 and ResNet-18, with their ReLU, forward and trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels import line_norm
from lcs_kernels.ops.line_norm import reference, reference_backward

from .harness import Row

CPRERESNET20 = ((16, 32), (32, 32), (64, 32), (32, 16), (64, 16), (128, 16), (64, 8), (256, 8))  # channels, side
RESNET18 = ((64, 112), (64, 56), (128, 28), (256, 14), (512, 7))
EPS = 1e-5


def composed(x: Tensor, ends: list[Tensor], alpha: Tensor, groups: int) -> Tensor:
    weight, bias = torch.lerp(ends[0], ends[1], alpha), torch.lerp(ends[2], ends[3], alpha)
    return F.relu(F.group_norm(x, groups, weight, bias, EPS))


def compiled(x: Tensor, ends: list[Tensor], alpha: Tensor, groups: int) -> Callable[[], Tensor]:
    torch._dynamo.reset()  # of the row before
    fast = torch.compile(composed, fullgraph=True, dynamic=False)
    return lambda: fast(x, ends, alpha, groups)


def gradients(call: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(call(), leaves, grad)


def check(x: Tensor, ends: list[Tensor], alpha: Tensor, groups: int, grad: Tensor | None) -> None:
    """Against float64: 2^-24 of the terms' sizes for each of the roundings of the longest sum, and some."""
    arguments = (x, *ends, alpha, None, None)
    wide = [t if t is None else t.double() for t in arguments]
    expected, statistics = reference(*wide, None, groups, EPS, True)
    y = line_norm(x, *ends, alpha, groups, EPS, relu=True)
    unit = (2 * (x[0].numel() // groups) ** 0.5 + 64) * 2.0**-24
    if not ((y - expected).abs() <= unit * 32 * (1 + expected.abs().max())).all():
        raise AssertionError("line_norm's result differs from its reference")
    if grad is None:
        return
    y = line_norm(x, *ends, alpha, groups, EPS, relu=True)
    found = torch.autograd.grad(y, [x, *ends], grad)
    exact = reference_backward(torch.where(y > 0, grad, 0).double(), *wide, statistics, groups, EPS, False)
    for gradient, other in zip(found, exact, strict=False):
        if not ((gradient - other[: len(gradient)]).abs() <= unit * 32 * (1 + other.abs().max())).all():
            raise AssertionError("line_norm's gradient differs from its reference")


def row(images: int, channels: int, side: int, groups: int, last: bool, trains: bool) -> Row:
    x, grad = torch.randn(2, images, channels, side, side).unbind()
    if last:
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    ends, alpha = [torch.randn(channels) for _ in range(4)], torch.tensor(0.3)
    out = torch.empty_like(x)
    for leaf in (x, *ends):
        leaf.requires_grad_(trains)
    candidates = {
        "lcs": lambda: line_norm(x, *ends, alpha, groups, EPS, relu=True),
        "lerp + group_norm + relu": lambda: composed(x, ends, alpha, groups),
        "torch.compile of it": compiled(x, ends, alpha, groups),
    }
    if trains:
        candidates = {name: gradients(call, [x, *ends], grad) for name, call in candidates.items()}
    kind = "instance" if groups == channels else f"{groups} groups"
    plain = x.detach()
    return Row(
        op="line_norm",
        case=f"{images} x {channels} x {side} x {side}, {kind}, {'channels last' if last else 'contiguous'}"
        f"{', forward and backward' if trains else ''}",
        candidates=candidates if trains else {name: torch.no_grad()(call) for name, call in candidates.items()},
        limit=(lambda: (torch.mul(plain, 2.0, out=out), torch.add(plain, grad, out=out)))
        if trains
        else (lambda: torch.mul(plain, 2.0, out=out)),
        bytes=(5 if trains else 2) * x.nbytes,
        check=lambda: check(x, ends, alpha, groups, grad if trains else None),
    )


def layers() -> Iterator[tuple[int, int, int]]:
    for channels, side in CPRERESNET20:
        yield 128, channels, side
    for images in (1, 16):
        for channels, side in RESNET18:
            yield images, channels, side


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    for layer in layers():
        yield row(*layer, min(32, layer[1]), False, False)
    for layer in layers():
        yield row(*layer, min(32, layer[1]), False, True)
    for layer in ((128, 64, 32), (1, 64, 56), (1, 512, 7), (16, 64, 56)):
        yield row(*layer, layer[1], False, False)
        yield row(*layer, min(32, layer[1]), True, False)
        yield row(*layer, min(32, layer[1]), True, True)
