"""ResNet18 (arXiv 1512.03385) with a 1x1 convolution as classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.norms import norm_relu


class BasicBlock(nn.Module):
    """3x3-norm-relu, 3x3-norm, add, relu. The shortcut is a 1x1 convolution and a norm where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = norm_relu(self.norm1, self.conv1(x))
        return norm_relu(self.norm2, self.conv2(x), shortcut)


class ResNet18(nn.Module):
    """Images (N, in_channels, H, W) -> logits (N, num_classes). 11,688,512 parameters for 1,000 classes."""

    stem_name = "conv1"
    classifier_name = "fc"

    def __init__(self, num_classes: int, in_channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        self.norm1 = norm(64)
        self.layer1 = _stage(64, 64, 1, norm)
        self.layer2 = _stage(64, 128, 2, norm)
        self.layer3 = _stage(128, 256, 2, norm)
        self.layer4 = _stage(256, 512, 2, norm)
        self.fc = nn.Conv2d(512, num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(norm_relu(self.norm1, self.conv1(x)), 3, 2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1)).flatten(1)

    @torch.no_grad()
    def reset_second_end(self, layers: Mapping[str, nn.Module], generator: torch.Generator | None = None) -> None:
        """Draw `weight_1` of each layer anew by the law of the first end: convolutions Kaiming-normal by fan in, norm
        scales 1 and norm biases 0, as the paper does."""
        for layer in layers.values():
            if layer.weight_1.dim() > 1:
                nn.init.kaiming_normal_(layer.weight_1, nonlinearity="relu", generator=generator)
            else:
                nn.init.ones_(layer.weight_1)
                nn.init.zeros_(layer.bias_1)


def _stage(in_channels: int, out_channels: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride, norm), BasicBlock(out_channels, out_channels, 1, norm)
    )
