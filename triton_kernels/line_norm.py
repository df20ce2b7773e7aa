"""Triton twin of `line_norm`: a program for each group of each sample, or for each channel where statistics are given.

It reads its group twice for the moments, then again for y, by then from a cache. Channel counts, groups and strides are
run-time numbers that nothing is specialised on, so a change of width compiles nothing.

These kernels are tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100. They have not run on a GPU.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lcs_kernels.ops._convolution import memory_format
from lcs_kernels.ops.line_norm import check as check_arguments

from ._common import OPTIONS, TYPES, check, check_counts, rounded, widened

BLOCK = 1024
_NUMBERS = ["channels", "pixels", "groups", "in_group", "x_n", "x_c", "x_p"]


@triton.jit
def vector_at(end0, end1, alpha, channel, inside, none, GIVEN: tl.constexpr, LINE: tl.constexpr):
    """A vector's point of the line, rounded to its dtype, in float32; `none` where there is no vector."""
    if GIVEN:
        value = widened(tl.load(end0 + channel, mask=inside, other=0.0))
        if LINE:
            c1 = tl.load(alpha)
            value = (1.0 - c1) * value + c1 * widened(tl.load(end1 + channel, mask=inside, other=0.0))
            value = widened(rounded(value, end0.dtype.element_ty))
    else:
        value = tl.zeros(channel.shape, tl.float32) + none
    return value


@triton.jit
def element(i, first, in_group, pixels, x_c, x_p, LAST: tl.constexpr):
    """The channel of a group's element i, and its offset in the sample; neighbours lie side by side in memory."""
    if LAST:
        channel, pixel = first + i % in_group, i // in_group
    else:
        channel, pixel = first + i // pixels, i % pixels
    return channel, channel * x_c + pixel * x_p


@triton.jit(do_not_specialize=_NUMBERS)
def norm_kernel(
    x, weight0, weight1, bias0, bias1, alpha, mean, var, residual, y, statistics, eps,
    channels, pixels, groups, in_group, x_n: tl.int64, x_c: tl.int64, x_p: tl.int64,
    OUT: tl.constexpr, WEIGHT: tl.constexpr, WEIGHT_LINE: tl.constexpr, BIAS: tl.constexpr, BIAS_LINE: tl.constexpr,
    GIVEN: tl.constexpr, ADDED: tl.constexpr, RELU: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    first, size = group * in_group, in_group * pixels
    count = size.to(tl.float32)
    x += sample.to(tl.int64) * x_n
    if GIVEN:
        middle = tl.load(mean + group)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + group) + eps))
    else:
        total = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, size, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            _, at = element(i, first, in_group, pixels, x_c, x_p, LAST)
            total += widened(tl.load(x + at, mask=i < size, other=0.0))
        middle = tl.div_rn(tl.sum(total), count)
        left = tl.zeros((BLOCK,), tl.float32)
        squares = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, size, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            _, at = element(i, first, in_group, pixels, x_c, x_p, LAST)
            d = tl.where(i < size, widened(tl.load(x + at, mask=i < size, other=0.0)) - middle, 0.0)
            left += d
            squares += d * d
        off = tl.div_rn(tl.sum(left), count)  # of the mean, for its rounding
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(squares), count) - off * off + eps))
        middle += off
        tl.store(statistics + tl.program_id(0), middle)
        tl.store(statistics + tl.num_programs(0) + tl.program_id(0), rstd)
    y += sample.to(tl.int64) * x_n
    if ADDED:
        residual += sample.to(tl.int64) * x_n
    for begin in range(0, size, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        inside = i < size
        channel, at = element(i, first, in_group, pixels, x_c, x_p, LAST)
        scale = rstd * vector_at(weight0, weight1, alpha, channel, inside, 1.0, WEIGHT, WEIGHT_LINE)
        shift = vector_at(bias0, bias1, alpha, channel, inside, 0.0, BIAS, BIAS_LINE)
        value = (widened(tl.load(x + at, mask=inside, other=0.0)) - middle) * scale + shift
        if ADDED:
            value = widened(rounded(value, OUT)) + widened(tl.load(residual + at, mask=inside, other=0.0))
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # a NaN stays
        tl.store(y + at, rounded(value, OUT), mask=inside)


@triton.jit(do_not_specialize=_NUMBERS)
def norm_backward_kernel(
    grad, x, weight0, weight1, bias0, bias1, alpha, mean, var, statistics, grad_x, sums, eps,
    channels, pixels, groups, in_group, x_n: tl.int64, x_c: tl.int64, x_p: tl.int64,
    OUT: tl.constexpr, WEIGHT: tl.constexpr, WEIGHT_LINE: tl.constexpr, BIAS: tl.constexpr, BIAS_LINE: tl.constexpr,
    GIVEN: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`sums`: of each channel of each sample, the gradients behind the ReLU times the normed x, and these alone."""
    sample, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    first, size = group * in_group, in_group * pixels
    if GIVEN:
        middle = tl.load(mean + group)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + group) + eps))
    else:
        middle = tl.load(statistics + tl.program_id(0))
        rstd = tl.load(statistics + tl.num_programs(0) + tl.program_id(0))
    x += sample.to(tl.int64) * x_n
    grad += sample.to(tl.int64) * x_n
    grad_x += sample.to(tl.int64) * x_n
    one = tl.arange(0, 1)
    through_mean = tl.zeros((1,), tl.float32)
    through_rstd = tl.zeros((1,), tl.float32)
    for c in range(0, in_group):
        channel = first + c
        weight = vector_at(weight0, weight1, alpha, channel + one, one == 0, 1.0, WEIGHT, WEIGHT_LINE)
        bias = vector_at(bias0, bias1, alpha, channel + one, one == 0, 0.0, BIAS, BIAS_LINE)
        total = tl.zeros((BLOCK,), tl.float32)
        product = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, pixels, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            at = channel * x_c + i * x_p
            centred = widened(tl.load(x + at, mask=i < pixels, other=0.0)) - middle
            g = widened(tl.load(grad + at, mask=i < pixels, other=0.0))
            if RELU:
                g = tl.where(centred * (rstd * weight) + bias <= 0, 0.0, g)
            total += g
            product += tl.where(i < pixels, g * centred, 0.0)
        grad_sum, product_sum = tl.sum(total), tl.sum(product) * rstd
        to = sums + (sample * channels + channel).to(tl.int64) * 2
        tl.store(to, product_sum)
        tl.store(to + 1, grad_sum)
        through_mean += weight * grad_sum
        through_rstd += weight * product_sum
    if GIVEN:
        slope, offset = through_mean * 0.0, through_mean * 0.0
    else:
        count = tl.zeros((1,), tl.float32) + size
        slope = -tl.div_rn(through_rstd, count) * rstd * rstd
        offset = -tl.div_rn(through_mean, count) * rstd
    for c in range(0, in_group):
        channel = first + c
        weight = vector_at(weight0, weight1, alpha, channel + one, one == 0, 1.0, WEIGHT, WEIGHT_LINE)
        bias = vector_at(bias0, bias1, alpha, channel + one, one == 0, 0.0, BIAS, BIAS_LINE)
        for begin in range(0, pixels, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            at = channel * x_c + i * x_p
            centred = widened(tl.load(x + at, mask=i < pixels, other=0.0)) - middle
            g = widened(tl.load(grad + at, mask=i < pixels, other=0.0))
            if RELU:
                g = tl.where(centred * (rstd * weight) + bias <= 0, 0.0, g)
            value = g * (rstd * weight) + (centred * slope + offset)
            tl.store(grad_x + at, rounded(value, OUT), mask=i < pixels)


def line_norm(
    x, weight0, weight1, bias0, bias1, alpha, mean, var, residual, groups, eps, relu
) -> tuple[Tensor, Tensor]:
    """As the op's schema, on the GPU of `x`."""
    check_arguments(x, weight0, weight1, bias0, bias1, alpha, mean, var, residual, groups, eps)
    _check_counts(x, x.shape[1] if mean is not None else groups)
    vectors = *_contiguous(weight0, weight1, bias0, bias1), alpha, *_contiguous(mean, var)
    if alpha is not None:
        check("line_norm", "alpha", alpha, x, torch.float32, ())
    layout = memory_format(x)
    x = x.contiguous(memory_format=layout)
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    y, given = torch.empty_like(x), mean is not None
    statistics = torch.empty(0 if given else (2, len(x), groups), dtype=torch.float32, device=x.device)
    if x.numel():
        programs, numbers = _numbers(x, x.shape[1] if given else groups, layout)
        with torch.cuda.device_of(x):
            norm_kernel[(programs,)](
                x, *vectors, residual, y, statistics, eps, *numbers,
                **_constants(x, weight0, weight1, bias0, bias1, given), ADDED=residual is not None, RELU=relu,
                LAST=layout != torch.contiguous_format,
            )  # fmt: skip
    return y, statistics


def line_norm_backward(
    grad, x, weight0, weight1, bias0, bias1, alpha, mean, var, statistics, groups, eps, relu
) -> tuple[Tensor, ...]:
    """As the op's schema, on the GPU of `x`."""
    check_arguments(x, weight0, weight1, bias0, bias1, alpha, mean, var, None, groups, eps)
    _check_counts(x, x.shape[1] if mean is not None else groups)
    vectors = *_contiguous(weight0, weight1, bias0, bias1), alpha, *_contiguous(mean, var)
    layout, given = memory_format(x), mean is not None
    x, grad = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    grad_x, sums = torch.empty_like(x), torch.zeros(*x.shape[:2], 2, dtype=torch.float32, device=x.device)
    if x.numel():
        programs, numbers = _numbers(x, x.shape[1] if given else groups, layout)
        with torch.cuda.device_of(x):
            norm_backward_kernel[(programs,)](
                grad, x, *vectors, statistics, grad_x, sums, eps, *numbers,
                **_constants(x, weight0, weight1, bias0, bias1, given), RELU=relu,
            )  # fmt: skip
    ends, to_alpha, totals = [], torch.zeros((), dtype=torch.float64, device=x.device), sums.double().sum(0)
    for total, end0, end1 in zip(totals.unbind(1), (weight0, bias0), (weight1, bias1), strict=True):
        parts = (total.float() if end1 is None else (1 - alpha) * total.float()), end1 is not None and alpha * total
        for part, end in zip(parts, (end0, end1), strict=True):
            ends.append(torch.zeros(0 if end is None else len(end), dtype=torch.float32, device=x.device))
            if end is not None:
                ends[-1][: x.shape[1]] = part
        if end1 is not None:
            to_alpha += (total * (end1[: x.shape[1]].double() - end0[: x.shape[1]].double())).sum()
    is_line = weight1 is not None or bias1 is not None
    return grad_x, *ends, to_alpha.float() if is_line else x.new_empty(0, dtype=torch.float32)


def _check_counts(x: Tensor, groups: int) -> None:
    samples, channels = x.shape[:2]
    group = channels // max(groups, 1) * math.prod(x.shape[2:])
    check_counts("line_norm", elements_of_a_group=group, channels_of_all_samples=samples * channels)


def _contiguous(*vectors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if vector is None else vector.contiguous() for vector in vectors)


def _numbers(x: Tensor, groups: int, layout: torch.memory_format) -> tuple[int, tuple[int, ...]]:
    """How many programs, and what follows eps."""
    channels, pixels = x.shape[1], x[0, 0].numel()
    strides = (pixels, 1) if layout == torch.contiguous_format else (1, channels)
    return len(x) * groups, (channels, pixels, groups, channels // groups, channels * pixels, *strides)


def _constants(x, weight0, weight1, bias0, bias1, given) -> dict:
    return {
        "OUT": TYPES[x.dtype],
        "WEIGHT": weight0 is not None,
        "WEIGHT_LINE": weight1 is not None,
        "BIAS": bias0 is not None,
        "BIAS_LINE": bias1 is not None,
        "GIVEN": given,
        "BLOCK": BLOCK,
        **OPTIONS,
    }
