"""Packed convolutions, pooling and a classifier after each other in one call, without a dispatch per layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels._load import ensure_loaded
from lcs_kernels.formats.network import DENSE, MAX_POOL, MEAN, Network, steps_of

from . import packed_conv2d
from ._library import define, wants_grad, without_autocast


@without_autocast
def reference(
    x: Tensor, weights: Sequence[Tensor], floats: Tensor, zero_points: Tensor, numbers: Tensor, size: Sequence[int]
) -> Tensor:
    """Step by step, by `packed_conv2d`'s reference and torch's pooling and linear layer."""
    values, weights, at, zero = [x], iter(weights), 0, 0

    def some(n: int) -> Tensor:
        nonlocal at
        at += n
        return floats[at - n : at]

    for step in steps_of(numbers):
        value = values[step.input]
        if step.kind == MEAN:
            if step.scales:
                value = value * some(step.scales)[:, None, None] + some(step.scales)[:, None, None]
                value = value.relu() if step.relu else value
            values.append(value.mean((2, 3), keepdim=True))
            continue
        if step.kind == DENSE:
            y = F.linear(value.flatten(1), next(weights), some(step.out_channels) if step.biased else None)
            values.append((y.relu() if step.relu else y)[..., None, None])
            continue
        if step.kind == MAX_POOL:
            window = [step.kernel_h, step.kernel_w]
            values.append(F.max_pool2d(value, window, *step.settings[:2]))
            continue
        zeros = zero_points[zero : zero + step.scales]
        zero += step.scales
        weight = next(weights), some(step.scales)[:, None], zeros[:, None], step.weight_shape
        for _ in range(step.prepacked):
            next(weights)
        low, high = some(2)
        bias = some(step.out_channels) if step.biased else None
        y_range = (*some(2), step.y_bits) if step.y_bits else ()
        residual = values[step.residual] if step.residual >= 0 else None
        settings = (*step.settings, step.groups, low, high, step.x_bits, bool(step.relu), False, [], residual)
        values.append(packed_conv2d.reference(value, *weight, step.bits, bias, *settings, *y_range))
    return values[-1].flatten(1) if len(size) == 1 else values[-1].contiguous(memory_format=torch.channels_last)


def fake(x, weights, floats, zero_points, numbers, size):
    y = x.new_empty((x.shape[0], *size))
    return y if len(size) == 1 else y.contiguous(memory_format=torch.channels_last)


_op = define(
    "packed_network(Tensor x, Tensor[] weights, Tensor floats, Tensor zero_points, Tensor numbers, SymInt[] size)"
    " -> Tensor",
    reference,
    fake,
)


def packed_network(x: Tensor, network: Network) -> Tensor:
    """The last value of a network of packed convolutions and pooling, bit for bit what its steps make one by one. The
    sums of `Mean`, of its norm and of `Dense` are float32, whose order depends on shapes and instruction set alone.

    Args:
        x: (n, c, h, w), float32, contiguous or channels_last (other strides are copied). It has no gradient here.
        network: `lcs_kernels.formats.Network.of` its steps; see `Convolution`, `MaxPool`, `Mean` and `Dense` there. The
            last one makes float32 values.

    Returns:
        float32, channels_last; (n, channels) of a flat network.

    Raises:
        ValueError: x of another number of dimensions or device, or a wanted gradient.
        RuntimeError: shapes that do not fit, codes as a residual, pooled codes, or codes as the result; a mean of x.
        TypeError: another dtype.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    ensure_loaded()
    if x.dtype != torch.float32:
        raise TypeError(f"packed_network: x must be float32, got {x.dtype}")
    if x.dim() != 4:
        raise ValueError(f"packed_network: x must be (n, c, h, w), got shape {tuple(x.shape)}")
    if x.device != network.floats.device:
        raise ValueError(f"packed_network: x is on {x.device}, the network on {network.floats.device}")
    if wants_grad(x):
        raise ValueError("packed_network: codes have no gradient; call it under torch.no_grad()")
    return _op(x, *network.arguments(x))
