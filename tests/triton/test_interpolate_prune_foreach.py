"""The Triton kernels over lists of layers, in Triton's interpreter, against the reference."""

import pytest
import torch

from lcs_kernels._triton import kernel
from lcs_kernels.ops.interpolate_prune_foreach import reference, reference_backward

from ..ops.prune_cases import KINDS, assert_same

INTERPRET = True
BLOCK = 256
SHAPES = [(0,), (16, 3, 3, 3), (1,), (0,), (7, 33), (20, 37), (64,), (5, 5), (0, 3)]
SIZES = [torch.Size(shape).numel() for shape in SHAPES]
ALPHA = torch.tensor(0.3)
PER_LAYER = torch.tensor([n // 3 for n in SIZES])

prune = kernel("interpolate_prune_foreach", "interpolate_prune_foreach")
prune_backward = kernel("interpolate_prune_foreach", "interpolate_prune_foreach_backward")


def layers(kind, shapes=SHAPES):
    sizes = [torch.Size(shape).numel() for shape in shapes]
    pairs = [KINDS[kind](n) if n else (torch.empty(0), torch.empty(0)) for n in sizes]
    return [[w.view(shape) for w, shape in zip(end, shapes, strict=True)] for end in zip(*pairs, strict=True)]


def assert_all_same(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert_same(a, e) if a.is_floating_point() else torch.testing.assert_close(a, e, rtol=0, atol=0)


def check(w0s, w1s, keep, dtype=None):
    for actual, expected in zip(
        prune(w0s, w1s, ALPHA, keep, dtype, block=BLOCK), reference(w0s, w1s, ALPHA, keep, dtype), strict=True
    ):
        assert_all_same(actual, expected)


@pytest.mark.parametrize(("line", "dtype"), [(True, None), (True, torch.bfloat16), (False, torch.float16)], ids=str)
@pytest.mark.parametrize("kind", ["integers", "nonfinite", "half_range"])
def test_matches_reference(kind, line, dtype):
    torch.manual_seed(0)
    w0s, w1s = layers(kind)
    for keep in (PER_LAYER, torch.tensor(sum(SIZES) // 7)):
        check(w0s, w1s if line else [], keep, dtype)


@pytest.mark.parametrize(
    "keep",
    [torch.zeros_like(PER_LAYER), torch.tensor(SIZES), torch.tensor(0), torch.tensor(sum(SIZES))],
    ids=["none_each", "all_each", "none", "all"],
)
def test_none_and_all(keep):
    torch.manual_seed(1)
    check(*layers("normal"), keep)


def test_together_the_ties_of_later_layers_stay():
    ones = [torch.ones(shape) for shape in SHAPES]
    for keep in range(0, sum(SIZES), 211):
        check(ones, [], torch.tensor(keep), torch.bfloat16)


def test_many_layers():
    torch.manual_seed(2)
    w0s, w1s = layers("integers", [(n,) for n in range(37)])
    check(w0s, w1s, torch.tensor([n // 2 for n in range(37)]))
    check(w0s, w1s, torch.tensor(200))


def test_layers_that_are_all_empty():
    check([torch.empty(0), torch.empty(0, 3)], [], torch.tensor([0, 0]))
    check([torch.empty(0), torch.empty(0, 3)], [], torch.tensor(0))


@pytest.mark.parametrize("wants_alpha", [True, False])
@pytest.mark.parametrize("line", [True, False], ids=["line", "point"])
def test_backward_matches_reference(line, wants_alpha):
    torch.manual_seed(3)
    w0s, w1s = layers("normal")
    mask_bits = reference(w0s, w1s, ALPHA, PER_LAYER)[1]
    ends = (w0s, w1s) if line and wants_alpha else ([], [])
    args = ([torch.randn(shape) for shape in SHAPES], *ends, ALPHA, mask_bits, line, torch.float32)
    (a0, a1, a_alpha), (e0, e1, e_alpha) = prune_backward(*args, block=BLOCK), reference_backward(*args)
    assert_all_same(a0, e0)
    assert_all_same(a1, e1)
    assert a_alpha.shape == e_alpha.shape
    if a_alpha.dim() == 0:
        terms = sum((g / 0.7 * (y - x)).abs().sum() for g, x, y in zip(e0, w0s, w1s, strict=True))
        assert abs(float(a_alpha - e_alpha)) <= float(terms) * (BLOCK + 3) * 2**-24


def test_no_layers():
    assert prune([], [], ALPHA, torch.tensor(0)) == ([], [])
    grad_w0s, grad_w1s, grad_alpha = prune_backward([], [], [], ALPHA, [], True, torch.float32)
    assert (grad_w0s, grad_w1s, grad_alpha.numel()) == ([], [], 0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"w1s": [torch.randn(4)]}, ValueError, "w1 is given for 1 of 2 layers"),
        ({"w0s": [torch.randn(4), torch.randn(6).half()]}, TypeError, "w0 of layer 1 must be torch.float32, got .*16"),
        ({"keep": torch.tensor([1])}, ValueError, r"keep must have shape \(2,\), got \(1,\)"),
    ],
    ids=["length", "dtype", "keep"],
)
def test_bad_arguments(change, error, words):
    arguments = {"w0s": [torch.randn(4), torch.randn(6)], "w1s": [], "alpha": ALPHA, "keep": torch.tensor(5)}
    with pytest.raises(error, match="interpolate_prune_foreach: " + words):
        prune(**arguments | change)
