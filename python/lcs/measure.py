"""Latency of a frozen network at each level, next to the dense network's in the same run; and what a switch costs.

`python -m lcs.measure --model resnet18 --image-size 224` prints the cost of a switch for an untrained model.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from lcs_kernels.benchmarks.harness import Timing, sample
from torch import Tensor, nn

from lcs_kernels.ops._winograd import rounding_bound, strided_rounding_bound

from . import models
from .convert import convert, unconvert
from .frozen import NORM, Frozen
from .layers import SubspaceLayer
from .levels import FULL, Level
from .snapshot import made_weights
from .subspace import Subspace
from .unstructured import Unstructured

SECONDS = 8.0  # of timed calls, about
ROUNDS = (15, 300)  # fewest and most calls of each candidate
_ALL = 1 << 60  # bytes: no level is dropped


class MeasureError(ValueError):
    """A frozen layer's output is further from the exact one than rounding explains: nothing is timed."""


@dataclass(frozen=True)
class Speed:
    """Milliseconds of one call, and the bytes of the weights that it reads, as they are held in memory.

    value: of the unit that the levels are named by.
    undisturbed: calls during which no other process took a core; where there are 3 or more, the times are of these.
    speedup: the dense network's median over this one's, above 1 where this one is faster; None where a layer that
    should run packed cannot. packed_layers: of `compressed_layers`, how many run an op of this package.
    """

    value: float
    median_ms: float
    p90_ms: float
    undisturbed: int
    speedup: float | None
    resident_bytes: int
    packed_layers: int
    compressed_layers: int


@dataclass(frozen=True)
class Measurement:
    """The levels of one run and the dense network (torch eager, plain modules of the weights at density 1)."""

    device: str
    threads: int
    batch: int
    rounds: int
    dense: Speed
    rows: list[Speed]


def measure_speed(
    subspace: Subspace, x: Tensor, levels: Sequence[Level], *, seconds: float | None = None
) -> Measurement:
    """Times `subspace`, frozen, on `x` at `levels`, all levels and the dense network in turn, after `check_layers`.

    Raises MeasureError where a layer computes something else than it should.
    """
    frozen = subspace.freeze(cache_bytes=_ALL)
    dense = unconvert(copy.deepcopy(subspace), subspace.recipe.full()).requires_grad_(False).eval()
    for level in levels:
        check_layers(frozen, x, level)
    times = _times([lambda: dense(x), *(_call(frozen, level, x) for level in levels)], x.device, seconds)
    plain = _latency(times[0])
    full = Speed(FULL[subspace.recipe.unit], *plain, 1.0, _parameter_bytes(dense), 0, 0)
    rows = [_speed(frozen, x, level, row, plain[0]) for level, row in zip(levels, times[1:], strict=True)]
    return Measurement(str(x.device), torch.get_num_threads(), len(x), len(times[0].every), full, rows)


def measure_networks(
    full: nn.Module, networks: Mapping[float, nn.Module], x: Tensor, *, seconds: float | None = None
) -> Measurement:
    """Times plain networks in evaluation mode on `x`, by the values of their levels, in turn with the `full` one."""
    times = _times([functools.partial(network, x) for network in (full, *networks.values())], x.device, seconds)
    plain, *others = map(_latency, times)
    rows = [
        Speed(value, *latency, plain[0] / latency[0], _parameter_bytes(network), 0, _convolutions(network))
        for (value, network), latency in zip(networks.items(), others, strict=True)
    ]
    first = Speed(1.0, *plain, 1.0, _parameter_bytes(full), 0, 0)
    return Measurement(str(x.device), torch.get_num_threads(), len(x), len(times[0].every), first, rows)


def _times(calls: Sequence[Callable[[], object]], device: torch.device, seconds: float | None) -> list[Timing]:
    with torch.inference_mode():
        return interleave([_finished(call, device) for call in calls], SECONDS if seconds is None else seconds)


def _parameter_bytes(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


def _convolutions(model: nn.Module) -> int:
    return sum(isinstance(m, (nn.Conv1d, nn.Conv2d)) for m in model.modules())


def interleave(calls: Sequence[Callable[[], object]], seconds: float) -> list[Timing]:
    """Times each call, every candidate once a round, so that a slow second slows them all alike."""
    for _ in range(2):
        round_seconds = sum(sample(call, 1)[0] for call in calls)
    times = [Timing() for _ in calls]
    for done in range(int(min(max(seconds / round_seconds, ROUNDS[0]), ROUNDS[1]))):
        for i in range(len(calls)):
            place = (i + done) % len(calls)
            times[place].add(*sample(calls[place], 1))
    return times


@torch.no_grad()
def check_layers(frozen: Frozen, x: Tensor, level: Level) -> int:
    """Compares each sparse layer's output at `level` with its own input's exact one; returns how many there were.

    The bound is that of a float32 sum of as many products as the weight has columns, scaled a few times, and a bias,
    in any order, rounded once to the dtype of x. Raises MeasureError naming the layer.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    named = {name: m for name, m in frozen.model.named_modules() if isinstance(m, SubspaceLayer)}
    # Copies, as what follows may work in place.
    hooks = [
        m.register_forward_hook(lambda m, args, y: seen.update({m: (args[0].clone(), y.clone())}))
        for m in named.values()
    ]
    kernels = {row.layer: row.kernel for row in frozen.report(x, level=level, fused=False).rows}
    for hook in hooks:
        hook.remove()
    sparse = {name: m for name, m in named.items() if kernels[name] not in ("torch", NORM) and m in seen}
    weights = made_weights(list(sparse.values()), level, frozen.recipe)
    for name, layer in sparse.items():
        input, output = seen[layer]
        input = frozen._packer.input(layer, input, level)
        plain = frozen.recipe.plain(layer, level, weights[layer]).double()
        exact, weight = plain(input.double()), plain.weight
        for parameter in plain.parameters():
            parameter.abs_()
        size = plain(input.double().abs())
        terms = (weight[0].numel() + 6) * 2.0**-24
        error = terms / (1 - terms) * size
        if kernels[name].startswith("width_conv2d"):
            error = error + _winograd_bound(layer, input if input.dim() == 4 else input[None], weight)
        error += torch.finfo(output.dtype).eps / 2 * (exact.abs() + error)
        if not ((output.double() - exact).abs() <= error).all():
            raise MeasureError(f"{name} at {level}: its output is wrong by more than rounding explains")
    return len(sparse)


def _winograd_bound(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor | float:
    """What Winograd's products may add to the error, where `width_conv2d` may multiply it so."""
    if layer.dilation != (1, 1) or layer.groups != 1 or not x.is_cpu:
        return 0.0
    if layer.kernel_size == (3, 3) and layer.stride == (1, 1):
        return rounding_bound(*layer.padded(x), weight)
    if {*layer.kernel_size} <= {7, 8} and layer.stride == (2, 2):
        return strided_rounding_bound(*layer.padded(x), weight)
    return 0.0


def _call(frozen: Frozen, level: Level, x: Tensor) -> Callable[[], object]:
    view = frozen.at(level)
    return lambda: view(x)


def _finished(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`call`, and on a GPU the wait for its end."""
    return call if device.type != "cuda" else lambda: (call(), torch.cuda.synchronize(device))


def _latency(timing: Timing) -> tuple[float, float, int]:
    return 1000 * timing.median, 1000 * timing.spread[1], len(timing.clean)


def _speed(frozen: Frozen, x: Tensor, level: Level, timing: Timing, plain_ms: float) -> Speed:
    report = frozen.report(x, level=level)
    compressed = {name for name, m in frozen.model.named_modules() if getattr(m, "compressed", False)}
    rows = [row for row in report.rows if row.layer in compressed]
    others = [m for m in frozen.model.modules() if not isinstance(m, SubspaceLayer)]
    resident = sum(row.bytes for row in report.rows)
    resident += sum(p.nbytes for m in others for p in m.parameters(recurse=False))
    latency, sparse = _latency(timing), sum(row.kernel != "torch" for row in rows)
    speedup = None if frozen.counters.fallbacks else plain_ms / latency[0]
    return Speed(frozen.recipe.value(level), *latency, speedup, resident, sparse, len(rows))


@dataclass(frozen=True)
class Switch:
    """Milliseconds at one density: to make the level from the stored ends, the first call of it (which also derives
    what the kernels read), a call after that, a dense call; and microseconds to find the level again once held."""

    density: float
    make_ms: float
    first_call_ms: float
    call_ms: float
    dense_ms: float
    cached_us: float


@torch.inference_mode()
def measure_switch(subspace: Subspace, x: Tensor, densities: Sequence[float], *, rounds: int = 7) -> list[Switch]:
    """What a change of level costs, the median of `rounds`."""
    dense = unconvert(copy.deepcopy(subspace), density=1.0).requires_grad_(False).eval()
    frozen = subspace.freeze(cache_bytes=0)
    dense(x), frozen(x, density=1.0)
    return [_switch(frozen, dense, x, density, rounds) for density in densities]


def _switch(frozen: Frozen, dense: nn.Module, x: Tensor, density: float, rounds: int) -> Switch:
    level, other = frozen.at(density=density), frozen.at(density=0.5 if density != 0.5 else 0.6)
    other(x), level(x)
    steps = (
        (other, x),  # which drops the level
        (lambda x: frozen.prepare(x, density=density), x),
        (other, x),
        (level, x),
        (level, x),
        (dense, x),
        (lambda x: [frozen.prepare(x, density=density) for _ in range(100)], x),
    )
    times = [Timing() for _ in steps]
    for _ in range(rounds):
        for step, timing in zip(steps, times, strict=True):
            timing.add(*sample(_finished(functools.partial(*step), x.device), 1))
    _, made, _, first, call, plain, found = (1000 * timing.median for timing in times)
    return Switch(density, made, first, call, plain, 10 * found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lcs.measure", description="What a change of level costs.")
    parser.add_argument("--model", choices=models.NAMES, default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--densities", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1, 0.05, 0.02])
    arguments = parser.parse_args()
    model = models.build(arguments.model, 1000, seed=0)
    dense = [model.stem_name, model.classifier_name]
    subspace = convert(model, Unstructured(), dense=dense, init="independent", generator=torch.manual_seed(0))
    x = torch.randn(arguments.batch, 3, arguments.image_size, arguments.image_size)
    print(f"{arguments.model}, batch {arguments.batch}, {torch.get_num_threads()} threads")
    print("density    make ms  first call ms    call ms   dense ms  cached us")
    for s in measure_switch(subspace, x, arguments.densities):
        print(
            f"{s.density:7g} {s.make_ms:10.2f} {s.first_call_ms:14.2f} {s.call_ms:10.2f} {s.dense_ms:10.2f} "
            f"{s.cached_us:10.2f}"
        )


if __name__ == "__main__":
    main()
