"""Packed convolutions, pooling and linear layers after each other, as `lcs_kernels.packed_network` runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, fields

import torch
from torch import Tensor

from lcs_kernels.levels import range_tensors
from lcs_kernels.ops import packed_conv2d
from lcs_kernels.ops._convolution import geometry, output_size, window

from .nested_weight import NestedWeight

Pair = int | tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """`packed_conv2d` of the value `input`, with the value `residual` added: 0 is the network's x, i + 1 what step i
    makes. The other fields are that function's arguments."""

    input: int
    weight: NestedWeight
    bits: int
    x_range: tuple[float | Tensor, float | Tensor]
    bias: Tensor | None = None
    stride: Pair = 1
    padding: Pair = 0
    dilation: Pair = 1
    groups: int = 1
    x_bits: int = 8
    residual: int | None = None
    relu: bool = False
    y_range: tuple[float | Tensor, float | Tensor] | None = None
    y_bits: int = 8


@dataclass(frozen=True)
class MaxPool:
    """`torch.nn.functional.max_pool2d` of the value `input`, as of `Convolution`."""

    input: int
    kernel_size: Pair
    stride: Pair
    padding: Pair = 0


@dataclass(frozen=True)
class Mean:
    """Of all positions of each channel of the value `input`, in float32: (n, c, 1, 1).

    norm: a scale and a shift, (c,) each: the mean is that of input * scale + shift, after ReLU where there is `relu`.
    """

    input: int
    norm: tuple[Tensor, Tensor] | None = None
    relu: bool = False


@dataclass(frozen=True)
class Dense:
    """A float32 linear layer of the value `input`, (n, c, 1, 1), by `weight` (out, c)."""

    input: int
    weight: Tensor
    bias: Tensor | None = None
    relu: bool = False


CONVOLUTION, MAX_POOL, MEAN, DENSE = range(4)  # kinds of steps


@dataclass(frozen=True)
class Step:
    """A step as the schema takes it. A convolution's weights are its planes and what is `prepacked`; its floats
    `scales` scales, as many as it has zero points, both ends of x's range, the bias if it is `biased`, and both ends of
    y's range if there are `y_bits`. A linear layer's are its weight, and the bias likewise. A mean's floats are
    `scales` scales and as many shifts."""

    kind: int
    input: int
    residual: int
    out_channels: int
    in_channels: int  # of a group
    kernel_h: int = 1
    kernel_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    padding_h: int = 0
    padding_w: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1
    bits: int = 0
    x_bits: int = 0
    y_bits: int = 0
    relu: int = 0
    prepacked: int = 0
    biased: int = 0
    scales: int = 0

    @property
    def weight_shape(self) -> list[int]:
        return [self.out_channels, self.in_channels, self.kernel_h, self.kernel_w]

    @property
    def settings(self) -> tuple[list[int], list[int], list[int]]:
        return (
            [self.stride_h, self.stride_w],
            [self.padding_h, self.padding_w],
            [self.dilation_h, self.dilation_w],
        )


_FIELDS = len(fields(Step))


def steps_of(numbers: Tensor) -> Iterator[Step]:
    """What a network's `numbers` say."""
    return (Step(*row) for row in numbers.tolist())


@dataclass(frozen=True)
class Network:
    """Steps, made ready for any number of calls: what they read that is small lies together, as a call looks at every
    tensor."""

    weights: list[Tensor]
    floats: Tensor  # float32, 1-d
    zero_points: Tensor  # uint8, 1-d
    numbers: Tensor  # int64, a row for each step
    steps: tuple[Step, ...]
    flat: bool = False  # whether the result is (n, channels)
    sizes: dict[tuple[int, ...], list[int]] = field(default_factory=dict)  # of results, by an image's shape

    @classmethod
    def of(cls, steps: Sequence[Convolution | MaxPool | Mean | Dense], flat: bool = False) -> Network:
        """`flat`: the result, which a `Mean` or a `Dense` makes, is (n, channels).

        Raises ValueError where a step reads a value that is not there, or does not run on integers alone.
        """
        made, parts = [], _Parts([], [], [])
        if flat and not isinstance(steps[-1], Mean | Dense):
            raise ValueError("packed_network: only what a Mean or a Dense makes can be flat")
        for i, step in enumerate(steps):
            for name, value in (("input", step.input), ("residual", getattr(step, "residual", None))):
                if value is not None and not 0 <= value <= i:
                    raise ValueError(f"packed_network: {name} of step {i} must be a value from 0 to {i}, got {value}")
            if isinstance(step, MaxPool):
                made.append(_pool(step))
            elif isinstance(step, Mean):
                made.append(_mean(i, step, parts))
            elif isinstance(step, Dense):
                made.append(_dense(step, parts))
            else:
                made.append(_convolution(i, step, parts))
        on = parts.weights[0].device if parts.weights else "cpu"
        floats = [t.detach().flatten().to(on, torch.float32) for t in parts.floats]
        zeros = [t.flatten() for t in parts.zero_points]
        numbers = [tuple(map(int, astuple(step))) for step in made]
        return cls(
            parts.weights,
            torch.cat(floats) if floats else torch.empty(0, dtype=torch.float32, device=on),
            torch.cat(zeros) if zeros else torch.empty(0, dtype=torch.uint8, device=on),
            torch.tensor(numbers, dtype=torch.int64, device="cpu").reshape(-1, _FIELDS),
            tuple(made),
            flat,
        )

    def size(self, shape: tuple[int, ...]) -> list[int]:
        """(channels, height, width) of the result for x of a shape; (channels,) of a flat one."""
        shapes = [tuple(shape)]
        for step in self.steps:
            n, channels, *_ = shape = shapes[step.input]
            size = [1, 1] if step.kind == MEAN else output_size(shape, step.weight_shape, *step.settings)
            shapes.append((n, channels if step.kind in (MAX_POOL, MEAN) else step.out_channels, *size))
        return list(shapes[-1][1 : 2 if self.flat else None])

    def arguments(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor, list[int]]:
        """What the op takes behind x."""
        if torch.compiler.is_compiling():  # a shape may be symbolic
            size = self.size(x.shape)
        elif (size := self.sizes.get(image := x.shape[1:])) is None:
            size = self.sizes[image] = self.size(x.shape)
        return self.weights, self.floats, self.zero_points, self.numbers, size


@dataclass(frozen=True)
class _Parts:
    weights: list[Tensor]
    floats: list[Tensor]
    zero_points: list[Tensor]


def _pool(step: MaxPool) -> Step:
    kernel, stride, padding = window("packed_network", step.kernel_size, step.stride, step.padding)
    return Step(MAX_POOL, step.input, -1, 0, 0, *kernel, *stride, *padding)


def _mean(i: int, step: Mean, to: _Parts) -> Step:
    if not step.norm and step.relu:
        raise ValueError(f"packed_network: the mean of step {i} has a ReLU, but no norm")
    scale, shift = step.norm or ((), ())
    if len(scale) != len(shift):
        raise ValueError(f"packed_network: the norm of step {i} has {len(scale)} scales and {len(shift)} shifts")
    to.floats.extend(step.norm or [])
    return Step(MEAN, step.input, -1, 0, 0, relu=step.relu, scales=len(scale))


def _dense(step: Dense, to: _Parts) -> Step:
    biased = step.bias is not None
    to.weights.append(step.weight.float().contiguous())
    to.floats.extend([step.bias] if biased else [])
    return Step(DENSE, step.input, -1, *step.weight.shape, relu=step.relu, biased=biased)


def _convolution(i: int, step: Convolution, to: _Parts) -> Step:
    if not isinstance(step.weight, NestedWeight):
        raise TypeError(
            f"packed_network: the weight of step {i} must be a NestedWeight, got {type(step.weight).__name__}; "
            "NestedWeight.pack(w) makes one"
        )
    weight, on = step.weight, step.weight.planes
    stride, padding, dilation = geometry("packed_network", step.stride, step.padding, step.dilation)
    if len(weight.shape) != 4 or weight.group < weight.columns or weight.columns > packed_conv2d.MAX_RANGED_TERMS:
        raise ValueError(
            f"packed_network: the weight of step {i} must be 4-d with one scale in a channel and at most "
            f"{packed_conv2d.MAX_RANGED_TERMS:,} columns, got {weight.shape} in groups of {weight.group}"
        )
    prepack = packed_conv2d.prepacked(weight, step.groups, on.device) if on.is_cpu else []
    to.weights.extend([on, *prepack])
    to.zero_points.append(weight.zero_points)
    to.floats.extend([weight.scales, *range_tensors("packed_network", *step.x_range, weight.scales)])
    if step.bias is not None:
        to.floats.append(step.bias)
    if step.y_range is not None:
        to.floats.extend(range_tensors("packed_network", *step.y_range, weight.scales))
    return Step(
        CONVOLUTION, step.input, -1 if step.residual is None else step.residual, *weight.shape, *stride, *padding,
        *dilation, step.groups, step.bits, step.x_bits, 0 if step.y_range is None else step.y_bits, step.relu,
        len(prepack), step.bias is not None, weight.scales.numel(),
    )  # fmt: skip
