"""Frozen networks of layers in random order compute what their subspace does, to the rounding of their sums."""

import copy
import random

import pytest
import torch
from torch import nn

import lcs

# kernel, stride, padding, dilation: none that Winograd's products take, whose rounding is another
GEOMETRIES = (1, 1, 0, 1), (1, 2, 0, 1), (2, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2), (5, 1, 2, 1), (5, 2, 0, 1)
SIZES = (3, 19, 23), (1, 20, 17), (17, 9, 12)  # images, height, width
LEVELS = {"density": (0.0, 0.1, 0.4, 1.0), "width": (0.25, 0.6, 1.0)}
RECIPES = (
    lcs.Unstructured(),
    lcs.Unstructured(line=False),
    lcs.Structured(width=(0.25, 1.0), line=False),
)


class Residual(nn.Module):
    def __init__(self, branch: nn.Module, relu: bool):
        super().__init__()
        self.branch, self.relu = branch, relu

    def forward(self, x):
        y = self.branch(x) + x
        return y.relu() if self.relu else y


def norm_of(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).eval()
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.3, 2)
    return norm


def layers(draw: random.Random) -> tuple[list[nn.Module], int]:
    """And the channels of an input."""
    inputs = channels = draw.choice([3, 4, 16])
    made: list[nn.Module] = []
    for _ in range(draw.randrange(2, 5)):
        kernel, stride, padding, dilation = draw.choice(GEOMETRIES)
        out, groups = draw.choice([8, 16, 24, 40]), 1
        if draw.random() < 0.4:
            out, kernel, padding, dilation, groups = channels, 3, 1, 1, channels
        mode = draw.choice(["zeros"] * 6 + ["circular"])
        bias = draw.random() < 0.3
        made.append(nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias, mode))
        channels = out
        if draw.random() < 0.8:
            made.append(norm_of(channels))
        made += draw.choice([[nn.ReLU()], [nn.ReLU(inplace=True)], [nn.ReLU6()], []])
        if draw.random() < 0.4:
            made.append(nn.MaxPool2d(draw.choice([2, 3]), draw.choice([1, 2]), 1))
        elif draw.random() < 0.4:
            branch = nn.Conv2d(channels, channels, 1, bias=False), norm_of(channels)
            made.append(Residual(nn.Sequential(*branch[: draw.randrange(1, 3)]), draw.random() < 0.5))
    return [*made, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)], inputs


@torch.no_grad()
def exact(plain: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in float64, and how far off sums in float32 may be: so often an element is rounded at most on its way,
    by 2^-24 of magnitudes that grow along the network as `plain` makes them of absolute values."""
    plain = copy.deepcopy(plain).double()
    y, rounded = plain(x.double()), 0
    for module in plain.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            rounded += module.weight[0].numel() + 2
        elif isinstance(module, (nn.BatchNorm2d, Residual, nn.AdaptiveAvgPool2d)):
            rounded += 8 if not isinstance(module, nn.AdaptiveAvgPool2d) else x[0, 0].numel()
        elif isinstance(module, nn.ReLU6):
            module.max_val = float("inf")
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.copy_(-tensor.abs() if name == "running_mean" else tensor.abs())
    return y, rounded * 2.0**-24 / (1 - rounded * 2.0**-24) * plain(x.double().abs())


@pytest.mark.parametrize("recipe", RECIPES, ids=["line", "point", "widths"])
@pytest.mark.filterwarnings("ignore:running statistics are kept")
def test_frozen_networks_of_any_layers(recipe):
    converted = 0
    for seed in range(40):
        torch.manual_seed(seed)
        draw = random.Random(seed)
        made, channels = layers(draw)
        last = str(len(made) - 1)
        try:
            nn.Sequential(*made).eval()(torch.zeros(1, channels, *SIZES[-1][1:]))
        except RuntimeError:  # too small for a layer
            continue
        try:
            subspace = lcs.convert(nn.Sequential(*made), recipe, dense=[last], norm="keep", init="independent").eval()
        except ValueError as error:  # of widths, which not all layers can have
            assert recipe.unit == "width", error
            continue
        converted += 1
        fast = subspace.freeze()
        for images, height, width in SIZES:
            x = torch.randn(images, channels, height, width)
            level = recipe.level(draw.choice(LEVELS[recipe.unit]))
            y, bound = exact(lcs.unconvert(copy.deepcopy(subspace), level), x)
            for given in (x, x, x.to(memory_format=torch.channels_last), x):
                with torch.no_grad():
                    found = fast(given, level=level)
                assert ((found.double() - y).abs() <= bound).all(), (seed, level, given.stride(), made)
    assert converted >= 10
