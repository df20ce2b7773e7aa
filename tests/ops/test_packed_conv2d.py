import pytest
import torch
from torch.nn import functional as F

from lcs_kernels import packed_conv2d, quantize
from lcs_kernels.formats import NestedWeight
from lcs_kernels.ops.packed_conv2d import MAX_RANGED_TERMS, MAX_TERMS, codes_on, reference

from .packed_cases import DTYPES, WIDTHS, assert_within_roundings, fields, nested_weight
from .packed_conv2d_cases import NONE, RANGES, call, check, check_nan, ends
from .test_sparse_conv2d import FORMATS, GEOMETRIES, copies_of, settings

DEPTHWISE = {
    "one block": ((2, 32, 9, 7), (32, 1, 3, 3), 1, 1, 1, 32),
    "blocks and a part": ((1, 77, 11, 6), (77, 1, 5, 5), (2, 1), 2, 1, 77),
    "many columns": ((1, 9, 4, 140), (9, 1, 2, 3), 1, 0, (1, 2), 9),
    "one tap": ((3, 40, 5, 6), (40, 1, 1, 1), (1, 2), 0, 1, 40),
    "spans over many positions": ((2, 8, 5, 21), (8, 1, 3, 3), 1, 1, 1, 8),
    "spans over positions": ((2, 48, 6, 13), (48, 1, 5, 3), (2, 1), (2, 1), (1, 2), 48),
    "whole spans": ((1, 128, 9, 8), (128, 1, 3, 3), 1, 1, 1, 128),
    "whole spans, strided": ((3, 144, 8, 9), (144, 1, 3, 3), 2, 1, 1, 144),
    "spans over positions, many phases": ((1, 144, 7, 10), (144, 1, 3, 3), 1, 1, 1, 144),
    "one column, spans beyond it": ((2, 24, 6, 1), (24, 1, 3, 1), 1, (1, 0), 1, 24),
    "more taps than a span takes": ((1, 16, 17, 19), (16, 1, 16, 16), 1, 1, 1, 16),
    "padding beyond the kernel": ((2, 10, 3, 3), (10, 1, 3, 3), 2, 4, 1, 10),
}


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", [*GEOMETRIES, *DEPTHWISE])
def test_equals_the_reference(isas, name, layout):
    torch.manual_seed(0)
    geometry = (GEOMETRIES | DEPTHWISE)[name]
    bias = torch.randn(geometry[1][0])
    for i, bits in enumerate(WIDTHS):
        x = torch.randn(geometry[0]).to(DTYPES[i % 2]).to(memory_format=layout)
        weight = nested_weight(geometry[1], ("channel", "tensor")[i % 3 == 0])
        check(x, weight, bits, None, geometry, RANGES[i % 4], isas=isas)
        check(x, weight, bits, bias, geometry, RANGES[(i + 1) % 4], relu=True, isas=isas)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("channels", [1, 7, 8, 9, 16, 33, 70])
def test_widths_and_channels(isas, channels, bits):
    torch.manual_seed(1)
    geometry = ((2, channels, 11, 9), (2 * channels, channels, 3, 3), (1, 2), 1, 1, 1)
    weight = nested_weight(geometry[1])
    for layout in FORMATS:
        x = torch.randn(geometry[0]).to(memory_format=layout)
        for x_range in RANGES:
            check(x, weight, bits, None, geometry, x_range, isas=isas)


@pytest.mark.parametrize("depth", range(2, 8))
def test_codes_of_fewer_bits(isa, depth):
    torch.manual_seed(15)
    geometry = GEOMETRIES["3x3 strided"]
    weight, x = nested_weight(geometry[1], depth=depth), torch.randn(geometry[0])
    for bits in range(2, depth + 1):
        check(x, weight, bits, None, geometry)
        check(x, weight, bits, None, geometry, (-0.5, 2.0, bits))
        w, y = weight.unpack(bits).double(), call(x, weight, bits, None, geometry, exact=True)
        exact, size = (F.conv2d(a, b, None, *geometry[2:]) for a, b in ((x.double(), w), (x.double().abs(), w.abs())))
        assert_within_roundings(y, exact, size, weight.columns)


@pytest.mark.parametrize("bits", [2, 7, 8])
@pytest.mark.parametrize("x_range", [NONE, (0.0, 255.0, 8), (-255.0, 0.0, 8)], ids=str)
def test_the_largest_sums_fit(isas, x_range, bits):
    """Every code and every value as large as it can be, of one sign or of the other, in as many terms as allowed."""
    terms = (MAX_TERMS if x_range[0] is None else MAX_RANGED_TERMS) // 4
    geometry = (1, terms, 2, 2), (3, terms, 2, 2), 1, 0, 1, 1
    for sign in (1, -1):
        for code, zero in ((255, 0), (0, 255)):
            codes = torch.full(geometry[1], code, dtype=torch.uint8)
            weight = NestedWeight.from_codes(codes, torch.ones(3), torch.full((3,), zero, dtype=torch.uint8))
            check(torch.full(geometry[0], 255.0 * sign), weight, bits, None, geometry, x_range, isas=isas)


@pytest.mark.parametrize("terms", [8184, 8192, 8193, 8200])
def test_the_largest_sums_that_few_terms_have(isas, terms):
    geometry = (2, terms, 1, 2), (3, terms, 1, 1), 1, 0, 1, 1
    for low, high in ((0.0, 255.0), (-255.0, 0.0)):
        for code, zero in ((255, 0), (0, 255), (200, 255)):
            codes = torch.full(geometry[1], code, dtype=torch.uint8)
            weight = NestedWeight.from_codes(codes, torch.ones(3), torch.full((3,), zero, dtype=torch.uint8))
            for x in (low, high):
                check(torch.full(geometry[0], x), weight, 8, None, geometry, (low, high, 8), isas=isas)


@pytest.mark.parametrize("terms", [MAX_RANGED_TERMS + 1, MAX_TERMS + 1])
def test_more_terms_than_32_bits_hold(terms):
    torch.manual_seed(2)
    geometry = (2, terms, 1, 2), (2, terms, 1, 1), 1, 0, 1, 1
    for x_range in RANGES[:2]:
        check(torch.randn(geometry[0]), nested_weight(geometry[1]), 8, None, geometry, x_range)


def test_several_scales_in_a_channel():
    torch.manual_seed(3)
    for name in ("3x3", "groups", "1x1"):
        geometry = GEOMETRIES[name]
        for x_range in RANGES[:2]:
            check(torch.randn(geometry[0]), nested_weight(geometry[1], "group", 7), 5, None, geometry, x_range)


@pytest.mark.parametrize("threads", [1, 2, 3, 8], indirect=True)
@pytest.mark.parametrize("name", ["3x3", "groups", "tiny images", "several bands", "many panels", "depthwise"])
def test_threads_change_nothing(isa, threads, name):
    torch.manual_seed(4)
    geometry = GEOMETRIES[name]
    check(torch.randn(geometry[0]), nested_weight(geometry[1]), 6, None, geometry, RANGES[1])


def test_more_images_than_are_quantised_at_once(isa):
    torch.manual_seed(5)
    geometry = (5, 64, 110, 90), (5, 64, 3, 3), 2, 1, 1, 1
    for layout, x_range in zip(FORMATS, RANGES, strict=False):
        check(torch.randn(geometry[0]).to(memory_format=layout), nested_weight(geometry[1]), 4, None, geometry, x_range)


@pytest.mark.parametrize("x_range", RANGES[:2], ids=str)
def test_an_image_is_worth_the_same_in_any_batch(isa, x_range):
    torch.manual_seed(6)
    geometry = (17, 9, 5, 7), (11, 9, 3, 3), 1, 1, 1, 1
    weight, x = nested_weight(geometry[1]), torch.randn(geometry[0]) * torch.rand(17, 1, 1, 1)
    whole = call(x, weight, 6, None, geometry, x_range)
    for n in (1, 2, 3, 16):
        assert torch.equal(call(x[:n], weight, 6, None, geometry, x_range), whole[:n])


def test_without_outputs_channels_or_pixels(isa):
    assert packed_conv2d(torch.randn(2, 3, 5, 5), nested_weight((0, 3, 3, 3)), 4).shape == (2, 0, 3, 3)
    for x, kernel in [(torch.ones(2, 3, 0, 4), (5, 3, 1, 1)), (torch.ones(2, 0, 2, 6), (5, 0, 3, 3))]:
        weight = NestedWeight.pack(torch.ones(kernel))
        for x_range in (None, (-1.0, 2.0)):
            y = packed_conv2d(x, weight, 5, torch.arange(5.0), padding=1, x_range=x_range)
            assert y.shape == (2, 5, 2, 6) and torch.equal(y, torch.arange(5.0)[:, None, None].expand_as(y))
            check(x, weight, 5, torch.arange(5.0), (x.shape, kernel, 1, 1, 1, 1), x_range and (*x_range, 8) or NONE)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_of_no_channels(dtype, exact):
    x, bias = torch.ones(2, 0, 5, 5, dtype=dtype, requires_grad=True), torch.arange(6.0, dtype=dtype).requires_grad_()
    weight = NestedWeight.pack(torch.ones(6, 0, 3, 3))
    y = packed_conv2d(x, weight, 8, bias, padding=1, exact=exact)
    assert torch.equal(y, bias[:, None, None].expand(2, 6, 5, 5)) and not packed_conv2d(x, weight, 8, padding=1).any()
    y.sum().backward()
    assert x.grad.shape == x.shape and torch.equal(bias.grad, torch.full_like(bias, 50))


def test_no_layout_is_copied_but_those_of_other_strides():
    x, weight = torch.randn(2, 3, 8, 9), nested_weight((4, 3, 3, 3))
    run = lambda x: packed_conv2d(x, weight, 4)  # noqa: E731
    run(x)
    strided, last = x.transpose(2, 3), x.to(memory_format=torch.channels_last)
    assert not copies_of(lambda: run(x)) and not copies_of(lambda: run(last))
    assert copies_of(lambda: run(strided))
    assert torch.equal(run(strided), run(strided.contiguous()))


@pytest.mark.parametrize("x_range", RANGES[:3], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize(("out", "groups"), [(9, 3), (12, 12)], ids=["groups", "depthwise"])
def test_what_is_not_finite(isa, out, groups, layout, value, x_range):
    """It spoils its image alone; over a given range infinity is clipped."""
    torch.manual_seed(7)
    geometry = (5, 12, 9, 8), (out, 12 // groups, 3, 3), 1, 1, 1, groups
    x, weight = torch.randn(geometry[0]).to(memory_format=layout), nested_weight(geometry[1])
    clean = call(x, weight, 4, None, geometry, x_range)
    x[2, 7, 4, 5] = value
    for relu in (False, True):
        y = check_nan(x, weight, geometry, x_range, relu)
        spoilt = x_range[0] is None or value != value
        assert y[2].isnan().all() == spoilt and (spoilt or y[2].isfinite().all())
        others = torch.arange(5) != 2
        assert torch.equal(y[others], (clean.relu() if relu else clean)[others])


@pytest.mark.parametrize("at", [(3, 2), (2, 7), (8, 2)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_nan_spoils_its_image_where_no_window_reads_it(isa, layout, kernel, at):
    torch.manual_seed(18)
    geometry = (3, 6, 9, 8), (7, 6, kernel, kernel), (4, 2), 0, 1, 1
    x = torch.randn(geometry[0]).to(memory_format=layout)
    x[(1, 3, *at)] = torch.nan
    y = check_nan(x, nested_weight(geometry[1]), geometry, (-1.0, 3.0, 8), False)
    assert y[1].isnan().all() and y[::2].isfinite().all()


@pytest.mark.parametrize(
    "x_range", [(0.0, 0.0, 8), (-1e-45, 1e-44, 4), (-float("inf"), 1.0, 8), (1.0, 2.0, 8)], ids=str
)
def test_ranges_without_a_step_or_an_end(isa, x_range):
    torch.manual_seed(8)
    geometry = GEOMETRIES["3x3"]
    check_nan(torch.randn(geometry[0]), nested_weight(geometry[1]), geometry, x_range, False)


WIDE = {
    "two blocks": ((2, 16, 9, 7), (64, 16, 3, 3), 1, 1, 1, 1),
    "blocks and a half": ((3, 9, 6, 5), (100, 9, 3, 3), (2, 1), 1, 1, 1),
    "wide groups": ((2, 24, 5, 6), (90, 12, 3, 2), 1, (1, 0), 1, 2),
}


def test_a_depthwise_weight_is_read_once_packed():
    """Eight columns a step in which the taps lie, and 32 channels a block: no padding to whole steps of channels."""
    weight = nested_weight((64, 1, 3, 3))
    packed_conv2d(torch.randn(1, 64, 5, 5), weight, 8, groups=64)
    assert weight.prepacked_nbytes == 64 * 16


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", ["1x1 strided", "3x3", "3x3 strided", "5x3", "groups", "depthwise", *WIDE, *DEPTHWISE])
def test_codes_in_and_out_and_a_residual(isa, name, layout):
    """Every mixture of integers and floats, each equal to the reference bit for bit."""
    torch.manual_seed(16)
    geometry = (GEOMETRIES | WIDE | DEPTHWISE)[name]
    for i, bits in enumerate((8, 5, 4, 3, 2)):
        dtype, y_bits = DTYPES[i % 2], (8, 4, 2)[i % 3]
        weight, bias = nested_weight(geometry[1], ("channel", "tensor")[i % 2]), torch.randn(geometry[1][0])
        x = torch.randn(geometry[0]).to(dtype).to(memory_format=layout)
        low, high, x_bits = RANGES[1 + i % 3]
        codes = codes_on(x.float(), torch.tensor(low), torch.tensor(high), x_bits)
        codes = codes.to(memory_format=(*FORMATS, torch.preserve_format)[i % 3])
        for given in (x, codes):
            plain = call(given, weight, bits, bias, geometry, (low, high, x_bits))
            residual = torch.randn(plain.shape).to(plain.dtype).to(memory_format=FORMATS[i % 2])
            ends_of_y = plain.float().min() / 2, plain.float().max() / 3
            for added, y_range in ((residual, None), (None, ends_of_y), (residual, ends_of_y)):
                relu, given_bits = bits % 2 == 0, y_bits if y_range else 8
                options = {"relu": relu, "residual": added, "y_range": y_range, "y_bits": given_bits}
                y = call(given, weight, bits, bias, geometry, (low, high, x_bits), **options)
                expected = reference(
                    given, *fields(weight), weight.shape, bits, bias, *settings(geometry), *ends((low, high), plain),
                    x_bits, relu, False, [], added, *(y_range or (None, None)), given_bits,
                )  # fmt: skip
                assert y.dtype == expected.dtype == (torch.int8 if y_range else plain.dtype)
                assert torch.equal(y, expected) and y.stride() == expected.stride()


def test_codes_serve_as_the_next_input(isa):
    """What a float result rounds to on the way into the next convolution is what codes hold."""
    torch.manual_seed(17)
    first, second = nested_weight((40, 19, 3, 3)), nested_weight((9, 40, 3, 3))
    x, ends_of_y = torch.randn(2, 19, 9, 8).to(memory_format=torch.channels_last), (0.0, 7.0)
    given = {"x_range": (-2.0, 2.0), "padding": 1, "relu": True}
    y, codes = (packed_conv2d(x, first, 8, **given, **o) for o in ({}, {"y_range": ends_of_y, "y_bits": 5}))
    assert codes.unique().numel() > 8
    taken = {"x_range": ends_of_y, "x_bits": 5, "padding": 1}
    assert torch.equal(packed_conv2d(codes, second, 4, **taken), packed_conv2d(y, second, 4, **taken))


@pytest.mark.parametrize("y_range", [(0.0, 0.0), (-float("inf"), 1.0), (-1.0, 3.0)], ids=str)
def test_codes_of_what_is_not_finite(isa, y_range):
    """NaN gets the lowest code, and infinity is clipped; over a range without a step or an end all codes are 0."""
    torch.manual_seed(18)
    geometry = GEOMETRIES["3x3"]
    x, weight = torch.randn(geometry[0]), nested_weight(geometry[1])
    x[0, 3, 4, 5] = torch.nan
    residual = torch.randn(call(x, weight, 4, None, geometry).shape)
    residual[1, :, 2, 3] = torch.inf
    residual = residual.to(memory_format=torch.channels_last)
    y = call(x, weight, 4, None, geometry, (-1.0, 1.0, 8), residual=residual, y_range=y_range)
    given = (*fields(weight), weight.shape, 4, None, *settings(geometry), *ends((-1.0, 1.0), x), 8, False, False, [])
    assert torch.equal(y, reference(x, *given, residual, *ends(y_range, x)))
    if y_range == (-1.0, 3.0):
        assert (y[0] == -128).all() and (y[1, :, 2, 3] == 127).all()
    else:
        assert not y.any()


@pytest.mark.parametrize("relu", [False, True])
def test_the_residual_has_a_gradient(relu):
    torch.manual_seed(19)
    weight, x = nested_weight((5, 4, 3, 3)), torch.randn(2, 4, 6, 6)
    residual = torch.randn(2, 5, 4, 4, requires_grad=True)
    y = packed_conv2d(x, weight, 4, residual=residual, relu=relu)
    grad = torch.randn(y.shape)
    y.backward(grad)
    assert torch.equal(residual.grad, torch.where(y > 0, grad, 0) if relu else grad)
    wide = (x.double(), residual.detach().double().requires_grad_())
    run = lambda r: packed_conv2d(wide[0], weight, 4, residual=r, relu=relu)  # noqa: E731
    assert torch.autograd.gradcheck(run, wide[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", ["3x3", "7x7 strided", "tiny images", "groups", "several bands", "1x1 strided", *DEPTHWISE]
)
def test_exact_sums_round_as_often_as_they_must(isa, name, dtype):
    torch.manual_seed(9)
    geometry = (GEOMETRIES | DEPTHWISE)[name]
    weight, bias = nested_weight(geometry[1]), torch.randn(geometry[1][0])
    for layout in FORMATS:
        x = torch.randn(geometry[0]).to(dtype).to(memory_format=layout)
        for bits in (2, 5, 8):
            w, wide = weight.unpack(bits).double(), x.double()
            exact = F.conv2d(wide, w, bias.double(), *geometry[2:])
            magnitude = F.conv2d(wide.abs(), w.abs(), bias.double().abs(), *geometry[2:])
            y = call(x, weight, bits, bias, geometry, exact=True)
            assert y.dtype == dtype
            assert_within_roundings(y, exact, magnitude, weight.columns)
            assert torch.equal(call(x, weight, bits, bias, geometry, exact=True, relu=True), y.relu())


@pytest.mark.parametrize("bits", WIDTHS)
def test_rounding_x_moves_the_result_by_what_it_may(bits, record_property):
    """A value moves by at most half a step, and a step is the image's largest magnitude / 127."""
    torch.manual_seed(10)
    weight, x = NestedWeight.pack(torch.randn(32, 64, 3, 3)), torch.randn(3, 64, 10, 10)
    w, wide = weight.unpack(bits).double(), x.double()
    exact = F.conv2d(wide, w, padding=1)
    error = (packed_conv2d(x, weight, bits, padding=1).double() - exact).abs()
    half_step = wide.abs().amax((1, 2, 3), keepdim=True) / 254
    moved = F.conv2d(torch.ones_like(wide), w.abs(), padding=1) * half_step
    roundings = 8 * 2.0**-24 * F.conv2d(wide.abs(), w.abs(), padding=1)
    assert (error <= moved + roundings).all()
    record_property("error relative to the exact result", (error.norm() / exact.norm()).item())
    assert (error.norm() / exact.norm()).item() > 0  # x was rounded


@pytest.mark.parametrize("x_range", RANGES[1:], ids=str)
def test_a_given_range_rounds_x_as_quantize_does(isa, x_range):
    """The same values as a float64 convolution of what `quantize` returns, but for the roundings of the scales."""
    torch.manual_seed(11)
    geometry = GEOMETRIES["3x3"]
    x, weight = torch.randn(geometry[0]), nested_weight(geometry[1])
    rounded, w = quantize(x, *x_range).double(), weight.unpack(4).double()
    exact, size = (F.conv2d(a, b, padding=1) for a, b in ((rounded, w), (rounded.abs(), w.abs())))
    assert ((call(x, weight, 4, None, geometry, x_range) - exact).abs() <= 8 * 2.0**-24 * size).all()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["3x3", "groups", "dilated and strided"])
def test_gradients_equal_the_dense_convolutions(name, dtype, relu, exact):
    """On integers, of which each image's largest is 127: rounding to int8 then changes nothing."""
    torch.manual_seed(12)
    geometry = GEOMETRIES[name]
    out = geometry[1][0]
    codes, zero_points = torch.randint(0, 256, geometry[1], dtype=torch.uint8), torch.full((out,), 128).byte()
    weight = NestedWeight.from_codes(codes, torch.ones(out), zero_points)
    x = torch.randint(-3, 4, geometry[0]).to(dtype)
    x[:, 0, 0, 0] = 127
    leaves = [[x.clone().requires_grad_(), torch.ones(out, requires_grad=True)] for _ in range(2)]
    y = call(leaves[0][0], weight, 6, leaves[0][1], geometry, relu=relu, exact=exact)
    grad = torch.randint(-3, 4, y.shape).to(dtype)
    y.backward(grad)
    plain = F.conv2d(leaves[1][0].float(), weight.unpack(6), leaves[1][1], *geometry[2:])
    (plain.relu() if relu else plain).to(dtype).backward(grad)
    for packed, dense in zip(*leaves, strict=True):
        assert packed.grad.dtype == dense.grad.dtype and torch.equal(packed.grad, dense.grad)


def test_a_width_changes_nothing_that_is_stored():
    weight, x = nested_weight((40, 9, 3, 3)), torch.randn(3, 9, 8, 8)
    packed_conv2d(x, weight, 8)
    (prepack,) = weight.prepack(9)
    for bits in WIDTHS:
        packed_conv2d(x, weight, bits)
    assert weight.prepack(9)[0] is prepack and weight.prepacked_nbytes == prepack.nbytes


def test_meta_tensors_give_shapes():
    x = torch.ones(2, 4, 8, 9, device="meta").to(memory_format=torch.channels_last)
    y = packed_conv2d(x, nested_weight((5, 4, 3, 3)).to("meta"), 4, stride=2)
    assert y.is_meta and y.shape == (2, 5, 3, 4) and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 5, 6, 6)}, ValueError, r"x has shape \(2, 5, 6, 6\), which does not fit .* in 1 groups"),
        ({"x": torch.ones(4, 6, 6)}, ValueError, r"x has shape \(4, 6, 6\)"),
        ({"x": torch.ones(2, 4, 6, 6).half()}, TypeError, "x must be float32 or bfloat16 .*float16"),
        ({"x": torch.ones(2, 4, 6, 6, device="meta")}, ValueError, "x is on meta, the weight on cpu"),
        ({"groups": 0}, ValueError, "in 0 groups"),
        ({"weight": nested_weight((5, 4))}, ValueError, r"weight must be .*got shape \(5, 4\)"),
        (
            {"weight": torch.ones(5, 4, 3, 3)},
            TypeError,
            r"must be a NestedWeight, got a dense tensor; NestedWeight.pack",
        ),
        ({"bits": 1}, ValueError, r"bits must lie in \[2, 8\], got 1"),
        ({"bits": 9}, ValueError, r"bits must lie in \[2, 8\], got 9"),
        ({"x_bits": 4}, ValueError, r"x_bits must lie in \[2, 8\], and be 8 without x_range, got 4"),
        ({"x_bits": 9, "x_range": (0, 1)}, ValueError, r"x_bits must lie in \[2, 8\].*got 9"),
        ({"x_range": (2, 1)}, ValueError, "low must not lie above high"),
        ({"x_range": (0, 1), "exact": True}, ValueError, "x_range rounds x, which `exact` rules out"),
        ({"y_bits": 4}, ValueError, r"y_bits must lie in \[2, 8\], and be 8 without y_range, got 4"),
        ({"y_range": (2, 1)}, ValueError, "low must not lie above high"),
        ({"x": torch.ones(2, 4, 6, 6).char()}, ValueError, r"x holds codes \(int8\): give the x_range"),
        ({"residual": torch.ones(2, 5, 6, 6)}, ValueError, r"residual must be \(2, 5, 4, 4\) torch.float32 on cpu"),
        ({"residual": torch.ones(2, 5, 4, 4).char()}, ValueError, r"residual must be .*got .* torch.int8 on cpu"),
        (
            {"x": torch.ones(2, 4, 6, 6, requires_grad=True), "y_range": (0, 1)},
            ValueError,
            "y_range makes codes, which have no gradient",
        ),
        ({"bias": torch.ones(4)}, ValueError, r"bias must be \(5,\) on cpu, got \(4,\) on cpu"),
        ({"bias": torch.ones(5).double()}, TypeError, "bias must be float32"),
        ({"stride": 0}, ValueError, "stride must be one number or two, 1 or more, got 0"),
        ({"dilation": (1, 3)}, ValueError, "a kernel of 3, dilated by 3, does not fit an input of 6, padded by 0"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {"x": torch.ones(2, 4, 6, 6), "weight": nested_weight((5, 4, 3, 3)), "bits": 4} | change
    with pytest.raises(error, match=f"packed_conv2d: .*{words}"):
        packed_conv2d(**arguments)
