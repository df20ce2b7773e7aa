"""The three reference models of Learning Compressible Subspaces (arXiv 2110.04252), as plain dense modules.

Each one is built of nn.Conv2d (no bias) and norms, and has `stem_name` and `classifier_name` (the modules that stay
dense) and `reset_second_end(layers, generator)` (how the paper starts the second end of a line).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .cpreresnet import CPreResNet20
from .resnet import ResNet18
from .vgg import VGG19

_MODELS = {"cpreresnet20": CPreResNet20, "resnet18": ResNet18, "vgg19": VGG19}
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(min(32, channels), channels),
    "batch": nn.BatchNorm2d,
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
}
NAMES = tuple(_MODELS)

__all__ = ["NAMES", "build"]


def build(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    seed: int | None = None,
    norm: str = "group",
    norm_after: bool = False,
) -> nn.Module:
    """Build a dense model: float32 images (N, in_channels, H, W) of any size the strides allow -> (N, num_classes).

    Convolutions start Kaiming-normal (fan in, ReLU gain), norms at 1 and 0. With a `seed` the weights depend on it
    alone and torch's global generator is left as it was; without one they are drawn from the global generator.
    `norm` is "group" (GroupNorm with min(32, channels) groups), "batch" or "instance". `norm_after` is of cpreresnet20:
    a norm after each convolution of a block, and the block's input, its shortcut's too, after a ReLU. The model's
    `architecture` holds these arguments but the seed, so that `lcs.load` can build it again.

    Raises ValueError for an unknown name or norm, or a count below 1.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(NAMES)}")
    if norm not in _NORMS:
        raise ValueError(f"unknown norm {norm!r} for {name}; choose one of {', '.join(_NORMS)}")
    if norm_after and name != "cpreresnet20":
        raise ValueError(f"norm_after is of cpreresnet20 alone; {name} has its norms after its convolutions already")
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{argument} of {name} must be at least 1, got {value}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        options = {"norm_after": True} if norm_after else {}
        model = _MODELS[name](num_classes, in_channels, _NORMS[norm], **options)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # which imports torch._dynamo
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    model.architecture = {
        "name": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "norm": norm,
        "norm_after": norm_after,
    }
    return model
