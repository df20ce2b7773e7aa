"""Packed convolutions and pooling in one call give the very bits of their steps one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from lcs_kernels import packed_conv2d, packed_network
from lcs_kernels.formats import Convolution, Dense, MaxPool, Mean, NestedWeight, Network
from lcs_kernels.ops.packed_network import reference

from ..conftest import as_it_is
from .packed_cases import nested_weight
from .test_sparse_conv2d import FORMATS

OP = torch.ops.lcs.packed_network.default
RANGE, HIDDEN = (-2.1, 2.3), (0.0, 3.5)


def conv(input, out, channels, kernel, bits=8, **options):
    """Of codes of `bits` bits on both sides."""
    weight = nested_weight((out, channels // options.get("groups", 1), *kernel))
    options = {"x_range": RANGE, "x_bits": bits, "bias": torch.randn(out), "y_bits": bits} | options
    return Convolution(input, weight, bits, **options)


def stem(bits=8, out=64):
    """As a residual network begins: few channels, pooled as they are made, then a block with a shortcut."""
    return [
        conv(0, out, 3, (7, 7), bits, stride=2, padding=3, relu=True),
        MaxPool(1, 3, 2, 1),
        conv(2, 2 * out, out, (1, 1), bits, stride=2),
        conv(2, 2 * out, out, (3, 3), bits, stride=2, padding=1, relu=True, y_range=HIDDEN),
        conv(4, 2 * out, 2 * out, (3, 3), bits, x_range=HIDDEN, padding=1, residual=3, relu=True),
        conv(5, 2 * out, 2 * out, (3, 3), bits, padding=1, relu=True, y_range=HIDDEN),
        conv(6, 2 * out, 2 * out, (3, 3), bits, x_range=HIDDEN, padding=1, residual=5, relu=True),
    ]


NETWORKS = {
    "stem": stem,
    "odd channels": lambda bits: stem(bits, 37),
    "few channels": lambda bits: stem(bits, 3),
    "depthwise": lambda bits: [
        conv(0, 40, 3, (3, 3), bits, padding=1),
        conv(1, 40, 40, (3, 3), bits, padding=1, groups=40, residual=1),
        conv(2, 40, 40, (3, 3), bits, padding=1, groups=40),
        conv(3, 40, 40, (1, 1), bits, residual=2),
    ],
    "one step": lambda bits: [conv(0, 5, 3, (3, 2), bits)],
    "codes read where they lie": lambda bits: [
        conv(0, 16, 3, (3, 3), bits, y_range=HIDDEN),
        conv(1, 24, 16, (3, 3), bits, x_range=HIDDEN, stride=(2, 3), y_range=HIDDEN),
        conv(2, 16, 24, (1, 2), bits, x_range=HIDDEN, stride=(1, 2), dilation=(1, 2), y_range=HIDDEN),
        conv(3, 300, 16, (1, 1), bits, x_range=HIDDEN, stride=2),
        conv(1, 300, 16, (1, 1), bits, x_range=HIDDEN, stride=(4, 14), residual=4),
    ],
    "pooling first and last": lambda bits: [
        MaxPool(0, (2, 3), (1, 2)),
        conv(1, 64, 3, (3, 3), bits, padding=1),
        conv(2, 70, 64, (1, 1), bits),
        MaxPool(3, 2, 2, 1),
    ],
    "read twice": lambda bits: [  # so that it is not pooled as it is made
        conv(0, 64, 3, (5, 3), bits, padding=(4, 3), dilation=(2, 1)),
        MaxPool(1, 3, 1, 1),
        conv(2, 64, 64, (3, 3), bits, padding=1, groups=2, residual=1),
    ],
    "read over two ranges": lambda bits: [
        conv(0, 64, 3, (3, 3), bits, padding=1, relu=True),
        conv(1, 64, 64, (3, 3), bits, padding=1),
        conv(1, 64, 64, (3, 3), bits, x_range=HIDDEN, padding=1, residual=2),
        conv(3, 64, 64, (1, 1), bits, residual=1),
    ],
    "x as a residual": lambda bits: [
        conv(0, 64, 3, (3, 3), bits, padding=1, relu=True, y_range=HIDDEN),
        conv(1, 3, 64, (3, 3), bits, x_range=HIDDEN, padding=1, residual=0, relu=True),
        conv(2, 64, 3, (1, 1), bits, stride=2),
        conv(0, 3, 3, (1, 1), bits, residual=2),
        conv(4, 64, 3, (1, 1), bits, stride=2, residual=3),
    ],
    "pooled with a residual": lambda bits: [
        conv(0, 64, 3, (3, 3), bits, padding=1),
        conv(1, 64, 64, (3, 3), bits, padding=2, dilation=2, residual=1),
        MaxPool(2, 2, 2),
    ],
}


def check(x, steps, isas=as_it_is):
    network = Network.of(steps)
    expected = reference(x, *network.arguments(x))
    for _ in isas():
        y = packed_network(x, network)
        assert y.dtype == torch.float32 and y.is_contiguous(memory_format=torch.channels_last)
        assert y.shape == expected.shape and torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num(), expected.nan_to_num())
    return y


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_reference(isas, name, images):
    torch.manual_seed(images)
    for layout, bits in zip(FORMATS, (8, 3), strict=True):
        check(torch.randn(images, 3, 37, 29).to(memory_format=layout), NETWORKS[name](bits), isas)


@pytest.mark.parametrize("threads", [1, 2, 3, 8], indirect=True)
@pytest.mark.parametrize("images", [0, 1, 3, 8, 9])
def test_threads_change_nothing(threads, images):
    torch.manual_seed(0)
    check(torch.randn(images, 3, 45, 50), stem(4))


def test_many_bands():
    """Of the first convolution's results only some fit into the cache at once."""
    torch.manual_seed(0)
    check(torch.randn(2, 3, 226, 224), stem())


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("images", [2, 7, 11, 19])
def test_large_images_go_a_few_at_a_time_through_the_first_steps(threads, images):
    torch.manual_seed(images)
    smaller = [
        conv(2, 64, 64, (1, 1)),  # which nothing reads
        MaxPool(7, 3, 2, 1),
        conv(9, 128, 128, (3, 3), padding=1, y_range=HIDDEN),
        conv(10, 128, 128, (1, 1), x_range=HIDDEN, residual=9),
        MaxPool(11, 2, 2),
        conv(12, 64, 128, (1, 1)),
    ]
    x = torch.randn(images, 3, 160, 150)
    x[-2, 1, 20, 31] = torch.nan
    y = check(x, stem() + smaller)
    spoilt = y.isnan().flatten(1)
    assert spoilt[-2].all() and spoilt.sum() == spoilt[-2].sum()


@pytest.mark.parametrize("images", [1, 4])
def test_an_image_that_holds_nan_is_nan_and_no_other(isa, images):
    torch.manual_seed(0)
    for row, column in ((0, 0), (44, 49), (20, 31)):
        x = torch.randn(images, 3, 45, 50)
        x[-1, 1, row, column] = torch.nan
        y = check(x, [*stem()[:3], MaxPool(3, 2, 2)])
        assert y[-1].isnan().all() and not y[:-1].isnan().any()


@pytest.mark.parametrize("images", [1, 4])
def test_nan_goes_where_the_steps_take_it(isa, images):
    """Through codes that are made beside values, residual sums, and windows that leave some of it out."""
    torch.manual_seed(0)
    later = [conv(2, 64, 64, (3, 3), padding=1), conv(3, 64, 64, (1, 1), residual=2), conv(4, 64, 64, (1, 1))]
    networks = [
        stem(),
        [MaxPool(0, 1, 2), conv(1, 64, 3, (3, 3), padding=1), *later],
        [
            conv(0, 3, 3, (3, 3), padding=1),
            MaxPool(0, 3, 1, 1),
            conv(1, 3, 3, (1, 1), residual=2),
            conv(3, 5, 3, (1, 1)),
        ],
    ]
    for steps in networks:
        for row, column in ((0, 0), (44, 49), (21, 31)):
            x = torch.randn(images, 3, 45, 50)
            x[-1, 1, row, column] = torch.nan
            check(x, steps)


def test_finite_values_that_make_nan(isa):
    """Infinity less infinity, of weights that reach beyond float32."""
    torch.manual_seed(0)
    large, small = (NestedWeight.pack(torch.full((64, 3, 1, 1), value)) for value in (3e38, -3e38))
    plain = nested_weight((64, 64, 1, 1))
    steps = [
        Convolution(0, large, 8, (-60.0, 60.0)),
        Convolution(0, small, 8, (-60.0, 60.0), residual=1),
        Convolution(2, plain, 8, RANGE),
        Convolution(2, plain, 8, RANGE, residual=3),
    ]
    x = torch.full((3, 3, 5, 7), 50.0)
    x[1] = 0
    y = check(x, steps)
    assert y[0].isnan().all() and not y[1].isnan().any()


def test_pooling_keeps_the_first_of_equal_values(isa):
    torch.manual_seed(0)
    x = torch.where(torch.rand(2, 37, 9, 11) < 0.5, -0.0, 0.0)
    y = packed_network(x, Network.of([MaxPool(0, 3, 2, 1)]))
    assert torch.equal(y.signbit(), F.max_pool2d(x, 3, 2, 1).signbit())


def test_pooling_keeps_nan_and_infinity(isa):
    x = torch.randn(2, 19, 9, 11)
    x[0, ::3, ::4, ::3], x[1, 2, 3], x[1, 3, 4] = torch.nan, torch.inf, -torch.inf
    check(x, [MaxPool(0, 3, 2, 1)])


@pytest.mark.parametrize("threads", [1, 2, 3, 8], indirect=True)
@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("outputs", [1, 10, 81])
def test_means_and_linear_layers_of_integers(isa, threads, images, outputs):
    """All sums are exact, of positions whose number is a power of two."""
    torch.manual_seed(outputs)
    for channels, relu in ((64, False), (37, True)):
        given = torch.randint(-4, 5, (images, 3, 16, 16)).float()
        shapes = ((channels, 3), (outputs, channels), (outputs,), (4, outputs))
        first, second, bias, third = (torch.randint(-1, 2, shape).float() for shape in shapes)
        steps = [MaxPool(0, 2, 2), Mean(1), Dense(2, first), Dense(3, second, bias, relu), Dense(4, third)]
        check(given, steps)
        check(given, [MaxPool(0, 4, 4), Mean(1)])


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("channels", [3, 5])
def test_rows_of_codes_that_are_pooled_as_they_are_made(isa, threads, channels):
    """Whose ends are no whole steps; the next one is another thread's."""
    torch.manual_seed(channels)
    steps = [conv(0, channels, 1, (1, 3)), MaxPool(1, 3, 2, 1), conv(2, 16, channels, (3, 1))]
    network, x = Network.of(steps), torch.randn(2, 1, 65, 29)
    expected = reference(x, *network.arguments(x))
    for _ in range(10):
        assert torch.equal(packed_network(x, network), expected)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("width", [1, 2, 29, 121, 250])
@pytest.mark.parametrize("out", [3, 64, 130])
def test_sums_are_pooled_as_their_results_would_be(isa, threads, out, width):
    """Of rows that take several tiles, of several pairs of blocks, at the ends of the image, and of NaN."""
    torch.manual_seed(out + width)
    x = torch.randn(3, 8, 12, width)
    x[1, 7, 11, width - 1] = torch.nan
    for kernel, options in (((1, 1), {}), ((3, 3), {"padding": 1, "relu": True}), ((5, 1), {"padding": (2, 0)})):
        steps = [conv(0, out, 8, kernel, **options), MaxPool(1, 3, 2, 1)]
        check(x, steps)
        check(x, [*steps, conv(2, 16, out, (1, 1))])
        check(x, [*steps, conv(2, out, out, (1, 1), residual=2, y_range=HIDDEN), conv(3, 16, out, (1, 1))])


@pytest.mark.parametrize("scale", [-0.25, 0.0, 2.0**-51, 2.0**-140, 2.0**51, torch.inf, torch.nan])
@pytest.mark.parametrize("unit", [1.0, 2.0**-31, 2.0**31])
def test_pools_what_any_scale_makes(isa, scale, unit):
    """The largest result is not that of the largest sum where a scale is negative, or products round to 0."""
    torch.manual_seed(0)
    weight = nested_weight((70, 8, 3, 3))
    weight.scales[5:9] = scale
    ends = -3 * unit, 3 * unit
    steps = [Convolution(0, weight, 8, ends, torch.randn(70), padding=1), MaxPool(1, 3, 2, 1)]
    check(torch.randn(2, 8, 12, 11) * unit, steps)


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_codes_without_padding_are_read_where_they_lie(isa, images, bits):
    """By single taps, whose rows are one, and by others."""
    torch.manual_seed(bits)
    hidden = {"y_range": HIDDEN, "relu": True}
    steps = [conv(0, 16, 3, (1, 1), bits, **hidden)]
    for i, (out, kernel) in enumerate(((40, 1), (64, 1), (200, 1), (24, 3), (32, 1), (8, 1))):
        channels = steps[-1].weight.shape[0]
        steps.append(conv(i + 1, out, channels, (kernel, kernel), bits, x_range=HIDDEN, **hidden))
    steps.append(conv(7, 5, 8, (3, 1), bits, x_range=HIDDEN))
    check(torch.randn(images, 3, 13, 7), steps)


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
@pytest.mark.parametrize("channels", [3, 8, 37, 256])
@pytest.mark.parametrize("relu", [False, True])
def test_means_of_normed_integers(isa, threads, channels, relu):
    torch.manual_seed(channels)
    x = torch.randint(-4, 5, (3, channels, 16, 16)).float()
    norm = torch.randint(-3, 4, (channels,)).float(), torch.randint(-9, 10, (channels,)).float()
    steps = [MaxPool(0, 2, 2), Mean(1, norm, relu), Dense(2, torch.randint(-1, 2, (5, channels)).float())]
    for last in (2, 3):
        check(x, steps[:last])
    x[1, -1, 4, 5] = float("nan")
    check(x, steps[:2])


def test_a_mean_and_a_linear_layer_round_within_their_sums(isa):
    torch.manual_seed(0)
    weight, bias = torch.randn(70, 128), torch.randn(70)
    x, steps = torch.randn(2, 3, 45, 50), [*stem(), Mean(7), Dense(8, weight, bias)]
    network = Network.of(steps)
    y, values = packed_network(x, network), packed_network(x, Network.of(steps[:-2]))
    exact = values.double().mean((2, 3)) @ weight.double().T + bias.double()
    most = values.double().abs().mean((2, 3)) @ weight.double().abs().T + bias.double().abs()
    roundings = values.shape[2] * values.shape[3] + 1 + 128 + 1
    assert ((y.flatten(1) - exact).abs() <= roundings * torch.finfo(torch.float32).eps * most).all()


def test_equals_the_steps_one_by_one():
    """And views of x are copied."""
    torch.manual_seed(0)
    steps = stem(5)
    network = Network.of(steps)
    for x in (
        torch.randn(2, 3, 40, 46),
        torch.randn(2, 3, 46, 40).mT,
        torch.randn(2, 40, 46, 6)[..., ::2].movedim(3, 1),
    ):
        values = [x.contiguous(memory_format=torch.channels_last)]
        for step in steps:
            value = values[step.input]
            if isinstance(step, MaxPool):
                values.append(torch.nn.functional.max_pool2d(value, step.kernel_size, step.stride, step.padding))
                continue
            options = dict(vars(step))
            for name in ("input", "y_bits" if step.y_range is None else ""):
                options.pop(name, None)
            residual = options.pop("residual")
            values.append(packed_conv2d(value, residual=None if residual is None else values[residual], **options))
        assert torch.equal(packed_network(x, network), values[-1])


def test_defaults_of_torch_change_no_network():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            network = Network.of([MaxPool(0, 2, 2)])
    finally:
        torch.set_default_dtype(torch.float32)
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(packed_network(x, network), torch.nn.functional.max_pool2d(x, 2, 2))


def test_opcheck():
    network = Network.of(NETWORKS["read twice"](4))
    x = torch.randn(2, 3, 9, 8)
    opcheck(OP, (x, *network.arguments(x)))
    network = Network.of([conv(0, 5, 3, (1, 1)), Mean(1), Dense(2, torch.randn(7, 5))])
    opcheck(OP, (x, *network.arguments(x)))
    opcheck(OP, (x, *Network.of([conv(0, 5, 3, (1, 1)), Mean(1)], flat=True).arguments(x)))
    normed = Mean(1, (torch.randn(5), torch.randn(5)), relu=True)
    opcheck(OP, (x, *Network.of([conv(0, 5, 3, (1, 1)), normed]).arguments(x)))


def test_compiles_to_one_graph():
    torch.manual_seed(0)
    network, x = Network.of(NETWORKS["pooled with a residual"](8)), torch.randn(2, 3, 14, 12)
    compiled = torch.compile(lambda x: packed_network(x, network) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), packed_network(x, network) + 1)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (lambda: [conv(1, 4, 3, (1, 1))], "input of step 0 must be a value from 0 to 0, got 1"),
        (lambda: [conv(0, 4, 3, (1, 1), residual=2)], "residual of step 0 must be a value"),
        (lambda: [MaxPool(0, 2, 2, 2)], "more than half of a window"),
        (lambda: [MaxPool(0, 2, (1, 1, 1))], "stride must be one number or two"),
        (lambda: [Mean(0, relu=True)], "the mean of step 0 has a ReLU, but no norm"),
        (lambda: [Mean(0, (torch.ones(3), torch.ones(2)))], "the norm of step 0 has 3 scales and 2 shifts"),
        (lambda: [Convolution(0, nested_weight((4, 3 << 14, 1, 1)), 8, RANGE)], "at most 16,384 columns"),
    ],
)
def test_refuses_steps(steps, words):
    with pytest.raises(ValueError, match=words):
        Network.of(steps())


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (lambda: [conv(0, 4, 5, (1, 1))], "gets 3"),
        (lambda: [conv(0, 4, 3, (9, 1))], "does not fit the padded input of 8"),
        (
            lambda: [conv(0, 8, 3, (1, 1)), conv(1, 4, 8, (3, 3), padding=10**9, stride=10**9)],
            r"packed_network: an image of x .* more than 2\^40; take a smaller padding",
        ),
        (lambda: [conv(0, 4, 3, (1, 1), y_range=HIDDEN)], "the last step makes codes"),
        (lambda: [conv(0, 4, 3, (1, 1), y_range=HIDDEN), MaxPool(1, 2, 2)], "step 1 pools codes"),
        (lambda: [conv(0, 4, 3, (1, 1)), conv(1, 4, 4, (2, 2), residual=1)], "of the result's shape"),
        (lambda: [conv(0, 3, 3, (1, 1), y_range=HIDDEN), conv(1, 3, 3, (1, 1), residual=1)], "must be a float32 value"),
        (lambda: [conv(0, 4, 3, (1, 1)), Mean(1, (torch.ones(3), torch.ones(3)))], "has 3 scales, not 0 or 4"),
        (lambda: [Mean(0)], "step 0 must read a float32 value of an earlier step"),
        (lambda: [conv(0, 4, 3, (1, 1), y_range=HIDDEN), Mean(1)], "step 1 must read a float32 value"),
        (lambda: [conv(0, 4, 3, (1, 1)), Dense(1, torch.ones(2, 4))], "must read a single position, gets 8 x 8"),
        (lambda: [conv(0, 4, 3, (8, 8)), Dense(1, torch.ones(2, 5))], "weight of 2 x 4, got .2, 5."),
    ],
)
def test_refuses_what_does_not_fit(steps, words):
    with pytest.raises(RuntimeError, match=words):
        packed_network(torch.randn(2, 3, 8, 8), Network.of(steps()))


def test_refuses_a_residual_of_what_is_no_convolution():
    steps = [MaxPool(0, 3, 1, 1), conv(0, 8, 3, (3, 3), padding=1), MaxPool(2, 2, 2), conv(3, 8, 8, (3, 3), padding=1)]
    x = torch.randn(2, 3, 16, 16)
    weights, floats, zero_points, numbers, size = Network.of(steps).arguments(x)
    numbers = numbers.clone()
    numbers[2, 2] = 1
    with pytest.raises(RuntimeError, match="step 2 adds a residual, and is no convolution"):
        OP(x, weights, floats, zero_points, numbers, size)


def test_refuses_other_inputs():
    network, x = Network.of([conv(0, 4, 3, (1, 1))]), torch.randn(1, 3, 4, 4)
    with pytest.raises(TypeError, match="x must be float32"):
        packed_network(x.double(), network)
    with pytest.raises(ValueError, match="packed_network: x is on meta, the network on cpu"):
        packed_network(x.to("meta"), network)
    with pytest.raises(TypeError, match="the weight of step 0 must be a NestedWeight, got Tensor; NestedWeight.pack"):
        Network.of([Convolution(0, torch.ones(4, 3, 1, 1), 4, (-1.0, 1.0))])
    with pytest.raises(ValueError, match=r"x must be \(n, c, h, w\)"):
        packed_network(x[0], network)
    with pytest.raises(ValueError, match="no gradient"):
        packed_network(x.requires_grad_(), network)


def test_a_flat_result_holds_the_same():
    torch.manual_seed(0)
    steps, x = [conv(0, 5, 3, (3, 3)), Mean(1), Dense(2, torch.randn(7, 5), torch.randn(7))], torch.randn(3, 3, 9, 8)
    for last in (2, 3):
        flat, plain = Network.of(steps[:last], flat=True), Network.of(steps[:last])
        assert torch.equal(packed_network(x, flat), packed_network(x, plain).flatten(1))
        assert torch.equal(reference(x, *flat.arguments(x)), reference(x, *plain.arguments(x)).flatten(1))
    assert packed_network(x[:0], flat).shape == (0, 7)
    with pytest.raises(ValueError, match="only what a Mean or a Dense makes can be flat"):
        Network.of(steps[:1], flat=True)


def test_the_op_refuses_what_no_network_holds():
    network, x = Network.of([conv(0, 4, 3, (1, 1))]), torch.randn(1, 3, 4, 4)
    weights, floats, zeros, numbers, size = network.arguments(x)
    for arguments, words in (
        (([], floats, zeros, numbers, size), "step 0 lacks a weight"),
        (([*weights, zeros], floats, zeros, numbers, size), "take 2 weights, got 3"),
        ((weights, floats[:-1], zeros, numbers, size), "step 0 reads floats up to 10, and there are 9"),
        ((weights, torch.cat([floats, floats]), zeros, numbers, size), "take 10 floats, got 20"),
        ((weights, floats.double(), zeros, numbers, size), "floats must be"),
        ((weights, floats, zeros[1:], numbers, size), "step 0 reads zero_points up to 4, and there are 3"),
        ((weights, floats, zeros.int(), numbers, size), "zero_points must be"),
        ((weights, floats, zeros, numbers[:, :-1], size), "numbers must be .* x 21 .* got shape .1, 20."),
        ((weights, floats, zeros, numbers, [4, 4, 5]), r"make \(4, 4, 4\), not \(4, 4, 5\)"),
        ((weights, floats, zeros, numbers, [4]), r"make \(4, 4, 4\), not \(4\)"),
    ):
        with pytest.raises(RuntimeError, match=words):
            OP(x, *arguments)
    numbers = numbers.clone()
    numbers[0, -1] = -1
    with pytest.raises(RuntimeError, match="step 0 has -1 scales"):
        OP(x, weights, floats, zeros, numbers, size)
