"""lcs_core and the op for PyTorch equal a NumPy oracle on what hypothesis finds, on every instruction set."""

from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis.strategies as st
import lcs_core
import numpy as np
import torch
from hypothesis import given, settings

import lcs_kernels

from . import oracle
from .strategies import DTYPES, alphas, distinct_weights, lines, sizes, weights

lcs_core.set_isa("amx")
ISAS = list(lcs_kernels.isa.NAMES[: lcs_kernels.isa.NAMES.index(lcs_core.isa()) + 1])
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
isas, threads, dtypes = st.sampled_from(ISAS), st.sampled_from([1, 2, 3, 8]), st.sampled_from(DTYPES)


def examples(count: int):
    """The same examples in every run."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@contextmanager
def use(isa: str, count: int) -> Iterator[None]:
    """Both libraries on instruction set `isa`; torch on `count` threads."""
    before = torch.get_num_threads()
    lcs_core.set_isa(isa)
    lcs_kernels.isa.set_max(isa)
    torch.set_num_threads(count)
    assert lcs_core.isa() == isa
    try:
        yield
    finally:
        lcs_core.set_isa("amx")
        lcs_kernels.isa.set_max("amx")
        torch.set_num_threads(before)


def tensor(array: np.ndarray | None) -> torch.Tensor | None:
    if array is None:
        return None
    return (
        torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if array.dtype == np.uint16 else torch.tensor(array)
    )


def array_of(w: torch.Tensor) -> np.ndarray:
    return w.view(torch.int16).numpy().view(np.uint16) if w.dtype == torch.bfloat16 else w.numpy()


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal values, zeros by sign too, NaN where NaN is."""
    values = oracle.decode(actual).astype(np.float64)
    same = (values == expected) & (np.signbit(values) == np.signbit(expected)) | np.isnan(values) & np.isnan(expected)
    assert values.shape == expected.shape and same.all(), f"differ at {np.flatnonzero(~same)[:5]}"


def torch_op(w0, w1, alpha, keep, dtype):
    w, mask_bits = torch.ops.lcs.interpolate_prune.default(
        tensor(w0), tensor(w1), torch.tensor(alpha), torch.tensor(keep), TORCH[dtype]
    )
    return array_of(w), mask_bits.numpy().view(np.uint32)


@examples(500)
@given(st.data(), sizes, alphas, dtypes, isas, threads)
def test_equals_the_oracle(data, n, alpha, dtype, isa, count):
    w0, w1 = data.draw(lines(n))
    keep = data.draw(st.integers(0, n))
    w, mask = oracle.interpolate_prune(w0, w1, alpha, keep, dtype)
    with use(isa, count):
        results = (
            lcs_core.interpolate_prune(w0, w1, alpha, keep, dtype, threads=count),
            torch_op(w0, w1, alpha, keep, dtype),
        )
    for actual, mask_bits in results:
        assert oracle.name_of(actual) == dtype
        assert_same(actual, w)
        np.testing.assert_array_equal(mask_bits, oracle.pack(mask))


@examples(200)
@given(st.data(), st.lists(st.integers(0, 100) | sizes, max_size=5), alphas, dtypes, dtypes, isas, threads)
def test_foreach_equals_the_oracle(data, shape, alpha, source, dtype, isa, count):
    pairs = [data.draw(lines(n, source)) for n in shape]
    w0s = [w0 for w0, _ in pairs]
    w1s = [w0 if w1 is None else w1 for w0, w1 in pairs] if data.draw(st.booleans()) else None
    keep = data.draw(st.integers(0, sum(shape)) | st.tuples(*(st.integers(0, n) for n in shape)).map(list))
    with use(isa, count):
        ws, mask_bits = lcs_core.interpolate_prune_foreach(w0s, w1s, alpha, keep, dtype, threads=count)
    expected = oracle.interpolate_prune_foreach(w0s, w1s, alpha, keep, dtype) if shape else ([], [])
    assert len(ws) == len(mask_bits) == len(shape)
    for actual, words, w, mask in zip(ws, mask_bits, *expected, strict=True):
        assert_same(actual, w)
        np.testing.assert_array_equal(words, oracle.pack(mask))


@st.composite
def backward_cases(draw, n, source, dtype):
    """A gradient, two ends and a mask; magnitudes below 2^20, so that no term of alpha's gradient overflows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    scales = [np.ldexp(rng.standard_normal(n), draw(st.sampled_from([-140, -12, 0, 12]))) for _ in range(3)]
    grad, w0, w1 = (oracle.encode(x, name) for x, name in zip(scales, (dtype, source, source), strict=True))
    return grad, w0, w1, rng.random(n) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))


@examples(250)
@given(st.data(), sizes, alphas, dtypes, dtypes, isas, threads)
def test_backward_equals_the_oracle(data, n, alpha, source, dtype, isa, count):
    grad, w0, w1, mask = data.draw(backward_cases(n, source, dtype))
    grad_w0, grad_w1, grad_alpha, bound = oracle.backward(grad, w0, w1, alpha, mask, source)
    mask_bits = oracle.pack(mask)
    with use(isa, count):
        core = lcs_core.interpolate_prune_backward(grad, w0, w1, alpha, mask_bits, dtype=source, threads=count)
        op = torch.ops.lcs.interpolate_prune_backward.default(
            *map(tensor, (grad, w0, w1)),
            torch.tensor(alpha),
            torch.tensor(mask_bits.view(np.int32)),
            True,
            TORCH[source],
        )
        point = lcs_core.interpolate_prune_backward(grad, None, None, alpha, mask_bits, False, source, threads=count)
        both = lcs_core.interpolate_prune_foreach_backward(
            [grad, grad], [w0, w0], [w1, w1], alpha, [mask_bits, mask_bits], dtype=source, threads=count
        )
    for first, second in (core[:2], map(array_of, op[:2]), (both[0][1], both[1][1])):
        assert_same(first, grad_w0)
        assert_same(second, grad_w1)
    assert_same(point[0], oracle.round_to(np.where(mask, oracle.decode(grad), 0), source))
    assert point[1:] == (None, None)
    assert abs(core[2] - grad_alpha) <= bound and abs(both[2] - 2 * grad_alpha) <= 2 * bound
    assert float(op[2]) == float(np.float32(core[2]))


@examples(100)
@given(st.data(), sizes, alphas, dtypes, isas, threads)
def test_masks_nest_as_keep_grows(data, n, alpha, dtype, isa, count):
    w0, w1 = data.draw(lines(n))
    keeps = sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=4)))
    with use(isa, count):
        found = [lcs_core.interpolate_prune(w0, w1, alpha, k, dtype, threads=count)[1] for k in keeps]
    for keep, smaller, larger in zip(keeps, found, [*found[1:], found[-1]], strict=True):
        assert oracle.unpack(smaller, n).sum() == keep and not (smaller & ~larger).any()


@examples(100)
@given(st.data(), sizes, alphas, dtypes, isas)
def test_all_kept_is_the_blend(data, n, alpha, dtype, isa):
    w0, w1 = data.draw(lines(n))
    with use(isa, 1):
        w, mask_bits = lcs_core.interpolate_prune(w0, w1, alpha, n, dtype)
    assert_same(w, oracle.round_to(oracle.blend(w0, w1, alpha), dtype))
    assert oracle.unpack(mask_bits, n).all()


@examples(100)
@given(st.data(), sizes, st.integers(-20, 20), st.sampled_from([0.0, 0.25, 0.3, 1.0]), isas, threads)
def test_scaling_by_a_power_of_two_scales_the_result(data, n, power, alpha, isa, count):
    """Both ends lie far enough from denormals and overflow that every rounding scales along."""
    w0, w1 = data.draw(distinct_weights(n)), data.draw(distinct_weights(n))
    keep, factor = data.draw(st.integers(0, n)), np.float32(2.0**power)
    with use(isa, count):
        w, mask_bits = lcs_core.interpolate_prune(w0, w1, alpha, keep, threads=count)
        scaled, scaled_bits = lcs_core.interpolate_prune(w0 * factor, w1 * factor, alpha, keep, threads=count)
    np.testing.assert_array_equal(scaled, w * factor)
    np.testing.assert_array_equal(scaled_bits, mask_bits)


@examples(100)
@given(st.data(), sizes, isas, threads)
def test_order_of_distinct_weights_does_not_matter(data, n, isa, count):
    w = data.draw(distinct_weights(n))
    keep = data.draw(st.integers(0, n))
    order = np.random.default_rng(data.draw(st.integers(0, 2**16))).permutation(n)
    with use(isa, count):
        kept = lcs_core.interpolate_prune(w, None, 0.0, keep, threads=count)[0]
        shuffled = lcs_core.interpolate_prune(w[order], None, 0.0, keep, threads=count)[0]
    np.testing.assert_array_equal(shuffled, kept[order])


@examples(200)
@given(weights(64), dtypes)
def test_the_oracle_rounds_like_torch(x, dtype):
    """Two roundings written apart, from float32."""
    with np.errstate(all="ignore"):
        x = x.astype(np.float32)
        assert_same(array_of(torch.from_numpy(x).to(TORCH[dtype])), oracle.round_to(x, dtype))
