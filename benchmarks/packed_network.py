"""Rows of packed convolutions and pooling in one call, against the same steps by an op each and torch in float32.

The network is the first block of ResNet-18 and what comes before it. Codes stay int8 between the convolutions of the
block; its result and its shortcut are float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcs_kernels import packed_conv2d, packed_network
from lcs_kernels.formats import Convolution, MaxPool, NestedWeight, Network
from lcs_kernels.ops.packed_network import reference

from .harness import Row

WIDTHS = (8, 4, 3)
IMAGES = (1, 16)
SIZE = 224
RANGE = (-4.0, 4.0)


class Block(nn.Module):
    """The same network in float32, by torch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3)
        self.first, self.second = (nn.Conv2d(64, 64, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x).relu(), 3, 2, 1)
        return (self.second(self.first(x).relu()) + x).relu()


def steps(block: Block, bits: int) -> list[Convolution | MaxPool]:
    def convolution(input: int, layer: nn.Conv2d, **options) -> Convolution:
        weight = NestedWeight.pack(layer.weight)
        geometry = {"stride": layer.stride, "padding": layer.padding, "bias": layer.bias}
        return Convolution(input, weight, bits, RANGE, x_bits=bits, relu=True, **geometry, **options)

    return [
        convolution(0, block.stem),
        MaxPool(1, 3, 2, 1),
        convolution(2, block.first, y_range=RANGE, y_bits=bits),
        convolution(3, block.second, residual=2),
    ]


def one_by_one(given: list[Convolution | MaxPool], x: Tensor) -> Tensor:
    values = [x]
    for step in given:
        value = values[step.input]
        if isinstance(step, MaxPool):
            values.append(F.max_pool2d(value, step.kernel_size, step.stride, step.padding))
        else:
            options = {k: v for k, v in vars(step).items() if k != "input" and (k != "y_bits" or step.y_range)}
            options["residual"] = None if step.residual is None else values[step.residual]
            values.append(packed_conv2d(value, **options))
    return values[-1]


def compiled(block: Block, x: Tensor) -> Callable[[], Tensor]:
    with torch._inductor.config.patch(freezing=True):
        fast = torch.compile(copy.deepcopy(block).requires_grad_(False).eval(), fullgraph=True, dynamic=False)
        with torch.no_grad():
            fast(x)
    return lambda: fast(x)


def row(block: Block, x: Tensor, bits: int, peer: Callable[[], Tensor]) -> Row:
    given = steps(block, bits)
    network = Network.of(given)

    def check() -> None:
        if not torch.equal(packed_network(x, network), reference(x, *network.arguments(x))):
            raise AssertionError("packed_network is not its reference")

    candidates = {
        "lcs": lambda: packed_network(x, network),
        "lcs, an op for each step": lambda: one_by_one(given, x),
        "torch float32, compiled": peer,
    }
    return Row(
        op="packed_network",
        case=f"first block of ResNet-18, {len(x)} x 3 x {SIZE} x {SIZE}, {bits} bits",
        candidates={name: torch.no_grad()(call) for name, call in candidates.items()},
        limit=None,
        bytes=0,
        check=torch.no_grad()(check),
    )


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    block = Block().requires_grad_(False)
    for images in IMAGES:
        x = torch.randn(images, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        peer = compiled(block, x)
        for bits in WIDTHS:
            yield row(block, x, bits, peer)
