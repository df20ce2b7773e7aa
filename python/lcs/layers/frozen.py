"""The compressible layers of a frozen network: a sparse weight runs the sparse op, a dense one runs torch's."""

import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import sparse_conv2d, sparse_linear
from lcs_kernels.formats import SparseWeight

from .weights import SubspaceConv2d, SubspaceLinear


class FrozenLinear(SubspaceLinear):
    sparse_op = "sparse_linear"

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.slot.tensors(self, input.shape)
        if not isinstance(weight, SparseWeight):
            return F.linear(input, weight, bias)
        _check_dtype(input, weight)
        return sparse_linear(input, weight, bias)


class FrozenConv2d(SubspaceConv2d):
    sparse_op = "sparse_conv2d"

    def forward(self, input: Tensor) -> Tensor:
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        weight, bias = self.slot.tensors(self, batched.shape)
        if not isinstance(weight, SparseWeight):
            return self._conv_forward(input, weight, bias)
        _check_dtype(input, weight)
        x, padding = batched, self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode), 0
        y = sparse_conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        return y if input.dim() == 4 else y.squeeze(0)


FROZEN_LAYERS = {SubspaceLinear: FrozenLinear, SubspaceConv2d: FrozenConv2d}


def _check_dtype(input: Tensor, weight: SparseWeight) -> None:
    """As torch's own layers do: the sparse ops would take a mixture."""
    if input.dtype != weight.values.dtype:
        raise RuntimeError(f"the input of a frozen layer is {input.dtype}, its weights are {weight.values.dtype}")
