"""What torch makes of packed_conv2d, and what its op refuses."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from lcs_kernels import packed_conv2d, sparse_conv2d
from lcs_kernels.formats import NestedWeight, SparseWeight
from lcs_kernels.ops.packed_conv2d import MAX_RANGED_TERMS, MAX_TERMS, prepacked

from .packed_cases import DTYPES, fields, nested_weight
from .sparse_cases import integers
from .test_sparse_conv2d import FORMATS

OP = torch.ops.lcs.packed_conv2d.default


FAR = 10**9
HUGE = {
    "strided": ((16, 8, 3, 3), {"padding": FAR, "stride": FAR}),
    "dilated": ((16, 8, 3, 3), {"padding": FAR, "stride": FAR, "dilation": FAR}),
    "strided taps that are joined": ((16, 3, 3, 3), {"padding": (2 * FAR, 1), "stride": (2 * FAR, 1)}),
    "depthwise": ((8, 1, 3, 3), {"padding": FAR, "stride": FAR, "groups": 8}),
    "depthwise, dilated": ((8, 1, 3, 3), {"padding": FAR, "stride": 1, "dilation": FAR, "groups": 8}),
    "more than a terabyte": ((16, 8, 3, 3), {"padding": 10**6, "stride": 10**6}),
}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", HUGE)
def test_padded_images_of_any_size_are_refused(name, exact):
    """Before their sizes overflow."""
    shape, geometry = HUGE[name]
    x = torch.randn(1, shape[1] * geometry.get("groups", 1), 2, 64)
    with pytest.raises(RuntimeError, match=r"packed_conv2d: an image of x .* more than 2\^40; take a smaller padding"):
        packed_conv2d(x, nested_weight(shape), 8, **geometry, exact=exact)


@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((16, 8, 1, 1), {"padding": FAR, "stride": FAR}),
        ((16, 3, 3, 3), {"padding": 20_000, "stride": 20_000}),
        ((4, 8, 3, 1), {"padding": (10_000, 0), "stride": (10_000, 1)}),
    ],
    ids=str,
)
def test_far_padding_that_is_not_copied(shape, geometry):
    x, codes = integers(2, shape[1], 2, 2), torch.randint(0, 8, shape, dtype=torch.uint8)
    weight = NestedWeight.from_codes(codes, torch.tensor(1.0), torch.tensor(4, dtype=torch.uint8))
    y = packed_conv2d(x, weight, 8, **geometry, exact=True)
    assert y.any() and torch.equal(y, sparse_conv2d(x, SparseWeight.pack(weight.unpack()), **geometry))


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu):
    torch.manual_seed(13)
    x, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 2, 3, 2), (2,)))
    weight = nested_weight((2, 1, 3, 2))
    run = lambda x, b: packed_conv2d(x, weight, 3, b, (1, 2), (2, 1), 1, 2, relu=relu, exact=True)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, bias))


@pytest.mark.parametrize(("dtype", "layout"), list(zip(DTYPES, FORMATS, strict=True)), ids=str)
def test_opcheck(dtype, layout):
    x, weight = torch.randn(2, 4, 6, 5).to(dtype).to(memory_format=layout), nested_weight((6, 2, 3, 2))
    given, low, high = (*fields(weight), weight.shape), torch.tensor(-1.0), torch.tensor(1.0)
    opcheck(OP, (x, *given, 3, None, [1, 2], [2, 1], [1, 1], 2, None, None, 8, False, False, []))
    opcheck(OP, (x, *given, 8, torch.randn(6), [1, 1], [0, 0], [1, 1], 2, None, None, 8, True, True, []))
    one = [1, 1]
    rest = (8, torch.randn(6), one, one, one, 2, low, high, 4, True, False, prepacked(weight, 2, x.device))
    opcheck(OP, (x, *given, *rest))
    y = OP(x, *given, *rest)
    last = y.to(memory_format=torch.channels_last)
    opcheck(OP, (x, *given, *rest, y))
    opcheck(OP, (x, *given, *rest, last, low, high, 3))
    codes = torch.randint(-8, 8, x.shape, dtype=torch.int8)
    opcheck(OP, (codes, *given, *rest, last.float()))
    opcheck(OP, (codes, *given, *rest, None, low, high, 8))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_compiles_once_for_all_widths(grad, warm):
    torch.manual_seed(14)
    graphs = CompileCounterWithBackend("aot_eager")
    weight, bias, ends = nested_weight((50, 9, 3, 3)), torch.randn(50), (torch.tensor(-1.0), torch.tensor(2.0))
    settings = {"padding": 1, "relu": True, "x_range": ends}
    if warm:
        packed_conv2d(torch.randn(2, 9, 7, 6), weight, 8, bias, padding=1)
    run = torch.compile(
        lambda x, bits: packed_conv2d(x, weight, bits, bias, x_bits=bits, **settings), fullgraph=True, backend=graphs
    )
    for bits in (8, 3, 4, 2, 7, 6, 5):
        x = torch.randn(2, 9, 7, 6).requires_grad_(grad)
        y = run(x, bits)
        with torch.no_grad():
            assert torch.equal(y, packed_conv2d(x, weight, bits, bias, x_bits=bits, **settings))
        if grad:
            y.sum().backward()
            eager = x.detach().requires_grad_()
            packed_conv2d(eager, weight, bits, bias, x_bits=bits, **settings).sum().backward()
            assert torch.equal(x.grad, eager.grad)
    assert graphs.frame_count <= 2


def test_codes_compile_once_for_all_widths():
    torch.manual_seed(20)
    graphs = CompileCounterWithBackend("aot_eager")
    first, second = nested_weight((20, 9, 3, 3)), nested_weight((6, 20, 1, 1))
    ends, hidden = (torch.tensor(-1.0), torch.tensor(2.0)), (torch.tensor(0.0), torch.tensor(9.0))

    def run(x, bits):
        y = packed_conv2d(x, first, bits, x_range=ends, x_bits=bits, relu=True, y_range=hidden, y_bits=bits)
        return packed_conv2d(y, second, bits, x_range=hidden, x_bits=bits)

    compiled, x = torch.compile(run, fullgraph=True, backend=graphs), torch.randn(2, 9, 7, 6)
    for bits in (8, 3, 4, 2, 7, 6, 5):
        assert torch.equal(compiled(x, bits), run(x, bits))
    assert graphs.frame_count <= 2


WEIGHT = nested_weight((5, 4, 3, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(4, 6, 6)}, r"x must be \(n, c, h, w\), got shape \(4, 6, 6\)"),
        ({"x": torch.ones(1, 4, 6, 6).half()}, "x must be float32 or bfloat16"),
        ({"x": torch.ones(1, 3, 6, 6)}, "x has 3 channels, a weight of 5 x 4 in 1 groups takes 4"),
        ({"weight_shape": [5, 4, 0, 3]}, "a kernel of 0 x 3 has no taps"),
        ({"weight_shape": [5, 4, 3, 5]}, "planes must be 2 to 8 x 10 contiguous int32 words"),
        ({"scales": torch.ones(4, 1)}, "scales .* must both be 1 or 5 x 1 and contiguous"),
        ({"bits": 9}, r"bits must lie in \[2, 8\], got 9"),
        ({"low": torch.tensor(0.0)}, "give both ends of x's range, or none"),
        ({"low": torch.tensor(0.0), "high": torch.ones(1)}, "high must be a 0-d CPU tensor"),
        ({"low": torch.tensor(0.0), "high": torch.tensor(1.0), "x_bits": 1}, r"bits must lie in \[2, 8\], got 1"),
        ({"x": torch.ones(1, 4, 6, 6).char()}, r"x holds codes \(int8\): give their range, not `exact`"),
        ({"y_low": torch.tensor(0.0)}, "give both ends of y's range, or none"),
        ({"y_low": torch.tensor(0.0), "y_high": torch.tensor(1.0), "y_bits": 9}, r"bits must lie in \[2, 8\], got 9"),
        ({"residual": torch.ones(1, 5, 4, 3)}, r"residual must be laid out as the result, .* got \(1, 5, 4, 3\)"),
        ({"residual": torch.ones(1, 5, 4, 4).transpose(2, 3)}, "residual must be laid out as the result"),
        ({"stride": [1]}, "stride, padding and dilation must hold 2 numbers each"),
        ({"padding": [-1, 0]}, "padding -1"),
        ({"dilation": [3, 1]}, "the kernel of 3 does not fit the padded input of 6"),
        ({"groups": 0}, "in 0 groups"),
        ({"bias": torch.ones(4)}, r"bias must be a contiguous float32 vector of 5, got shape \(4\)"),
        ({"prepack": WEIGHT.prepack()}, "prepack is not what nested_prepack makes of this weight"),
    ],
    ids=str,
)
def test_the_op_refuses(change, words):
    given = {"x": torch.ones(1, 4, 6, 6), "planes": WEIGHT.planes, "scales": WEIGHT.scales}
    given |= {"zero_points": WEIGHT.zero_points, "weight_shape": list(WEIGHT.shape), "bits": 4, "bias": None}
    given |= {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "low": None, "high": None}
    given |= {"x_bits": 8, "relu": False, "exact": False, "prepack": [], "residual": None}
    given |= {"y_low": None, "y_high": None, "y_bits": 8}
    with pytest.raises(RuntimeError, match=f"packed_conv2d: .*{words}"):
        OP(*(given | change).values())


@pytest.mark.parametrize("ranged", [False, True])
def test_the_op_refuses_sums_that_do_not_fit(ranged):
    terms = (MAX_RANGED_TERMS if ranged else MAX_TERMS) + 1
    weight, x, one = nested_weight((1, terms, 1, 1)), torch.ones(1, terms, 1, 1), [1, 1]
    low, high = (torch.tensor(0.0), torch.tensor(1.0)) if ranged else (None, None)
    given = (x, *fields(weight), weight.shape, 8, None, one, [0, 0], one, 1, low, high, 8)
    with pytest.raises(RuntimeError, match=f"sums of {terms} products run by the reference, above {terms - 1}"):
        OP(*given, False, False, [])
