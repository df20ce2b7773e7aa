"""The Triton kernel in Triton's interpreter, against the reference, on integers whose sums are exact."""

import pytest
import torch
from lcs_kernels.triton_kernels import width_conv2d as module

from lcs_kernels._triton import kernel
from lcs_kernels.ops.width_conv2d import reference

from ..ops.sparse_cases import DTYPES, integers
from ..ops.test_width_conv2d import FORMATS, GEOMETRIES, call_arguments

INTERPRET = True
LARGE = {"several bands", "many panels", "7x7 strided", "3x3, several chunks"}

run = kernel("width_conv2d", "width_conv2d")


@pytest.mark.parametrize("name", sorted(GEOMETRIES.keys() - LARGE))
def test_matches_reference(name, quick_sizes):
    quick_sizes(module, TILE={"POSITIONS": 256, "OUTPUTS": 64, "INPUTS": 32})
    torch.manual_seed(0)
    geometry = GEOMETRIES[name]
    out, settings = call_arguments(geometry)
    vector = integers(geometry[1][0])
    for layout, dtypes, affine in (
        (torch.contiguous_format, DTYPES[:1] * 2, (None, None, False)),
        (torch.channels_last, DTYPES[1:] * 2, (vector, vector.flip(0), True)),
        (torch.contiguous_format, DTYPES, (None, vector, True)),
    ):
        x, w = (integers(*shape, dtype=dtype) for shape, dtype in zip(geometry, dtypes, strict=False))
        x = x.to(memory_format=layout)
        y, expected = (f(x, w, out, *affine[:2], *settings, affine[2], None) for f in (run, reference))
        assert y.dtype == x.dtype and torch.equal(y, expected)
        assert all(y.is_contiguous(memory_format=f) == expected.is_contiguous(memory_format=f) for f in FORMATS)


def test_a_cap():
    x, w, one = integers(2, 5, 6, 7), integers(9, 5, 3, 3), [1, 1]
    x[0, 0, 2, 3] = torch.nan
    y, expected = (f(x, w, 9, None, None, one, one, one, 1, True, None, cap=6.0) for f in (run, reference))
    assert torch.equal(y.nan_to_num(-1), expected.nan_to_num(-1)) and y.isnan().any() and (y == 6).any()


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_a_residual(layout):
    x, w, one = integers(2, 5, 6, 7).bfloat16().to(memory_format=layout), integers(9, 5, 3, 3).bfloat16(), [1, 1]
    residual = integers(2, 9, 6, 7).bfloat16() + 0.25
    y, expected = (f(x, w, 9, None, None, one, one, one, 1, True, None, None, 6.0, residual) for f in (run, reference))
    assert torch.equal(y, expected) and (y == 6).any() and (y == 0).any()


def test_views_of_x_in_the_tiles_of_a_gpu():
    x, w, one = integers(2, 9, 6, 7)[:, 2:7, 1:], integers(40, 8, 3, 3), [1, 1]
    assert torch.equal(*(f(x, w, 33, None, None, one, one, one, 1, False, None) for f in (run, reference)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(1, 4, 6, 6).half()}, TypeError, "x must be float32 or bfloat16"),
        ({"weight": torch.ones(5, 4, 3, 3).half()}, TypeError, "weight must be float32 or bfloat16"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must have shape \(5,\)"),
        ({"scale": torch.ones(5).double()}, TypeError, "scale must be torch.float32"),
        ({"residual": torch.ones(1, 4, 4, 3)}, ValueError, r"residual must have shape \(1, 4, 4, 4\)"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"x": torch.ones(1, 4, 6, 6), "weight": torch.ones(5, 4, 3, 3), "out_channels": 4, "scale": None}
    arguments |= {"bias": None, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "relu": False}
    with pytest.raises(error, match=f"width_conv2d: {words}"):
        run(**arguments | change)


def test_vectors_of_any_strides():
    x, w = integers(2, 6, 5, 5), integers(8, 6, 3, 3)
    scale, bias = integers(16)[::2], integers(1).expand(8)
    arguments = (x, w, 8, scale, bias, [1, 1], [1, 1], [1, 1], 1, True, None)
    assert torch.equal(run(*arguments), reference(*arguments))


def test_more_than_32_bits_count():
    x, one = torch.zeros(1, 1, 1, 1).expand(1 << 15, 1, 1 << 8, 1 << 8), [1, 1]
    with pytest.raises(ValueError, match="width_conv2d: 2,147,483,648 positions of all images are more than"):
        run(x, integers(1, 1, 1, 1), 1, None, None, one, [0, 0], one, 1, False, None)
