"""CPreResNet20: the pre-activation bottleneck ResNet of Network Slimming (arXiv 1708.06519), for 32x32 images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.norms import norm_relu

_EXPANSION = 4


class PreActivationBottleneck(nn.Module):
    """norm-relu-1x1, norm-relu-3x3, norm-relu-1x1, add. The shortcut is a 1x1 convolution of the raw input."""

    def __init__(self, in_channels: int, width: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        out_channels = width * _EXPANSION
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm3 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(norm_relu(self.norm1, x))
        x = self.conv2(norm_relu(self.norm2, x))
        return self.conv3(norm_relu(self.norm3, x)) + shortcut


class PostNormBottleneck(nn.Module):
    """relu, 1x1-norm-relu, 3x3-norm-relu, 1x1-norm, add. The shortcut, a convolution and a norm where the shape
    changes, is of the input after its ReLU."""

    def __init__(self, in_channels: int, width: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        out_channels = width * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = norm(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = norm_relu(self.norm1, self.conv1(x))
        x = norm_relu(self.norm2, self.conv2(x))
        return self.norm3(self.conv3(x)) + shortcut


class CPreResNet20(nn.Module):
    """Images (N, in_channels, H, W) -> logits (N, num_classes). 219,472 parameters for 10 classes.

    norm_after: the norms after the convolutions, as the paper's code has them where it quantises: 220,848 parameters.
    """

    stem_name = "conv1"
    classifier_name = "fc"

    def __init__(
        self, num_classes: int, in_channels: int, norm: Callable[[int], nn.Module], *, norm_after: bool = False
    ):
        super().__init__()
        block = PostNormBottleneck if norm_after else PreActivationBottleneck
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(block, 16, 16, 1, norm)
        self.layer2 = _stage(block, 64, 32, 2, norm)
        self.layer3 = _stage(block, 128, 64, 2, norm)
        self.norm = norm(256)
        self.fc = nn.Conv2d(256, num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(norm_relu(self.norm, x), 1)).flatten(1)

    @torch.no_grad()
    def reset_second_end(self, layers: Mapping[str, nn.Module], generator: torch.Generator | None = None) -> None:
        """Draw `weight_1` of each layer anew, as the paper does: convolutions N(0, 2 / (k * k * out_channels)) by
        variance, the classifier Kaiming-normal by fan in, norm scales 0.5 and norm biases 0."""
        for name, layer in layers.items():
            if layer.weight_1.dim() > 1:
                mode = "fan_in" if name == self.classifier_name else "fan_out"
                nn.init.kaiming_normal_(layer.weight_1, mode=mode, nonlinearity="relu", generator=generator)
            else:
                nn.init.constant_(layer.weight_1, 0.5)
                nn.init.zeros_(layer.bias_1)


def _stage(
    block: type[nn.Module], in_channels: int, width: int, stride: int, norm: Callable[[int], nn.Module]
) -> nn.Sequential:
    return nn.Sequential(block(in_channels, width, stride, norm), block(width * _EXPANSION, width, 1, norm))
