"""Compressible subspaces (arXiv 2110.04252): one model, any compression level, chosen when it runs."""

import importlib

from .convert import convert, plan, unconvert
from .frozen import Frozen, FrozenLevel
from .layers.norms import norm_relu
from .levels import Level
from .model_file import load, save
from .planning import Plan, Row
from .quantized import Quantized
from .slimming import Slimmed, slim
from .statistics import LevelStatistics
from .structured import Structured
from .subspace import Subspace
from .unstructured import Unstructured

__all__ = [
    "Frozen",
    "FrozenLevel",
    "Level",
    "LevelStatistics",
    "Plan",
    "Quantized",
    "Row",
    "Slimmed",
    "Structured",
    "Subspace",
    "Unstructured",
    "convert",
    "load",
    "norm_relu",
    "plan",
    "save",
    "slim",
    "unconvert",
]

_SUBMODULES = ("checkpoint", "config", "data", "evaluate", "measure", "models", "train")  # imported on first use


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"lcs.{name}")
    raise AttributeError(f"module 'lcs' has no attribute {name!r}")
