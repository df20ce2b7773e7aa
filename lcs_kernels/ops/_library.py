"""The torch.library namespace `lcs`, and what every op file shares: definition, levels as tensors, mask bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from lcs_kernels.formats import NestedWeight, SparseWeight

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What only a weight of each form has: the forms themselves import the ops.
_OWN = {"SparseWeight": "mask_bits", "NestedWeight": "planes", "WidthWeight": "check_unchanged"}

_LIBRARY = torch.library.Library("lcs", "DEF")


def define(schema: str, reference: Callable, fake: Callable) -> torch._ops.OpOverload:
    """Defines lcs::<name>; `reference` is its kernel on every device for which no binary registers one."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lcs::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.lcs, name).default


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd is to see a call: of forward mode, too, which else would take the tangent for 0."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def once_differentiable(backward: Callable) -> Callable:
    """torch's, at no cost where the engine asks for no gradient of the gradient."""
    guarded = torch.autograd.function.once_differentiable(backward)

    def run(ctx, grad):
        return guarded(ctx, grad) if torch.is_grad_enabled() else backward(ctx, grad)

    return run


def without_autocast(function: Callable) -> Callable:
    """`function`, whose first argument is a tensor, with nothing rounded that it multiplies."""

    @functools.wraps(function)
    def run(x: Tensor, *args, **kwargs):
        device = x.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):  # which meta has not
            return function(x, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(x, *args, **kwargs)

    return run


def through_relu(grad: Tensor, y: Tensor, cap: float | None = None) -> Tensor:
    """The gradient that reaches what a ReLU, ending at `cap`, made y of; where y is NaN it passes, as of torch."""
    if cap is None:
        return torch.ops.aten.threshold_backward(grad, y, 0)
    return torch.ops.aten.hardtanh_backward(grad, y, 0, cap)


def output_dtype(dtype: torch.dtype | None, like: Tensor) -> torch.dtype:
    """`dtype` if given, else autocast's where it is on for float32 input, else the input's own."""
    if dtype is not None:
        return dtype
    device = like.device.type
    if like.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):  # which meta has not
        return torch.get_autocast_dtype(device)
    return like.dtype


def check_ends(
    op: str, w0: Tensor, w1: Tensor | None, dtype: torch.dtype | None, names: tuple[str, str] = ("w0", "w1")
) -> None:
    """Raises TypeError or ValueError where the ends of a line do not fit each other or the op."""
    if w0.dtype not in FLOATS:
        raise TypeError(f"{op}: {names[0]} must be float32, bfloat16, float16 or float64, got {w0.dtype}")
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"{op}: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
    if w1 is None:
        return
    if w1.dtype != w0.dtype:
        raise TypeError(f"{op}: {names[1]} must be {w0.dtype} like {names[0]}, got {w1.dtype}")
    if w1.shape != w0.shape:
        raise ValueError(f"{op}: {names[1]} has shape {tuple(w1.shape)}, {names[0]} {tuple(w0.shape)}")
    if w1.device != w0.device:
        raise ValueError(f"{op}: {names[1]} is on {w1.device}, {names[0]} on {w0.device}")


def pack_bits(mask: Tensor) -> Tensor:
    """Boolean (n,) to int32 (ceil(n / 32),): bit i % 32 of word i // 32 is mask[i]; bits past n are 0."""
    padded = torch.nn.functional.pad(mask, (0, -mask.numel() % 32)).view(-1, 32)
    weights = torch.ones(32, dtype=torch.int64, device=mask.device) << torch.arange(32, device=mask.device)
    return (padded * weights).sum(1).to(torch.int32)


def unpack_bits(mask_bits: Tensor, n: int) -> Tensor:
    """The inverse of `pack_bits`: int32 words to boolean (n,)."""
    bits = mask_bits[:, None] >> torch.arange(32, dtype=torch.int32, device=mask_bits.device)
    return (bits & 1).bool().flatten()[:n]


def check_finite_weights(op: str, **weights: Tensor | None) -> None:
    """Raises ValueError naming the first tensor that holds NaN or infinity."""
    for name, w in weights.items():
        if w is not None and not torch.isfinite(w).all():
            raise ValueError(f"{op}: {name} holds {int((~torch.isfinite(w)).sum())} values that are not finite")


def check_operands(op: str, x, weight, form: str) -> None:
    """Raises TypeError where x is no tensor, or the weight not of `form`, a class of `lcs_kernels.formats`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a tensor, got {_kind(x)}; the weight comes second")
    if not hasattr(weight, _OWN[form]):
        raise TypeError(
            f"{op}: weight must be a {form}, got {_kind(weight)}; {form}.pack(w) of lcs_kernels.formats makes one"
        )


def check_packed(
    op: str, x: Tensor, weight: NestedWeight, bits: int, bias: Tensor | None, codes: bool = False
) -> Tensor | None:
    """Raises where x, a weight, a width and a bias do not fit; returns the bias as the op takes it.

    codes: whether x may be int8.
    """
    if isinstance(bits, float):
        raise TypeError(f"{op}: bits must be a whole number, got {bits!r}")
    if not 2 <= bits <= weight.depth:
        raise ValueError(f"{op}: bits must lie in [2, {weight.depth}], got {bits}")
    return _check_activations(op, x, weight.planes, weight.shape, bias, codes)


def check_sparse(op: str, x: Tensor, weight: SparseWeight, bias: Tensor | None) -> Tensor | None:
    """Raises where x, a weight and a bias do not fit each other; returns the bias as the op takes it."""
    return _check_activations(op, x, weight.values, weight.shape, bias)


def _kind(weight) -> str:
    return "a dense tensor" if isinstance(weight, Tensor) else f"a {type(weight).__name__}"


def _check_activations(
    op: str, x: Tensor, weight: Tensor, weight_shape: tuple[int, ...], bias: Tensor | None, codes: bool = False
) -> Tensor | None:
    dtype = torch.float32 if codes and x.dtype == torch.int8 else x.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise TypeError(f"{op}: x must be float32 or bfloat16 (float64 runs the reference), got {x.dtype}")
    if x.device != weight.device:
        raise ValueError(f"{op}: x is on {x.device}, the weight on {weight.device}")
    return check_vector(op, "bias", bias, x, weight_shape, dtype)


def check_vector(
    op: str,
    name: str,
    vector: Tensor | None,
    x: Tensor,
    weight_shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Raises where a value of each output channel does not fit; returns it as the op takes it. dtype: of x's values."""
    dtype = dtype or x.dtype
    if vector is None:
        return None
    if tuple(vector.shape) != weight_shape[:1] or vector.device != x.device:
        raise ValueError(
            f"{op}: {name} must be ({weight_shape[0]},) on {x.device}, got {tuple(vector.shape)} on {vector.device}"
        )
    if vector.dtype not in (torch.float32, dtype):
        raise TypeError(f"{op}: {name} must be float32 or {dtype} like x, got {vector.dtype}")
    return widened(vector, x)


def widened(vector: Tensor | None, x: Tensor) -> Tensor | None:
    """A value of each output channel as the op takes it."""
    if vector is None or vector.dtype == torch.float32 or x.dtype == torch.float64:
        return vector
    return vector.float()


def is_wide(*vectors: Tensor | None) -> bool:
    """Whether the op takes all of them as they are."""
    return all(v is None or v.dtype == torch.float32 for v in vectors)
