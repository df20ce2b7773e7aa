import itertools

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import lcs_kernels
from lcs_kernels import interpolate_prune, keep_count
from lcs_kernels.ops._library import pack_bits, unpack_bits
from lcs_kernels.ops.interpolate_prune import reference, reference_backward

from ..conftest import as_it_is
from .prune_cases import KINDS, SIZES, assert_same

OP = torch.ops.lcs.interpolate_prune.default
BACKWARD = torch.ops.lcs.interpolate_prune_backward.default
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DENSITIES = [0.0, 0.025, 0.5, 0.9, 1.0]


def scalars(alpha, keep):
    return torch.tensor(alpha), torch.tensor(keep)


def check(w0, w1, alpha, keep, dtype=None, isas=as_it_is):
    expected, expected_bits = reference(w0, w1, *scalars(alpha, keep), dtype)
    kept = sum(int(word & 0xFFFFFFFF).bit_count() for word in expected_bits.tolist())
    assert kept == min(max(keep, 0), w0.numel())
    for _ in isas():
        w, mask_bits = OP(w0, w1, *scalars(alpha, keep), dtype)
        assert_same(w, expected)
        assert torch.equal(mask_bits, expected_bits)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_reference(isas, kind, n):
    torch.manual_seed(n)
    w0, w1 = KINDS[kind](n)
    for density in DENSITIES:
        check(w0, w1, 0.3, keep_count(density, n), isas=isas)
    check(w0, None, 0.3, keep_count(0.1, n), isas=isas)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_dtypes(isas, source, dtype, kind):
    torch.manual_seed(1)
    w0, w1 = (w.to(source) for w in KINDS[kind](20_011))
    check(w0, w1, 0.7, 5000, dtype, isas)
    check(w0, None, 0.7, 5000, dtype, isas)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_of_eight_mebibytes_and_more(isas, dtype):
    """They are written past the caches."""
    torch.manual_seed(3)
    n = (8 << 20) // dtype.itemsize + 20_011
    w0, w1 = torch.randn(2, n).unbind()
    check(w0, w1, 0.3, n // 3, dtype, isas)


def test_as_many_ties_as_a_list_holds_or_a_few_more(isas):
    """2048 offsets of a chunk are listed; weights that are no ties follow them."""
    for ties in range(2010, 2090):
        w0 = torch.cat([torch.ones(ties), torch.full((4097 - ties,), -2.0)])
        check(w0, w0.clone(), 0.3, 4097 - ties // 2, isas=isas)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_nothing(threads, kind):
    torch.manual_seed(2)
    w0, w1 = KINDS[kind](300_007)
    check(w0, w1, 0.25, 30_001)


def test_every_small_input():
    """All of {-2, -1, 0, 1, 2, inf, NaN}^n for n up to 4, and every count."""
    values = [-2.0, -1.0, 0.0, 1.0, 2.0, float("inf"), float("nan")]
    for n in range(1, 5):
        for row in itertools.product(values, repeat=n):
            for keep in range(n + 1):
                w = OP(torch.tensor(row), None, *scalars(0.0, keep), None)[0]
                ranked = sorted(range(n), key=lambda i: (rank(row[i]), i))
                expected = [x if i in ranked[n - keep :] else 0.0 for i, x in enumerate(row)]
                assert_same(w, torch.tensor(expected))


def rank(x):
    return (x != x, abs(x) if x == x else 0.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_ends_of_the_line_are_exact(isa, alpha):
    w0, w1 = torch.randn(1000), torch.randn(1000)
    assert torch.equal(interpolate_prune(w0, w1, alpha, 1.0), w1 if alpha else w0)


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.t(),
        lambda w: w[1::2, 3:-2],
        lambda w: w[:1].expand(40, 60),
        lambda w: w.reshape(8, 5, 6, 10).to(memory_format=torch.channels_last),
        lambda w: w[:0],
        lambda w: w[3, 7],
    ],
    ids=["transposed", "strided", "expanded", "channels_last", "empty", "scalar"],
)
def test_any_shape_and_stride(isa, view):
    torch.manual_seed(3)
    w0, w1 = view(torch.randn(40, 60)), view(torch.randint(-2, 3, (40, 60)).float())
    check(w0, w1, 0.5, keep_count(0.3, w0.numel()))


def test_keep_out_of_range_is_clamped():
    check(torch.randn(10), None, 0.0, 99)
    check(torch.randn(10), None, 0.0, -3)


@pytest.mark.parametrize("line", [True, False], ids=["line", "point"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 33, 16_385, 70_001])
def test_backward_matches_reference(isa, n, dtype, line):
    torch.manual_seed(4)
    w0, w1, alpha = torch.randn(n), torch.randn(n) if line else None, torch.tensor(0.3)
    mask_bits = pack_bits(torch.rand(n) < 0.2)
    grad = torch.randn(n).to(dtype)
    actual = BACKWARD(grad, w0 if line else None, w1, alpha, mask_bits, line, torch.float32)
    expected = reference_backward(grad, w0 if line else None, w1, alpha, mask_bits, line, torch.float32)
    assert_same(actual[0], expected[0])
    assert_same(actual[1], expected[1])
    if line:
        terms = (expected[0].double() / 0.7 * (w1.double() - w0.double())).abs().sum()
        # 16 running sums of at most 1024 float32 terms a chunk, each term rounded twice, then one rounding of the total
        assert abs(float(actual[2].double() - expected[2].double())) <= float(terms) * (1024 + 3) * 2**-24


@pytest.mark.parametrize("source", DTYPES[1:], ids=str)
def test_backward_of_half_weights(isa, source):
    torch.manual_seed(5)
    grad, mask_bits = torch.randn(1001).to(source), pack_bits(torch.rand(1001) < 0.5)
    args = (grad, None, None, torch.tensor(0.3), mask_bits, True, source)
    for actual, expected in zip(BACKWARD(*args)[:2], reference_backward(*args)[:2], strict=True):
        assert_same(actual, expected)


def test_alpha_gradient_is_the_same_on_every_instruction_set_and_thread_count():
    torch.manual_seed(6)
    w0, w1, grad = torch.randn(3, 100_003).unbind()
    mask_bits = pack_bits(torch.rand(100_003) < 0.3)
    found = set()
    for name, threads in itertools.product(["scalar", "avx2", "avx512"], [1, 2, 5]):
        lcs_kernels.isa.set_max(name)
        torch.set_num_threads(threads)
        found.add(float(BACKWARD(grad, w0, w1, torch.tensor(0.4), mask_bits, True, torch.float32)[2]))
    lcs_kernels.isa.set_max("amx")
    torch.set_num_threads(2)
    assert len(found) == 1


def test_gradients_reach_ends_and_alpha():
    torch.manual_seed(7)
    ends = [torch.randn(6, 50, requires_grad=True) for _ in range(2)]
    alpha = torch.tensor(0.3, requires_grad=True)
    probe = torch.randn(6, 50)
    (interpolate_prune(*ends, alpha, 0.25) * probe).sum().backward()
    mirror = [e.detach().clone().requires_grad_() for e in (*ends, alpha)]
    (reference(*mirror, torch.tensor(75))[0] * probe).sum().backward()
    assert torch.equal(ends[0].grad, mirror[0].grad) and torch.equal(ends[1].grad, mirror[1].grad)
    assert torch.allclose(alpha.grad, mirror[2].grad, rtol=300 * 2**-23, atol=0)


def test_alpha_gradient_may_be_beyond_float32():
    w0, w1, grad = torch.tensor([[-1e20], [1e20], [1e30]]).expand(3, 40)
    mask_bits = pack_bits(torch.ones(40, dtype=torch.bool))
    arguments = (grad, w0, w1, torch.tensor(0.3), mask_bits, True, torch.float32)
    assert BACKWARD(*arguments)[2] == reference_backward(*arguments)[2] == torch.inf
    arguments = ([grad], [w0], [w1], torch.tensor(0.3), [mask_bits], True, torch.float32)
    assert torch.ops.lcs.interpolate_prune_foreach_backward(*arguments)[2] == torch.inf


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_gradcheck(density):
    torch.manual_seed(8)
    w0, w1 = torch.randn(2, 4, 5, dtype=torch.float64).requires_grad_().unbind()
    alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, x, y: interpolate_prune(x, y, a, density), (alpha, w0, w1))
    assert torch.autograd.gradcheck(lambda x: interpolate_prune(x, None, 0.0, density), (w0,))


def test_no_second_derivative():
    w = torch.randn(9, requires_grad=True)
    (grad,) = torch.autograd.grad(interpolate_prune(w, None, 0.0, 0.5).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    w0, w1 = torch.randn(2, 5, 9).unbind()
    for end in (w1, None):
        opcheck(OP, (w0, end, *scalars(0.3, 20), dtype))
    mask_bits = pack_bits(torch.rand(45) < 0.5)
    opcheck(BACKWARD, (torch.randn(5, 9), w0, w1, torch.tensor(0.3), mask_bits, True, torch.float32))
    opcheck(BACKWARD, (torch.randn(5, 9), None, None, torch.tensor(0.3), mask_bits, False, torch.float32))


def test_compiles_once_for_every_level():
    graphs = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=graphs)
    def step(w0, w1, alpha, density):
        return interpolate_prune(w0, w1, alpha, density).square().sum()

    w0, w1 = (torch.randn(300, requires_grad=True) for _ in range(2))
    for i in range(100):
        level = torch.tensor(i / 99), torch.tensor(i / 99, dtype=torch.float64)
        step(w0, w1, *level).backward()
        expected = interpolate_prune(w0, w1, *level).square().sum()
        assert torch.equal(step(w0, w1, *level), expected)
    assert graphs.frame_count <= 2


def test_autocast_gives_its_own_dtype_and_float32_gradients():
    w0, w1 = (torch.randn(100, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        w = interpolate_prune(w0, w1, 0.5, 0.2)
        kept = interpolate_prune(w0, w1, 0.5, 0.2, dtype=torch.float32)
    assert w.dtype == torch.bfloat16 and kept.dtype == torch.float32
    w.sum().backward()
    assert w0.grad.dtype == torch.float32 and int((w0.grad != 0).sum()) == 20
    assert_same(w.detach(), reference(w0.detach(), w1.detach(), *scalars(0.5, 20), torch.bfloat16)[0])


def test_mask_bits_round_trip():
    for n in (0, 1, 31, 32, 33, 100):
        mask = torch.rand(n) < 0.5
        assert torch.equal(unpack_bits(pack_bits(mask), n), mask)


@pytest.mark.parametrize(
    ("density", "n", "keep"), [(0.5, 5, 2), (0.5, 7, 4), (0.9, 10, 9), (0, 9, 0), (1, 9, 9), (1 / 3, 3, 1)]
)
def test_keep_count_rounds_half_to_even(density, n, keep):
    assert keep_count(density, n) == keep
    w = interpolate_prune(torch.ones(n), None, 0.0, torch.tensor(density, dtype=torch.float64))
    assert int(w.sum()) == keep


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"density": 1.5}, ValueError, "density must lie in"),
        ({"density": float("nan")}, ValueError, "density must lie in"),
        ({"alpha": -0.1}, ValueError, "alpha must lie in .*extrapolate"),
        ({"alpha": torch.zeros(2)}, ValueError, r"alpha must be a number or a 0-d tensor, got shape \(2,\)"),
        ({"density": None}, ValueError, "exactly one of density and keep"),
        ({"keep": 3}, ValueError, "exactly one of density and keep"),
        ({"density": None, "keep": 11}, ValueError, r"keep must lie in \[0, 10\], got 11"),
        ({"w1": torch.randn(9)}, ValueError, r"w1 .*\(9,\).*\(10,\)"),
        ({"w1": torch.randn(10, dtype=torch.bfloat16)}, TypeError, "w1 .*bfloat16"),
        ({"w0": torch.arange(10), "w1": None}, TypeError, "w0 .*int64"),
        ({"dtype": torch.int8}, TypeError, "dtype .*int8"),
        ({"density": None, "keep": 2.9}, TypeError, "keep must be a whole number, got 2.9"),
        ({"density": None, "keep": torch.tensor(2.9)}, TypeError, "keep must hold whole numbers, got torch.float32"),
        ({"alpha": torch.tensor(0.5, device="meta")}, ValueError, "alpha is on meta, the tensor it is for on cpu"),
        ({"density": torch.tensor(0.5, device="meta")}, ValueError, "density is on meta"),
        ({"density": None, "keep": torch.tensor(2, device="meta")}, ValueError, "keep is on meta"),
        ({"w1": torch.randn(10, device="meta")}, ValueError, "w1 .*meta"),
        ({"w0": torch.tensor([float("nan")] * 10), "check_finite": True}, ValueError, "w0 holds 10 values"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"w0": torch.randn(10), "w1": torch.randn(10), "alpha": 0.5, "density": 0.5} | change
    with pytest.raises(error, match=words):
        interpolate_prune(**arguments)


def test_extrapolates_on_request():
    w0, w1 = torch.randn(2, 50).unbind()
    assert torch.equal(interpolate_prune(w0, w1, 2.0, 1.0, extrapolate=True), reference(w0, w1, *scalars(2.0, 50))[0])


def test_any_whole_number_counts_and_a_density_that_is_none_keeps_nothing():
    w = torch.randn(10)
    assert_same(interpolate_prune(w, None, 0.0, keep=np.int64(3)), interpolate_prune(w, None, 0.0, keep=3))
    for level in ({"density": torch.tensor(torch.nan)}, {"keep": torch.tensor(-(2**63))}):
        for dtype in (torch.float32, torch.float64):
            assert not interpolate_prune(w.to(dtype), None, 0.0, **level).any()


def test_meta_tensors_give_shapes():
    w = torch.ones(3, 4, device="meta")
    assert interpolate_prune(w, w, 0.5, 0.5).is_meta
