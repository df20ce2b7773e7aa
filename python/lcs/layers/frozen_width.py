"""A convolution of a frozen structured network: the first channels of one packed weight."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import width_conv2d
from lcs_kernels.formats import WidthWeight

from .structured import StructuredConv2d


@dataclass(frozen=True, eq=False)
class WidthView:
    """The first `outputs` channels of a weight that all widths share."""

    whole: WidthWeight
    outputs: int

    def __len__(self) -> int:
        return self.outputs

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight as it is saved."""
        return self.whole.nbytes

    @property
    def prepacked_nbytes(self) -> int:
        return self.whole.prepacked_nbytes


class FrozenWidthConv2d(StructuredConv2d):
    def forward(self, input: Tensor) -> Tensor:
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        weight, bias = self.slot.tensors(self, batched.shape)
        if not isinstance(weight, WidthView):
            return self._run(input, weight, bias)
        if input.dtype != weight.whole.weight.dtype:
            raise RuntimeError(
                f"the input of a frozen layer is {input.dtype}, its weights are {weight.whole.weight.dtype}"
            )
        x, padding = batched, self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode), 0
        geometry = self.stride, padding, self.dilation, self.groups
        y = width_conv2d(x, weight.whole, weight.outputs, self.bias, *geometry)
        return y if input.dim() == 4 else y.squeeze(0)
