"""A frozen network as one file: `lcs.save` and `lcs.load`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, models
from .checkpoint import CheckpointError
from .convert import convert, put_in_place
from .frozen import CACHE_BYTES, PACKERS, Frozen
from .layers import SubspaceLayer
from .layers.quantized import RANGES
from .layers.support import is_batch_norm
from .layers.weights import WEIGHT_LAYERS
from .quantized import Quantized
from .recipe import Recipe
from .subspace import Subspace
from .tracing import quiet

KIND = "frozen network"
_RECIPES = {recipe.__name__: recipe for recipe in PACKERS}
_HALVES = {torch.float16, torch.bfloat16}
_FLOATS = {*_HALVES, torch.float32, torch.float64}
_MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def save(frozen: Frozen, path: str | Path) -> None:
    """Writes a frozen network to one file, from which `load` makes it again: both ends, the recipe, what each layer is.

    The file is safetensors with a JSON manifest and a hash of the whole; a crash leaves the old file or the new one. It
    holds no code: of a model that `lcs.models.build` made it holds the arguments; any other model `load` must be given.
    Raises CheckpointError where the file cannot be written, or may not outlast a power cut.
    """
    if not isinstance(frozen, Frozen):
        raise TypeError(f"lcs.save takes what Subspace.freeze returns, got {type(frozen).__name__}")
    data = checkpoint.encode(frozen.model.state_dict(), _manifest(frozen))
    try:
        checkpoint.write_atomic(Path(path), data)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {len(data):,} bytes cannot be written: {error.strerror or error}; a file that was there is kept"
        ) from error


def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    device: str | torch.device = "cpu",
    cache_bytes: int = CACHE_BYTES,
    strict: bool = False,
) -> Frozen:
    """The frozen network that `save` wrote to `path`; its results are the same bit for bit.

    Args:
        model: dense, as it was before `lcs.convert`, of any weights; it is converted in place, or stays as it was where
            the file does not fit it. Needed where `lcs.models.build` did not make the model.
        device: where the weights go.
        cache_bytes, strict: as of `Subspace.freeze`.

    Raises CheckpointError naming the file where it is damaged, of another version or kind, or of another model, and
    TypeError where `model` is no module.
    """
    if model is not None and not isinstance(model, nn.Module):
        given = f"the class {model.__name__}: make one" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"lcs.load: model must be an nn.Module, got {given}")
    path = Path(path)
    tensors, manifest = checkpoint.load(path)
    if manifest.get("kind") != KIND:
        raise CheckpointError(
            f"{path}: holds a training checkpoint, not a frozen network; write one with `lcs freeze RUN --out FILE`"
        )
    with _named(path):
        dense = _built(path, manifest) if model is None else model
        modules = dict(dense.named_modules())
        subspace = _converted(dense, manifest)
    try:
        with _named(path):
            _check_fits(path, tensors, subspace)
            _check_dtypes(path, tensors, subspace, built=model is None)
            _check_finite(path, tensors, subspace)
        if model is not None:
            model.to(device)  # what its state_dict leaves out
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        with _named(path):
            subspace.model.load_state_dict(tensors, assign=True)
        return subspace.freeze(cache_bytes=cache_bytes, strict=strict)
    except BaseException:
        put_in_place(subspace, {layer: modules[name] for name, layer in subspace._layers().items()})
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raises CheckpointError for what a file of the right hash, of another program or model, makes fail."""
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except _MISFITS as error:
        raise CheckpointError(f"{path}: it and the model do not fit: {type(error).__name__}: {error}") from error


def _manifest(frozen: Frozen) -> dict[str, Any]:
    return {
        "kind": KIND,
        "model": type(frozen.model).__name__,
        "architecture": getattr(frozen.model, "architecture", None),
        "recipe": {"type": type(frozen.recipe).__name__, **asdict(frozen.recipe)},
        "layers": {name: layer.compressed for name, layer in frozen.layers.items() if name not in frozen.kept},
        "kept": frozen.kept,
        "norm": _norm(frozen),
    }


def _norm(frozen: Frozen) -> str | None:
    """What `convert` made of batch norms; None where there were none."""
    made = [layer for layer in frozen.layers.values() if layer.was_batch_norm]
    if made:
        return "group" if isinstance(made[0], nn.GroupNorm) else "instance"
    return "keep" if any(map(is_batch_norm, frozen.layers.values())) else None


def _recipe(stored: dict[str, Any]) -> Recipe:
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items() if name != "type"}
    return _RECIPES[stored["type"]](**options)


def _built(path: Path, manifest: dict[str, Any]) -> nn.Module:
    if manifest["architecture"] is None:
        raise CheckpointError(
            f"{path}: holds the weights of a {manifest['model']}, which lcs cannot build; give it, dense: "
            f"lcs.load({str(path)!r}, model={manifest['model']}(...))"
        )
    with torch.device("meta"):
        return models.build(**manifest["architecture"])


def _check_fits(path: Path, tensors: dict[str, Tensor], subspace: Subspace) -> None:
    """But for the dtypes of floats, which are taken."""
    wanted = {name: tensor.to("meta") for name, tensor in subspace.model.state_dict().items()}
    for name in wanted.keys() & tensors.keys():
        if {wanted[name].dtype, tensors[name].dtype} <= _FLOATS:
            wanted[name] = wanted[name].to(tensors[name].dtype)
    checkpoint.check_tensors(path, tensors, wanted)


def _check_dtypes(path: Path, tensors: dict[str, Tensor], subspace: Subspace, built: bool) -> None:
    """One in each layer, and in all that `lcs.models` built, which casts nothing, but for float32 norms of halves."""
    weights, norms = set(), set()
    for name, module in subspace.model.named_modules(remove_duplicate=False):
        if not built and not isinstance(module, SubspaceLayer):
            continue
        kept = [n for n in module._buffers if n not in RANGES and not n.startswith("running_")]  # of what is cast
        own = [tensors.get(f"{name}.{n}") for n in (*module._parameters, *kept)]
        dtypes = {tensor.dtype for tensor in own if tensor is not None} & _FLOATS
        if len(dtypes) > 1:
            raise CheckpointError(f"{path}: cannot run: {name} is of {_listed(dtypes)}; save it again in one dtype")
        (weights if isinstance(module, tuple(WEIGHT_LAYERS)) else norms).update(dtypes)
    dtypes = weights | (norms - {torch.float32} if weights <= _HALVES else norms)
    if built and len(dtypes) > 1:
        raise CheckpointError(f"{path}: cannot run: its layers are of {_listed(dtypes)}; save it again in one dtype")


def _listed(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _check_finite(path: Path, tensors: dict[str, Tensor], subspace: Subspace) -> None:
    """What is rounded."""
    if not isinstance(subspace.recipe, Quantized):
        return
    for name, module in subspace.model.named_modules(remove_duplicate=False):
        for end in ("weight", "weight_1") if getattr(module, "compressed", False) else ():
            if f"{name}.{end}" in tensors and not tensors[f"{name}.{end}"].isfinite().all():
                raise CheckpointError(f"{path}: {name}.{end} holds NaN or infinity, which cannot be rounded")


def _converted(model: nn.Module, manifest: dict[str, Any]) -> Subspace:
    recipe, compressed, kept = _recipe(manifest["recipe"]), manifest["layers"], manifest.get("kept", [])
    for key, names in (("layers", list(compressed)), ("kept", kept)):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key} must be names of modules, got {names!r}")
        if missing := set(names) - dict(model.named_modules()).keys():
            raise ValueError(f"{type(model).__name__} has no module {min(missing)}")
    if not all(isinstance(is_compressed, bool) for is_compressed in compressed.values()):
        raise ValueError(f"layers must say true or false of each, got {compressed}")
    whole = [name for name, is_compressed in compressed.items() if not is_compressed]
    with quiet():  # of batch statistics: said when it was converted
        subspace = convert(model, recipe, include=list(compressed), dense=whole, norm=manifest["norm"])
    subspace.kept = tuple(kept)
    return subspace
