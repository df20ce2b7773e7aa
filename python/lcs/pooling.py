"""Max pooling in vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool2d(x: Tensor, kernel_size, stride, padding, dilation, ceil_mode: bool) -> Tensor:
    """F.max_pool2d. NCHW images on the CPU go by rows, then columns, in vectors; torch takes their pixels one by one.

    A gradient is torch's: ties would share it here.
    """
    (kh, kw), (ph, pw) = _pair(kernel_size), _pair(padding)
    sh, sw = _pair(stride) if stride else (kh, kw)
    fast = x.device.type == "cpu" and x.is_floating_point() and x.dim() == 4 and x.is_contiguous()
    valid = fast and all(k <= n + 2 * p and 2 * p < k for k, n, p in zip((kh, kw), x.shape[2:], (ph, pw), strict=True))
    if not valid or x.requires_grad or dilation not in (1, (1, 1)) or ceil_mode:
        return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_along(_max_along(x, 2, kh, sh, ph), 3, kw, sw, pw)


def _max_along(x: Tensor, dim: int, kernel: int, stride: int, padding: int) -> Tensor:
    """The largest of each window along `dim`; less than half of a window is padding."""
    size = x.shape[dim]
    count = (size + 2 * padding - kernel) // stride + 1

    def tap(offset: int, first: int, last: int) -> Tensor:
        return (
            x.narrow(dim, first * stride + offset, (last - first - 1) * stride + 1).unfold(dim, 1, stride).squeeze(-1)
        )

    largest = tap(0, 0, count).clone(memory_format=torch.contiguous_format)
    for offset in (i for i in range(-padding, kernel - padding) if i != 0):
        first, last = max(-(offset // stride), 0), min((size - 1 - offset) // stride + 1, count)
        if first < last:
            part = largest.narrow(dim, first, last - first)
            torch.maximum(part, tap(offset, first, last), out=part)
    return largest


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
