"""What all ops take, or refuse, alike."""

import importlib

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

import lcs_kernels as lcs
from lcs_kernels.formats import NestedWeight, SparseWeight, WidthWeight

OUT = 6
VECTOR, IMAGES = torch.linspace(-1, 1, 2 * OUT), torch.linspace(-2, 3, 2 * 5 * 6 * 6).view(2, 5, 6, 6)
FILTERS = torch.linspace(-1, 1, OUT * 5 * 9).view(OUT, 5, 3, 3)
X, W = IMAGES[:, :, 0, 0], FILTERS[:, :, 0, 0]
# Each op with a vector of as many numbers as it has output channels.
WITH_VECTORS = {
    "sparse_linear": lambda v: lcs.sparse_linear(X, SparseWeight.pack(W), v),
    "sparse_conv2d": lambda v: lcs.sparse_conv2d(IMAGES, SparseWeight.pack(FILTERS), v),
    "sparse_conv2d_norm": lambda v: lcs.sparse_conv2d_norm(
        IMAGES, SparseWeight.pack(FILTERS), (v, v, v, v, 0.3), OUT, bias=v, relu=True
    ),
    "packed_linear": lambda v: lcs.packed_linear(X, NestedWeight.pack(W), 4, v),
    "packed_conv2d": lambda v: lcs.packed_conv2d(IMAGES, NestedWeight.pack(FILTERS), 4, v),
    "width_conv2d": lambda v: lcs.width_conv2d(IMAGES, FILTERS, 4, v, scale=v),
    "width_conv2d_norm": lambda v: lcs.width_conv2d_norm(
        IMAGES, WidthWeight.pack(FILTERS), 4, (v, v, v, v, 0.3), bias=v, relu=True
    ),
    "line_norm": lambda v: lcs.line_norm(IMAGES, v, v, v, v, 0.3, 5),
    "line_norm, given": lambda v: lcs.line_norm(IMAGES, v, None, None, None, None, 5, mean=v, var=v.square()),
}


@pytest.mark.parametrize("op", WITH_VECTORS)
@pytest.mark.parametrize("vector", [VECTOR[::2], VECTOR[3:4].expand(OUT)], ids=["strided", "expanded"])
def test_vectors_of_any_strides(isa, vector, op):
    call = WITH_VECTORS[op]
    assert torch.equal(call(vector), call(vector.contiguous()))


def test_gradients_of_vectors_of_any_strides():
    gradients = []
    for view in (lambda v: v[::2], lambda v: v[::2].contiguous()):
        vector = VECTOR.clone().requires_grad_()
        for op in ("width_conv2d", "line_norm"):
            WITH_VECTORS[op](view(vector)).square().sum().backward()
        gradients.append(vector.grad)
    assert torch.equal(*gradients) and gradients[0].any()


TAKES = {
    "sparse_linear": ("SparseWeight", lambda x, w: lcs.sparse_linear(x, w)),
    "sparse_conv2d": ("SparseWeight", lambda x, w: lcs.sparse_conv2d(x, w)),
    "packed_linear": ("NestedWeight", lambda x, w: lcs.packed_linear(x, w, 4)),
    "packed_conv2d": ("NestedWeight", lambda x, w: lcs.packed_conv2d(x, w, 4)),
    "width_conv2d": ("WidthWeight", lambda x, w: lcs.width_conv2d(x, w)),
    "width_conv2d_norm": ("WidthWeight", lambda x, w: lcs.width_conv2d_norm(x, w, OUT, (None,) * 5)),
}
FORMS = {"SparseWeight": SparseWeight, "NestedWeight": NestedWeight, "WidthWeight": WidthWeight}


@pytest.mark.parametrize("op", TAKES)
def test_another_weight_is_named_with_what_makes_the_ops_own(op):
    form, call = TAKES[op]
    others = {f"a {name}": FORMS[name].pack(FILTERS) for name in FORMS if name != form}
    others |= {"a tuple": lcs.sparse_pack(FILTERS)} | ({} if form == "WidthWeight" else {"a dense tensor": FILTERS})
    for kind, weight in others.items():
        with pytest.raises(TypeError, match=rf"^{op}: weight must be a {form}, got {kind}; {form}\.pack\(w\) of lcs_k"):
            call(IMAGES, weight)
    with pytest.raises(TypeError, match=f"^{op}: x must be a tensor, got a {form}; the weight comes second"):
        call(*[FORMS[form].pack(FILTERS)] * 2)


FORWARD = {
    "interpolate_prune": lambda x: lcs.interpolate_prune(x, None, 0.3, 0.5),
    "interpolate_prune_foreach": lambda x: lcs.interpolate_prune_foreach([x], None, 0.3, 0.5)[0],
    "interpolate_quantize": lambda x: lcs.interpolate_quantize(x, None, 0.3, 4),
    "quantize": lambda x: lcs.quantize(x, -1, 1, 4),
    "cosine_squared": lambda x: lcs.cosine_squared([x], [x]),
    "sparse_conv2d": lambda x: lcs.sparse_conv2d(x, SparseWeight.pack(FILTERS)),
    "packed_conv2d": lambda x: lcs.packed_conv2d(x, NestedWeight.pack(FILTERS), 4),
    "width_conv2d_norm": lambda x: lcs.width_conv2d_norm(x, WidthWeight.pack(FILTERS), OUT, (None,) * 5),
    "line_norm": lambda x: lcs.line_norm(x, None, None, None, None, None, 5),
}


@pytest.mark.parametrize("op", FORWARD)
@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_is_refused_and_not_taken_for_a_constant(grad, op):
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        expected = FORWARD[op](IMAGES)
        with pytest.raises(NotImplementedError, match="jvp"):
            FORWARD[op](forward_ad.make_dual(IMAGES, IMAGES))
    assert torch.equal(FORWARD[op](IMAGES), expected)


CONVOLUTIONS = {
    "sparse_conv2d": lambda w=FILTERS, **how: lcs.sparse_conv2d(IMAGES, SparseWeight.pack(w), **how),
    "sparse_conv2d_norm": lambda w=FILTERS, **how: lcs.sparse_conv2d_norm(
        IMAGES, SparseWeight.pack(w), (None,) * 5, OUT, **how
    ),
    "packed_conv2d": lambda w=FILTERS, **how: lcs.packed_conv2d(IMAGES, NestedWeight.pack(w), 4, **how),
    "width_conv2d": lambda w=FILTERS, **how: lcs.width_conv2d(IMAGES, WidthWeight.pack(w), OUT, **how),
    "width_conv2d_norm": lambda w=FILTERS, **how: lcs.width_conv2d_norm(
        IMAGES, WidthWeight.pack(w), OUT, (None,) * 5, **how
    ),
}


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_geometry_of_numpys_numbers(op):
    expected = CONVOLUTIONS[op](stride=(2, 2), padding=(1, 1))
    assert torch.equal(CONVOLUTIONS[op](stride=np.int64(2), padding=(np.int32(1), np.int64(1))), expected)


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_kernels_of_no_taps_and_coordinates_beyond_all_integers_are_refused(op):
    with pytest.raises(ValueError, match="a kernel of 0"):
        CONVOLUTIONS[op](torch.ones(OUT, 5, 0, 3))
    with pytest.raises(ValueError, match="does not fit an input of 6"):
        CONVOLUTIONS[op](torch.ones(OUT, 5, 5, 5), dilation=(1 << 62, 1 << 62))
    with pytest.raises(RuntimeError, match="padding 2305843009213693952 or dilation 1 is out of range"):
        CONVOLUTIONS[op](padding=(1 << 61, 1 << 61))


MULTIPLY = {
    "sparse_linear": lambda x: lcs.sparse_linear(x[:, :, 0, 0], SparseWeight.pack(W)),
    "packed_linear": lambda x: lcs.packed_linear(x[:, :, 0, 0], NestedWeight.pack(W), 4, exact=True),
    "sparse_conv2d": lambda x: lcs.sparse_conv2d(x, SparseWeight.pack(FILTERS)),
    "packed_conv2d": lambda x: lcs.packed_conv2d(
        x, NestedWeight.pack(FILTERS, per="group", group=9), 4, exact=True
    ),  # of several scales: by the reference
    "width_conv2d": lambda x: lcs.width_conv2d(x, FILTERS),
}


@pytest.mark.parametrize("op", MULTIPLY)
def test_autocast_rounds_no_products(op):
    def results(enabled):
        x = IMAGES.clone().requires_grad_()
        with torch.autocast("cpu", enabled=enabled):
            y = MULTIPLY[op](x)
            y.backward(y.detach() / 3)
        return y, x.grad

    assert all(map(torch.equal, results(True), results(False)))


SPARSE, SPARSE_4D = ((s.mask_bits, s.values) for s in map(SparseWeight.pack, (W, FILTERS)))
NESTED, GEOMETRY = NestedWeight.pack(W), ([1, 1], [0, 0], [1, 1], 1)
REFERENCES = {
    "sparse_linear": lambda: (X, *SPARSE, OUT, None, False, 5, []),
    "packed_linear": lambda: (X, NESTED.planes, NESTED.scales, NESTED.zero_points, OUT, 5, 4, None, False, True, []),
    "sparse_conv2d": lambda: (IMAGES, *SPARSE_4D, FILTERS.shape, None, *GEOMETRY, False, 9, []),
    "width_conv2d": lambda: (IMAGES, FILTERS, OUT, None, None, *GEOMETRY, False, None),
}


@pytest.mark.parametrize("op", REFERENCES)
def test_autocast_rounds_no_products_of_references(op):
    reference = importlib.import_module(f"lcs_kernels.ops.{op}").reference
    with torch.autocast("cpu"):
        found = reference(*REFERENCES[op]())
    assert torch.equal(found, reference(*REFERENCES[op]()))


def test_gradients_pass_where_a_result_is_nan():
    """As those of torch's relu."""
    torch.manual_seed(0)
    x, w = torch.randn(2, 8, 5, 5), torch.randn(16, 8, 3, 3)
    x[0, 0, 0, 0] = torch.nan
    y = F.conv2d(x, w, bias := torch.zeros(16, requires_grad=True))
    (expected,) = torch.autograd.grad(y.relu().sum(), bias)
    ways = [lambda: lcs.width_conv2d(x, w, None, bias, relu=True)]
    ways.append(lambda: lcs.sparse_conv2d(x, SparseWeight.pack(w), bias, relu=True))
    for way in ways:
        assert torch.equal(torch.autograd.grad(way().sum(), bias)[0], expected)
    rows, weight = x.flatten(1), torch.randn(4, 200)
    y = F.linear(rows, weight, bias := torch.zeros(4, requires_grad=True))
    (expected,) = torch.autograd.grad(y.relu().sum(), bias)
    y = lcs.sparse_linear(rows, SparseWeight.pack(weight), bias, relu=True)
    assert torch.equal(torch.autograd.grad(y.sum(), bias)[0], expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: lcs.packed_linear(X, NestedWeight.pack(W), 4.0),
        lambda: lcs.packed_conv2d(IMAGES, NestedWeight.pack(FILTERS), 4.0),
        lambda: lcs.width_conv2d(IMAGES, FILTERS, 2.0),
    ],
)
def test_counts_are_whole_numbers(call):
    with pytest.raises(TypeError, match=r"(bits|out_channels) must be a whole number, got [24]\.0"):
        call()
