"""Nested weights, what the exact path may differ by, and what rounding x moves the result by."""

import torch

from lcs_kernels.formats import NestedWeight

DTYPES = [torch.float32, torch.bfloat16]
WIDTHS = range(2, 9)
LAST = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}  # unit roundoff of the one rounding from float32


def nested_weight(shape, per="channel", group=None, depth=8):
    """Of any codes, the extremes among them, and any zero points."""
    columns = torch.Size(shape[1:]).numel()
    groups = max(-(-columns // group), 1) if group else 1
    codes = torch.randint(0, 1 << depth, shape, dtype=torch.uint8)
    codes.view(-1)[::7] = (1 << depth) - 1
    codes.view(-1)[3::11] = 0
    rows = 1 if per == "tensor" else shape[0]
    zero_points = torch.randint(0, 1 << depth, (rows, groups), dtype=torch.uint8)
    return NestedWeight.from_codes(codes, torch.rand(rows, groups) / 100, zero_points, group, depth)


def fields(weight):
    return weight.planes, weight.scales, weight.zero_points


def assert_within_roundings(y, exact, magnitude, terms):
    """y, of float32 sums, against the float64 `exact`.

    Every term is rounded once as a product, once as part of each of the at most `terms` partial sums, and four times
    with a scale, another, the bias, and the weight that it is compared by. Then y is rounded.
    """
    error = ((1 + 2.0**-24) ** (terms + 5) - 1) * magnitude
    assert ((y.double() - exact).abs() <= error + LAST[y.dtype] * (exact.abs() + error)).all()
