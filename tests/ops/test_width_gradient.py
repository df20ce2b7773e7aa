"""Gradients of `width_conv2d` by Winograd's products, and of the others beside them."""

from itertools import product
from math import inf

import pytest
import torch
from torch.library import opcheck
from torch.nn import functional as F

from lcs_kernels import width_conv2d
from lcs_kernels.formats import WidthWeight
from lcs_kernels.ops._winograd import TILE, transforms
from lcs_kernels.ops.width_conv2d import reference_weight_gradient

from .sparse_cases import integers
from .test_width_conv2d import FORMATS, OP, PACK, pair

WEIGHT_GRADIENT = torch.ops.lcs.width_conv2d_weight_gradient.default
INPUT_GRADIENT = torch.ops.lcs.width_conv2d_input_gradient.default

# Of 3 x 3 taps at stride 1: channels of grad, x, padding.
WEIGHT_GRADIENTS = {
    "odd": (33, (2, 17, 7, 9), 1),
    "several blocks": (70, (1, 67, 9, 8), 1),
    "no padding": (40, (3, 35, 13, 6), 0),
    "wide padding": (3, (3, 64, 2, 5), 2),
    "padding of one side": (8, (1, 33, 1, 6), (1, 0)),
    "padding beyond the kernel": (5, (2, 6, 3, 2), (5, 4)),
    "one channel": (1, (2, 1, 13, 4), 1),
    "one pixel": (17, (5, 33, 1, 1), 1),
    "several rounds of tiles": (9, (3, 18, 30, 27), 1),
    "tiny images": (3, (150, 4, 2, 3), 1),
    "no images": (5, (0, 3, 4, 4), 1),
    "no channels": (5, (2, 0, 4, 4), 1),
    "no results": (0, (2, 3, 4, 4), 1),
    "no pixels": (5, (2, 3, 0, 0), 2),
}


def uniform(*shape):
    return torch.rand(shape) - 0.5


def largest(t):
    return t.abs().max().double() if t.numel() else 0.0


SECOND_ORDER = 1 + 2.0**-10  # what the bounds leave out


def result_bound(channels, weight, x):
    """What the docstring of width_conv2d lets a result, a sum of so many channels, be off by."""
    return (channels + 25) * 880 * channels * 2.0**-24 * largest(weight) * largest(x) * SECOND_ORDER


def weight_gradient_bound(grad, x, padding):
    """An element is rounded at most 10 times in A grad A^T, with its constants, and 6 in B^T x B, a product as often as
    there are tiles and once more, a sum 8 times in G^T m G: each by 2^-24 of the magnitudes, which |A|, |B| and |G|
    pass on, 1250 max |grad| max |x| of a tile at most."""
    a, g, b = (m.abs() for m in transforms(TILE))
    side = torch.einsum("ip,pk,pu->iku", a, g, b)
    ends = [-n % TILE for n in grad.shape[2:]]
    tiles = F.pad(grad.double().abs(), (0, ends[1], 0, ends[0])).unfold(2, TILE, TILE).unfold(3, TILE, TILE)
    x_ends = padding[1], padding[1] + ends[1], padding[0], padding[0] + ends[0]
    windows = F.pad(x.double().abs(), x_ends).unfold(2, TILE + 2, TILE).unfold(3, TILE + 2, TILE)
    n = tiles.shape[0] * tiles.shape[2] * tiles.shape[3]
    products = torch.einsum("norsij,ncrsuv->ocijuv", tiles, windows)
    limit = (n + 30) * 2.0**-24 * torch.einsum("ocijuv,iku,jlv->ockl", products, side, side)
    assert (limit <= (n + 30) * 1250 * n * 2.0**-24 * largest(grad) * largest(x)).all()
    return limit * SECOND_ORDER


@pytest.mark.parametrize("name", WEIGHT_GRADIENTS)
def test_weight_gradients_round_as_often_as_they_must(isas, name):
    """And have the same bits in every layout, for one thread and two."""
    torch.manual_seed(11)
    channels, shape, padding = WEIGHT_GRADIENTS[name]
    padding, before = pair(padding), torch.get_num_threads()
    x, grad = (
        uniform(*shape),
        uniform(shape[0], channels, *(n + 2 * p - 2 for n, p in zip(shape[2:], padding, strict=True))),
    )
    exact = reference_weight_gradient(grad.double(), x.double(), padding)
    for _ in isas():
        results = []
        for grad_layout, x_layout, threads in product(FORMATS, FORMATS, (1, 2)):
            torch.set_num_threads(threads)
            laid_out = grad.to(memory_format=grad_layout), x.to(memory_format=x_layout)
            results.append(WEIGHT_GRADIENT(*laid_out, padding))
        torch.set_num_threads(before)
        turned = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (grad, x))
        results.append(WEIGHT_GRADIENT(*turned, padding))
        assert results[0].dtype == torch.float32 and results[0].shape == exact.shape
        assert ((results[0] - exact).abs() <= weight_gradient_bound(grad, x, padding)).all()
        assert all(torch.equal(y, results[0]) and y.is_contiguous() for y in results)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2, (0, 2)], ids=str)
@pytest.mark.parametrize(("out", "channels"), [(33, 40), (70, 17), (1, 48), (64, 1), (5, 0)], ids=str)
def test_gradients_to_x_are_convolutions_with_the_turned_weight(isa, out, channels, padding, layout):
    """Bit for bit; those of integers by direct products are exact."""
    torch.manual_seed(16)
    w, grad, padding = uniform(out, channels, 3, 3), uniform(2, out, 9, 10).to(memory_format=layout), pair(padding)
    turned, back = w.flip(2, 3).transpose(0, 1).contiguous(), [2 - p for p in padding]
    found = INPUT_GRADIENT(grad, w, padding)
    if channels:
        expected = OP(grad, turned, channels, None, None, [1, 1], back, [1, 1], 1, False, PACK(turned, False))
        assert torch.equal(found, expected) and found.stride() == expected.stride()
    exact = torch.nn.grad.conv2d_input(found.shape, w.double(), grad.double(), padding=padding)
    assert ((found - exact).abs() <= result_bound(out, w, grad)).all() and found.shape == exact.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grad": torch.ones(2, 5, 6, 6).double()}, "grad must be float32 images on the CPU"),
        ({"grad": torch.ones(5, 6, 6)}, r"grad must be float32 images on the CPU, got \(5, 6, 6\)"),
        ({"weight": torch.ones(5, 3, 3, 3).bfloat16()}, r"weight must be contiguous float32 \(5, channels, 3, 3\)"),
        ({"weight": torch.ones(4, 3, 3, 3)}, "weight must be contiguous float32"),
        ({"weight": torch.ones(5, 3, 3, 1)}, "weight must be contiguous float32"),
        ({"weight": torch.ones(3, 5, 3, 3).transpose(0, 1)}, "weight must be contiguous float32"),
        ({"padding": [1]}, "padding must hold 2 numbers from 0 to 2"),
        ({"padding": [1, 3]}, "padding must hold 2 numbers from 0 to 2"),
        ({"padding": [-1, 1]}, "padding must hold 2 numbers from 0 to 2"),
        ({"grad": torch.ones(2, 5, 1, 6), "padding": [2, 2]}, "no x of this padding has a result of the size of grad"),
    ],
    ids=str,
)
def test_the_op_refuses_a_gradient_to_x(change, words):
    fields = {"grad": torch.ones(2, 5, 6, 6), "weight": torch.ones(5, 3, 3, 3), "padding": [1, 1]} | change
    with pytest.raises(RuntimeError, match=f"width_conv2d_input_gradient: .*{words}"):
        INPUT_GRADIENT(*fields.values())


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2, (0, 2)], ids=str)
@pytest.mark.parametrize("after", [{}, {"relu": True}, {"relu": True, "cap": 1.0}], ids=["plain", "relu", "cap"])
def test_gradients_by_winograds_products(isa, after, padding, layout):
    """Of the block that is used, within what may be rounded; 0 outside of it."""
    torch.manual_seed(12)
    x, w, bias = uniform(2, 33, 9, 10).to(memory_format=layout), uniform(36, 40, 3, 3), uniform(36)
    leaves = [t.requires_grad_() for t in (x, w, bias)]
    y = width_conv2d(x, w, 34, bias, padding=padding, **after)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    sums = F.conv2d(exact[0], exact[1][:34, :33], exact[2][:34], padding=padding)
    limit = result_bound(33, w, x) + 2.0**-23 * largest(bias)
    cap = after.get("cap", inf)
    expected = sums.clamp(0, cap) if after else sums
    assert ((y - expected).abs() <= limit).all() and torch.equal(
        y, width_conv2d(x, WidthWeight.pack(w), 34, bias, padding=padding, **after)
    )

    grad = uniform(*y.shape).to(memory_format=layout)
    if after:  # where rounding does not decide whether the gradient passes
        grad[(sums.abs() <= limit) | ((sums - cap).abs() <= limit)] = 0
    passed = grad * ((sums > 0) & (sums < cap)) if after else grad
    found = torch.autograd.grad(y, leaves, grad)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    terms = passed[:, 0].numel()
    limits = (
        result_bound(34, w, passed),
        F.pad(weight_gradient_bound(passed, x, pair(padding)), (0, 0, 0, 0, 0, 7, 0, 2)),
        F.pad(terms * 2.0**-24 * passed.double().abs().sum((0, 2, 3)) * SECOND_ORDER, (0, 2)),
    )
    for a, b, leaf, most in zip(found, wanted, leaves, limits, strict=True):  # 0 for what is not used
        assert a.dtype == torch.float32 and a.shape == leaf.shape and a.stride() == leaf.stride()
        assert ((a - b).abs() <= most).all() and b.any()
    assert torch.equal(found[1][:34, :33], WEIGHT_GRADIENT(passed, x, pair(padding)))
    of_packed = width_conv2d(x, WidthWeight.pack(w.detach()), 34, bias, padding=padding, **after)
    assert torch.equal(torch.autograd.grad(of_packed, x, grad)[0], found[0])


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_gradients_by_winograds_products_only_where_they_are_wanted(wanted):
    torch.manual_seed(13)
    leaves = uniform(1, 32, 8, 9), uniform(36, 40, 3, 3), uniform(36)
    expected = [t.clone().requires_grad_() for t in leaves]
    width_conv2d(*expected[:2], 34, expected[2], padding=1).square().sum().backward()
    for t, want in zip(leaves, wanted, strict=True):
        t.requires_grad_(want)
    width_conv2d(*leaves[:2], 34, leaves[2], padding=1).square().sum().backward()
    for t, full, want in zip(leaves, expected, wanted, strict=True):
        assert torch.equal(t.grad, full.grad) if want else t.grad is None


@pytest.mark.parametrize(
    ("channels", "change"),
    [
        (34, {"padding": 3}),
        (34, {"padding": (1, 3)}),
        (34, {"stride": 2}),
        (34, {"dilation": 2}),
        (34, {"groups": 2}),
        (30, {}),
    ],
    ids=str,
)
def test_other_gradients_are_sums_of_products(channels, change):
    """Those of integers are exact."""
    torch.manual_seed(14)
    settings = {"padding": 1, "groups": 1} | change
    inputs = 40 // settings["groups"], channels // settings["groups"]
    leaves = [integers(*s).requires_grad_() for s in ((2, channels, 9, 10), (64, inputs[0], 3, 3), (64,))]
    y = width_conv2d(*leaves[:2], 34, leaves[2], **settings)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = F.conv2d(exact[0], exact[1][:34, : inputs[1]], exact[2][:34], **settings)
    grad = integers(*y.shape)
    assert torch.equal(y.double(), expected)
    found, wanted = torch.autograd.grad(y, leaves, grad), torch.autograd.grad(expected, exact, grad.double())
    assert all(torch.equal(a.double(), b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("after", [{}, {"relu": True}, {"relu": True, "cap": 9.0}], ids=["plain", "relu", "cap"])
def test_gradients_of_gradients_are_torchs(after):
    """Exact for integers, as no result comes in."""
    torch.manual_seed(17)
    x, w, bias = integers(2, 33, 7, 6), integers(36, 40, 3, 3), integers(36)
    with torch.no_grad():  # no sum lies where rounding decides
        bias += 0.5
    grad, *factors = integers(2, 34, 7, 6), integers(2, 33, 7, 6), integers(36, 40, 3, 3)
    found = []
    for ours in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, w, bias, grad)]
        if ours:
            y = width_conv2d(*leaves[:2], 34, leaves[2], padding=1, **after)
        else:
            y = F.conv2d(leaves[0], leaves[1][:34, :33], leaves[2][:34], padding=1)
            y = y.clamp(0, after.get("cap", inf)) if after else y
        first = torch.autograd.grad(y, leaves[:3], leaves[3], create_graph=True)
        again = torch.autograd.grad([t for t in first[:2]], [leaves[0], leaves[1], leaves[3]], factors)
        found.append([*first, *again])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("after", [{}, {"relu": True, "cap": 1.0}], ids=["plain", "cap"])
def test_compiled_gradients_by_winograds_products_have_the_same_bits(after):
    torch.manual_seed(15)
    leaves = [uniform(*s).requires_grad_() for s in ((2, 33, 9, 10), (36, 40, 3, 3), (36,))]

    def run(x, w, bias):
        return 2 * width_conv2d(x.sin(), w, 34, bias, padding=1, **after)

    ys = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves), run(*leaves)
    grad = uniform(*ys[0].shape)
    assert torch.equal(*ys)
    found, expected = (torch.autograd.grad(y, leaves, grad) for y in ys)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_opcheck(layout):
    grad, padding = integers(2, 5, 5, 7).to(memory_format=layout), [0, 2]
    opcheck(WEIGHT_GRADIENT, (grad, integers(2, 3, 7, 5), padding))
    opcheck(WEIGHT_GRADIENT, (grad, integers(2, 3, 7, 5).to(memory_format=torch.channels_last), padding))
    opcheck(WEIGHT_GRADIENT, (grad[:0], integers(0, 3, 7, 5), padding))
    opcheck(INPUT_GRADIENT, (grad, integers(5, 3, 3, 3), padding))
    opcheck(INPUT_GRADIENT, (grad[:0], integers(5, 3, 3, 3), padding))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(2, 3, 6, 6).bfloat16()}, r"must be as many float32 images on the CPU, got \(2, 5, 6, 6\)"),
        ({"x": torch.ones(2, 3, 6, 6).double()}, "must be as many float32 images"),
        ({"grad": torch.ones(2, 5, 6, 6).bfloat16()}, "must be as many float32 images"),
        ({"grad": torch.ones(5, 6, 6)}, r"must be as many float32 images .* got \(5, 6, 6\) and \(2, 3, 6, 6\)"),
        ({"x": torch.ones(3, 6, 6)}, "must be as many float32 images"),
        ({"x": torch.ones(3, 3, 6, 6)}, r"must be as many float32 images .* and \(3, 3, 6, 6\)"),
        ({"grad": torch.ones(2, 5, 5, 6)}, r"grad is not of the result's size, got \(2, 5, 5, 6\) for x"),
        ({"grad": torch.ones(2, 5, 6, 7)}, "grad is not of the result's size"),
        ({"padding": [1, 2]}, "grad is not of the result's size"),
        ({"padding": [1]}, "stride, padding and dilation must hold 2 numbers each"),
        ({"x": torch.ones(2, 3, 1, 6), "padding": [0, 1]}, "the kernel of 3 does not fit the padded input of 1"),
    ],
    ids=str,
)
def test_the_op_refuses_a_weight_gradient(change, words):
    fields = {"grad": torch.ones(2, 5, 6, 6), "x": torch.ones(2, 3, 6, 6), "padding": [1, 1]} | change
    with pytest.raises(RuntimeError, match=f"width_conv2d_weight_gradient: .*{words}"):
        WEIGHT_GRADIENT(*fields.values())
