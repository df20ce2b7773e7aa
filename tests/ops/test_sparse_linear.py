import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.nn import functional as F

from lcs_kernels import sparse_linear
from lcs_kernels.ops.sparse_linear import reference, takes_tiles

from .sparse_cases import DTYPES, assert_within_roundings, float_weight, integer_weight, integers, stored

OP = torch.ops.lcs.sparse_linear.default
ROWS = [0, 1, 2, 3, 16, 17, 112, 113, 300]


def check(x, weight, bias=None, relu=False):
    y = sparse_linear(x, weight, bias, relu=relu)
    expected = reference(x, weight.mask_bits, weight.values, weight.shape[0], bias, relu, 1, [])
    assert y.dtype == x.dtype and torch.equal(y, expected)
    return y


@pytest.mark.parametrize("w_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_integers_are_exact(isa, rows, dtype, w_dtype):
    torch.manual_seed(rows)
    for out, columns, density in [
        (1, 1, 1),
        (33, 129, 0.05),
        (130, 67, 1),
        (40, 1100, 0.3),
        (9, 30, 0),
        (0, 5, 0.5),
        (5, 0, 0.5),
    ]:
        weight = integer_weight((out, columns), density, w_dtype)
        x = integers(rows, columns, dtype=dtype)
        check(x, weight)
        check(x, weight, integers(out), relu=True)


@pytest.mark.parametrize("threads", [1, 2, 3, 8], indirect=True)
@pytest.mark.parametrize("block", [1, 7, 32, 129, 65_536])
def test_blocks_and_threads_change_no_integer(isa, threads, block):
    torch.manual_seed(0)
    weight, bias = integer_weight((133, 129), 0.2), integers(133)
    for rows in (1, 3, 40):
        args = (integers(rows, 129), weight.mask_bits, weight.values, 133, bias, True, block, [])
        assert torch.equal(OP(*args), reference(*args))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_more_columns_than_an_index_can_tell_apart(isa, rows):
    torch.manual_seed(1)
    check(integers(rows, 140_001), integer_weight((5, 140_001), 0.01), integers(5), relu=True)


@pytest.mark.parametrize("x", [integers(7), integers(2, 3, 7), integers(7, 4).t(), integers(6, 14)[::2, ::2]])
def test_any_shape_and_stride(isa, x):
    check(x, integer_weight((5, 7)), integers(5))


def test_bias_of_the_activations_dtype():
    x, weight, bias = integers(4, 7, dtype=torch.bfloat16), integer_weight((5, 7)), integers(5)
    assert torch.equal(sparse_linear(x, weight, bias.bfloat16()), check(x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS[1:])
def test_sums_round_as_often_as_they_must(isa, rows, dtype):
    torch.manual_seed(rows)
    weight, bias, x = float_weight((70, 1000), 0.2, dtype), torch.randn(70), torch.randn(rows, 1000).to(dtype)
    w, wide = weight.unpack().double(), x.double()
    exact = F.linear(wide, w, bias.double())
    magnitude = F.linear(wide.abs(), w.abs(), bias.double().abs())
    assert_within_roundings(sparse_linear(x, weight, bias), exact, magnitude, stored(weight).sum(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 17, 120])
def test_threads_change_nothing(isa, rows, dtype):
    torch.manual_seed(2)
    weight, x = float_weight((301, 500), dtype=dtype), torch.randn(rows, 500).to(dtype)
    before = torch.get_num_threads()
    results = []
    for n in (1, 2, 3, 8):
        torch.set_num_threads(n)
        results.append(sparse_linear(x, weight))
    torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_what_is_not_finite_reaches_only_the_weights_that_are_stored(isa, rows, dtype, value):
    torch.manual_seed(3)
    weight, x = integer_weight((90, 50), 0.1, dtype), integers(rows, 50, dtype=dtype)
    touched = torch.zeros(rows, 90, dtype=torch.bool)
    touched[rows // 2] = stored(weight)[:, 20] != 0
    clean = sparse_linear(x, weight)
    x[rows // 2, 20] = value
    y = sparse_linear(x, weight)
    assert torch.equal(y[~touched], clean[~touched]) and touched.any()
    product = (weight.unpack()[:, 20] * value).expand(rows, 90)[touched]  # a stored 0 times infinity is NaN
    assert torch.equal(y[touched].nan_to_num(7), product.nan_to_num(7))
    assert torch.equal(sparse_linear(x, weight, relu=True)[touched].nan_to_num(7), product.relu().nan_to_num(7))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (0, 7)], ids=str)
def test_gradients_equal_the_dense_layers(shape, dtype, relu):
    torch.manual_seed(4)
    weight, grad = integer_weight((5, 7)), integers(*shape[:-1], 5, dtype=dtype)
    leaves = [[integers(*shape, dtype=dtype).requires_grad_(), integers(5).requires_grad_()]]
    leaves.append([leaf.detach().clone().requires_grad_() for leaf in leaves[0]])
    sparse_linear(leaves[0][0], weight, leaves[0][1], relu=relu).backward(grad)
    y = F.linear(leaves[1][0].float(), weight.unpack(), leaves[1][1])
    (y.relu() if relu else y).to(dtype).backward(grad)
    for sparse, plain in zip(*leaves, strict=True):
        assert sparse.grad.dtype == plain.grad.dtype and torch.equal(sparse.grad, plain.grad)


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu):
    torch.manual_seed(5)
    weight = float_weight((4, 6), 0.5)
    x, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 6), (4,)))
    assert torch.autograd.gradcheck(lambda x, b: sparse_linear(x, weight, b, relu=relu), (x, bias))


def test_no_second_derivative():
    x = torch.randn(2, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(sparse_linear(x, float_weight((4, 6))).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    weight = integer_weight((5, 9), dtype=dtype)
    fields = (weight.mask_bits, weight.values, 5)
    for x in (integers(4, 9, dtype=dtype), integers(2, 1, 9, dtype=dtype)):
        opcheck(OP, (x, *fields, None, False, 4, []))
        opcheck(OP, (x, *fields, integers(5), True, 4, weight.prepack(4)))
        if dtype == torch.bfloat16:
            opcheck(OP, (x, *fields, integers(5), True, 4, weight.prepack_tiles()))


def amx_rows(*shape):
    """What takes tiles on a machine with AMX."""
    return integers(*shape, dtype=torch.bfloat16), integer_weight((70, shape[-1]), dtype=torch.bfloat16)


def test_many_bfloat16_rows_take_tiles_on_amx_alone(isa):
    x, weight = amx_rows(16, 90)
    assert takes_tiles(x, weight) == (isa == "amx")
    for other in (x[:15], x.float()):
        assert not takes_tiles(other, weight)
    assert not takes_tiles(x, weight.to(dtype=torch.float32))
    assert not takes_tiles(x, integer_weight((70, 90), 0.01, torch.bfloat16))
    check(x, weight)
    assert weight.has_tiles == (isa == "amx")
    if weight.has_tiles:
        assert weight.prepacked_nbytes == 6 * 3 * 16 * 4 + 7 * 8 + 2 * (weight.values.numel() + 32)


@pytest.mark.parametrize("rows", [1, 31, 513])
def test_a_prepack_of_tiles_is_right_on_any_instruction_set(isa, rows):
    (x, weight), bias = amx_rows(rows, 520), integers(70)
    args = (x, weight.mask_bits, weight.values, 70, bias, True, 64)
    assert torch.equal(OP(*args, weight.prepack_tiles()), reference(*args, []))


def test_compiled_code_takes_the_tiles_that_are_there(isa):
    graphs = CompileCounterWithBackend("aot_eager")
    (x, weight), bias = amx_rows(30, 90), integers(70)
    expected = check(x, weight, bias)
    run = torch.compile(lambda x: sparse_linear(x, weight, bias), fullgraph=True, backend=graphs)
    assert torch.equal(run(x), expected) and torch.equal(run(x[:20]), expected[:20])
    assert torch.equal(run(x[:17]), expected[:17]) and graphs.frame_count <= 2


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_compiles(grad, warm):
    graphs = CompileCounterWithBackend("aot_eager")
    weight, bias = integer_weight((5, 9)), integers(5)
    if warm:
        sparse_linear(integers(20, 9), weight)
    run = torch.compile(lambda x: sparse_linear(x, weight, bias, relu=True), fullgraph=True, backend=graphs)
    for rows in (20, 20, 17, 30, 32):
        x = integers(rows, 9).requires_grad_(grad)
        y = run(x)
        assert torch.equal(y, F.linear(x, weight.unpack(), bias).relu())
        if grad:
            y.sum().backward()
            assert torch.equal(x.grad, (y > 0).float() @ weight.unpack())
    assert graphs.frame_count <= 2


@pytest.mark.parametrize("strict", [False, True])
def test_exports_for_any_batch(strict):
    class Layer(torch.nn.Module):
        weight = float_weight((5, 7), 0.5)

        def forward(self, x):
            return sparse_linear(x, self.weight)

    sizes = ({0: torch.export.Dim("n", min=1)},)
    program = torch.export.export(Layer(), (torch.randn(6, 7),), dynamic_shapes=sizes, strict=strict).module()
    for rows in (1, 2, 40, 300):
        x = torch.randn(rows, 7)
        torch.testing.assert_close(program(x), sparse_linear(x, Layer.weight))


def test_meta_tensors_give_shapes():
    y = sparse_linear(torch.ones(2, 3, 7, device="meta"), integer_weight((5, 7)).to("meta"))
    assert y.is_meta and y.shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(3, 8)}, ValueError, r"x has shape \(3, 8\), but the weight takes 7 features"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\)"),
        ({"x": torch.ones(3, 7).half()}, TypeError, "x must be float32 or bfloat16 .*float16"),
        ({"x": torch.ones(3, 7, device="meta")}, ValueError, "x is on meta, the weight on cpu"),
        ({"weight": integer_weight((5, 7, 1))}, ValueError, r"weight must be .*got shape \(5, 7, 1\)"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must be \(5,\) on cpu, got \(4,\) on cpu"),
        ({"bias": torch.ones(5, device="meta")}, ValueError, r"bias must be \(5,\) on cpu, got \(5,\) on meta"),
        ({"bias": torch.ones(5).half()}, TypeError, "bias must be float32 .*got torch.float16"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"x": torch.ones(3, 7), "weight": integer_weight((5, 7)), "bias": None} | change
    with pytest.raises(error, match=f"sparse_linear: .*{words}"):
        sparse_linear(**arguments)


WEIGHT = integer_weight((5, 7), 0.5)
PARTS = WEIGHT.prepack(3)
TILED = WEIGHT.to(dtype=torch.bfloat16)
TILES = TILED.prepack_tiles()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.tensor(1.0)}, r"x must have a last dimension of in_features, got shape \(\)"),
        ({"x": torch.ones(2, 7).half()}, "x must be float32 or bfloat16"),
        ({"mask_bits": WEIGHT.mask_bits[:1]}, r"mask_bits must be 2 contiguous int32 words for 35 weights"),
        ({"mask_bits": WEIGHT.mask_bits | 64}, "names weights past the last of 35"),
        ({"values": WEIGHT.values[1:]}, "values must be a contiguous vector of the .* weights that mask_bits names"),
        ({"out_features": 6000}, "mask_bits must be 1313 contiguous int32 words for 42000 weights"),
        ({"bias": torch.ones(4)}, r"bias must be a contiguous float32 vector of 5, got shape \(4\)"),
        ({"bias": torch.ones(5).double()}, "bias must be a contiguous float32 vector"),
        ({"block": 0}, "block 0"),
        ({"block": 65_537}, "65537"),
        ({"prepack": PARTS, "block": 2}, "prepack is not what sparse_prepack makes of this weight with block 2"),
        ({"prepack": PARTS, "block": 0}, "prepack is not what .* block 0"),
        ({"prepack": PARTS[:3]}, "prepack is not what"),
        ({"prepack": PARTS, "x": torch.ones(2, 3)}, "mask_bits must be 1 contiguous int32 words for 15 weights"),
        ({"prepack": TILES, "x": torch.ones(2, 3)}, "mask_bits must be 1 contiguous int32 words for 15 weights"),
        ({"prepack": integer_weight((5, 7), 0).prepack(3)}, "prepack is not what"),
        ({"prepack": integer_weight((6, 7), 1).prepack(3)}, "prepack is not what"),
        ({"prepack": [PARTS[0].long(), *PARTS[1:]]}, "prepack is not what"),
        ({"prepack": TILES}, "x must be bfloat16 for a prepack of tiles"),
        ({"prepack": [TILES[0][:1], *TILES[1:]]}, "prepack is not what sparse_prepack_tiles makes of this weight"),
        ({"prepack": [*TILES[:2], TILES[2][1:]]}, "prepack is not what sparse_prepack_tiles"),
        ({"prepack": [*TILES[:2], TILES[2].half()]}, "prepack is not what sparse_prepack_tiles"),
        ({"prepack": [*TILES[:2], TILES[2].repeat_interleave(2)[::2]]}, "prepack must be contiguous, on the CPU"),
        ({"prepack": [PARTS[0].t().contiguous().t(), *PARTS[1:]]}, "prepack must be contiguous, on the CPU"),
    ],
    ids=str,
)
def test_the_op_refuses(change, words):
    fields = {"x": torch.ones(2, 7), "mask_bits": WEIGHT.mask_bits, "values": WEIGHT.values, "out_features": 5}
    arguments = fields | {"bias": None, "relu": False, "block": 3, "prepack": []} | change
    with pytest.raises(RuntimeError, match=f"sparse_linear: .*{words}"):
        OP(*arguments.values())
