"""Batch norms of a frozen network that no convolution does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lcs_kernels import line_norm

from .layers.frozen_batch_norm import line_of
from .layers.frozen_norm import NormBehind
from .packing import RUNNING, Packed


class LoneBatchNorm(nn.Module):
    """`norm`, whose statistics are given, by `line_norm`, with the sum and the ReLU behind it."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(
        self, input: Tensor, residual: Tensor | None = None, relu: bool = False, cap: float | None = None
    ) -> Tensor:
        chosen = isinstance(RUNNING.get(None), Packed)  # else the model's own bits are asked for
        adds = residual is None or (residual.shape == input.shape and residual.dtype == input.dtype)
        fits = input.dtype == torch.float32 and input.device == self.norm.running_var.device
        if not (chosen and adds and fits) or cap is not None:
            return NormBehind.after(self.norm(input), residual, relu, None, cap)
        (norm, groups, eps), given = line_of(self.norm)
        return line_norm(input, *norm, groups, eps, residual=residual, relu=relu, **given)
