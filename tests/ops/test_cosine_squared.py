import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import lcs_kernels
from lcs_kernels import cosine_squared
from lcs_kernels.ops.cosine_squared import reference, reference_backward

from .prune_cases import assert_same

OP = torch.ops.lcs.cosine_squared.default
BACKWARD = torch.ops.lcs.cosine_squared_backward.default
SHAPES = [(16, 3, 3, 3), (1,), (0,), (33,), (130, 257), (16384,), (5, 5)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# A chunk's 16 float32 sums take 1024 terms each, every term rounded once; chunks add up in float64.
UNIT = (1024 + 1) * 2**-24
META = torch.ones(2, device="meta")


def ends(dtype=torch.float32, integers=False):
    draw = (lambda s: torch.randint(-3, 4, s).float()) if integers else torch.randn
    return [[draw(shape).to(dtype) for shape in SHAPES] for _ in range(2)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_integers_are_exact(isa, threads, dtype):
    torch.manual_seed(0)
    w0s, w1s = ends(dtype, integers=True)
    value, sums = OP(w0s, w1s)
    expected, expected_sums = reference(w0s, w1s)
    assert torch.equal(sums, expected_sums)
    assert abs(float(value) / float(expected) - 1) <= 2**-23


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(isa, dtype):
    torch.manual_seed(1)
    w0s, w1s = ends(dtype)
    magnitude = sum((a.double() * b.double()).abs().sum() for a, b in zip(w0s, w1s, strict=True))
    sums, expected = OP(w0s, w1s)[1], reference(w0s, w1s)[1]
    bound = UNIT * torch.stack([magnitude, expected[1], expected[2]])
    assert ((sums - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_matches_reference(isa, dtype):
    """The three factors are rounded from float64 and may differ in the last bit; then two products and a sum."""
    torch.manual_seed(2)
    w0s, w1s = ends(dtype)
    sums, grad = reference(w0s, w1s)[1], torch.tensor(1.5)
    actual, expected = BACKWARD(grad, w0s, w1s, sums), reference_backward(grad, w0s, w1s, sums)
    dot, norm0, norm1 = sums.tolist()
    cross = abs(3 * dot / norm0 / norm1)
    own = [abs(3 * dot * dot / norm0 / norm1 / n) for n in (norm0, norm1)]
    last_bit = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for i, (firsts, others) in enumerate(((w0s, w1s), (w1s, w0s))):
        for g, e, a, b in zip(actual[i], expected[i], firsts, others, strict=True):
            size = own[i] * a.double().abs() + cross * b.double().abs()
            assert ((g.double() - e.double()).abs() <= size * (3 * 2**-23 + 2 * last_bit) + 2**-24).all()


def test_same_on_every_instruction_set_and_thread_count():
    torch.manual_seed(3)
    w0s, w1s = ends()
    found = set()
    for name, threads in itertools.product(["scalar", "avx2", "avx512"], [1, 2, 5]):
        lcs_kernels.isa.set_max(name)
        torch.set_num_threads(threads)
        value, sums = OP(w0s, w1s)
        grads = BACKWARD(torch.tensor(0.7), w0s, w1s, sums)
        found.add((float(value), *sums.tolist(), *(float(g.double().sum()) for pair in grads for g in pair)))
    lcs_kernels.isa.set_max("amx")
    torch.set_num_threads(2)
    assert len(found) == 1


def test_known_angles():
    w = torch.randn(50)
    right = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(cosine_squared([w], [2 * w])) == pytest.approx(1.0, abs=2**-20)
    assert float(cosine_squared([right[0]], [right[1]])) == 0.0
    assert float(cosine_squared([torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])])) == 0.5


def test_a_zero_end_has_no_angle_and_no_gradient():
    w0, w1 = torch.zeros(40, requires_grad=True), torch.randn(40, requires_grad=True)
    value = cosine_squared([w0], [w1])
    value.backward()
    assert float(value.detach()) == 0 and not w0.grad.any() and not w1.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e30, 1e19, 1e-19, 1e-22, 1e-30])
def test_squares_beyond_float32(isa, size, dtype):
    torch.manual_seed(6)
    w0s, w1s = [[(w.float() * size).to(dtype) for w in end] for end in ends()]
    value, sums = OP(w0s, w1s)
    expected, expected_sums = reference(w0s, w1s)
    magnitude = sum((a.double() * b.double()).abs().sum() for a, b in zip(w0s, w1s, strict=True))
    bound = UNIT * torch.stack([magnitude, expected_sums[1], expected_sums[2]])
    assert ((sums - expected_sums).abs() <= bound).all() and float(value) > 0 and float(expected) > 0
    grads = BACKWARD(torch.tensor(1.5), w0s, w1s, expected_sums)
    wide = [[w.double() for w in end] for end in (w0s, w1s)]
    exact = reference_backward(torch.tensor(1.5).double(), *wide, expected_sums)
    dot, norm0, norm1 = expected_sums.tolist()
    cross, last_bit = abs(3 * dot / norm0 / norm1), {torch.float32: 2**-24, torch.bfloat16: 2**-8}[dtype]
    for i, norm in enumerate((norm0, norm1)):
        own = abs(3 * dot / norm0 * (dot / norm1) / norm)
        for g, e, w, other in zip(grads[i], exact[i], wide[i], wide[1 - i], strict=True):
            bound = (own * w.abs() + cross * other.abs()) * (3 * 2**-23 + 2 * last_bit) + 2**-126
            assert ((g.double() - e).abs() <= bound).all()


def test_an_ordinary_layer_beside_a_tiny_one(isa):
    torch.manual_seed(7)
    w0, w1 = torch.randn(2, 400).unbind()
    tiny0, tiny1 = torch.randn(2, 30).mul(1e-25).unbind()
    assert torch.equal(OP([w0, tiny0], [w1, tiny1])[1], OP([w0], [w1])[1])


def test_gradcheck():
    torch.manual_seed(4)
    parts = torch.randn(4, 3, 2, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(lambda a, b, c, d: cosine_squared([a, b], [c, d]), parts)


def test_gradients_equal_the_op():
    torch.manual_seed(5)
    w0s, w1s = ([w.requires_grad_() for w in end] for end in ends())
    (3 * cosine_squared(w0s, w1s)).backward()
    detached = [[w.detach() for w in end] for end in (w0s, w1s)]
    grads = BACKWARD(torch.tensor(3.0), *detached, OP(*detached)[1])
    for w, g in zip([*w0s, *w1s], [*grads[0], *grads[1]], strict=True):
        assert_same(w.grad, g)


def test_strided_ends():
    w0, w1 = torch.randn(2, 20, 30).unbind()
    same = OP([w0.t()[1::2]], [w1.t()[1::2]])
    expected = OP([w0.t()[1::2].contiguous()], [w1.t()[1::2].contiguous()])
    assert all(torch.equal(a, e) for a, e in zip(same, expected, strict=True))


def test_opcheck():
    w0s, w1s = ends()
    opcheck(OP, (w0s, w1s))
    opcheck(BACKWARD, (torch.tensor(2.0), w0s, w1s, OP(w0s, w1s)[1]))


def test_compiles_to_one_graph():
    graphs = CompileCounterWithBackend("aot_eager")
    run = torch.compile(lambda *e: cosine_squared(e[:2], e[2:]), fullgraph=True, backend=graphs)
    for _ in range(3):
        parts = [torch.randn(9, requires_grad=True) for _ in range(4)]
        run(*parts).backward()
        assert parts[0].grad is not None
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    ("w0s", "w1s", "error", "words"),
    [
        ([], [], ValueError, "at least one"),
        ([torch.ones(2)], [], ValueError, "got 1 and 0"),
        ([torch.ones(2)], [torch.ones(3)], ValueError, r"w1s\[0\] has shape \(3,\)"),
        ([torch.ones(2), torch.ones(2).double()], [torch.ones(2), torch.ones(2).double()], TypeError, r"w0s\[1\] is"),
        ([torch.ones(2).int()], [torch.ones(2).int()], TypeError, "int32"),
        ([torch.ones(2), META], [torch.ones(2), META], ValueError, r"w0s\[1\] is on meta, w0s\[0\] on cpu"),
    ],
    ids=str,
)
def test_bad_arguments(w0s, w1s, error, words):
    with pytest.raises(error, match=words):
        cosine_squared(w0s, w1s)
