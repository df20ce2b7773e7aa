"""Triton twin of `interpolate_prune_foreach`: the kernels of `interpolate_prune`, each launched once for all layers.

Tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100. They have not run on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import BLOCK
from .interpolate_prune import prune, prune_backward


def interpolate_prune_foreach(
    w0s: list[Tensor],
    w1s: list[Tensor],
    alpha: Tensor,
    keep: Tensor,
    dtype: torch.dtype | None = None,
    block: int = BLOCK,
) -> tuple[list[Tensor], list[Tensor]]:
    """As the op's schema, on the GPU of `w0s`."""
    return prune("interpolate_prune_foreach", w0s, w1s, alpha, keep, dtype, block)


def interpolate_prune_foreach_backward(
    grads: list[Tensor],
    w0s: list[Tensor],
    w1s: list[Tensor],
    alpha: Tensor,
    mask_bits: list[Tensor],
    line: bool,
    dtype: torch.dtype,
    block: int = BLOCK,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """As the op's schema, on the GPU of `grads`."""
    return prune_backward("interpolate_prune_foreach_backward", grads, w0s, w1s, alpha, mask_bits, line, dtype, block)
