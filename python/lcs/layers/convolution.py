"""The convolution of layers that train."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import width_conv2d
from lcs_kernels.ops.width_conv2d import trains_by_winograd


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """F.conv2d; while the weight trains by the engine, where its products and their gradients are faster."""
    trains = weight.requires_grad and torch.is_grad_enabled() and not isinstance(padding, str)
    fits = input.dim() == 4 and input.shape[1] == weight.shape[1]
    free = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
    geometry = stride, padding, dilation, groups
    if trains and fits and free and trains_by_winograd(input, weight, len(weight), *geometry):
        return width_conv2d(input, weight, None, bias, *geometry)
    return F.conv2d(input, weight, bias, *geometry)
