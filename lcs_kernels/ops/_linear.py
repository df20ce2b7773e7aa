"""What linear layers with a stored, constant weight share: the check of shapes, and the gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._library import through_relu, without_autocast

_product = without_autocast(torch.matmul)


def check_fits(op: str, x: Tensor, weight_shape: tuple[int, ...]) -> None:
    """Raises ValueError where the weight is not that of a linear layer, or x does not have its features."""
    if len(weight_shape) != 2:
        raise ValueError(f"{op}: weight must be (out_features, in_features), got shape {weight_shape}")
    if x.dim() == 0 or x.shape[-1] != weight_shape[1]:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, but the weight takes {weight_shape[1]} features")


def backward(ctx, grad: Tensor, unpack: Callable[[], Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """To x and bias, by the dense layer; ctx has saved the result where ReLU came last, and nothing else."""
    for y in ctx.saved_tensors:
        grad = through_relu(grad, y)
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    grad_x = _product(wide, unpack().to(wide.dtype)).to(grad.dtype) if ctx.needs_input_grad[0] else None
    grad_bias = wide.sum_to_size(wide.shape[-1]) if ctx.needs_input_grad[1] else None
    return grad_x, grad_bias
