"""What the tests of width_conv2d by Winograd's products share."""

import torch
from torch.nn import functional as F

from lcs_kernels import width_conv2d_norm
from lcs_kernels.ops.width_conv2d_norm import reference as apart

from .sparse_cases import LAST

# x, full weight's channels, out_channels, padding; of 3 x 3 taps
SQUARE = {
    "whole": ((2, 64, 14, 16), (64, 64), 64, 1),
    "odd": ((2, 36, 13, 15), (70, 40), 70, 1),
    "no padding": ((1, 32, 17, 12), (128, 32), 96, 0),
    "wide padding": ((2, 50, 5, 9), (50, 51), 50, (2, 1)),
    "padding beyond the kernel": ((2, 33, 3, 2), (32, 33), 32, (5, 4)),
    "few of many channels": ((3, 3, 9, 10), (64, 64), 5, 1),
    "one channel of many": ((1, 1, 8, 7), (64, 33), 1, 1),
    "one pixel": ((5, 40, 1, 1), (37, 40), 37, 1),
    "tiny images": ((70, 32, 2, 3), (33, 32), 33, 1),
    "one row": ((2, 32, 1, 300), (40, 32), 40, 1),
    "one column": ((1, 33, 99, 1), (32, 33), 17, 1),
    "many channels": ((1, 500, 4, 5), (32, 500), 32, 1),
}


def pair(padding):
    return [padding] * 2 if isinstance(padding, int) else list(padding)


def assert_within_bound(y, x, block, padding, scale=None, bias=None, relu=False, *, bound, stride=1):
    """Returns what y may be off by."""
    exact = F.conv2d(x.double(), block.double(), None, stride, padding)
    limit = bound(x, padding, block) * (1 + 2.0**-10)  # what is not of first order, and float64's own
    if scale is not None:
        factor, shift = (v[: len(block), None, None].double() for v in (scale, bias))
        exact, limit = exact * factor + shift, limit * factor.abs() + 2.0**-23 * shift.abs()
    exact = exact.relu() if relu else exact
    assert ((y.double() - exact).abs() <= limit + LAST[x.dtype] * (exact.abs() + limit)).all()
    return limit


def assert_a_norm_behind_changes_no_bit(x, weight, out, packed, stride, padding, residual=None, images=()):
    """With and without pooling, for one thread and three; also of the first `images` alone."""
    norm, settings = (torch.randn(out), None, None, None, None), ([stride] * 2, [padding] * 2, [1, 1], 1)
    before = torch.get_num_threads()
    for pool in (None, (3, 2, 1)):
        numbers = [] if pool is None else [3, 3, 2, 2, 1, 1]
        arguments = (out, None, *settings, packed, *norm, residual, out, 1e-5, True, numbers, None, None)
        expected = apart(x, weight.weight, *arguments)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for n in (len(x), *images):
                options = {"residual": None if residual is None else residual[:n], "relu": True, "max_pool": pool}
                found = width_conv2d_norm(x[:n], weight, out, norm, stride=stride, padding=padding, **options)
                assert torch.equal(found, expected[:n])
    torch.set_num_threads(before)
