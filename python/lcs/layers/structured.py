"""Layers of which the first channels run: a weight cut to the outputs of the level, and to the inputs that arrive."""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import SubspaceLayer
from .convolution import conv2d
from .norms import (
    SubspaceBatchNorm1d,
    SubspaceBatchNorm2d,
    SubspaceBatchNorm3d,
    SubspaceGroupNorm,
    SubspaceInstanceNorm1d,
    SubspaceInstanceNorm2d,
    SubspaceInstanceNorm3d,
    SubspaceLayerNorm,
)
from .weights import SubspaceConv1d, SubspaceConv2d, SubspaceLinear


class StructuredLinear(SubspaceLinear):
    """It takes as many inputs as arrive at the level: flattened images of another size have others, and do not fit."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias, arriving = self.tensors()
        return F.linear(input, weight[:, : input.shape[-1] if arriving is None else len(arriving)], bias)


class _Convolution(SubspaceLayer):
    """The outputs of a depthwise one follow its inputs."""

    def forward(self, input: Tensor) -> Tensor:
        return self._run(input, *self.tensors())

    def _run(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        whole = self.traced and self.incoming is None
        inputs = self.in_channels if whole else input.shape[1 - weight.dim()]
        groups, padding = self.groups, self.padding
        if groups == 1:
            weight = weight[:, :inputs]
        elif groups == self.in_channels:
            groups = inputs
        if self.padding_mode != "zeros":
            input, padding = (
                F.pad(input, self._reversed_padding_repeated_twice, self.padding_mode),
                (0,) * (weight.dim() - 2),
            )
        return self._convolve(input, weight, bias, self.stride, padding, self.dilation, groups)


class StructuredConv1d(_Convolution, SubspaceConv1d):
    _convolve = staticmethod(F.conv1d)


class StructuredConv2d(_Convolution, SubspaceConv2d):
    _convolve = staticmethod(conv2d)


class StructuredGroupNorm(SubspaceGroupNorm):
    """Where a width cuts its channels, of one group or of one for each channel."""

    def groups_of(self, channels: int) -> int:
        return self.num_groups if self.incoming is None or self.num_groups == 1 else channels

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        return self.norm(input, self.groups_of(input.shape[1]), residual, relu)


class StructuredLayerNorm(SubspaceLayerNorm):
    """Over the channels, or of an input whose size no width changes."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, input.shape[-len(self.normalized_shape) :], *self.tensors(), self.eps)


class _InstanceNorm(SubspaceLayer):
    def _check_channels(self, input: Tensor) -> None:
        """A level changes how many arrive."""


class StructuredInstanceNorm1d(_InstanceNorm, SubspaceInstanceNorm1d):
    pass


class StructuredInstanceNorm2d(_InstanceNorm, SubspaceInstanceNorm2d):
    pass


class StructuredInstanceNorm3d(_InstanceNorm, SubspaceInstanceNorm3d):
    pass


class _BatchNorm(SubspaceLayer):
    def forward(self, input: Tensor) -> Tensor:
        return self._normalize(input, *self.tensors())


class StructuredBatchNorm1d(_BatchNorm, SubspaceBatchNorm1d):
    pass


class StructuredBatchNorm2d(_BatchNorm, SubspaceBatchNorm2d):
    pass


class StructuredBatchNorm3d(_BatchNorm, SubspaceBatchNorm3d):
    pass


STRUCTURED_LAYERS = {
    nn.Linear: StructuredLinear,
    nn.Conv1d: StructuredConv1d,
    nn.Conv2d: StructuredConv2d,
    nn.GroupNorm: StructuredGroupNorm,
    nn.LayerNorm: StructuredLayerNorm,
    nn.InstanceNorm1d: StructuredInstanceNorm1d,
    nn.InstanceNorm2d: StructuredInstanceNorm2d,
    nn.InstanceNorm3d: StructuredInstanceNorm3d,
    nn.BatchNorm1d: StructuredBatchNorm1d,
    nn.BatchNorm2d: StructuredBatchNorm2d,
    nn.BatchNorm3d: StructuredBatchNorm3d,
}


def narrow(module: nn.Module, inputs: int) -> None:
    """Makes a plain module that holds cut tensors say so; `inputs` channels arrive at it."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
        module.groups = inputs if module.groups == module.in_channels > 1 else module.groups
        module.out_channels, module.in_channels = len(module.weight), inputs
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (*module.normalized_shape[:-1], inputs)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = 1 if module.num_groups == 1 else inputs
        module.num_channels = inputs
    else:
        module.num_features = inputs
