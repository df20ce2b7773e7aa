"""From what a user passes as a level (numbers or 0-d tensors) to what an op takes (0-d tensors), checked."""

from __future__ import annotations

from numbers import Real
from operator import index

import torch
from torch import Tensor


def keep_count(density: float, n: int) -> int:
    """How many of `n` weights are kept at `density`: density * n in float64, rounded half to even, in [0, n]."""
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density must lie in [0, 1], got {density}")
    return min(max(round(float(density) * n), 0), n)


def keep_tensor(
    op: str, density: float | Tensor | None, keep: int | Tensor | None, w: Tensor, n: int | None = None
) -> Tensor:
    """The 0-d int64 count, out of `n` (w's size), from whichever of `density` and `keep` is given; tensors clamped."""
    n = w.numel() if n is None else n
    if (density is None) == (keep is None):
        raise ValueError(f"{op}: give exactly one of density and keep, got density={density}, keep={keep}")
    if isinstance(density, Tensor):
        return (_scalar(op, "density", density, w).double() * n).round().clamp(0, n).to(torch.int64)
    if isinstance(keep, Tensor):
        return _whole(op, _scalar(op, "keep", keep, w))
    if keep is None:
        keep = keep_count(density, n)
    elif not 0 <= (keep := _count(op, "keep", keep)) <= n:
        raise ValueError(f"{op}: keep must lie in [0, {n}], got {keep}")
    return torch.full((), keep, dtype=torch.int64, device=w.device)


def _count(op: str, name: str, value: int) -> int:
    if isinstance(value, int):
        return value
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be a whole number, got {value!r}") from None


def _whole(op: str, keep: Tensor) -> Tensor:
    if keep.dtype.is_floating_point:
        raise TypeError(f"{op}: keep must hold whole numbers, got {keep.dtype}; density takes a fraction")
    return keep.to(torch.int64)


def alpha_tensor(op: str, alpha: float | Tensor, extrapolate: bool | None, w: Tensor) -> Tensor:
    """The 0-d position on the line, float32 (float64 for float64 weights). A tensor's value is not checked: that would
    wait for the device. `extrapolate` is None where the op stays on the line."""
    dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
    if isinstance(alpha, Tensor):
        return _scalar(op, "alpha", alpha, w).to(dtype)
    if not extrapolate and not 0.0 <= alpha <= 1.0:
        how = "" if extrapolate is None else "; pass extrapolate=True to leave the line"
        raise ValueError(f"{op}: alpha must lie in [0, 1], got {alpha}{how}")
    return torch.full((), alpha, dtype=dtype, device=w.device)


def _scalar(op: str, name: str, tensor: Tensor, w: Tensor) -> Tensor:
    if tensor.dim() != 0:
        raise ValueError(f"{op}: {name} must be a number or a 0-d tensor, got shape {tuple(tensor.shape)}")
    _check_device(op, name, tensor, w)
    return tensor


def _check_device(op: str, name: str, tensor: Tensor, w: Tensor) -> None:
    if tensor.device != w.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device}, the tensor it is for on {w.device}; pass a number, or move it there"
        )


def keep_tensors(op: str, density, keep, ws: list[Tensor]) -> Tensor:
    """Counts for a list of layers: int64 (layers,) for one per layer, 0-d for one over all layers together."""
    if (density is None) == (keep is None):
        raise ValueError(f"{op}: give exactly one of density and keep, got density={density}, keep={keep}")
    if isinstance(keep, Tensor) and keep.dim() == 1:
        _check_length(op, "keep", len(keep), ws)
        _check_device(op, "keep", keep, ws[0])
        return _whole(op, keep)
    if isinstance(keep, (int, Tensor, Real)):
        total = sum(w.numel() for w in ws)
        return keep_tensor(op, None, keep, ws[0], total)
    if isinstance(density, Tensor):
        sizes = _vector([w.numel() for w in ws], torch.float64, density.device)
        return (
            (_scalar(op, "density", density, ws[0]).double() * sizes)
            .round()
            .clamp(min=0)
            .minimum(sizes)
            .to(torch.int64)
        )
    given = [density] * len(ws) if isinstance(density, (int, float, Real)) else density if keep is None else keep
    _check_length(op, "density" if keep is None else "keep", len(given), ws)
    counts = [keep_count(d, w.numel()) for d, w in zip(given, ws, strict=True)] if keep is None else given
    counts = [_count(op, f"keep[{i}]", count) for i, count in enumerate(counts)]
    for i, (count, w) in enumerate(zip(counts, ws, strict=True)):
        if not 0 <= count <= w.numel():
            raise ValueError(f"{op}: keep[{i}] must lie in [0, {w.numel()}], got {count}")
    return _vector(counts, torch.int64, ws[0].device)


def _vector(values: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A GPU gets them as kernels' arguments: for a copy it would be waited for, and no graph records one."""
    if device.type == "cpu" or not values:
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])


def _check_length(op: str, name: str, length: int, ws: list[Tensor]) -> None:
    if length != len(ws):
        raise ValueError(f"{op}: {name} has {length} entries for {len(ws)} layers")


def bits_tensor(op: str, bits: int | Tensor, x: Tensor) -> Tensor:
    """The 0-d int64 width. A tensor's value is not checked: the op clamps it."""
    if isinstance(bits, Tensor):
        return _scalar(op, "bits", bits, x).to(torch.int64)
    if bits not in range(2, 9):
        raise ValueError(f"{op}: bits must be a whole number in [2, 8], got {bits}")
    return torch.full((), bits, dtype=torch.int64, device=x.device)


def range_tensors(op: str, low: float | Tensor, high: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of a range, 0-d float32 (float64 for float64 x). Tensors' values are not checked."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and not low <= high:
        raise ValueError(f"{op}: low must not lie above high, got low={low}, high={high}")
    return _end(op, "low", low, dtype, x), _end(op, "high", high, dtype, x)


def _end(op: str, name: str, end: float | Tensor, dtype: torch.dtype, x: Tensor) -> Tensor:
    if not isinstance(end, Tensor):
        return torch.full((), end, dtype=dtype, device=x.device)
    end = _scalar(op, name, end, x)
    return end if end.dtype == dtype and not end.requires_grad else end.detach().to(dtype)
