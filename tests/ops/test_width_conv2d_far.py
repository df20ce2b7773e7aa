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
