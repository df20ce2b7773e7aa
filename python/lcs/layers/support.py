"""Which modules can become layers of a subspace, and why the others cannot."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils import _pytree as pytree

from .norms import NORM_LAYERS
from .weights import WEIGHT_LAYERS

_LAYERS = WEIGHT_LAYERS | NORM_LAYERS
_REPLACED = {"forward", "__call__", "_conv_forward", "_apply_instance_norm", "_check_input_dim", "weight", "bias"}
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_QUANTIZED = ("torch.ao.nn.", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def base_of(module: nn.Module) -> type[nn.Module] | None:
    """The supported torch type that `module` is an instance of. SyncBatchNorm counts as one."""
    return next((base for base in (*_LAYERS, nn.SyncBatchNorm) if isinstance(module, base)), None)


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def layer_type(module: nn.Module, own: Mapping[type, type]) -> type:
    """The subspace layer that keeps what `module` computes; `own`: those that a recipe has in place of the usual."""
    base = base_of(module)
    return own.get(base, _LAYERS[base])


def read_by_parents(model: nn.Module) -> dict[nn.Module, str]:
    """Modules whose weights a parent reads itself instead of calling them, with the parent's type."""
    parents = (module for module in model.modules() if isinstance(module, _READERS))
    return {inner: type(parent).__name__ for parent in parents for inner in parent.modules() if inner is not parent}


def refusal(module: nn.Module) -> str | None:
    """Why `module` cannot be converted; None if it can."""
    base = base_of(module)
    if type(module).__module__.startswith(_QUANTIZED):
        return "quantised"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: run a batch through the model first"
    if base is None:
        return "TorchScript" if isinstance(module, torch.jit.ScriptModule) else "type not supported"
    if is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is computed by a parametrization (weight_norm, spectral_norm, prune, ...)"
    between = type(module).__mro__[: type(module).__mro__.index(base)]
    if "forward" in module.__dict__ or any(_REPLACED & vars(cls).keys() for cls in between):
        return f"{type(module).__name__} has a forward of its own"
    return _tensor_refusal(module)


def _tensor_refusal(module: nn.Module) -> str | None:
    for name, parameter in module._parameters.items():
        if parameter is not None and type(parameter) is not nn.Parameter:
            return f"its {name} is a {type(parameter).__name__}"
        if parameter is not None and parameter.dtype not in _DTYPES:
            return f"its {name} is {parameter.dtype}"
    return None


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Puts new modules in the places of those inside `model`, under all their names, and in the lists, tuples and dicts
    in which a module keeps others beside its children."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, name, new[child])
        for name, kept in list(vars(parent).items()):
            if not name.startswith("_") and isinstance(kept, (list, tuple, dict)):
                _replace_kept(vars(parent), name, kept, new)


def _replace_kept(owner: dict, name: str, kept: list | tuple | dict, new: Mapping[nn.Module, nn.Module]) -> None:
    leaves, form = pytree.tree_flatten(kept, is_leaf=lambda leaf: isinstance(leaf, nn.Module))
    if any(isinstance(leaf, nn.Module) and leaf in new for leaf in leaves):
        leaves = [new.get(leaf, leaf) if isinstance(leaf, nn.Module) else leaf for leaf in leaves]
        owner[name] = pytree.tree_unflatten(leaves, form)
