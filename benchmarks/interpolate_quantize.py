"""Rows of `interpolate_quantize`: weights of one layer and of a ResNet-18, next to the blend and its range alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lcs_kernels.ops import interpolate_quantize as op

from .harness import Row
from .quantize import assert_same

SHAPE = (512, 512, 3, 3)
ALL = (11_176_896,)  # the compressed weights of a ResNet-18 in one tensor
ALPHA, BITS = 0.3, 4


def forward_row(shape: tuple[int, ...], case: str, group_size: int = 0, nested: bool = False) -> Row:
    w0, w1 = torch.randn(2, *shape).unbind()
    args = (w0, w1, torch.tensor(ALPHA), torch.tensor(BITS), group_size, nested)
    run = torch.ops.lcs.interpolate_quantize.default
    out = torch.empty_like(w0)

    def blend_and_range():
        return torch.lerp(w0, w1, ALPHA).aminmax()

    def eager():
        w = torch.lerp(w0, w1, ALPHA)
        low, high = (float(end) for end in w.aminmax())
        scale = (max(high, 0) - min(low, 0)) / (2**BITS - 1)
        zero = min(max(round(-8 - min(low, 0) / scale), -8), 7)
        return torch.fake_quantize_per_tensor_affine(w, scale, zero, -8, 7)

    def without_branches():
        w = torch.lerp(w0, w1, ALPHA)
        low, high = w.amin().clamp(max=0), w.amax().clamp(min=0)
        scale = (high - low) / (2**BITS - 1)
        zero = (-8 - low / scale).round().clamp(-8, 7)
        return ((w / scale).round().add(zero).clamp(-8, 7) - zero) * scale

    peers = {"lerp + aminmax alone": blend_and_range}
    if not group_size and not nested:
        peers["lerp + aminmax + torch.fake_quantize"] = eager
        if not w0.is_cuda:
            torch._dynamo.reset()  # it compiles one function a limited number of times
            peers["torch.compile of the arithmetic"] = torch.compile(without_branches, dynamic=False)
    return Row(
        op="interpolate_quantize",
        case=f"{'x'.join(map(str, shape))} {BITS} bits, {case}",
        candidates={"lcs": lambda: run(*args), **peers},
        limit=lambda: torch.add(w0, w1, out=out),
        bytes=3 * 4 * w0.numel(),
        check=lambda: assert_same(run(*args), op.reference(*args)),
    )


def backward_row() -> Row:
    grad = torch.randn(SHAPE)
    args = (grad, None, None, torch.tensor(ALPHA), torch.float32)
    run = torch.ops.lcs.interpolate_quantize_backward.default
    out, other = torch.empty_like(grad), torch.randn(SHAPE)

    def check():
        for actual, expected in zip(run(*args), op.reference_backward(*args), strict=True):
            assert_same(actual, expected)

    return Row(
        op="interpolate_quantize_backward",
        case="x".join(map(str, SHAPE)),
        candidates={"lcs": lambda: run(*args), "2 mul": lambda: ((1 - ALPHA) * grad, ALPHA * grad)},
        limit=lambda: torch.add(grad, other, out=out),
        bytes=3 * 4 * grad.numel(),
        check=check,
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield forward_row(SHAPE, "one scale")
    yield forward_row(ALL, "one scale")
    yield forward_row(SHAPE, "nested", nested=True)
    yield forward_row(SHAPE, "a scale per channel", 512 * 9)
    yield forward_row(SHAPE, "a scale per 128", 128)
    yield forward_row(SHAPE, "a scale per 32", 32)
    yield backward_row()
