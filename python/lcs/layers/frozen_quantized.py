"""The compressible layers of a frozen quantised network: integer products of a weight at the bits of the level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import packed_conv2d
from lcs_kernels.formats import Convolution, NestedWeight
from lcs_kernels.ops._convolution import output_size

from .quantized import QuantizedConv1d, QuantizedConv2d, QuantizedLinear

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NestedView:
    """A convolution's weight, read at `bits` bits.

    shared: by all widths.
    folded: where a batch norm is folded into the weight, that weight, and what it leaves of the norm as a bias: their
        convolution is that of `whole` and the norm. Both have the same codes.
    """

    whole: NestedWeight
    bits: int
    shared: bool
    folded: tuple[NestedWeight, Tensor] | None = None

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

    def packed(self, x: Tensor, weight, view_bits: int, bias: Tensor | None, bits, *geometry, **after) -> Tensor:
        """The convolution of x (n, c, h, w), rounded on the way where `bits` are given."""
        if x.dtype not in (torch.float32, torch.int8):
            raise RuntimeError(f"the input of a frozen layer is {x.dtype}, its weights are torch.float32")
        if not bits:
            return packed_conv2d(x, weight, view_bits, bias, *geometry, exact=True, **after)
        ends = self.input_low, self.input_high
        return packed_conv2d(x, weight, view_bits, bias, *geometry, x_range=ends, x_bits=view_bits, **after)


class FrozenQuantizedLinear(_Frozen, QuantizedLinear):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias, *bits = self.slot.tensors(self, input.shape)
        if isinstance(weight, Tensor):
            return F.linear(self.rounded(input, *bits) if bits else input, weight, bias)
        x = input.reshape(-1, self.in_features, 1, 1)
        parts = weight.whole.shape[0] // max(self.out_features, 1) or 1
        if parts == 1:
            y = self.packed(x, weight.whole, weight.bits, bias, bits)
        else:  # whose sums fit the kernels' integers
            y = self.packed(x, weight.whole, weight.bits, None, bits, 1, 0, 1, parts)
            y = y.view(len(x), parts, self.out_features).sum(1)
            y = y if bias is None else y + bias
        return y.view(*input.shape[:-1], self.out_features)


class _FrozenConvolution(_Frozen):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias, *bits = self.slot.tensors(self, input.shape)
        if isinstance(weight, Tensor):
            return self.dense(input, weight, bias, bits)
        return self.convolved(input, weight.whole, weight.bits, bias, bits)

    def dense(self, input: Tensor, weight: Tensor, bias: Tensor | None, bits) -> Tensor:
        return self._conv_forward(self.rounded(input, *bits) if bits else input, weight, bias)

    def convolved(self, input: Tensor, weight: NestedWeight, view_bits: int, bias: Tensor | None, bits, **after):
        dims = len(self.kernel_size)
        batched = input if input.dim() == dims + 2 else input.unsqueeze(0)
        x, padding = batched, self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode), (0,) * dims
        stride, dilation = self.stride, self.dilation
        if dims == 1:  # of height 1
            x, stride, padding, dilation = x.unsqueeze(2), (1, *stride), (0, *padding), (1, *dilation)
        y = self.packed(x, weight, view_bits, bias, bits, stride, padding, dilation, self.groups, **after)
        y = y.squeeze(2) if dims == 1 else y
        return y if input.dim() == dims + 2 else y.squeeze(0)


class FrozenQuantizedConv1d(_FrozenConvolution, QuantizedConv1d):
    pass


class FrozenQuantizedConv2d(_FrozenConvolution, QuantizedConv2d):
    """Does what comes after it, too (`lcs.fusing`): the norm that is folded into it, a sum, ReLU, also one that ends at
    a `cap`, and the rounding of the only layer that reads the result, which then is integers; not where a gradient is
    to come back, which these have not.

    successor: that layer, whose range, where there is a cap, rounds to the same what is clipped at it and what is not.
    """

    successor: FrozenQuantizedConv2d | None = None

    def takes_codes(self) -> bool:
        """Whether its input may be integers: no padding by other values than 0 comes first."""
        return self.compressed and self.padding_mode == "zeros" and not isinstance(self.padding, str)

    def rounds_clipped(self, cap: float) -> bool:
        """Whether what is clipped to [0, cap] gets the codes that it gets as it is."""
        return float(self.input_low) == 0 and float(self.input_high) <= cap

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        norm: bool = False,
        relu: bool = False,
        codes: bool = False,
        cap: float | None = None,
    ) -> Tensor:
        weight, bias, *bits = self.slot.tensors(self, input.shape)
        if isinstance(weight, Tensor):
            return _capped(self._steps(self.dense(input, weight, bias, bits), residual, norm, relu), cap)
        if norm and weight.folded is None:
            raise RuntimeError("the weight of a frozen layer was made without the norm that is folded into it")
        whole, bias = weight.folded if norm else (weight.whole, bias)
        if residual is not None and not self._fits(input, residual):
            y = self.convolved(input, whole, weight.bits, bias, bits)
            return _capped(self._steps(y, residual, False, relu), cap)
        trains = torch.is_grad_enabled() and (input.requires_grad or (residual is not None and residual.requires_grad))
        rounding = self._rounding() if codes and not trains else {}
        y = self.convolved(input, whole, weight.bits, bias, bits, residual=residual, relu=relu, **rounding)
        return y if rounding else _capped(y, cap)

    def step(
        self,
        value: int,
        shape: Shape,
        residual: tuple[int, Shape] | None = None,
        norm: bool = False,
        cap: float | None = None,
        **after,
    ) -> tuple[Convolution, Shape] | None:
        """What `forward` does with the `value` of a network (`packed_network`) of this shape, and its result's shape.

        residual: likewise a value and its shape. None: at this level it is no integer product, or clips what it does
        not round, or the residual is of another shape.
        """
        weight, bias, *bits = self.slot.tensors(self)
        made = (shape[0], self.out_channels, *self._size(shape))
        if isinstance(weight, Tensor) or not bits or not self.takes_codes() or (norm and weight.folded is None):
            return None
        if residual is not None and residual[1] != made:
            return None
        whole, bias = weight.folded if norm else (weight.whole, bias)
        rounding = self._rounding() if after.pop("codes", False) else {}
        if cap is not None and not rounding:
            return None
        step = Convolution(
            value,
            whole,
            weight.bits,
            (self.input_low, self.input_high),
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            weight.bits,
            residual and residual[0],
            **after,
            **rounding,
        )
        return step, made

    def _rounding(self) -> dict:
        """To the successor's codes, where it rounds its input at this level."""
        view, _, *rounded = self.slot.tensors(self.successor)
        if not rounded or isinstance(view, Tensor):
            return {}
        return {"y_range": (self.successor.input_low, self.successor.input_high), "y_bits": view.bits}

    def _steps(self, y: Tensor, residual: Tensor | None, norm: bool, relu: bool) -> Tensor:
        y = self.folded(y) if norm else y
        y = y if residual is None else y + residual
        return y.relu() if relu else y

    def _fits(self, input: Tensor, residual: Tensor) -> bool:
        """Whether a residual is of the very size of the result, which the kernel takes."""
        if input.dim() != 4 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        size = self._size(input.shape)
        return residual.dtype == torch.float32 and residual.shape == (len(input), self.out_channels, *size)

    def _size(self, shape: Shape) -> list[int]:
        return output_size(shape, self.kernel_size, self.stride, self.padding, self.dilation)


def _capped(y: Tensor, cap: float | None) -> Tensor:
    return y if cap is None else y.clamp(max=cap)


FROZEN_LAYERS = {
    QuantizedLinear: FrozenQuantizedLinear,
    QuantizedConv1d: FrozenQuantizedConv1d,
    QuantizedConv2d: FrozenQuantizedConv2d,
}
