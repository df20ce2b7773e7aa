import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.nn import functional as F

from lcs_kernels import packed_linear
from lcs_kernels.formats import NestedWeight
from lcs_kernels.ops.packed_linear import MAX_COLUMNS, quantized, reference

from ..conftest import as_it_is
from .packed_cases import DTYPES, WIDTHS, assert_within_roundings, fields, nested_weight

OP = torch.ops.lcs.packed_linear.default
ROWS = [0, 1, 2, 3, 4, 7, 13, 16, 29, 128, 131]
CASES = [((33, 129), "channel", None), ((70, 1100), "tensor", None), ((5, 70), "group", 9), ((64, 256), "group", 64)]


def check(x, weight, bits, bias=None, relu=False, isas=as_it_is):
    expected = reference(x, *fields(weight), weight.shape[0], weight.group, bits, bias, relu, False, [])
    for _ in isas():
        y = packed_linear(x, weight, bits, bias, relu=relu)
        assert y.dtype == x.dtype and torch.equal(y, expected)
    return y


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_equals_the_reference(isas, rows, dtype, bits):
    """With and without a bias and a ReLU, in turn: each weight with both, one in each dtype."""
    torch.manual_seed(rows)
    for i, (shape, per, group) in enumerate(CASES):
        weight, x = nested_weight(shape, per, group), torch.randn(rows, shape[1]).to(dtype)
        plain = (i + bits + DTYPES.index(dtype)) % 2 == 0
        check(x, weight, bits, None if plain else torch.randn(shape[0]), relu=not plain, isas=isas)


@pytest.mark.parametrize("depth", range(2, 8))
def test_codes_of_fewer_bits(isa, depth):
    torch.manual_seed(9)
    for rows in (1, 2, 3, 7, 18):
        weight, x = nested_weight((37, 61), depth=depth), torch.randn(rows, 61)
        for bits in range(2, depth + 1):
            check(x, weight, bits)
            w, y = weight.unpack(bits).double(), packed_linear(x, weight, bits, exact=True)
            assert_within_roundings(y, x.double() @ w.t(), x.double().abs() @ w.abs().t(), 62)


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (5, 0), (1, 700), (65, 1)], ids=str)
def test_extreme_shapes(isa, shape):
    torch.manual_seed(0)
    for rows in (1, 5, 21):
        for bits in (2, 5, 8):
            check(torch.randn(rows, shape[1]), nested_weight(shape), bits, torch.randn(shape[0]))


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_largest_sums_fit(isas, bits):
    """Every code and every value as large as it can be, of one sign or of the other, in as many columns as allowed."""
    columns = MAX_COLUMNS if bits in (2, 8) else 1000
    for sign in (1, -1):
        for code, zero in ((255, 0), (0, 255)):
            codes = torch.full((3, columns), code, dtype=torch.uint8)
            weight = NestedWeight.from_codes(codes, torch.ones(3), torch.full((3,), zero, dtype=torch.uint8))
            for rows in (1, 5, 21):
                check(torch.full((rows, columns), 127.0 * sign), weight, bits, isas=isas)


def test_more_columns_than_32_bits_hold():
    torch.manual_seed(1)
    check(torch.randn(2, MAX_COLUMNS + 1), nested_weight((2, MAX_COLUMNS + 1)), 8)


@pytest.mark.parametrize("threads", [1, 2, 3, 8], indirect=True)
def test_threads_change_nothing(isa, threads):
    torch.manual_seed(2)
    for rows in (1, 2, 40):
        check(torch.randn(rows, 200), nested_weight((133, 200)), 4, torch.randn(133))


def test_a_row_is_worth_the_same_in_any_batch(isa):
    torch.manual_seed(3)
    weight, x = nested_weight((40, 77)), torch.randn(140, 77)
    for bits in (2, 6, 8):
        whole = packed_linear(x, weight, bits)
        for rows in (1, 2, 3, 5, 139):
            assert torch.equal(packed_linear(x[:rows], weight, bits), whole[:rows])


@pytest.mark.parametrize(
    "x", [torch.ones(7), torch.randn(2, 3, 7), torch.randn(7, 4).t(), torch.randn(6, 14)[::2, ::2]]
)
def test_any_shape_and_stride(isa, x):
    check(x, nested_weight((5, 7)), 3, torch.randn(5))


def test_bias_of_the_activations_dtype():
    x, weight, bias = torch.randn(4, 7).bfloat16(), nested_weight((5, 7)), torch.randn(5).bfloat16()
    assert torch.equal(packed_linear(x, weight, 4, bias), check(x, weight, 4, bias.float()))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-25, 1e38, 0.0])
def test_rows_of_any_size(isa, scale):
    torch.manual_seed(4)
    x = torch.randn(3, 50) * scale
    check(x.nan_to_num(), nested_weight((9, 50)), 6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_what_is_not_finite_spoils_its_row_alone(isa, rows, value):
    torch.manual_seed(5)
    weight, x = nested_weight((40, 50)), torch.randn(rows, 50)
    clean = packed_linear(x, weight, 4)
    x[rows // 2, 20] = value
    for relu in (False, True):
        y = packed_linear(x, weight, 4, relu=relu)
        assert y[rows // 2].isnan().all()
        others = torch.arange(rows) != rows // 2
        assert torch.equal(y[others], (clean.relu() if relu else clean)[others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 6, 7, 13, 130])
def test_exact_sums_round_as_often_as_they_must(isa, rows, dtype):
    torch.manual_seed(rows)
    for shape, per, group in CASES:
        weight, bias = nested_weight(shape, per, group), torch.randn(shape[0])
        x = torch.randn(rows, shape[1]).to(dtype)
        for bits in (2, 3, 4, 5, 8):
            w, wide = weight.unpack(bits).double(), x.double()
            exact = F.linear(wide, w, bias.double())
            magnitude = F.linear(wide.abs(), w.abs(), bias.double().abs())
            y = packed_linear(x, weight, bits, bias, exact=True)
            assert y.dtype == dtype
            assert_within_roundings(y, exact, magnitude, shape[1] + -(-shape[1] // weight.group))
            assert torch.equal(packed_linear(x, weight, bits, bias, relu=True, exact=True), y.relu())


@pytest.mark.parametrize("bits", WIDTHS)
def test_rounding_x_moves_the_result_by_what_it_may(bits, record_property):
    """A value moves by at most half a step, and a step is the row's largest magnitude / 127."""
    torch.manual_seed(6)
    weight, x = NestedWeight.pack(torch.randn(64, 512)), torch.randn(20, 512)
    w, wide = weight.unpack(bits).double(), x.double()
    exact = wide @ w.t()
    error = (packed_linear(x, weight, bits).double() - exact).abs()
    half_step = wide.abs().amax(1, keepdim=True) / 254
    roundings = 8 * 2.0**-24 * (wide.abs() @ w.abs().t())
    assert (error <= half_step * w.abs().sum(1) + roundings).all()
    record_property("error relative to the exact result", (error.norm() / exact.norm()).item())
    assert (error.norm() / exact.norm()).item() > 0  # x was rounded


def test_quantized_x_is_symmetric_and_whole():
    x = torch.tensor([[-2.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    q, half = quantized(x)
    assert q.tolist() == [[-127, 64, 0, 127], [0, 0, 0, 0]] and half[0].item() == pytest.approx(1 / 127)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (0, 7)], ids=str)
def test_gradients_equal_the_dense_layers(shape, dtype, relu, exact):
    """On integers, of which the first row's largest is 127: rounding to int8 then changes nothing."""
    torch.manual_seed(7)
    codes, zero_points = torch.randint(0, 256, (5, 7), dtype=torch.uint8), torch.full((5,), 128, dtype=torch.uint8)
    weight, grad = NestedWeight.from_codes(codes, torch.ones(5), zero_points), torch.randint(-3, 4, (*shape[:-1], 5))
    x = torch.randint(-3, 4, shape).to(dtype)
    x[..., 0] = 127
    leaves = [[x.clone().requires_grad_(), torch.ones(5, requires_grad=True)] for _ in range(2)]
    packed_linear(leaves[0][0], weight, 6, leaves[0][1], relu=relu, exact=exact).backward(grad.to(dtype))
    y = F.linear(leaves[1][0].float(), weight.unpack(6), leaves[1][1])
    (y.relu() if relu else y).to(dtype).backward(grad.to(dtype))
    for packed, plain in zip(*leaves, strict=True):
        assert packed.grad.dtype == plain.grad.dtype and torch.equal(packed.grad, plain.grad)


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu):
    torch.manual_seed(8)
    weight = nested_weight((4, 6))
    x, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 6), (4,)))
    run = lambda x, b: packed_linear(x, weight, 3, b, relu=relu, exact=True)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, bias))


def test_no_second_derivative():
    x = torch.randn(2, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(packed_linear(x, nested_weight((4, 6)), 4).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(("dtype", "exact"), list(zip(DTYPES, [False, True], strict=True)), ids=str)
def test_opcheck(dtype, exact):
    weight = nested_weight((5, 9), "group", 4)
    for x in (torch.randn(4, 9).to(dtype), torch.randn(2, 1, 9).to(dtype)):
        opcheck(OP, (x, *fields(weight), 5, 4, 3, None, False, exact, []))
        opcheck(OP, (x, *fields(weight), 5, 4, 8, torch.randn(5), True, exact, weight.prepack()))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_compiles_once_for_all_widths(grad, warm):
    graphs = CompileCounterWithBackend("aot_eager")
    weight, bias = nested_weight((50, 90)), torch.randn(50)
    if warm:
        packed_linear(torch.randn(20, 90), weight, 8)
    run = torch.compile(lambda x, bits: packed_linear(x, weight, bits, bias, relu=True), fullgraph=True, backend=graphs)
    for bits in (8, 3, 4, 2, 7, 6, 5):
        x = torch.randn(20, 90).requires_grad_(grad)
        y = run(x, bits)
        with torch.no_grad():
            assert torch.equal(y, packed_linear(x, weight, bits, bias, relu=True))
        if grad:
            y.sum().backward()
            eager = x.detach().requires_grad_()
            packed_linear(eager, weight, bits, bias, relu=True).sum().backward()
            assert torch.equal(x.grad, eager.grad)
    assert graphs.frame_count <= 2


def test_a_width_changes_nothing_that_is_stored():
    weight, x = nested_weight((40, 90)), torch.randn(3, 90)
    packed_linear(x, weight, 8)
    (prepack,) = weight.prepack()
    for bits in WIDTHS:
        packed_linear(x, weight, bits)
    assert weight.prepack()[0] is prepack and weight.prepacked_nbytes == prepack.nbytes


def test_meta_tensors_give_shapes():
    y = packed_linear(torch.ones(2, 3, 7, device="meta"), nested_weight((5, 7)).to("meta"), 4)
    assert y.is_meta and y.shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(3, 8)}, ValueError, r"x has shape \(3, 8\), but the weight takes 7 features"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\)"),
        ({"x": torch.ones(3, 7).half()}, TypeError, "x must be float32 or bfloat16 .*float16"),
        ({"x": torch.ones(3, 7, device="meta")}, ValueError, "x is on meta, the weight on cpu"),
        ({"weight": nested_weight((5, 7, 1))}, ValueError, r"weight must be .*got shape \(5, 7, 1\)"),
        ({"bits": 1}, ValueError, r"bits must lie in \[2, 8\], got 1"),
        ({"bits": 9}, ValueError, r"bits must lie in \[2, 8\], got 9"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must be \(5,\) on cpu, got \(4,\) on cpu"),
        ({"bias": torch.ones(5).half()}, TypeError, "bias must be float32 .*got torch.float16"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"x": torch.ones(3, 7), "weight": nested_weight((5, 7)), "bits": 4, "bias": None} | change
    with pytest.raises(error, match=f"packed_linear: .*{words}"):
        packed_linear(**arguments)


WEIGHT = nested_weight((5, 7))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.tensor(1.0)}, r"x must have a last dimension of in_features, got shape \(\)"),
        ({"x": torch.ones(2, 7).half()}, "x must be float32 or bfloat16"),
        ({"planes": WEIGHT.planes[:1]}, r"planes must be 2 to 8 x 2 contiguous int32 words for 35 weights"),
        ({"planes": WEIGHT.planes.float()}, "planes must be 2 to 8 x 2 contiguous int32 words"),
        ({"scales": torch.ones(4, 1)}, "scales .* must both be 1 or 5 x 1 and contiguous"),
        ({"zero_points": WEIGHT.zero_points.int()}, "must both be 1 or 5 x 1"),
        ({"scales": torch.ones(1, 1)}, "must both be"),
        ({"out_features": 6000}, "planes must be 2 to 8 x 1313 contiguous int32 words for 42000 weights"),
        ({"group": 0}, "do not fit a group of 0 columns"),
        ({"group": 4}, "must both be 1 or 5 x 2"),
        ({"bits": 1}, r"bits must lie in \[2, 8\], got 1"),
        ({"bits": 9}, r"bits must lie in \[2, 8\], got 9"),
        ({"planes": WEIGHT.planes[:3]}, r"bits must lie in \[2, 3\], got 4"),
        ({"bias": torch.ones(4)}, r"bias must be a contiguous float32 vector of 5, got shape \(4\)"),
        ({"prepack": nested_weight((5, 70)).prepack()}, "prepack is not what nested_prepack makes of this weight"),
        ({"prepack": [WEIGHT.prepack()[0].int()]}, "prepack is not what"),
        ({"prepack": [*WEIGHT.prepack(), *WEIGHT.prepack()]}, "prepack is not what"),
    ],
    ids=str,
)
def test_the_op_refuses(change, words):
    given = {"x": torch.ones(2, 7), "planes": WEIGHT.planes, "scales": WEIGHT.scales}
    given |= {"zero_points": WEIGHT.zero_points, "out_features": 5, "group": 7, "bits": 4, "bias": None}
    with pytest.raises(RuntimeError, match=f"packed_linear: .*{words}"):
        OP(*(given | {"relu": False, "exact": False, "prepack": []} | change).values())


def test_the_op_refuses_sums_that_do_not_fit():
    weight = nested_weight((1, MAX_COLUMNS + 1))
    x = torch.ones(1, MAX_COLUMNS + 1)
    with pytest.raises(RuntimeError, match="groups of 32769 columns run by the reference, above 32768"):
        OP(x, *fields(weight), 1, weight.group, 8, None, False, False, [])
