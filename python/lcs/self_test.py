"""One small case of every op against its reference, for `lcs doctor`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import lcs_kernels
from lcs_kernels.formats import Convolution, MaxPool, NestedWeight, Network, SparseWeight, WidthWeight
from lcs_kernels.ops.replay import Recorder, Recording

Case = tuple[list[Tensor], list[Tensor]]


def self_test_of(op: str) -> str:
    """ "ok" where one small case of `op` equals its reference bit for bit, else what is wrong."""
    case = CASES.get(op)
    if case is None:
        return "failed: no self-test for this op"
    try:
        results, expected = case()
    except lcs_kernels.LcsUnavailableError:
        raise
    except Exception as error:  # whatever it is, the other ops' tests tell more beside it
        return f"failed: {type(error).__name__}: {error}"
    for r, e in zip(results, expected, strict=True):
        if (r.shape, r.dtype) != (e.shape, e.dtype):
            return f"failed: {r.dtype} of shape {tuple(r.shape)}, the reference {e.dtype} of {tuple(e.shape)}"
    wrong = sum(int((r.view(torch.int32) != e.view(torch.int32)).sum()) for r, e in zip(results, expected, strict=True))
    total = sum(e.numel() for e in expected)
    return f"failed: {wrong} of {total} values differ from the reference" if wrong else "ok"


def _reference(op: str) -> Callable:
    return importlib.import_module(f"lcs_kernels.ops.{op}").reference


def _weights(seed: int, *shape: int) -> Tensor:
    """Normal values with ties, both zeros and a denormal."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(8).round().div(8)
    w.flatten()[:3] = torch.tensor([0.0, -0.0, 1e-40])
    return w


def _interpolate_prune() -> Case:
    w0, w1 = _weights(0, 37, 11), _weights(1, 37, 11)
    expected, _ = _reference("interpolate_prune")(w0, w1, torch.tensor(0.3), torch.tensor(101))
    return [lcs_kernels.interpolate_prune(w0, w1, 0.3, keep=101)], [expected]


def _interpolate_prune_foreach() -> Case:
    w0s, w1s = ([_weights(seed, 5, 7), _weights(seed + 1, 19)] for seed in (0, 2))
    keep = torch.tensor([12, 3])
    expected, _ = _reference("interpolate_prune_foreach")(w0s, w1s, torch.tensor(0.6), keep)
    return lcs_kernels.interpolate_prune_foreach(w0s, w1s, 0.6, keep=keep), expected


def _interpolate_quantize() -> Case:
    w0, w1, bits = _weights(0, 37, 11), _weights(1, 37, 11), torch.tensor(3)
    reference = _reference("interpolate_quantize")
    run = lcs_kernels.interpolate_quantize
    return (
        [run(w0, w1, 0.3, 3), run(w0, w1, 0.3, 3, group_size=4, nested=True)],
        [reference(w0, w1, torch.tensor(0.3), bits), reference(w0, w1, torch.tensor(0.3), bits, 4, True)],
    )


def _quantize() -> Case:
    x = _weights(0, 37, 11)
    expected = _reference("quantize")(x, torch.tensor(-0.3), torch.tensor(1.0), torch.tensor(4))
    return [lcs_kernels.quantize(x, -0.3, 1.0, 4)], [expected]


def _cosine_squared() -> Case:
    """On small integers, whose sums are exact in any order."""
    w0s, w1s = ([_weights(seed, 7, 11).mul(8).round(), _weights(seed + 1, 23).mul(8).round()] for seed in (0, 2))
    expected, _ = _reference("cosine_squared")(w0s, w1s)
    return [lcs_kernels.cosine_squared(w0s, w1s)], [expected]


def _integers(seed: int, *shape: int, one_in: int = 1) -> Tensor:
    """Small integers, whose sums are exact in any order; about one in so many is not 0."""
    x = _weights(seed, *shape).mul(8).round()
    return x * (torch.arange(x.numel()).view(shape) % one_in == 0)


def _sparse_pack() -> Case:
    weight = SparseWeight.pack(_integers(0, 37, 11, one_in=3))
    bits, values = _reference("sparse_pack")(_integers(0, 37, 11, one_in=3), None)
    return [weight.values, weight.mask_bits.view(torch.float32)], [values, bits.view(torch.float32)]


def _sparse_linear() -> Case:
    x, weight = _integers(1, 5, 37), SparseWeight.pack(_integers(0, 19, 37, one_in=3))
    expected = _reference("sparse_linear")(x, weight.mask_bits, weight.values, 19, None, True, 1, [])
    return [lcs_kernels.sparse_linear(x, weight, relu=True)], [expected]


def _sparse_conv2d() -> Case:
    x, weight = _integers(1, 2, 5, 9, 11), SparseWeight.pack(_integers(0, 7, 5, 3, 3, one_in=4))
    geometry = ([2, 2], [1, 1], [1, 1], 1)
    expected = _reference("sparse_conv2d")(
        x, weight.mask_bits, weight.values, weight.shape, None, *geometry, True, 1, []
    )
    return [lcs_kernels.sparse_conv2d(x, weight, None, *geometry, relu=True)], [expected]


def _width_conv2d() -> Case:
    x, w, bias = _integers(1, 2, 5, 9, 11), _integers(0, 37, 8, 3, 3), _integers(2, 37)
    geometry = ([2, 2], [1, 1], [1, 1], 1)
    expected = _reference("width_conv2d")(x, w, 21, None, bias, *geometry, True, None)
    y = lcs_kernels.width_conv2d(x, WidthWeight.pack(w), 21, bias, *geometry, relu=True)
    return [y, *_width_conv2d_gradients(lcs_kernels.width_conv2d)], [expected, *_width_conv2d_gradients(F.conv2d)]


def _width_conv2d_gradients(convolve: Callable[..., Tensor]) -> list[Tensor]:
    """Of integers, to which rounding errors are rounded; + 0.0 as 0 has a sign."""
    x, w = (_integers(seed, *shape).requires_grad_() for seed, shape in ((3, (2, 33, 7, 6)), (4, (40, 33, 3, 3))))
    with torch.enable_grad():
        y = convolve(x, w, padding=1)
    return [g.round() + 0.0 for g in torch.autograd.grad(y, [x, w], _integers(5, *y.shape))]


def _line_norm() -> Case:
    """Of +1 and -1 in turns, whose moments are exact; also with given statistics."""
    x = torch.tensor([1.0, -1.0]).repeat(3 * 10 * 24).view(3, 10, 6, 8) + 5
    ends, alpha, given = (
        [_integers(seed, 12) for seed in range(4)],
        torch.tensor(0.25),
        (_integers(4, 10), torch.ones(10)),
    )
    reference = _reference("line_norm")
    return (
        [
            lcs_kernels.line_norm(x, *ends, 0.25, 5, 0.0, relu=True),
            lcs_kernels.line_norm(x, *ends, 0.25, 1, 0.0, mean=given[0], var=given[1], residual=x),
        ],
        [
            reference(x, *ends, alpha, None, None, None, 5, 0.0, True)[0],
            reference(x, *ends, alpha, *given, x, 1, 0.0, False)[0],
        ],
    )


def _nested_pack() -> Case:
    codes = torch.arange(37 * 11).mul(7).to(torch.uint8)
    return [lcs_kernels.nested_pack(codes)], [_reference("nested_pack")(codes)]


def _packed_conv2d() -> Case:
    x, weight = _weights(0, 2, 5, 9, 8), NestedWeight.pack(_weights(1, 37, 5, 3, 3))
    fields, ones = (weight.planes, weight.scales, weight.zero_points, weight.shape), [1, 1]
    ranges = [(None, None), (torch.tensor(-1.0), torch.tensor(0.5))]
    expected = [
        _reference("packed_conv2d")(x, *fields, 3, None, ones, ones, ones, 1, *ends, 8, True, False, [])
        for ends in ranges
    ]
    found = [
        lcs_kernels.packed_conv2d(x, weight, 3, padding=1, x_range=ends if ends[0] is not None else None, relu=True)
        for ends in ranges
    ]
    return found, expected


def _packed_linear() -> Case:
    x, weight = _weights(0, 5, 45), NestedWeight.pack(_weights(1, 37, 45))
    fields = (weight.planes, weight.scales, weight.zero_points, 37, weight.group)
    expected = [_reference("packed_linear")(x, *fields, bits, None, True, False, []) for bits in (8, 3)]
    return [lcs_kernels.packed_linear(x, weight, bits, relu=True) for bits in (8, 3)], expected


def _packed_network() -> Case:
    first, second = NestedWeight.pack(_weights(0, 37, 3, 5, 5)), NestedWeight.pack(_weights(1, 37, 37, 3, 3))
    steps = [
        Convolution(0, first, 3, (-1.0, 0.5), padding=2, relu=True),
        MaxPool(1, 3, 2, 1),
        Convolution(2, second, 3, (0.0, 4.0), padding=1, residual=2),
    ]
    x, network = _weights(2, 2, 3, 9, 8), Network.of(steps)
    return [lcs_kernels.packed_network(x, network)], [_reference("packed_network")(x, *network.arguments(x))]


def _width_conv2d_norm() -> Case:
    """As of `line_norm`, behind a convolution that changes nothing."""
    x = torch.tensor([1.0, -1.0]).repeat(3 * 10 * 24).view(3, 10, 6, 8) + 5
    same, ends = WidthWeight.pack(torch.eye(12).view(12, 12, 1, 1)), [_integers(seed, 12) for seed in range(4)]
    alpha = torch.tensor(0.25)
    expected = _reference("line_norm")(x, *ends, alpha, None, None, None, 5, 0.0, True)[0]
    return [lcs_kernels.width_conv2d_norm(x, same, 10, (*ends, alpha), 5, 0.0, relu=True)], [expected]


def _sparse_conv2d_norm() -> Case:
    """As of `line_norm`, behind a convolution that changes nothing."""
    x = torch.tensor([1.0, -1.0]).repeat(3 * 10 * 24).view(3, 10, 6, 8) + 5
    same, ends = SparseWeight.pack(torch.eye(10).view(10, 10, 1, 1)), [_integers(seed, 12) for seed in range(4)]
    alpha = torch.tensor(0.25)
    expected = _reference("line_norm")(x, *ends, alpha, None, None, x, 5, 0.0, True)[0]
    return [lcs_kernels.sparse_conv2d_norm(x, same, (*ends, alpha), 5, 0.0, residual=x, relu=True)], [expected]


def _replay() -> Case:
    """Two convolutions, recorded and run again on other integers, whose sums are exact."""
    x, other = _integers(0, 2, 3, 9, 8), _integers(1, 2, 3, 9, 8)
    w = _integers(2, 3, 3, 3, 3).clamp(-4, 4)
    weight = SparseWeight.pack(w)

    def run(x: Tensor) -> Tensor:
        return lcs_kernels.sparse_conv2d(lcs_kernels.sparse_conv2d(x, weight, padding=1), weight, relu=True)

    run(x)  # makes the weight ready
    with Recorder() as recorder:
        y = run(x)
    recording = Recording.of([call for call in recorder.calls if call.can_replay], [x], [y])
    expected = F.conv2d(F.conv2d(other, w, padding=1), w).relu()
    return lcs_kernels.replay([other], recording), [expected]


CASES: dict[str, Callable[[], Case]] = {
    "cosine_squared": _cosine_squared,
    "interpolate_prune": _interpolate_prune,
    "interpolate_prune_foreach": _interpolate_prune_foreach,
    "interpolate_quantize": _interpolate_quantize,
    "line_norm": _line_norm,
    "nested_pack": _nested_pack,
    "packed_conv2d": _packed_conv2d,
    "packed_linear": _packed_linear,
    "packed_network": _packed_network,
    "quantize": _quantize,
    "replay": _replay,
    "sparse_conv2d": _sparse_conv2d,
    "sparse_conv2d_norm": _sparse_conv2d_norm,
    "sparse_linear": _sparse_linear,
    "sparse_pack": _sparse_pack,
    "width_conv2d": _width_conv2d,
    "width_conv2d_norm": _width_conv2d_norm,
}
