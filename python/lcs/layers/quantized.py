"""Layers whose inputs are rounded to the bits of the level, over a range that training averages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcs_kernels import quantize

from .base import SubspaceLayer
from .weights import SubspaceConv1d, SubspaceConv2d, SubspaceLinear

RANGES = ("input_low", "input_high", "input_known")
MOMENTUM = 0.1  # of the range: the share of the newest batch


class _Rounding(SubspaceLayer):
    """`input_low` and `input_high`, one range for all levels, are known once `input_known` is 1.

    folded: the batch norm that is folded into the weight before it is rounded.
    """

    folded: nn.Module | None = None

    def add_ranges(self) -> None:
        """The buffers, unknown as yet, as they are after a dense model's state_dict."""
        for name in RANGES:
            self.register_buffer(name, torch.zeros((), device=self.weight.device))

    def rounded(self, input: Tensor, bits: Tensor) -> Tensor:
        """`input` at `bits` bits. In training the range moves first: to the batch's own, or a tenth of the way."""
        if self.training and input.numel():
            self._move_range(input.detach())
        return quantize(input, self.input_low, self.input_high, bits)

    def _move_range(self, input: Tensor) -> None:
        for end, batch in zip((self.input_low, self.input_high), input.aminmax(), strict=True):
            end.copy_(torch.where(self.input_known > 0, torch.lerp(end, batch.to(end), MOMENTUM), batch.to(end)))
        self.input_known.fill_(1)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in RANGES:
            if name in self._buffers and (weight := state_dict.get(f"{prefix}weight")) is not None:
                state_dict.setdefault(prefix + name, torch.zeros((), device=weight.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class QuantizedLinear(_Rounding, SubspaceLinear):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias, *bits = self.tensors()
        return F.linear(self.rounded(input, *bits) if bits else input, weight, bias)


class _Convolution(_Rounding):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias, *bits = self.tensors()
        return self._conv_forward(self.rounded(input, *bits) if bits else input, weight, bias)


class QuantizedConv1d(_Convolution, SubspaceConv1d):
    pass


class QuantizedConv2d(_Convolution, SubspaceConv2d):
    pass


QUANTIZED_LAYERS = {nn.Linear: QuantizedLinear, nn.Conv1d: QuantizedConv1d, nn.Conv2d: QuantizedConv2d}
