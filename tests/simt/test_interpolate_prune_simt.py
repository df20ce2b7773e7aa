"""The CUDA kernels of interpolate_prune on the CPU, in random orders of threads and blocks, against the reference."""

import pytest
import torch

from lcs_kernels import keep_count
from lcs_kernels.ops._library import pack_bits
from lcs_kernels.ops.interpolate_prune_foreach import reference, reference_backward

from ..ops.prune_cases import KINDS, assert_same
from .host import DTYPES, build, prune, prune_backward

SHAPES = [(0,), (16, 3, 3, 3), (1,), (7, 33), (81, 57), (0, 3)]
SIZES = [torch.Size(shape).numel() for shape in SHAPES]
# At small sizes a sample is the whole of a layer: so that brackets are guessed, miss and overflow as in large layers.
VARIANTS = {
    "as_they_are": [],
    "small_sample": [("kSample = 4096", "kSample = 64")],
    "wrong_guess": [
        ("kSample = 4096", "kSample = 64"),
        ("return {low, high - low, 0, 0};", "return {high, high - low, 0, 0};"),
    ],
    "long_list": [("kSample = 4096", "kSample = 64"), ("kPerListed = 8", "kPerListed = 1")],
    "short_list": [("kSample = 4096", "kSample = 64"), ("kPerListed = 8", "kPerListed = 200")],
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, objects):
    return build(objects / request.param, VARIANTS[request.param])


def layers(kind, source=torch.float32, shapes=SHAPES):
    sizes = [torch.Size(shape).numel() for shape in shapes]
    pairs = [KINDS[kind](n) if n else (torch.empty(0), torch.empty(0)) for n in sizes]
    ends = zip(*pairs, strict=True)
    return [[w.to(source).view(shape).contiguous() for w, shape in zip(end, shapes, strict=True)] for end in ends]


def assert_all_same(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert_same(a, e) if a.is_floating_point() else torch.testing.assert_close(a, e, rtol=0, atol=0)


def check(library, w0s, w1s, alpha, keep, dtype=None, **order):
    actual = prune(library, w0s, w1s, alpha, keep, dtype, **order)
    for a, e in zip(actual, reference(w0s, w1s, torch.tensor(alpha), keep, dtype), strict=True):
        assert_all_same(a, e)


@pytest.mark.parametrize("n", [33, 4097])
@pytest.mark.parametrize("kind", KINDS)
def test_matches_reference(variant, kind, n):
    torch.manual_seed(n)
    w0, w1 = (w.contiguous() for w in KINDS[kind](n))
    for seed, density in enumerate((0.1, 0.5)):
        check(variant, [w0], [w1], 0.3, torch.tensor([keep_count(density, n)]), seed=seed)


def check_layers(library, kinds, source, dtype, line):
    for seed, kind in enumerate(kinds):
        torch.manual_seed(seed)
        w0s, w1s = layers(kind, source)
        for keep in (torch.tensor([n // 3 for n in SIZES]), torch.tensor(sum(SIZES) // 7)):
            check(library, w0s, w1s if line else [], 0.7, keep, dtype, seed=seed)


@pytest.mark.parametrize("line", [True, False], ids=["line", "point"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_layers_of_any_dtype(kernels, source, dtype, line):
    check_layers(kernels, ["nonfinite" if line else "half_range"], source, dtype, line)


def test_layers_side_by_side(variant):
    check_layers(variant, ["normal", "two_values"], torch.float32, torch.bfloat16, line=True)


@pytest.mark.parametrize("together", [True, False])
def test_counts_among_ties(variant, together):
    torch.manual_seed(1)
    for seed, w0s in enumerate(([torch.ones(shape) for shape in SHAPES], layers("integers")[0])):
        for keep in range(-5, sum(SIZES) + 400, 1801):
            counts = torch.tensor(keep) if together else torch.tensor([keep % (n + 1) for n in SIZES])
            check(variant, w0s, [], 0.0, counts, torch.bfloat16, seed=seed)


@pytest.mark.parametrize("resident", [1, 7])
def test_the_number_of_blocks_changes_nothing(variant, resident):
    torch.manual_seed(resident)
    w0s, w1s = layers("integers")
    for keep in (torch.tensor([n // 3 for n in SIZES]), torch.tensor(sum(SIZES) // 7)):
        check(variant, w0s, w1s, 0.25, keep, resident=resident)


def test_more_layers_than_fit_a_launch(kernels):
    torch.manual_seed(2)
    w0s, w1s = layers("integers", shapes=[(n,) for n in range(60)])
    check(kernels, w0s, w1s, 0.3, torch.tensor([n // 2 for n in range(60)]))
    check(kernels, w0s, w1s, 0.3, torch.tensor(500))


def test_layers_that_are_all_empty(kernels):
    check(kernels, [torch.empty(0), torch.empty(0, 3)], [], 0.3, torch.tensor([0, 0]))
    check(kernels, [torch.empty(0), torch.empty(0, 3)], [], 0.3, torch.tensor(0))


@pytest.mark.parametrize("line", ["alpha", "line", "point"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_backward_matches_reference(kernels, source, dtype, line):
    torch.manual_seed(3)
    w0s, w1s = layers("normal", source)
    masks = [pack_bits(torch.rand(n) < (0.02 if n > 999 else 0.5)) for n in SIZES]
    ends = (w0s, w1s) if line == "alpha" else ([], [])
    grads = [torch.randn(shape).to(dtype) for shape in SHAPES]
    args = (grads, *ends, torch.tensor(0.3), masks, line != "point", source)
    actual, expected = prune_backward(kernels, *args), reference_backward(*args)
    assert_all_same(actual[0], expected[0])
    assert_all_same(actual[1], expected[1])
    assert actual[2].shape == expected[2].shape
    if line == "alpha":
        # four products and their sum in float32: each term is rounded at most six times; the sums above are float64
        kept = [torch.where(g0 != 0, g.double(), 0) for g0, g in zip(expected[0], grads, strict=True)]
        terms = sum((g * (b.double() - a.double())).abs().sum() for g, a, b in zip(kept, w0s, w1s, strict=True))
        assert abs(float(actual[2].double() - expected[2].double())) <= float(terms) * 8 * 2**-24


def test_a_weight_that_was_not_kept_has_no_part_in_alphas_gradient(kernels):
    w0, w1, grad = torch.randn(3, 300).unbind()
    kept = torch.arange(300) % 3 == 0
    bad = torch.where(kept, w1, torch.nan)
    args = (torch.tensor(0.3), [pack_bits(kept)], True, torch.float32)
    expected = prune_backward(kernels, [grad], [w0], [w1], *args)[2]
    assert torch.equal(prune_backward(kernels, [grad], [w0], [bad], *args)[2], expected)
