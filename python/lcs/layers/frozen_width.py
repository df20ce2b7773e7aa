"""A convolution of a frozen structured network: the first channels of one packed weight."""

import functools

from torch import Tensor

from .frozen_batch_norm import BatchNormBehind
from .frozen_norm import Run, WidthView
from .structured import StructuredConv2d


class FrozenWidthConv2d(BatchNormBehind, StructuredConv2d):
    def whole_bias(self, bias: Tensor | None) -> Tensor | None:
        return self.bias

    def convolution(self, like: Tensor) -> Run:
        weight, bias = self.slot.tensors(self, like.shape if like.dim() == 4 else (1, *like.shape))
        if not isinstance(weight, WidthView):
            return functools.partial(self._run, weight=weight, bias=bias)
        return self.packed(like, weight, self.whole_bias(bias))
