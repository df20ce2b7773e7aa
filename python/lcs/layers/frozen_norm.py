"""Frozen convolutions that do what comes after them as well: the norm, a sum, ReLU and max pooling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcs_kernels.formats import SparseWeight, WidthWeight
from lcs_kernels.ops._convolution import output_size
from lcs_kernels.ops.sparse_conv2d import bound_sparse_conv2d
from lcs_kernels.ops.sparse_conv2d_norm import bound_sparse_conv2d_norm
from lcs_kernels.ops.width_conv2d import bound_width_conv2d
from lcs_kernels.ops.width_conv2d_norm import bound_width_conv2d_norm

from ..in_place import add_into, relu_into
from ..pooling import max_pool2d
from .norms import FusedNorm

_PLANS = 256  # that a level remembers, a few KB each

Run = Callable[..., Tensor]  # of an input, and of a residual where there is one


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
        """`normed`: and the norm behind. Then the sum, and ReLU, which but behind a norm of the input's statistics may
        end at a `cap`. pool, behind norms alone: kernel size, stride and padding."""
        plans = self.slot.plans()
        if plans is None:
            run = self.bound(input, normed, residual, relu, pool, cap)
        else:
            added = None if residual is None else (residual.shape, residual.dtype)
            key = self, input.shape, input.dtype, input.device, normed, added, relu, pool, cap
            run = plans.get(key)  # in one step, as other threads may clear them
            if run is None:
                with torch.inference_mode(False), torch.no_grad():  # for calls that want gradients, too
                    run = self.bound(input, normed, residual, relu, pool, cap)
                if type(input) is Tensor:  # and not one without data, of torch.export's
                    remember(plans, key, run)
        return run(input) if residual is None else run(input, residual)

    def bound(
        self, like: Tensor, normed: bool, residual: Tensor | None, relu: bool, pool: tuple | None, cap: float | None
    ) -> Run:
        """What `forward` does with inputs and residuals of these shapes, dtypes and devices, at the level that runs:
        all checks and choices are made here, once."""
        if not normed:
            return self.unnormed(like, residual, relu, cap)
        if isinstance(self.behind, FusedNorm):
            return self._normed(like, residual, relu, pool)
        return self.scaled(like, residual, relu, pool, cap)

    def convolution(self, like: Tensor) -> Run:
        """The convolution alone."""
        raise NotImplementedError

    def unnormed(self, like: Tensor, residual: Tensor | None, relu: bool, cap: float | None) -> Run:
        """The convolution, the sum and the ReLU, one after the other."""
        convolution = self.convolution(like)
        if residual is None and not relu:
            return convolution
        return lambda x, residual=None: self.after(convolution(x), residual, relu, None, cap)

    def scaled(self, like: Tensor, residual: Tensor | None, relu: bool, pool: tuple | None, cap: float | None) -> Run:
        """The convolution, the batch norm behind it, the sum, the ReLU and the pooling, one after the other."""
        convolution = self.convolution(like)
        return lambda x, residual=None: self.after(self.behind(convolution(x)), residual, relu, pool, cap)

    @staticmethod
    def after(y: Tensor, residual: Tensor | None, relu: bool, pool: tuple | None, cap: float | None) -> Tensor:
        """What comes behind the norm, in place where it fits."""
        y = y if residual is None else add_into(y, residual)
        y = relu_into(y, cap) if relu else y
        return y if pool is None else max_pool2d(y, *pool, 1, False)

    def whole_bias(self, bias: Tensor | None) -> Tensor | None:
        """That of all output channels of the weight, from that of the level."""
        return bias

    def _normed(self, like: Tensor, residual: Tensor | None, relu: bool, pool: tuple | None) -> Run:
        weight, bias = self.slot.tensors(self, like.shape)
        size = None if isinstance(weight, Tensor) else self._fused_size(like.shape)
        channels = weight.outputs if isinstance(weight, WidthView) else weight.shape[0]
        made = size and (like.shape[0], channels, *size)
        alike = residual is None or (residual.shape == made and residual.dtype == like.dtype)
        if size is None or not alike:
            convolution, norm = self.convolution(like), self.behind
            return pooled(lambda x, residual=None: norm(convolution(x), residual, relu), pool)
        check_dtype(like, weight)
        norm = self.behind.affine_line(), self.behind.groups_of(channels), self.behind.eps
        after = {"bias": self.whole_bias(bias), "relu": relu, **self._geometry}
        if not isinstance(weight, WidthView):
            return pooled(bound_sparse_conv2d_norm(like, weight, *norm, **after), pool)
        view = weight.whole, weight.outputs
        if weight.shared or not self.compressed:
            return bound_width_conv2d_norm(like, *view, *norm, max_pool=pool, **after)
        # pooled at once, it would be normed with channels last, in another order
        return pooled(bound_width_conv2d_norm(like, *view, *norm, **after), pool)

    @property
    def _geometry(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def _fused_size(self, shape: torch.Size) -> list[int] | None:
        """Height and width of the result, where one op does it all; it leaves out other padding than of zeros, and
        groups. A norm of single pixels is left to complain itself."""
        if len(shape) != 4 or self.groups != 1 or self.pads or not self.behind.takes_ends:
            return None
        size = output_size(shape, self.weight.shape, **self._geometry)
        return None if size == [1, 1] else size

    def packed(self, like: Tensor, weight: WidthView | SparseWeight, bias: Tensor | None, **after) -> Run:
        """The convolution with a packed weight. bias: of all its output channels. after: what its op does with the
        sums."""
        check_dtype(like, weight)
        if like.dim() == 3:
            batched = self.packed(like.unsqueeze(0), weight, bias, **after)
            return lambda x: batched(x.unsqueeze(0)).squeeze(0)
        x, padding = self.padded(like)
        geometry = self.stride, padding, self.dilation, self.groups
        if isinstance(weight, WidthView):
            view = weight.whole, weight.outputs
            return self.behind_padding(bound_width_conv2d(x, *view, bias, *geometry, **after))
        return self.behind_padding(bound_sparse_conv2d(x, weight, bias, *geometry, **after))

    @property
    def pads(self) -> bool:
        """Whether there is a padding that is not the convolution's own, of zeros."""
        return self.padding_mode != "zeros" or isinstance(self.padding, str)

    def padded(self, x: Tensor):
        """x with its padding, where that is not of zeros, and what padding is left for the convolution."""
        if not self.pads:
            return x, self.padding
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, self._reversed_padding_repeated_twice, mode), (0, 0)

    def behind_padding(self, run: Run) -> Run:
        """`run`, which takes x `padded`."""
        return (lambda x, *residual: run(self.padded(x)[0], *residual)) if self.pads else run


def pooled(run: Run, pool: tuple | None) -> Run:
    """`run`, and max pooling of what it gives."""
    return run if pool is None else lambda *given: max_pool2d(run(*given), *pool, 1, False)


def remember(plans: dict, key: tuple, value) -> None:
    if len(plans) >= _PLANS:
        plans.clear()
    plans[key] = value


def check_dtype(input: Tensor, weight) -> None:
    """As torch's own layers do: the ops would take a mixture of some."""
    dtype = weight.whole.weight.dtype if isinstance(weight, WidthView) else weight.values.dtype
    if input.dtype != dtype:
        raise RuntimeError(f"the input of a frozen layer is {input.dtype}, its weights are {dtype}")
