"""packed_conv2d where Winograd's products are the faster ones: the bits of the reference on every instruction set."""

import pytest
import torch

from lcs_kernels.formats import NestedWeight
from lcs_kernels.ops.packed_conv2d import MAX_RANGED_TERMS, codes_on, reference

from .packed_cases import DTYPES, fields, nested_weight
from .packed_conv2d_cases import NONE, call, check, check_nan, ends
from .test_sparse_conv2d import FORMATS, settings

FEW = [(-1.3, 2.2, 4), (0.0, 3.0, 4), (-3.0, 0.0, 5), (-1.0, 1.5, 3), (0.0, 1.0, 2)]  # of bits that 2 x 2 tiles fit
MANY = [(-1.3, 2.2, 8), NONE, (0.0, 3.0, 7), (-3.0, 0.0, 8), (-1.0, 1.5, 6)]  # that only 4 x 4 tiles do
SQUARE = {  # 3 x 3, whose products are Winograd's by choice: whole tiles, odd sizes, channels that fill no vector
    "whole": ((2, 64, 14, 16), (64, 64, 3, 3), 1, 1, 1, 1),
    "odd": ((2, 136, 13, 15), (70, 136, 3, 3), 1, 1, 1, 1),
    "no padding": ((1, 100, 17, 12), (128, 100, 3, 3), 1, 0, 1, 1),
    "wide padding": ((2, 129, 12, 9), (50, 129, 3, 3), 1, (2, 1), 1, 1),
}


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize("ranges", [FEW, MANY], ids=["few", "many"])
def test_products(isas, ranges, name, layout):
    """In every mixture of integers and floats, each equal to the reference bit for bit."""
    torch.manual_seed(21)
    geometry = SQUARE[name]
    for i, (low, high, x_bits) in enumerate(ranges):
        bits = ((4, 2, 3) if ranges is FEW else (8, 5, 7))[i % 3]
        dtype, x_range = DTYPES[(i + bits) % 2], (low, high, x_bits)
        weight = nested_weight(geometry[1], ("channel", "tensor")[i % 2], depth=8 - i if ranges is FEW else 8)
        bias, x = torch.randn(geometry[1][0]), torch.randn(geometry[0]).to(dtype).to(memory_format=layout)
        plain = check(x, weight, bits, bias, geometry, x_range, relu=bits == 3, isas=isas)
        given = codes_on(x.float(), *ends(x_range, x), x_bits) if i % 2 and x_range != NONE else x
        residual = torch.randn(plain.shape).to(torch.float32 if given is not x else dtype).to(memory_format=layout)
        for y_range in ((None, None), (plain.float().min() / 2, plain.float().max() / 3)):
            options = {"residual": residual, "relu": bits == 4}
            options |= {"y_range": y_range, "y_bits": bits} if y_range[0] is not None else {}
            expected = reference(
                given, *fields(weight), weight.shape, bits, bias, *settings(geometry), *ends(x_range, plain),
                x_bits, bits == 4, False, [], residual, *y_range, options.get("y_bits", 8),
            )  # fmt: skip
            for _ in isas():
                y = call(given, weight, bits, bias, geometry, x_range, **options)
                assert torch.equal(y, expected) and y.stride() == expected.stride()


@pytest.mark.parametrize("x_range", [(0.0, 15.0, 4), (-15.0, 0.0, 4), (-7.0, 8.0, 4), (0.0, 31.0, 5)], ids=str)
def test_the_largest_products_of_few_bits_fit(isas, x_range):
    """Every code and every value at an end, in patterns that Winograd's transforms add up, in the most terms."""
    terms = MAX_RANGED_TERMS // 9
    geometry = (1, terms, 6, 6), (33, terms, 3, 3), 1, 1, 1, 1
    signs = torch.tensor([[1, 1], [1, -1]])
    for x_sign in (signs, -signs, torch.ones(2, 2), -torch.ones(2, 2)):
        for code, zero in ((0, 255), (255, 0)):
            codes = torch.full(geometry[1], code, dtype=torch.uint8)
            codes[1::3, :, 1] = 255 - code
            codes[2::3, :, :, 1] = 255 - code
            weight = NestedWeight.from_codes(codes, torch.ones(33), torch.full((33,), zero, dtype=torch.uint8))
            x = 255.0 * x_sign.repeat(3, 3).expand(geometry[0])
            check(x.contiguous(), weight, 4, None, geometry, x_range, isas=isas)


def test_codes_beyond_their_bits_are_multiplied_as_they_are(isa):
    torch.manual_seed(22)
    geometry, x_range = SQUARE["whole"], FEW[0]
    weight, x = nested_weight(geometry[1]), torch.randint(-128, 128, geometry[0], dtype=torch.int8)
    y = call(x.to(memory_format=torch.channels_last), weight, 4, None, geometry, x_range)
    arguments = (*settings(geometry), *ends(x_range, y), 4, False, False, [])
    assert torch.equal(y, reference(x, *fields(weight), weight.shape, 4, None, *arguments))


@pytest.mark.parametrize("threads", [1, 2, 3, 8], indirect=True)
def test_threads_change_no_products(isa, threads):
    torch.manual_seed(23)
    for geometry in [((3, 64, 18, 21), (128, 64, 3, 3), 1, 1, 1, 1), ((1, 136, 18, 21), (70, 136, 3, 3), 1, 1, 1, 1)]:
        for layout in FORMATS:
            x = torch.randn(geometry[0]).to(memory_format=layout)
            for bits, x_range in ((4, FEW[0]), (8, MANY[0])):
                check(x, nested_weight(geometry[1]), bits, None, geometry, x_range)


def test_nan_spoils_its_image_among_products_of_few_bits(isa):
    torch.manual_seed(24)
    geometry = SQUARE["whole"]
    x = torch.randn(geometry[0])
    x[1, 3, 4, 5] = torch.nan
    y = check_nan(x, nested_weight(geometry[1]), geometry, FEW[0], False)
    assert y[1].isnan().all() and y[0].isfinite().all()
