"""The convolution of layers that train."""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from lcs_kernels import LcsUnavailableError, _load, isa, width_conv2d
from lcs_kernels.ops.width_conv2d import trains_by_winograd

Pair = tuple[int, int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """F.conv2d; while the weight trains by the engine, where its products and their gradients are faster."""
    geometry = stride, padding, dilation, groups
    trains = weight.requires_grad and torch.is_grad_enabled()
    if trains and _fits(input, weight, *geometry) and not _transforms() and _has_vectors():
        return width_conv2d(input, weight, None, bias, *geometry)
    return F.conv2d(input, weight, bias, *geometry)


def _fits(input: Tensor, weight: Tensor, stride: Pair, padding: Pair | str, dilation: Pair, groups: int) -> bool:
    pairs = all(isinstance(pair, tuple) and len(pair) == 2 for pair in (stride, padding, dilation))
    if not pairs or input.dim() != 4 or input.shape[1] != weight.shape[1]:
        return False
    return trains_by_winograd(input, weight, len(weight), stride, padding, dilation, groups)


def _transforms() -> bool:
    """Whether what is computed is not what runs, or not in these dtypes."""
    traced = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
    return traced or forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu")


def _has_vectors() -> bool:
    return _has_kernels() and isa.max_name() != "scalar"


@functools.cache
def _has_kernels() -> bool:
    try:
        _load.ensure_loaded()
    except LcsUnavailableError as error:
        warnings.warn(f"convolutions train by torch, as there are no kernels: {error}", stacklevel=5)
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key("lcs::width_conv2d", "CPU")
