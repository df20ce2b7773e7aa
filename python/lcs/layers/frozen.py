"""Layers of a frozen network: the sparse op runs a sparse weight, the engine's dense op a WidthView, torch a tensor."""

import functools

import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import sparse_linear
from lcs_kernels.formats import SparseWeight

from .frozen_batch_norm import BatchNormBehind
from .frozen_norm import Run, check_dtype
from .weights import SubspaceConv2d, SubspaceLinear


class FrozenLinear(SubspaceLinear):
    sparse_op = "sparse_linear"

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.slot.tensors(self, input.shape)
        if not isinstance(weight, SparseWeight):
            return F.linear(input, weight, bias)
        check_dtype(input, weight)
        return sparse_linear(input, weight, bias)


class FrozenConv2d(BatchNormBehind, SubspaceConv2d):
    sparse_op = "sparse_conv2d"

    def convolution(self, like: Tensor) -> Run:
        weight, bias = self.slot.tensors(self, like.shape if like.dim() == 4 else (1, *like.shape))
        if isinstance(weight, Tensor):
            return functools.partial(self._conv_forward, weight=weight, bias=bias)
        return self.packed(like, weight, bias)


FROZEN_LAYERS = {SubspaceLinear: FrozenLinear, SubspaceConv2d: FrozenConv2d}
