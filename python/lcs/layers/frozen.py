"""Layers of a frozen network: the sparse op runs a sparse weight, the engine's dense op a WidthView, torch a tensor."""

import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import sparse_conv2d, sparse_linear
from lcs_kernels.formats import SparseWeight

from .frozen_norm import NormBehind, WidthView, check_dtype
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

    def _sparse(self, input: Tensor, weight: SparseWeight, bias: Tensor | None) -> Tensor:
        check_dtype(input, weight)
        x, padding = self.padded(input)
        return sparse_conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)


FROZEN_LAYERS = {SubspaceLinear: FrozenLinear, SubspaceConv2d: FrozenConv2d}
