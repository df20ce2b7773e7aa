"""Two measurements of convolutions with the first channels of a wider weight: torch's copy, and cuDNN without one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from . import probes, timing
from .timing import outcome, time_of

CONVOLUTIONS = ((1, 256, 14), (32, 256, 14), (1, 64, 56), (32, 64, 56))  # images, channels of the full weight, side


def case(images: int, channels: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """x at half width, the half of a weight that it meets, and that half copied: bfloat16, channels last."""
    half, last = channels // 2, torch.channels_last
    x = torch.randn(images, half, side, side, device=timing.DEVICE).bfloat16().contiguous(memory_format=last)
    full = torch.randn(channels, channels, 3, 3, device=timing.DEVICE).bfloat16().contiguous(memory_format=last)
    view = full[:half, :half]
    return x, view, view.contiguous(memory_format=last)


def kernels_of(call: timing.Call) -> dict[str, float]:
    """{kernel: microseconds} of one call, as the profiler sees them."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return {e.key[:80]: e.self_device_time_total for e in profile.key_averages() if e.self_device_time_total}


def hidden_copy(flush: timing.Call) -> Iterator[dict]:
    for images, channels, side in CONVOLUTIONS:
        x, view, copied = case(images, channels, side)
        calls = {
            "sliced": lambda x=x, w=view: F.conv2d(x, w, padding=1),
            "copied": lambda x=x, w=copied: F.conv2d(x, w, padding=1),
        }
        times = timing.measure(calls, flush)
        name = f"torch's conv2d {images} x {channels // 2} x {side}^2, 3 x 3, weight sliced from {channels}"
        ratio = times["sliced"]["cold_us"] / times["copied"]["cold_us"]
        predicted = "1.3 to 1.8" if images == 1 else "1.1 to 1.3"
        kernels = {way: kernels_of(call) for way, call in calls.items()}
        more = {f"{way}_us": times[way]["cold_us"] for way in calls}
        yield outcome(name, "times the time with a copy made before", predicted, ratio, kernels=kernels, **more)


def strided_filters(flush: timing.Call) -> Iterator[dict]:
    library = probes.cudnn()
    for images, channels, side in CONVOLUTIONS:
        x, view, copied = case(images, channels, side)
        name = f"cuDNN {images} x {channels // 2} x {side}^2, 3 x 3, weight sliced from {channels}"
        expected = F.conv2d(x.float(), copied.float(), padding=1)
        found = {}
        for way, w in (("sliced", view), ("packed", copied)):
            plan = library.convolve_plan(_longs(x.shape), _longs(w.shape), _longs(w.stride()), ctypes.c_int64(1))
            if not plan:
                found[way] = library.convolve_error().decode()
                continue
            y = torch.full_like(expected, torch.nan, dtype=torch.bfloat16)
            call = _run(library, plan, x, w, y)
            call()
            if not (y.float() - expected).norm() <= 1e-2 * expected.norm():
                raise AssertionError(f"{name}, {way}: cuDNN's result is not torch's")
            found[way] = time_of(call, flush) * 1e6
        accepted = isinstance(found["sliced"], float) and isinstance(found["packed"], float)
        ratio = found["sliced"] / found["packed"] if accepted else "refused"
        yield outcome(name, "times the time of a packed weight", "accepted, 1.0", ratio, us=found)


def _longs(values) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def _run(library: ctypes.CDLL, plan: int, x: Tensor, w: Tensor, y: Tensor) -> timing.Call:
    workspace = torch.empty(library.convolve_workspace(ctypes.c_void_p(plan)), dtype=torch.uint8, device=x.device)
    arguments = ctypes.c_void_p(plan), *map(probes.address, (x, w, y, workspace))

    def call() -> Tensor:
        if library.convolve_run(*arguments, probes.stream()):
            raise RuntimeError(library.convolve_error().decode())
        return workspace

    return call
