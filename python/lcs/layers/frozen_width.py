"""A convolution of a frozen structured network: the first channels of one packed weight."""

from torch import Tensor

from .frozen_norm import NormBehind, WidthView
from .structured import StructuredConv2d


class FrozenWidthConv2d(NormBehind, StructuredConv2d):
    def whole_bias(self, bias: Tensor | None) -> Tensor | None:
        return self.bias

    def convolved(self, input: Tensor) -> Tensor:
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        weight, bias = self.slot.tensors(self, batched.shape)
        if not isinstance(weight, WidthView):
            return self._run(input, weight, bias)
        y = self.at_width(batched, weight, bias)
        return y if input.dim() == 4 else y.squeeze(0)
