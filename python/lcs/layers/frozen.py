"""Layers of a frozen network: the sparse op runs a sparse weight, the engine's dense op a WidthView, torch a tensor."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import sparse_conv2d, sparse_conv2d_norm, sparse_linear, width_conv2d
from lcs_kernels.formats import SparseWeight
from lcs_kernels.ops._convolution import output_size

from .base import SubspaceLayer
from .frozen_norm import NormBehind, WidthView, check_dtype, weight_dtype
from .weights import SubspaceConv2d, SubspaceLinear


class FrozenLinear(SubspaceLinear):
    sparse_op = "sparse_linear"

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.slot.tensors(self, input.shape)
        if not isinstance(weight, SparseWeight):
            return F.linear(input, weight, bias)
        check_dtype(input, weight)
        return sparse_linear(input, weight, bias)


class FrozenConv2d(NormBehind, SubspaceConv2d):
    sparse_op = "sparse_conv2d"

    def convolved(self, input: Tensor) -> Tensor:
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        weight, bias = self.slot.tensors(self, batched.shape)
        if isinstance(weight, Tensor):
            return self._conv_forward(input, weight, bias)
        run = self.at_width if isinstance(weight, WidthView) else self._sparse
        y = run(batched, weight, bias)
        return y if input.dim() == 4 else y.squeeze(0)

    def scaled(self, input: Tensor, residual: Tensor | None, relu: bool, cap: float | None) -> Tensor:
        weight, bias = self.slot.tensors(self, input.shape)
        if isinstance(weight, Tensor) or input.dim() != 4 or weight_dtype(weight) != torch.float32:
            return super().scaled(input, residual, relu, cap)
        check_dtype(input, weight)
        x, padding = self.padded(input)
        geometry = {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}
        if isinstance(weight, SparseWeight) and cap is None and self._adds(x, padding, residual):
            scale, shift, mean, var, eps = self._statistics()
            after = {"mean": mean, "var": var, "residual": residual, "relu": relu}
            return sparse_conv2d_norm(
                x, weight, (scale, None, shift, None, None), 1, eps, bias=bias, **geometry, **after
            )
        scale, shift = self._affine(bias)
        last = {"relu": relu, "cap": cap} if residual is None else {}
        if isinstance(weight, WidthView):
            y = width_conv2d(x, weight.whole, weight.outputs, shift, **geometry, scale=scale, **last)
        else:
            y = sparse_conv2d(x, weight, shift, **geometry, scale=scale, **last)
        return y if residual is None else self.after(y, residual, relu, cap)

    def _adds(self, x: Tensor, padding, residual: Tensor | None) -> bool:
        """Whether there is a residual of the very size of the result."""
        if residual is None or residual.dtype != x.dtype:
            return False
        size = output_size(x.shape, self.kernel_size, self.stride, padding, self.dilation)
        return residual.shape == (len(x), self.out_channels, *size)

    def _statistics(self) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, float]:
        """Of the batch norm behind the convolution, at this level: weight, bias, mean, variance and eps."""
        norm = self.behind
        weight, bias = norm.tensors()[:2] if isinstance(norm, SubspaceLayer) else (norm.weight, norm.bias)
        return weight, bias, norm.running_mean, norm.running_var, norm.eps

    def _affine(self, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The convolution's bias and that batch norm as a scale and a bias of the sums, rounded once."""
        plans = self.slot.plans()
        known = plans.get((self, None))
        if known is None:
            with torch.inference_mode(False), torch.no_grad():  # for calls that want gradients, too
                known = plans[self, None] = _folded(bias, *self._statistics())
        return known

    def _sparse(self, input: Tensor, weight: SparseWeight, bias: Tensor | None) -> Tensor:
        check_dtype(input, weight)
        x, padding = self.padded(input)
        return sparse_conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)


def _folded(
    bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    factor = (var.double() + eps).rsqrt()
    factor = factor if scale is None else factor * scale
    moved = -mean * factor if bias is None else (bias - mean) * factor
    return factor.float(), (moved if shift is None else moved + shift).float()


FROZEN_LAYERS = {SubspaceLinear: FrozenLinear, SubspaceConv2d: FrozenConv2d}
