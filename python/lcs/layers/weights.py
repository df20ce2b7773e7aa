"""Layers whose weight can be pruned."""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import SubspaceLayer
from .convolution import conv2d


class SubspaceLinear(SubspaceLayer, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *self.tensors())


class SubspaceConv1d(SubspaceLayer, nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *self.tensors())


class SubspaceConv2d(SubspaceLayer, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *self.tensors())

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            return super()._conv_forward(input, weight, bias)
        return conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


WEIGHT_LAYERS = {nn.Linear: SubspaceLinear, nn.Conv1d: SubspaceConv1d, nn.Conv2d: SubspaceConv2d}
