"""Calls of packed_conv2d next to its reference."""

import torch

from lcs_kernels import packed_conv2d
from lcs_kernels.ops.packed_conv2d import reference

from ..conftest import as_it_is
from .packed_cases import fields
from .test_sparse_conv2d import FORMATS, settings

NONE = (None, None, 8)
RANGES = [NONE, (-1.3, 2.2, 8), (-0.5, 1.0, 5), (0.0, 3.0, 2)]  # low, high, x_bits


def ends(x_range, like):
    dtype = torch.promote_types(like.dtype, torch.float32)
    return [None if end is None else torch.tensor(end, dtype=dtype) for end in x_range[:2]]


def call(x, weight, bits, bias, geometry, x_range=NONE, **options):
    options |= {} if x_range[0] is None else {"x_range": x_range[:2], "x_bits": x_range[2]}
    return packed_conv2d(x, weight, bits, bias, *geometry[2:], **options)


def check(x, weight, bits, bias, geometry, x_range=NONE, relu=False, isas=as_it_is):
    arguments = (*settings(geometry), *ends(x_range, x), x_range[2], relu, False, [])
    expected = reference(x, *fields(weight), weight.shape, bits, bias, *arguments, group=weight.group)
    for _ in isas():
        y = call(x, weight, bits, bias, geometry, x_range, relu=relu)
        assert y.dtype == x.dtype and torch.equal(y, expected)
        for layout in FORMATS:
            assert y.is_contiguous(memory_format=layout) == expected.is_contiguous(memory_format=layout)
    return y


def check_nan(x, weight, geometry, x_range, relu):
    y = call(x, weight, 4, None, geometry, x_range, relu=relu)
    arguments = (*settings(geometry), *ends(x_range, x), x_range[2], relu, False, [])
    expected = reference(x, *fields(weight), weight.shape, 4, None, *arguments)
    assert torch.equal(y.nan_to_num(123.0), expected.nan_to_num(123.0))
    return y
