import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from lcs_kernels import interpolate_prune, interpolate_prune_foreach, interpolate_prune_foreach_masks
from lcs_kernels.ops.interpolate_prune_foreach import reference, reference_backward

from .prune_cases import KINDS, assert_same

OP = torch.ops.lcs.interpolate_prune_foreach.default
BACKWARD = torch.ops.lcs.interpolate_prune_foreach_backward.default
SHAPES = [(16, 3, 3, 3), (1,), (0,), (7, 33), (130, 257), (64,), (5, 5)]
SIZES = [torch.Size(shape).numel() for shape in SHAPES]
ALPHA = torch.tensor(0.3)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def layers(kind):
    pairs = [KINDS[kind](n) if n else (torch.empty(0), torch.empty(0)) for n in SIZES]
    ends = zip(*pairs, strict=True)
    return [[w.view(shape) for w, shape in zip(end, SHAPES, strict=True)] for end in ends]


def assert_all_same(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert_same(a, e) if a.is_floating_point() else torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("line", [True, False], ids=["line", "point"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_reference(isas, kind, dtype, line):
    torch.manual_seed(0)
    w0s, w1s = layers(kind)
    per_layer = torch.tensor([n // 3 for n in SIZES])
    together = torch.tensor(sum(SIZES) // 7)
    for keep in (per_layer, torch.zeros_like(per_layer), torch.tensor(SIZES), together, torch.tensor(0)):
        args = (w0s, w1s if line else [], ALPHA, keep, dtype)
        both = reference(*args)
        for _ in isas():
            for actual, expected in zip(OP(*args), both, strict=True):
                assert_all_same(actual, expected)


@pytest.mark.parametrize("kind", ["normal", "integers", "two_values"])
def test_threads_change_nothing(threads, kind):
    torch.manual_seed(1)
    w0s, w1s = ([w.repeat(*[3] * w.dim()) for w in end] for end in layers(kind))
    total = sum(w.numel() for w in w0s)
    for keep in (torch.tensor(total // 5), torch.tensor([w.numel() // 4 for w in w0s])):
        for actual, expected in zip(OP(w0s, w1s, ALPHA, keep), reference(w0s, w1s, ALPHA, keep), strict=True):
            assert_all_same(actual, expected)


@pytest.mark.parametrize("seed", range(40))
def test_random_layers_of_every_kind(seed, isas):
    """Layers of several chunks, easy and hard side by side, on one to three threads."""
    torch.manual_seed(seed)
    source, dtype = (DTYPES[i] for i in torch.randint(3, (2,)))
    kinds, sizes = list(KINDS.values()), torch.randint(1, 60_000, (5,)).tolist()
    ends = zip(*(kinds[int(torch.randint(len(kinds), ()))](n) for n in sizes), strict=True)
    w0s, w1s = ([w.to(source) for w in end] for end in ends)
    before = torch.get_num_threads()
    torch.set_num_threads(1 + seed % 3)
    try:
        for keep in (torch.tensor([int(torch.randint(n + 1, ())) for n in sizes]), torch.tensor(sum(sizes) // 3)):
            args = (w0s, w1s if seed % 2 else [], ALPHA, keep, dtype)
            both = reference(*args)
            for _ in isas():
                for actual, expected in zip(OP(*args), both, strict=True):
                    assert_all_same(actual, expected)
    finally:
        torch.set_num_threads(before)


def test_together_ranks_across_layers():
    w0s = [torch.tensor([1.0, 5.0]), torch.tensor([3.0, 5.0, 2.0])]
    assert [w.tolist() for w in interpolate_prune_foreach(w0s, None, 0.0, keep=1)] == [[0, 0], [0, 5, 0]]
    assert [w.tolist() for w in interpolate_prune_foreach(w0s, None, 0.0, keep=3)] == [[0, 5], [3, 5, 0]]
    assert [w.tolist() for w in interpolate_prune_foreach(w0s, None, 0.0, 0.5)] == [[0, 5], [3, 5, 0]]


def test_equals_one_call_per_layer():
    torch.manual_seed(2)
    w0s, w1s = layers("normal")
    densities = [i / 7 for i in range(7)]
    singles = [interpolate_prune(a, b, 0.3, d) for a, b, d in zip(w0s, w1s, densities, strict=True)]
    assert_all_same(interpolate_prune_foreach(w0s, w1s, 0.3, densities), singles)
    at_half = [interpolate_prune(a, b, 0.3, 0.5) for a, b in zip(w0s, w1s, strict=True)]
    for density in (0.5, torch.tensor(0.5, dtype=torch.float64)):
        assert_all_same(interpolate_prune_foreach(w0s, w1s, 0.3, density), at_half)


@pytest.mark.parametrize("wants_alpha", [True, False])
@pytest.mark.parametrize("line", [True, False], ids=["line", "point"])
def test_backward_matches_reference(isa, line, wants_alpha):
    torch.manual_seed(3)
    w0s, w1s = layers("normal")
    mask_bits = OP(w0s, w1s, ALPHA, torch.tensor([n // 2 for n in SIZES]))[1]
    ends = (w0s, w1s) if line and wants_alpha else ([], [])
    args = ([torch.randn(shape) for shape in SHAPES], *ends, ALPHA, mask_bits, line, torch.float32)
    (a0, a1, a_alpha), (e0, e1, e_alpha) = BACKWARD(*args), reference_backward(*args)
    assert_all_same(a0, e0)
    assert_all_same(a1, e1)
    assert a_alpha.shape == e_alpha.shape
    if a_alpha.dim() == 0:
        terms = sum((g / 0.7 * (y - x)).abs().sum() for g, x, y in zip(e0, w0s, w1s, strict=True))
        assert abs(float(a_alpha - e_alpha)) <= float(terms) * (1024 + 3) * 2**-24


@pytest.mark.parametrize("together", [True, False])
def test_gradcheck(together):
    torch.manual_seed(4)
    ends = torch.randn(4, 3, 4, dtype=torch.float64).requires_grad_().unbind()
    alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    level = {"keep": 9} if together else {"density": 0.5}

    def run(alpha, a, b, c, d):
        return interpolate_prune_foreach([a, b], [c, d], alpha, **level)

    assert torch.autograd.gradcheck(run, (alpha, *ends))


def test_gradients_equal_one_call_per_layer():
    torch.manual_seed(5)
    w0s, w1s = ([w.requires_grad_() for w in end] for end in layers("normal"))
    sum((w * w).sum() for w in interpolate_prune_foreach(w0s, w1s, 0.3, 0.4)).backward()
    for w0, w1 in zip(w0s, w1s, strict=True):
        single = [w.detach().clone().requires_grad_() for w in (w0, w1)]
        interpolate_prune(*single, 0.3, 0.4).square().sum().backward()
        assert torch.equal(w0.grad, single[0].grad) and torch.equal(w1.grad, single[1].grad)


def test_opcheck():
    w0s, w1s = layers("normal")
    keep = torch.tensor([n // 3 for n in SIZES])
    opcheck(OP, (w0s, w1s, ALPHA, keep, None))
    opcheck(OP, (w0s, [], ALPHA, torch.tensor(50), torch.bfloat16))
    bits = OP(w0s, w1s, ALPHA, keep)[1]
    opcheck(BACKWARD, (w0s, w0s, w1s, ALPHA, bits, True, torch.float32))
    opcheck(BACKWARD, (w0s, [], [], ALPHA, bits, False, torch.float32))


def test_compiles_once_for_every_level():
    graphs = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=graphs)
    def step(ends, alpha, density):
        return sum(w.square().sum() for w in interpolate_prune_foreach(ends[:2], ends[2:], alpha, density))

    ends = [torch.randn(40, 5, requires_grad=True) for _ in range(4)]
    for i in range(100):
        step(ends, torch.tensor(i / 99), torch.tensor(i / 99, dtype=torch.float64)).backward()
    assert graphs.frame_count <= 2


def test_no_layers():
    assert interpolate_prune_foreach([], None, 0.0, 0.5) == []
    assert interpolate_prune_foreach_masks([], None, 0.0, 0.5) == ([], [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_masks_come_with_the_weights_and_without_a_gradient(dtype):
    w0s, w1s = ([w.to(dtype).requires_grad_() for w in end] for end in layers("integers"))
    ws, mask_bits = interpolate_prune_foreach_masks(w0s, w1s, 0.3, 0.2)
    assert_all_same(ws, interpolate_prune_foreach(w0s, w1s, 0.3, 0.2))
    keep = torch.tensor([round(0.2 * n) for n in SIZES])
    assert_all_same(mask_bits, reference(w0s, w1s, ALPHA.to(torch.promote_types(dtype, torch.float32)), keep)[1])
    assert not any(w.requires_grad for w in ws)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"w1s": [torch.randn(4)]}, ValueError, "w0s has 2 layers and w1s 1"),
        ({"w1s": [torch.randn(4), torch.randn(5)]}, ValueError, r"w1s\[1\] has shape \(5,\)"),
        ({"w0s": [torch.randn(4), torch.randn(6).double()], "w1s": None}, ValueError, r"w0s\[1\] is torch.float64"),
        ({"density": [0.5]}, ValueError, "density has 1 entries for 2 layers"),
        ({"density": [0.5, 2.0]}, ValueError, "density must lie in"),
        ({"density": None, "keep": [1, 7]}, ValueError, r"keep\[1\] must lie in \[0, 6\], got 7"),
        ({"density": None, "keep": 2.9}, TypeError, "keep must be a whole number, got 2.9"),
        ({"density": None, "keep": [1, 2.9]}, TypeError, r"keep\[1\] must be a whole number, got 2.9"),
        ({"density": torch.tensor(0.5, device="meta")}, ValueError, "density is on meta"),
        ({"density": None, "keep": torch.ones(2, device="meta").long()}, ValueError, "keep is on meta"),
        ({"density": None, "keep": 11}, ValueError, r"keep must lie in \[0, 10\], got 11"),
        ({"density": None, "keep": torch.tensor([1])}, ValueError, "keep has 1 entries for 2 layers"),
        ({"w1s": [torch.randn(4), torch.full((6,), torch.inf)], "check_finite": True}, ValueError, r"w1s\[1\] holds 6"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"w0s": [torch.randn(4), torch.randn(6)], "w1s": None, "alpha": 0.5, "density": 0.5} | change
    with pytest.raises(error, match=words):
        interpolate_prune_foreach(**arguments)


def test_numbers_of_numpy():
    w0s = [torch.randn(4), torch.randn(6)]
    for name, value in (("keep", np.int64(3)), ("keep", np.array([1, 2])), ("density", np.float32(0.5))):
        given = value.tolist()
        found, expected = (interpolate_prune_foreach(w0s, None, 0.0, **{name: v}) for v in (value, given))
        assert_all_same(found, expected)


def test_counts_of_any_stride():
    w0s, counts = [torch.randn(4), torch.randn(6)], torch.tensor([1, 9, 2, 9])
    strided, listed = (interpolate_prune_foreach(w0s, None, 0.0, keep=keep) for keep in (counts[::2], [1, 2]))
    assert_all_same(strided, listed)
