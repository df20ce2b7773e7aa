import importlib

import pytest
import torch
from torch.library import opcheck

from lcs_kernels import line_norm, sparse_conv2d, sparse_conv2d_norm
from lcs_kernels.formats import SparseWeight
from lcs_kernels.ops.sparse_conv2d import block_for
from lcs_kernels.ops.sparse_conv2d_norm import reference

from .sparse_cases import float_weight, integer_weight, integers

OP = torch.ops.lcs.sparse_conv2d_norm.default
FORMATS = [torch.contiguous_format, torch.channels_last]
# x, weight, stride, padding, dilation, groups, groups of the norm
CASES = {
    "one image": ((1, 19, 15, 17), (21, 19, 3, 3), 1, 1, 1, 1, 7),
    "rows as lanes": ((3, 6, 7, 7), (9, 6, 3, 3), 1, 1, 1, 1, 3),
    "strips of an image": ((1, 64, 70, 66), (6, 64, 3, 3), 1, 1, 1, 1, 2),
    "many strips of few images": ((3, 4, 300, 200), (3, 4, 3, 3), 1, 1, 1, 1, 3),
    "many strips of many images": ((9, 64, 70, 66), (4, 64, 3, 3), 1, 1, 1, 1, 2),
    "many rows of many images as lanes": ((9, 6, 8, 8), (9, 6, 3, 3), 1, 1, 1, 1, 3),
    "images as lanes": ((67, 5, 6, 7), (8, 5, 3, 3), 1, 1, 1, 1, 4),
    "few images as lanes": ((17, 5, 6, 7), (8, 5, 3, 3), 1, 1, 1, 1, 2),
    "large result": ((9, 4, 64, 64), (64, 4, 1, 1), 1, 0, 1, 1, 32),
    "strided": ((10, 7, 16, 17), (9, 7, 3, 3), 2, 1, 1, 1, 1),
    "5x3": ((12, 4, 9, 12), (5, 4, 5, 3), (3, 2), (2, 0), (1, 2), 1, 5),
    "groups": ((11, 12, 20, 19), (9, 4, 3, 3), 1, 1, 1, 3, 9),
    "one channel": ((8, 3, 19, 21), (1, 3, 3, 3), 1, 1, 1, 1, 1),
    "one result": ((70, 6, 3, 3), (7, 6, 3, 3), 1, 0, 1, 1, 1),
    "no images": ((0, 3, 9, 10), (4, 3, 3, 3), 1, 1, 1, 1, 2),
}


def line_of(channels, dtype=torch.float32):
    return *(torch.randn(channels + 3).to(dtype) for _ in range(4)), torch.tensor(0.3)


def apart(x, weight, norm, norm_groups, eps=1e-5, bias=None, stride=1, padding=0, dilation=1, groups=1, **settings):
    y = sparse_conv2d(x, weight, bias, stride, padding, dilation, groups)
    return line_norm(y, *norm, norm_groups, eps, **settings)


def conv_of(case):
    return dict(zip(("stride", "padding", "dilation", "groups"), case[2:6], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gives_the_bits_of_both(isa, name, layout, dtype):
    torch.manual_seed(0)
    x, w, *_, groups = CASES[name]
    x, weight = torch.randn(x).to(dtype).to(memory_format=layout), float_weight(w, 0.3, dtype)
    conv, out = conv_of(CASES[name]), w[0]
    residual, bias = torch.randn_like(sparse_conv2d(x, weight, **conv)), torch.randn(out)
    before = torch.get_num_threads()
    for norm, settings in (
        (line_of(out), {"bias": bias, "residual": residual, "relu": True}),
        (line_of(out, dtype), {"relu": True}),
        ((torch.randn(out), None, None, None, None), {"residual": residual}),
        ((None,) * 5, {"bias": bias}),
    ):
        expected = apart(x, weight, norm, groups, **settings, **conv)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y = sparse_conv2d_norm(x, weight, norm, groups, **settings, **conv)
            assert torch.equal(y, expected) and y.stride() == expected.stride()
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_integers_fit_the_reference(isa, name, layout):
    """Sums of integers are exact, so that the norm of the reference has the same input."""
    torch.manual_seed(1)
    x, w, *_, groups = CASES[name]
    x, weight, norm = integers(*x).to(memory_format=layout), integer_weight(w, 0.3), line_of(w[0])
    conv = conv_of(CASES[name])
    y = sparse_conv2d(x.double(), weight, **conv).float()
    expected = line_norm(y, *norm, groups, relu=True)
    assert torch.equal(sparse_conv2d_norm(x, weight, norm, groups, relu=True, **conv), expected)


def test_a_residual_in_another_layout_is_copied(isa):
    weight, norm = float_weight((7, 6, 3, 3), 0.4), line_of(7)
    for layout in FORMATS:
        x = torch.randn(9, 6, 5, 7).to(memory_format=layout)
        for other in FORMATS:
            residual = torch.randn(9, 7, 3, 5).to(memory_format=other)
            y = sparse_conv2d_norm(x, weight, norm, 7, residual=residual)
            assert torch.equal(y, apart(x, weight, norm, 7, residual=residual))
            assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_those_of_both(dtype):
    torch.manual_seed(2)
    x, bias = torch.randn(2, 6, 6, 7, dtype=dtype), torch.randn(8, dtype=dtype)
    norm = [torch.randn(9, dtype=dtype) for _ in range(4)] + [torch.tensor(0.25, dtype=dtype)]
    residual, weight = torch.randn(2, 8, 6, 7, dtype=dtype), float_weight((8, 6, 3, 3), 0.4)
    leaves = [x, bias, residual, *norm]
    for leaf in leaves:
        leaf.requires_grad_()
    settings = {"bias": bias, "residual": residual, "padding": 1, "relu": True}
    found, expected = (
        torch.autograd.grad(f(x, weight, norm, 4, **settings).square().sum(), leaves)
        for f in (sparse_conv2d_norm, apart)
    )
    assert all(map(torch.equal, found, expected))


def test_the_reference_is_both():
    x, weight, norm = torch.randn(2, 4, 6, 5), float_weight((6, 4, 3, 2), 0.4), line_of(6)
    fields = (weight.mask_bits, weight.values, weight.shape, None, [1, 2], [2, 1], [1, 1], 1, 24, [], *norm)
    expected = apart(x, weight, norm, 3, stride=(1, 2), padding=(2, 1), relu=True)
    assert torch.equal(reference(x, *fields, None, 3, 1e-5, True), expected)


def test_opcheck():
    for layout in FORMATS:
        x, weight = torch.randn(2, 4, 6, 5).to(memory_format=layout), float_weight((6, 4, 3, 2), 0.4)
        block = block_for(4, 6, weight.density)
        conv, norm = ([1, 2], [2, 1], [1, 1], 1, block), (*line_of(6), torch.randn(2, 6, 8, 3), 3, 1e-5, True)
        fields = (weight.mask_bits, weight.values, weight.shape)
        opcheck(OP, (x, *fields, None, *conv, weight.prepack(block), *norm))
        opcheck(OP, (x, *fields, torch.randn(6), *conv, [], *norm))


def test_compiles():
    weight, norm = float_weight((16, 12, 3, 3), 0.2), line_of(16)
    weight.prepack(block_for(12, 9, weight.density))
    compiled = torch.compile(sparse_conv2d_norm, fullgraph=True, backend="aot_eager")
    for n, size in ((1, 8), (9, 7), (3, 20)):
        x = torch.randn(n, 12, size, size + 1)
        expected = sparse_conv2d_norm(x, weight, norm, 4, padding=1, relu=True)
        assert torch.equal(compiled(x, weight, norm, 4, padding=1, relu=True), expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 7, 6, 6)}, ValueError, "sparse_conv2d: x has shape .2, 7, 6, 6.*does not fit a weight"),
        ({"x": torch.ones(2, 4, 6, 6).half()}, TypeError, "sparse_conv2d: x must be float32 or bfloat16"),
        ({"weight": SparseWeight.pack(torch.ones(5, 4))}, ValueError, "sparse_conv2d: weight must be"),
        ({"bias": torch.ones(4)}, ValueError, r"sparse_conv2d: bias must be \(5,\)"),
        ({"dilation": (1, 3)}, ValueError, "sparse_conv2d: a kernel of 3, dilated by 3, does not fit"),
        ({"norm_groups": 3}, ValueError, "line_norm: 3 groups do not divide 5 channels"),
        ({"norm_groups": 0}, ValueError, "line_norm: 0 groups do not divide 5 channels"),
        ({"eps": -1.0}, ValueError, "line_norm: eps must be at least 0"),
        ({"norm": (torch.ones(4), None, None, None, None)}, ValueError, "line_norm: weight0 must be .* at least 5"),
        ({"norm": (torch.ones(5).double(), *[None] * 4)}, TypeError, "line_norm: weight0 must be torch.float32"),
        ({"norm": (torch.ones(5), torch.ones(5), None, None, None)}, ValueError, "line_norm: a line needs an alpha"),
        ({"residual": torch.ones(2, 5, 6, 6)}, ValueError, r"line_norm: residual must be \(2, 5, 4, 4\)"),
        ({"residual": torch.ones(2, 5, 4, 4).double()}, ValueError, "line_norm: residual must be .*, got .*float64"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {
        "x": torch.ones(2, 4, 6, 6),
        "weight": SparseWeight.pack(torch.ones(5, 4, 3, 3)),
        "norm": (None,) * 5,
        "norm_groups": 5,
    } | change
    with pytest.raises(error, match=words):
        sparse_conv2d_norm(**arguments)


def test_an_error_of_the_op_is_raised_as_it_is(monkeypatch):
    """As where memory is short: after the checks, and without another, larger run."""

    def ran(*_, **__):
        raise AssertionError("both ran")

    def failing(*_):
        raise failure

    failure, module = RuntimeError("no memory"), importlib.import_module("lcs_kernels.ops.sparse_conv2d_norm")
    monkeypatch.setattr(module, "_op", failing)
    for name in ("sparse_conv2d", "line_norm"):
        monkeypatch.setattr(module, name, ran)
    weight = SparseWeight.pack(torch.ones(5, 4, 3, 3))
    x, norm, residual = torch.ones(2, 4, 6, 6), (None,) * 5, torch.ones(2, 5, 3, 3)
    with pytest.raises(RuntimeError) as raised:
        sparse_conv2d_norm(x, weight, norm, 5, padding=1, stride=2, residual=residual)
    assert raised.value is failure
    with pytest.raises(ValueError, match="line_norm: residual must be"):
        sparse_conv2d_norm(x, weight, norm, 5, padding=1, residual=residual)


def test_a_number_as_alpha():
    x, weight, ends = torch.randn(2, 4, 6, 6), SparseWeight.pack(torch.randn(5, 4, 3, 3)), torch.randn(2, 5).unbind()

    def run(alpha):
        return sparse_conv2d_norm(x, weight, (*ends, None, None, alpha), 5)

    expected = run(torch.tensor(0.3))
    assert torch.equal(run(0.3), expected) and torch.equal(run(torch.tensor(0.3, dtype=torch.float64)), expected)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 2.0$"):
        run(2.0)
