"""What torch makes of line_norm, and what it and its op refuse."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from lcs_kernels import line_norm

from .test_line_norm import BACKWARD, DTYPES, LAYOUTS, OP, ends_of, in_layout

TINY = [((2, 4, 3, 2), 2), ((3, 6), 2), ((2, 3, 5), 3), ((2, 4, 2, 2), 1)]


def differentiable(shape):
    """x, a residual, four ends and alpha, in float64."""
    torch.manual_seed(7)
    shapes = (shape, shape, *[(shape[1] + 1,)] * 4)
    x, other, *ends = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    return x, other, ends, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "groups"), TINY, ids=str)
def test_gradcheck(shape, groups, relu, residual):
    x, other, ends, alpha = differentiable(shape)

    def run(x, other, alpha, *ends):
        return line_norm(x, *ends, alpha, groups, residual=other if residual else None, relu=relu)

    assert torch.autograd.gradcheck(run, (x, other, alpha, *ends))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "groups"), TINY, ids=str)
def test_gradcheck_of_a_point_and_with_given_statistics(shape, groups, relu):
    x, _, ends, alpha = differentiable(shape)
    assert torch.autograd.gradcheck(
        lambda x, w, b: line_norm(x, w, None, b, None, None, groups, relu=relu), (x, *ends[::2])
    )
    mean, var = torch.randn(shape[1], dtype=torch.float64), torch.rand(shape[1], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, alpha, *ends: line_norm(x, *ends, alpha, 1, mean=mean, var=var, relu=relu), (x, alpha, *ends)
    )


@pytest.mark.parametrize(("dtype", "layout"), list(zip(DTYPES, [*LAYOUTS, "contiguous"], strict=True)), ids=str)
def test_opcheck(dtype, layout):
    x, grad = (in_layout(torch.randn(2, 6, 5, 4).to(dtype), layout) for _ in range(2))
    ends, alpha, point = ends_of(6), torch.tensor(0.3), [torch.randn(8), None, None, None]
    mean, var = torch.randn(6), torch.rand(9)
    for arguments in (
        (*ends, alpha, None, None, grad, 3, 1e-5, True),
        (*point, None, None, None, None, 2, 1e-5, False),
        (*ends, alpha, mean, var, None, 1, 1e-5, True),
    ):
        opcheck(OP, (x, *arguments))
        _, statistics = OP(x, *arguments)
        opcheck(BACKWARD, (grad, x, *arguments[:7], statistics, *arguments[8:]))


CHANNELS = [16, 4, 12, 9, 7]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("instance", [False, True])
def test_compiles_to_two_graphs_for_all_alphas_and_widths(grad, instance):
    graphs = CompileCounterWithBackend("aot_eager")
    ends = [e.requires_grad_(grad) for e in ends_of(16)]

    def run(x, alpha):
        return line_norm(x, *ends, alpha, x.shape[1] if instance else 1, relu=True)

    compiled = torch.compile(run, fullgraph=True, backend=graphs)
    for channels in CHANNELS:
        for alpha in (0.0, 0.3, 1.0):
            x, a = torch.randn(2, channels, 6, 5).requires_grad_(grad), torch.tensor(alpha)
            torch._dynamo.mark_dynamic(x, 1)
            y = compiled(x, a)
            assert torch.equal(y, run(x, a))
            if grad:
                found, expected = (torch.autograd.grad(z.sum(), (x, *ends)) for z in (y, run(x, a)))
                assert all(map(torch.equal, found, expected))
    assert graphs.frame_count <= 2


def test_meta_tensors_give_shapes():
    x = torch.ones(2, 4, 8, 9, device="meta").to(memory_format=torch.channels_last)
    y = line_norm(x, *[None] * 5, 2)
    assert y.is_meta and y.shape == x.shape and y.is_contiguous(memory_format=torch.channels_last)


BAD = [
    ({"groups": 3}, ValueError, "3 groups do not divide 4 channels of x"),
    ({"groups": 0}, ValueError, "0 groups do not divide"),
    ({"eps": -1.0}, ValueError, "eps must be at least 0, got -1"),
    ({"x": torch.ones(4)}, ValueError, r"x must be \(n, channels, ...\).* got shape \(4,?\)"),
    ({"x": torch.ones(2, 4).int()}, TypeError, "x must be float32, bfloat16.* float16"),
    ({"weight0": torch.ones(3)}, ValueError, r"weight0 must be a .*vector of at least 4 on .* \(3,?\)"),
    ({"weight0": torch.ones(4).half()}, TypeError, "weight0 must be .*float32"),
    ({"weight1": torch.ones(6)}, ValueError, r"weight1 .*\(6,?\)"),
    ({"bias0": None, "bias1": torch.ones(4)}, ValueError, "bias1 without bias0"),
    ({"bias1": torch.ones(5).bfloat16()}, TypeError, "bias1 must .*"),
    ({"mean": torch.ones(4)}, ValueError, "give both mean and var, or neither"),
    ({"mean": torch.ones(4), "var": torch.ones(3)}, ValueError, r"var must be a .*vector of at least 4"),
    ({"mean": torch.ones(4), "var": torch.ones(4).double()}, TypeError, "var must be .*float32"),
    ({"residual": torch.ones(2, 4, 3, 2)}, ValueError, r"residual must be .*\(2, 4, 3, 3\)"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD, ids=str)
def test_bad_arguments(change, error, words):
    """Where a gradient is wanted, and where the call goes straight to the op."""
    arguments = {"x": torch.ones(2, 4, 3, 3), "weight0": torch.ones(5), "weight1": torch.ones(5)}
    arguments |= {"bias0": torch.ones(5), "bias1": None, "alpha": 0.5, "groups": 2} | change
    with pytest.raises(error, match=f"line_norm: .*{words}"):
        line_norm(**arguments)
    if arguments["weight0"] is not None:
        with pytest.raises(error, match=f"line_norm: .*{words}"):
            line_norm(**arguments | {"weight0": arguments["weight0"].requires_grad_()})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5$"),
        ({"alpha": torch.tensor(0.5, device="meta")}, "alpha is on meta, x on cpu"),
        ({"alpha": torch.tensor(0.5, device="meta").double()}, "alpha is on meta"),
        ({"alpha": torch.ones(2)}, r"alpha must be a number or a 0-d tensor, got shape \(2,\)"),
        ({"alpha": None}, "a line needs an alpha"),
    ],
    ids=str,
)
def test_bad_alphas(change, words):
    with pytest.raises(ValueError, match=f"line_norm: {words}"):
        line_norm(torch.ones(2, 4), torch.ones(4), torch.ones(4), None, None, groups=1, **change)


@pytest.mark.parametrize("grad", [False, True])
def test_a_residual_on_another_device_is_refused(grad):
    x = torch.ones(2, 4, requires_grad=grad)
    with pytest.raises(ValueError, match=r"line_norm: residual must be \(2, 4\) .*on cpu like x, got .*on meta"):
        line_norm(x, *[None] * 5, 1, residual=torch.ones(2, 4, device="meta"))


@pytest.mark.parametrize(("change", "error", "words"), BAD, ids=str)
def test_the_op_refuses(change, error, words):
    names = ("x", "weight0", "weight1", "bias0", "bias1", "alpha", "mean", "var", "residual", "groups", "eps", "relu")
    arguments = dict.fromkeys(names) | {"x": torch.ones(2, 4, 3, 3), "weight0": torch.ones(5)}
    arguments |= {"weight1": torch.ones(5), "bias0": torch.ones(5), "alpha": torch.tensor(0.5), "groups": 2}
    with pytest.raises(RuntimeError, match=f"line_norm: .*{words}"):
        OP(*(arguments | {"eps": 1e-5, "relu": False} | change).values())
