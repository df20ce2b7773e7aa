"""Batch norms with running statistics in a frozen network: convolutions do those behind them, too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcs_kernels import line_norm
from lcs_kernels.formats import SparseWeight
from lcs_kernels.ops._convolution import output_size
from lcs_kernels.ops.width_conv2d_norm import bound_width_conv2d_norm

from .base import SubspaceLayer
from .frozen_norm import NormBehind, Run, WidthView, check_dtype, pooled, remember
from .norms import SubspaceBatchNorm2d
from .structured import StructuredBatchNorm2d


class BatchNormBehind(NormBehind):
    """Float32 alone: sums of bfloat16 would be rounded fewer times than the model's."""

    def unnormed(self, like: Tensor, residual: Tensor | None, relu: bool, cap: float | None) -> Run:
        weight, bias = self.slot.tensors(self, like.shape)
        if residual is None and not relu:
            return self.convolution(like)
        if isinstance(weight, Tensor) or not self._takes(like):
            return super().unnormed(like, residual, relu, cap)
        check_dtype(like, weight)
        bias = self.whole_bias(bias)
        if residual is None or self._adds(weight, like, residual):
            return self.packed(like, weight, bias, relu=relu, cap=cap)
        run = self.packed(like, weight, bias)
        return lambda x, residual: self.after(run(x), residual, relu, None, cap)

    def _takes(self, like: Tensor) -> bool:
        """Whether the level has been chosen for such images, and its ops do what comes behind them."""
        return self.slot.plans() is not None and like.dim() == 4 and self.weight.dtype == torch.float32

    def scaled(self, like: Tensor, residual: Tensor | None, relu: bool, pool: tuple | None, cap: float | None) -> Run:
        weight, bias = self.slot.tensors(self, like.shape)
        if not self._takes(like):
            return super().scaled(like, residual, relu, pool, cap)
        if isinstance(weight, Tensor):
            return self._normed_by_itself(self.convolution(like), relu, pool, cap)
        check_dtype(like, weight)
        if isinstance(weight, WidthView) and cap is None and residual is None and pool is not None:
            x, padding = self.padded(like)
            line, after = line_of(self.behind)
            geometry = {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}
            after |= {"bias": self.whole_bias(bias), "relu": relu} | geometry
            run = bound_width_conv2d_norm(x, weight.whole, weight.outputs, *line, max_pool=pool, **after)
            return self.behind_padding(run)
        scale, shift = self._affine(bias)
        if residual is None or self._adds(weight, like, residual):
            return pooled(self.packed(like, weight, shift, scale=scale, relu=relu, cap=cap), pool)
        run = self.packed(like, weight, shift, scale=scale)
        return lambda x, residual: self.after(run(x), residual, relu, pool, cap)

    def _normed_by_itself(self, convolution: Run, relu: bool, pool: tuple | None, cap: float | None) -> Run:
        """torch's convolution, and what comes behind it."""
        (norm, groups, eps), after = line_of(self.behind)

        def run(x: Tensor, residual: Tensor | None = None) -> Tensor:
            y = convolution(x)
            adds = residual is None or (residual.shape == y.shape and residual.dtype == y.dtype)
            if not adds or cap is not None:
                return self.after(self.behind(y), residual, relu, pool, cap)
            y = line_norm(y, *norm, groups, eps, residual=residual, relu=relu, **after)
            return self.after(y, None, False, pool, None)

        return run

    def _adds(self, weight: WidthView | SparseWeight, like: Tensor, residual: Tensor) -> bool:
        """Whether a residual is of the very size of the result."""
        x, padding = self.padded(like)
        size = output_size(x.shape, self.kernel_size, self.stride, padding, self.dilation)
        channels = weight.outputs if isinstance(weight, WidthView) else weight.shape[0]
        return residual.dtype == x.dtype and residual.shape == (len(x), channels, *size)

    def _affine(self, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The convolution's bias and that batch norm as a scale and a bias of the sums, rounded once: of all output
        channels of the weight, 0 behind those of the level."""
        plans = self.slot.plans()
        known = plans.get((self, None))
        if known is None:
            with torch.inference_mode(False), torch.no_grad():  # for calls that want gradients, too
                channels = len(self.weight)
                known = [F.pad(v, (0, channels - len(v))) for v in _folded(bias, *_statistics(self.behind))]
            if type(known[0]) is Tensor:  # and not one without data, of torch.export's
                remember(plans, (self, None), known)
        return known


def line_of(norm: nn.BatchNorm2d) -> tuple[tuple, dict]:
    """A batch norm at the level that runs, as `line_norm` takes it."""
    weight, bias, mean, var, eps = _statistics(norm)
    return ((weight, None, bias, None, None), 1, eps), {"mean": mean, "var": var}


def has_statistics(module: nn.Module | None) -> bool:
    """Whether it is a batch norm that does the same to every input."""
    known = type(module) in (nn.BatchNorm2d, SubspaceBatchNorm2d, StructuredBatchNorm2d)
    return known and module.running_var is not None


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Those of each channel, of a batch norm at the level that runs."""
    return _folded(None, *_statistics(norm))


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, float]:
    """At the level that runs: weight, bias, mean, variance and eps."""
    weight, bias, *own = norm.tensors() if isinstance(norm, SubspaceLayer) else (norm.weight, norm.bias)
    mean, var = own or (norm.running_mean, norm.running_var)
    return weight, bias, mean, var, norm.eps


def _folded(
    bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    factor = (var.double() + eps).rsqrt()
    factor = factor if scale is None else factor * scale
    moved = -mean * factor if bias is None else (bias - mean) * factor
    return factor.float(), (moved if shift is None else moved + shift).float()
