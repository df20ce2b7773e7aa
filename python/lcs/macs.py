"""Multiply-accumulate operations of a forward, counted while it runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_ADAPTIVE_POOLS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@torch.no_grad()
def count_macs(model: nn.Module, *args, **kwargs) -> int:
    """Of one call of `model`: of its convolutions and linear layers, biases left out, and one for each value that an
    average pool adds, as arXiv 2110.04252 counts them. Other layers count nothing."""
    total = 0

    def count(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        nonlocal total
        x = args[0] if args else kwargs["input"]
        channel = -1 if isinstance(module, nn.Linear) else 1 - module.weight.dim()
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            total += x.numel() // x.shape[channel] * module.weight.numel()
        else:
            total += output.numel() // output.shape[channel] * _weights(module, x, output)

    hooks = [m.register_forward_hook(count, with_kwargs=True) for m in model.modules() if isinstance(m, _WEIGHTED)]
    try:
        with _Pools() as pools:
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return total + pools.total


def _weights(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Of the weights, those that are used at each position, for the channels that come and go."""
    if isinstance(module, nn.Linear):
        return x.shape[-1] * y.shape[-1]
    channel = 1 - module.weight.dim()
    groups = x.shape[channel] if module.groups == module.in_channels else module.groups
    return x.shape[channel] // groups * y.shape[channel] * math.prod(module.kernel_size)


class _Pools(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        given = dict(zip(("input", "kernel_size"), args, strict=False)) | (kwargs or {})
        if function in _ADAPTIVE_POOLS:
            self.total += given["input"].numel()
        elif function in _POOLS:
            x, kernel = given["input"], given["kernel_size"]
            sizes = (kernel,) * (x.dim() - 2) if isinstance(kernel, int) else kernel
            self.total += y.numel() * math.prod(sizes)
        return y
