"""A convolution of a frozen structured network: the first channels of one packed weight."""

from dataclasses import dataclass
from functools import lru_cache

import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import width_conv2d, width_conv2d_norm
from lcs_kernels.formats import WidthWeight

from .norms import FusedNorm
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
    """`behind`: the norm that alone reads the result, which the fused forward lets this layer do as well."""

    behind: FusedNorm

    def forward(
        self, input: Tensor, normed: bool = False, residual: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        return self._normed(input, residual, relu) if normed else self._convolved(input)

    def _normed(self, input: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        norm = self.behind
        weight, bias = self.slot.tensors(self, input.shape)
        if not isinstance(weight, WidthView) or not self._fits(input, residual, weight.outputs):
            return norm(self._convolved(input), residual, relu)
        _check_dtype(input, weight)
        channels = weight.outputs
        return width_conv2d_norm(
            input,
            weight.whole,
            channels,
            norm.affine_line(),
            norm.groups_of(channels),
            norm.eps,
            bias=self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            residual=residual,
            relu=relu,
        )

    def _fits(self, input: Tensor, residual: Tensor | None, outputs: int) -> bool:
        """Whether one op does it all: no other padding than of zeros, no groups, and what is added is not broadcast. A
        norm of single pixels is left to complain itself."""
        if input.dim() != 4 or self.groups != 1 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        size = _output_size(input.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation)
        expected = (input.shape[0], outputs, *size)
        same = residual is None or (residual.shape == expected and residual.dtype == input.dtype)
        return same and size != (1, 1) and self.behind.takes_ends

    def _convolved(self, input: Tensor) -> Tensor:
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        weight, bias = self.slot.tensors(self, batched.shape)
        if not isinstance(weight, WidthView):
            return self._run(input, weight, bias)
        _check_dtype(input, weight)
        x, padding = batched, self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode), 0
        geometry = self.stride, padding, self.dilation, self.groups
        y = width_conv2d(x, weight.whole, weight.outputs, self.bias, *geometry)
        return y if input.dim() == 4 else y.squeeze(0)


def _check_dtype(input: Tensor, weight: WidthView) -> None:
    if input.dtype != weight.whole.weight.dtype:
        raise RuntimeError(f"the input of a frozen layer is {input.dtype}, its weights are {weight.whole.weight.dtype}")


@lru_cache
def _output_size(size, kernel, stride, padding, dilation) -> tuple[int, ...]:
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
