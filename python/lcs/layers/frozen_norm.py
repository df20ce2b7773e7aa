"""Frozen convolutions that do what comes after them as well: the norm, a sum, ReLU and max pooling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcs_kernels import sparse_conv2d_norm, width_conv2d, width_conv2d_norm
from lcs_kernels.formats import SparseWeight, WidthWeight
from lcs_kernels.ops._convolution import output_size

from ..in_place import add_into, relu_into
from ..pooling import max_pool2d
from .norms import FusedNorm

_PLANS = 1024  # that a level remembers


@dataclass(frozen=True)
class Plan:
    """A convolution and the norm behind it in one op: the result's shape, the norm's arguments, the convolution's."""

    shape: tuple[int, ...]
    norm: tuple
    settings: dict


@dataclass(frozen=True, eq=False)
class WidthView:
    """The first `outputs` channels of a weight. `shared`: by all levels."""

    whole: WidthWeight
    outputs: int
    shared: bool = True

    def __len__(self) -> int:
        return self.outputs

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight as it is saved."""
        return self.whole.nbytes

    @property
    def prepacked_nbytes(self) -> int:
        return self.whole.prepacked_nbytes


class NormBehind:
    """A 2-d convolution of a frozen network that the fused forward may let do what comes after it.

    behind: the norm that alone reads the result, where there is one; a batch norm only with running statistics.
    """

    behind: FusedNorm | nn.BatchNorm2d

    def forward(
        self,
        input: Tensor,
        normed: bool = False,
        residual: Tensor | None = None,
        relu: bool = False,
        pool: tuple | None = None,
        cap: float | None = None,
    ) -> Tensor:
        """`normed`: and the norm behind, with the sum and the ReLU, which behind a batch norm may end at a `cap`. pool:
        kernel size, stride and padding."""
        if not normed:
            return self.convolved(input)
        if isinstance(self.behind, FusedNorm):
            return self._normed(input, residual, relu, pool)
        return self.scaled(input, residual, relu, pool, cap)

    def convolved(self, input: Tensor) -> Tensor:
        """The convolution alone."""
        raise NotImplementedError

    def scaled(
        self, input: Tensor, residual: Tensor | None, relu: bool, pool: tuple | None, cap: float | None
    ) -> Tensor:
        """The convolution, the batch norm behind it, the sum, the ReLU and the pooling, one after the other."""
        y = self.behind(self.convolved(input))
        return self.after(y, residual, relu, pool, cap)

    @staticmethod
    def after(y: Tensor, residual: Tensor | None, relu: bool, pool: tuple | None, cap: float | None) -> Tensor:
        """What comes behind the norm, in place where it fits."""
        y = y if residual is None else add_into(y, residual)
        y = relu_into(y, cap) if relu else y
        return y if pool is None else max_pool2d(y, *pool, 1, False)

    def whole_bias(self, bias: Tensor | None) -> Tensor | None:
        """That of all output channels of the weight, from that of the level."""
        return bias

    def _normed(self, input: Tensor, residual: Tensor | None, relu: bool, pool: tuple | None) -> Tensor:
        weight, bias = self.slot.tensors(self, input.shape)
        plan = None if isinstance(weight, Tensor) else self._plan(input.shape, weight, bias)
        broadcast = residual is not None and (plan is None or residual.shape != plan.shape)
        if plan is None or broadcast or (residual is not None and residual.dtype != input.dtype):
            y = self.behind(self.convolved(input), residual, relu)
        else:
            check_dtype(input, weight)
            after = {"residual": residual, "relu": relu, **plan.settings}
            if isinstance(weight, WidthView) and (weight.shared or not self.compressed):
                return width_conv2d_norm(input, weight.whole, weight.outputs, *plan.norm, max_pool=pool, **after)
            if isinstance(weight, WidthView):  # pooled at once, it would be normed with channels last, in another order
                y = width_conv2d_norm(input, weight.whole, weight.outputs, *plan.norm, **after)
            else:
                y = sparse_conv2d_norm(input, weight, *plan.norm, **after)
        return y if pool is None else max_pool2d(y, *pool, 1, False)

    def _plan(self, shape: torch.Size, weight: WidthView | SparseWeight, bias: Tensor | None) -> Plan | None:
        """How one op does it all for inputs of a shape; it leaves out other padding than of zeros, and groups. A norm
        of single pixels is left to complain itself."""
        plans = self.slot.plans()
        known = plans.get((self, shape), ...)  # in one step, as other threads may clear them
        if known is not ...:
            return known
        plan, norm = None, self.behind
        channels = weight.outputs if isinstance(weight, WidthView) else weight.shape[0]
        if len(shape) == 4 and self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str):
            geometry = {name: getattr(self, name) for name in ("stride", "padding", "dilation")}
            size = output_size(shape, self.weight.shape, **geometry)
            if size != [1, 1] and norm.takes_ends:
                settings = {"bias": self.whole_bias(bias), **geometry}
                line = norm.affine_line()
                plan = Plan((shape[0], channels, *size), (line, norm.groups_of(channels), norm.eps), settings)
        if len(plans) >= _PLANS:
            plans.clear()
        plans[self, shape] = plan
        return plan

    def at_width(self, input: Tensor, weight: WidthView, bias: Tensor | None) -> Tensor:
        """The convolution of (n, c, h, w)."""
        check_dtype(input, weight)
        x, padding = self.padded(input)
        geometry = self.stride, padding, self.dilation, self.groups
        return width_conv2d(x, weight.whole, weight.outputs, self.whole_bias(bias), *geometry)

    def padded(self, x: Tensor):
        """x with its padding, where that is not of zeros, and what padding is left for the convolution."""
        if self.padding_mode == "zeros" and not isinstance(self.padding, str):
            return x, self.padding
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, self._reversed_padding_repeated_twice, mode), (0, 0)


def check_dtype(input: Tensor, weight) -> None:
    """As torch's own layers do: the ops would take a mixture of some."""
    dtype = weight.whole.weight.dtype if isinstance(weight, WidthView) else weight.values.dtype
    if input.dtype != dtype:
        raise RuntimeError(f"the input of a frozen layer is {input.dtype}, its weights are {dtype}")
