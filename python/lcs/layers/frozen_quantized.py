"""The compressible layers of a frozen quantised network: integer products of a weight at the bits of the level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import packed_conv2d
from lcs_kernels.formats import NestedWeight

from .quantized import QuantizedConv1d, QuantizedConv2d, QuantizedLinear


@dataclass(frozen=True, eq=False)
class NestedView:
    """A convolution's weight, read at `bits` bits. `shared`: by all widths."""

    whole: NestedWeight
    bits: int
    shared: bool

    @property
    def nbytes(self) -> int:
        """Bytes that are read, of the weight as it is saved."""
        return self.whole.nbytes_at(self.bits)

    @property
    def prepacked_nbytes(self) -> int:
        """Bytes that are read, of the weight as the kernels take it."""
        return self.whole.prepacked_nbytes * self.bits // self.whole.depth


class _Frozen:
    """`tensors` gives a dense weight or a NestedView, the bias, and the bits of the input where it is rounded."""

    def packed(self, x: Tensor, weight: NestedView, bias: Tensor | None, bits: list[Tensor], *geometry) -> Tensor:
        """The convolution of x (n, c, h, w), rounded on the way where `bits` are given."""
        if x.dtype != torch.float32:
            raise RuntimeError(f"the input of a frozen layer is {x.dtype}, its weights are torch.float32")
        if not bits:
            return packed_conv2d(x, weight.whole, weight.bits, bias, *geometry, exact=True)
        ends = self.input_low, self.input_high
        return packed_conv2d(x, weight.whole, weight.bits, bias, *geometry, x_range=ends, x_bits=weight.bits)


class FrozenQuantizedLinear(_Frozen, QuantizedLinear):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias, *bits = self.slot.tensors(self, input.shape)
        if isinstance(weight, Tensor):
            return F.linear(self.rounded(input, *bits) if bits else input, weight, bias)
        y = self.packed(input.reshape(-1, self.in_features, 1, 1), weight, bias, bits)
        return y.view(*input.shape[:-1], self.out_features)


class _FrozenConvolution(_Frozen):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias, *bits = self.slot.tensors(self, input.shape)
        if isinstance(weight, Tensor):
            return self._conv_forward(self.rounded(input, *bits) if bits else input, weight, bias)
        dims = len(self.kernel_size)
        batched = input if input.dim() == dims + 2 else input.unsqueeze(0)
        x, padding = batched, self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode), (0,) * dims
        stride, dilation = self.stride, self.dilation
        if dims == 1:  # of height 1
            x, stride, padding, dilation = x.unsqueeze(2), (1, *stride), (0, *padding), (1, *dilation)
        y = self.packed(x, weight, bias, bits, stride, padding, dilation, self.groups)
        y = y.squeeze(2) if dims == 1 else y
        return y if input.dim() == dims + 2 else y.squeeze(0)


class FrozenQuantizedConv1d(_FrozenConvolution, QuantizedConv1d):
    pass


class FrozenQuantizedConv2d(_FrozenConvolution, QuantizedConv2d):
    pass


FROZEN_LAYERS = {
    QuantizedLinear: FrozenQuantizedLinear,
    QuantizedConv1d: FrozenQuantizedConv1d,
    QuantizedConv2d: FrozenQuantizedConv2d,
}
