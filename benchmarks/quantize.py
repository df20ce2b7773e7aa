"""Rows of `quantize`: the activations of a ResNet-18 block at batch 16, next to torch's own fake quantisation."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lcs_kernels.ops import quantize as op

from .harness import Row

LOW, HIGH, BITS = -0.25, 3.0, 4


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(actual, expected):
        raise AssertionError("the op's result differs from its reference")


def row(shape: tuple[int, ...]) -> Row:
    x = torch.randn(shape)
    args = (x, torch.tensor(LOW), torch.tensor(HIGH), torch.tensor(BITS))
    scale = (HIGH - LOW) / (2**BITS - 1)
    zero = round(-8 - LOW / scale)
    run = torch.ops.lcs.quantize.default
    out = torch.empty_like(x)

    def eager():
        return ((x * (1 / scale)).round_().add_(zero).clamp_(-8, 7).sub_(zero)).mul_(scale)

    torch._dynamo.reset()  # it compiles one function a limited number of times
    fast = torch.compile(eager, dynamic=False)
    return Row(
        op="quantize",
        case=f"{'x'.join(map(str, shape))} {BITS} bits",
        candidates={
            "lcs": lambda: run(*args),
            "torch.fake_quantize": lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero, -8, 7),
            "mul + round + clamp + mul": eager,
            **({} if x.is_cuda else {"torch.compile of it": fast}),
        },
        limit=lambda: torch.mul(x, 2.0, out=out),
        bytes=2 * 4 * x.numel(),
        check=lambda: assert_same(run(*args), op.reference(*args)),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield row((16, 64, 56, 56))
    yield row((16, 512, 7, 7))
