"""VGG19 (arXiv 1409.1556) with a norm after each convolution and one 1x1 convolution as classifier."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..hooks import watched
from ..layers.norms import FusedNorm, norm_relu

_STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class _Features(nn.Sequential):
    """In a row, but each ReLU that nobody watches in one with the norm of a subspace in front of it."""

    def forward(self, input: Tensor) -> Tensor:
        done = False
        for module, behind in itertools.zip_longest(self, [*self][1:]):
            if done:
                done = False
            elif isinstance(module, FusedNorm) and type(behind) is nn.ReLU and not watched(behind):
                input, done = norm_relu(module, input), True
            else:
                input = module(input)
        return input


class VGG19(nn.Module):
    """Images (N, in_channels, H, W) -> logits (N, num_classes). 20,541,888 parameters for 1,000 classes.

    H and W must be at least 16 (four max pools between five stages). The last feature map is averaged over all
    positions. The paper's code pools 2x2 instead, which on 224x224 images leaves 7x7 positions and so 49,000 logits
    for 1,000 classes; that is not reproduced.
    """

    stem_name = "features.0"
    classifier_name = "classifier"

    def __init__(self, num_classes: int, in_channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        layers: list[nn.Module] = []
        for stage in _STAGES:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for out_channels in stage:
                conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
                layers += [conv, norm(out_channels), nn.ReLU()]
                in_channels = out_channels
        self.features = _Features(*layers)
        self.classifier = nn.Conv2d(in_channels, num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1)).flatten(1)

    @torch.no_grad()
    def reset_second_end(self, layers: Mapping[str, nn.Module], generator: torch.Generator | None = None) -> None:
        """Draw `weight_1` of each layer anew, as the paper does: convolutions N(0, 2 / (k * k * out_channels)) by
        variance, the classifier with standard deviation 0.01, norm scales 0.5 and norm biases 0."""
        for name, layer in layers.items():
            if name == self.classifier_name:
                nn.init.normal_(layer.weight_1, std=0.01, generator=generator)
            elif layer.weight_1.dim() > 1:
                nn.init.kaiming_normal_(layer.weight_1, mode="fan_out", nonlinearity="relu", generator=generator)
            else:
                nn.init.constant_(layer.weight_1, 0.5)
                nn.init.zeros_(layer.bias_1)
