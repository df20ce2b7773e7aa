"""From a run's settings to its data, its recipe and its untrained subspace."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import nn

from . import data, models
from .config import ConfigError, TrainConfig
from .convert import convert
from .data import Data
from .quantized import Quantized
from .recipe import Recipe
from .schedule import generator
from .structured import Structured
from .subspace import Subspace
from .tracing import quiet
from .unstructured import Unstructured


def recipe(config: TrainConfig) -> Recipe:
    """The levels that `config` trains."""
    if config.compression == "structured":
        return _structured(config)
    if config.compression == "quantized":
        line, target = config.method == "lcs_l", config.target_bits
        per_layer = config.bits_drawn == "per_layer"
        return Quantized(line=line, bits=config.bits, target=target, nested=config.nested, per_layer=per_layer)
    common = {"keep_rounding": config.keep_rounding, "density": config.density}
    if config.method == "lcs_l":
        return Unstructured(line=True, endpoint_probability=config.endpoint_probability, **common)
    if config.method == "lcs_p":
        return Unstructured(line=False, **common)
    return Unstructured(line=False, target=config.target_density if config.method == "target" else 1.0, **common)


def _structured(config: TrainConfig) -> Structured:
    common = {"width": config.width, "samples": config.samples}
    if config.method == "lcs_l":
        return Structured(line=True, **common)
    if config.method in ("lcs_p", "us"):
        return Structured(line=False, **common)
    if config.method == "ns":
        return Structured(line=False, fixed=config.fixed_widths, per_width=config.running_statistics == "per_width")
    return Structured(line=False, target=config.target_width if config.method == "target" else 1.0)


def build(config: TrainConfig, dataset: Data, processes: int = 1) -> Subspace:
    """The untrained subspace of a resolved `config`; its weights depend on the settings alone.

    Raises ConfigError where the images are too small for the model, or those of one of the `processes` in a step too
    few for its batch norms.
    """
    model = models.build(
        config.model,
        dataset.num_classes,
        in_channels=dataset.in_channels,
        seed=config.seed,
        norm=config.norm,
        norm_after=config.norm_place == "after",
    )
    _check_images(model, config, dataset, processes)
    with quiet() if config.norm == "batch" else contextlib.nullcontext():  # asked for by name
        subspace = convert(
            model,
            recipe(config),
            dense=[model.classifier_name, *([] if config.compression == "structured" else [model.stem_name])],
            norm="keep" if config.norm == "batch" else config.norm,
            init=config.init,
            generator=generator("second end", config.seed),
        )
    if config.precision == "fp64":
        subspace.model.double()
    return subspace


def _check_images(model: nn.Module, config: TrainConfig, dataset: Data, processes: int) -> None:
    size, shapes = dataset.image_size, copy.deepcopy(model).to("meta")  # computes no more than shapes
    try:
        shapes(torch.empty(2, dataset.in_channels, size, size, device="meta"))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"image_size: {config.model} with {config.norm} norms takes larger images than {size} x {size} pixels "
            f"({error}); give a larger one with --image-size"
        ) from error
    images, size_of_step = len(dataset.train), config.batch_size
    steps = {min(images, size_of_step), images % size_of_step or size_of_step}
    if config.norm == "batch" and min(steps) < 2 * processes:
        try:
            shapes(torch.empty(1, dataset.in_channels, size, size, device="meta"))
        except ValueError as error:
            last = f"{min(steps)} of {images} images to the last step of an epoch"
            shared = "" if processes == 1 else f", which {processes} processes share"
            raise ConfigError(
                f"batch_size: {size_of_step} leaves {last}{shared}, too few for {config.model} with batch norms "
                f"({error}); give another one with --batch-size"
            ) from error


def load_data(config: TrainConfig) -> Data:
    """The data set of `config`."""
    return data.load(config.data, config.data_root, image_size=config.image_size, seed=config.seed, limit=config.limit)
