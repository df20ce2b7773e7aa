"""A convolution of a frozen structured network: the first channels of one packed weight."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lcs_kernels import width_conv2d, width_conv2d_norm
from lcs_kernels.formats import WidthWeight

from .norms import FusedNorm
from .structured import StructuredConv2d

_PLANS = 64  # shapes of inputs that a level remembers


@dataclass(frozen=True)
class Plan:
    """A convolution and the norm behind it in one op: the result's shape, the norm's arguments, the convolution's."""

    shape: tuple[int, ...]
    norm: tuple
    settings: dict


@dataclass(frozen=True, eq=False)
class WidthView:
    """The first `outputs` channels of a weight that all widths share."""

    whole: WidthWeight
    outputs: int
    plans: dict[torch.Size, Plan | None] = field(default_factory=dict, repr=False)

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
        weight, _ = self.slot.tensors(self, input.shape)
        plan = self._plan(input.shape, weight) if isinstance(weight, WidthView) else None
        if plan is None or (
            residual is not None and (residual.shape != plan.shape or residual.dtype != input.dtype)  # it is broadcast
        ):
            return self.behind(self._convolved(input), residual, relu)
        _check_dtype(input, weight)
        return width_conv2d_norm(
            input, weight.whole, weight.outputs, *plan.norm, residual=residual, relu=relu, **plan.settings
        )

    def _plan(self, shape: torch.Size, weight: WidthView) -> Plan | None:
        """How one op does it all for inputs of a shape; it leaves out other padding than of zeros, and groups. A norm
        of single pixels is left to complain itself."""
        if shape in weight.plans:
            return weight.plans[shape]
        plan, norm, channels = None, self.behind, weight.outputs
        if len(shape) == 4 and self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str):
            size = _output_size(shape[2:], self.kernel_size, self.stride, self.padding, self.dilation)
            if size != (1, 1) and norm.takes_ends:
                settings = {name: getattr(self, name) for name in ("bias", "stride", "padding", "dilation")}
                line = norm.affine_line()
                plan = Plan((shape[0], channels, *size), (line, norm.groups_of(channels), norm.eps), settings)
        if len(weight.plans) >= _PLANS:
            weight.plans.clear()
        weight.plans[shape] = plan
        return plan

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


def _output_size(size, kernel, stride, padding, dilation) -> tuple[int, ...]:
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
