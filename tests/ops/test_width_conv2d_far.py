"""Paddings and dilations of which no copy could be made."""

import pytest
import torch
from torch.nn import functional as F

from lcs_kernels import width_conv2d

from .sparse_cases import DTYPES, integers
from .test_width_conv2d import FORMATS

FAR = {"padding": 10**9, "dilation": 10**9}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (16, 3, 3, 3), (8, 1, 3, 3)], ids=str)
def test_padded_images_of_any_size_are_refused_where_they_are_copied(shape, layout, dtype):
    """Before their sizes overflow."""
    groups = 8 if shape[1] == 1 else 1
    x, w = (integers(*s, dtype=dtype) for s in ((1, shape[1] * groups, 2, 2), shape))
    x = x.to(memory_format=layout)
    if layout == torch.channels_last and dtype == torch.float32 and groups == 1:
        y = width_conv2d(x, w, **FAR, stride=10**9)
        assert torch.equal(y, F.conv2d(x[:, :, :1, :1], w[:, :, 1:2, 1:2]))
        return
    with pytest.raises(RuntimeError, match=r"width_conv2d: an image of x .* more than 2\^60; take a smaller padding"):
        width_conv2d(x, w, None, **FAR, groups=groups)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_results_that_only_padding_reaches(isa, layout, dtype):
    """Of few channels, whose columns are copied even where no tap reads an element of x."""
    for stride, padding in ((5, (0, 2)), (4, (2, 2)), (9, (0, 4))):
        width_conv2d(torch.full((2, 3, 8, 8), torch.nan), torch.ones(16, 3, 2, 2))  # what memory held before
        x, w = integers(2, 3, 2, 2, dtype=dtype).to(memory_format=layout), integers(16, 3, 2, 2, dtype=dtype)
        assert torch.equal(width_conv2d(x, w, None, None, stride, padding), F.conv2d(x, w, None, stride, padding))
