"""The Triton kernels in Triton's interpreter, against the reference: exactly where all is exact, else by roundings."""

import pytest
import torch
from lcs_kernels.triton_kernels import line_norm as module

from lcs_kernels._triton import kernel
from lcs_kernels.ops.line_norm import reference, reference_backward

from ..ops.sparse_cases import integers
from ..ops.test_line_norm import DTYPES, PAIRED, ends_of, exact, in_layout, laid_out, paired

INTERPRET = True
ALPHA = torch.tensor(0.25)
SMALL = {name: case for name, case in PAIRED.items() if name not in ("several chunks", "several pieces", "group")}
POWERS_OF_2 = {"group": ((2, 8, 4, 4), 4), "vectors": ((3, 8), 2), "one channel each": ((2, 4, 2, 8), 4)}

run, run_backward = kernel("line_norm", "line_norm"), kernel("line_norm", "line_norm_backward")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)


@pytest.mark.parametrize(("shape", "layout"), laid_out(SMALL))
def test_exact_moments_give_exact_results(shape, layout):
    torch.manual_seed(0)
    shape, groups = SMALL[shape]
    x = in_layout(paired(shape, 3.0)[0], layout)
    ends, residual = ends_of(shape[1], make=integers), integers(*shape)
    for affine in ((*ends, ALPHA), (ends[0], None, None, None, None)):
        for rest in ((None, groups, 0.0, True), (residual, groups, 0.0, False)):
            y, statistics = run(x, *affine, None, None, *rest)
            expected, others = reference(x, *affine, None, None, *rest)
            assert torch.equal(y, expected) and torch.equal(statistics, others) and y.stride() == expected.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_given_statistics(dtype):
    torch.manual_seed(1)
    x, grad = integers(3, 10, 7, dtype=dtype), integers(3, 10, 7, dtype=dtype)
    given = (integers(12), 4.0 ** torch.randint(-1, 2, (12,)))
    ends = ends_of(10, make=integers)
    arguments = (x, *ends, ALPHA, *given, integers(3, 10, 7, dtype=dtype), 1, 0.0, True)
    (y, statistics), (expected, _) = run(*arguments), reference(*arguments)
    assert torch.equal(y, expected) and statistics.numel() == 0
    found, expected = (
        f(grad, x, *ends, ALPHA, *given, statistics, 1, 0.0, True) for f in (run_backward, reference_backward)
    )
    assert all(map(torch.equal, found, expected))


@pytest.fixture
def narrow_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_vectors_of_any_strides_and_any_default_dtype(narrow_default):
    torch.manual_seed(3)
    x, grad = (integers(3, 10, 7).float() for _ in range(2))
    ends = [integers(20).float()[::2] for _ in range(4)]
    given = integers(1).float().expand(10), 4.0 ** torch.randint(-1, 2, (20,)).float()[::2]
    arguments = (x, *ends, ALPHA, *given, None, 1, 0.0, True)
    (y, statistics), (expected, _) = run(*arguments), reference(*arguments)
    assert torch.equal(y, expected)
    found, expected = (
        f(grad, x, *ends, ALPHA, *given, statistics, 1, 0.0, True) for f in (run_backward, reference_backward)
    )
    assert all(map(torch.equal, found, expected))
    y, statistics = run(x, *ends, ALPHA, None, None, None, 5, 1e-5, False)
    expected, others = reference(x, *ends, ALPHA, None, None, None, 5, 1e-5, False)
    assert statistics.dtype == torch.float32 and torch.allclose(statistics, others, rtol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "layout"), laid_out(POWERS_OF_2))
def test_exact_gradients(shape, relu, layout):
    torch.manual_seed(2)
    shape, groups = POWERS_OF_2[shape]
    x, grad = in_layout(paired(shape, 2.0)[0], layout), in_layout(integers(*shape), layout)
    ends = ends_of(shape[1], make=integers)
    _, statistics = reference(x, *ends, ALPHA, None, None, None, groups, 0.0, relu)
    for affine in ((*ends, ALPHA), (None, None, ends[0], None, None)):
        arguments = (grad, x, *affine, None, None, statistics, groups, 0.0, relu)
        found, expected = run_backward(*arguments), reference_backward(*arguments)
        assert all(map(torch.equal, found, expected)) and found[0].stride() == x.stride()


def test_rounds_as_often_as_it_must():
    torch.manual_seed(3)
    x, ends = torch.randn(2, 6, 5, 7) * 0.01 + 1, ends_of(6)
    y, _ = run(x, *ends, ALPHA, None, None, None, 3, 1e-5, False)
    expected, off = exact(x, ends, 0.25, 3, 1e-5, 70)
    assert ((y.double() - expected).abs() <= off * 2.0**-24 + 2.0**-24).all()


def test_nothing_to_norm():
    x, ends = torch.randn(0, 6, 4), ends_of(6)
    y, statistics = run(x, *ends, ALPHA, None, None, None, 3, 1e-5, True)
    grads = run_backward(x, x, *ends, ALPHA, None, None, statistics, 3, 1e-5, True)
    assert y.shape == grads[0].shape == x.shape and not any(g.any() for g in grads[1:])


def test_bad_arguments():
    with pytest.raises(ValueError, match="line_norm: 4 groups do not divide 6 channels"):
        run(torch.ones(2, 6), *[None] * 8, 4, 1e-5, False)
    with pytest.raises(TypeError, match="line_norm: alpha must be torch.float32"):
        run(torch.ones(2, 6), *ends_of(6), ALPHA.double(), None, None, None, 2, 1e-5, False)


def test_more_than_32_bits_count():
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, 1 << 16, 1 << 15)
    with pytest.raises(ValueError, match="line_norm: 2,147,483,648 elements of a group are more than .*; split"):
        run(x, None, None, None, None, None, None, None, None, 1, 0.0, False)
