"""Rows of sparse convolutions in one call, against an op for each and torch in float32.

The network is a stage of two residual blocks, as in ResNet-18, with 10 % of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lcs_kernels import replay, sparse_conv2d
from lcs_kernels.formats import SparseWeight
from lcs_kernels.ops.replay import Recorder, Recording

from .harness import Row
from .packed_network import compiled

STAGES = ((64, 56), (256, 14), (64, 8))  # channels, side
DENSITY = 0.1


class Stage:
    def __init__(self, channels: int) -> None:
        self.weights = [w * (torch.rand_like(w) < DENSITY) for w in torch.randn(4, channels, channels, 3, 3) / channels]
        self.packed = [SparseWeight.pack(w) for w in self.weights]
        self.scale, self.bias = torch.rand(channels), torch.randn(channels)

    def sparse(self, x: Tensor) -> Tensor:
        after = {"bias": self.bias, "padding": 1, "scale": self.scale, "relu": True}
        for first, second in (self.packed[:2], self.packed[2:]):
            x = sparse_conv2d(sparse_conv2d(x, first, **after), second, residual=x, **after)
        return x


class Dense(nn.Module):
    """The same in torch, with scales folded into the weights."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(*w.shape[:2], 3, padding=1) for w in stage.weights)
        for conv, w in zip(self.convs, stage.weights, strict=True):
            conv.weight.copy_(w * stage.scale[:, None, None, None])
            conv.bias.copy_(stage.bias)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in (self.convs[:2], self.convs[2:]):
            x = (second(first(x).relu()) + x).relu()
        return x


def row(channels: int, side: int) -> Row:
    stage, x = Stage(channels), torch.randn(1, channels, side, side)
    stage.sparse(x)  # makes the weights ready
    with Recorder() as recorder:
        y = stage.sparse(x)
    recording = Recording.of([call for call in recorder.calls if call.can_replay], [x], [y])

    def check() -> None:
        if not torch.equal(replay([x], recording)[0], stage.sparse(x)):
            raise AssertionError("replay differs from the ops one by one")

    candidates = {
        "lcs": lambda: replay([x], recording)[0],
        "lcs, an op for each step": lambda: stage.sparse(x),
        "torch float32, compiled": compiled(Dense(stage), x),
    }
    return Row(
        op="replay",
        case=f"four convolutions, 1 x {channels} x {side} x {side}, density {DENSITY}",
        candidates={name: torch.no_grad()(call) for name, call in candidates.items()},
        limit=None,
        bytes=0,
        check=torch.no_grad()(check),
    )


@torch.no_grad()
def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    for channels, side in STAGES:
        yield row(channels, side)
