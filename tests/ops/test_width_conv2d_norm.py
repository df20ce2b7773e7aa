import importlib

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from lcs_kernels import line_norm, width_conv2d, width_conv2d_norm
from lcs_kernels.formats import WidthWeight

pytestmark = pytest.mark.usefixtures("pairs")
OP = torch.ops.lcs.width_conv2d_norm.default
FORMATS = [torch.contiguous_format, torch.channels_last]
# x, full weight, out_channels, stride, padding, groups of the norm
CASES = {
    "instance": ((2, 19, 15, 17), (37, 21, 3, 3), 33, 1, 1, 33),
    "many images": ((20, 5, 14, 13), (40, 8, 3, 3), 16, 1, 1, 16),
    "many large images": ((9, 3, 45, 43), (8, 3, 7, 7), 5, 2, 3, 5),
    "groups of images": ((33, 6, 6, 7), (24, 9, 3, 3), 18, 1, 1, 6),
    "1x1 strided": ((3, 16, 9, 9), (50, 16, 1, 1), 48, 2, 0, 1),
    "one image": ((1, 64, 7, 7), (64, 64, 3, 3), 64, 1, 1, 64),
    "one channel": ((2, 1, 9, 8), (1, 1, 3, 3), 1, 1, 1, 1),
    "no images": ((0, 3, 9, 10), (4, 3, 3, 3), 4, 1, 1, 2),
}


def line_of(channels, dtype=torch.float32):
    return *(torch.randn(channels + 3).to(dtype) for _ in range(4)), torch.tensor(0.3)


POOLS = [(3, 2, 1), ((2, 3), (1, 3), (1, 0)), (1, 1, 0)]


def apart(x, weight, out, norm, groups, eps=1e-5, max_pool=None, bias=None, stride=1, padding=0, **settings):
    y = width_conv2d(x, weight, out, bias, stride, padding)
    if max_pool is None:
        return line_norm(y, *norm, groups, eps, **settings)
    y = line_norm(y.to(memory_format=torch.channels_last), *norm, groups, eps, **settings)
    channels_last = not x.is_contiguous()
    return F.max_pool2d(y, *max_pool).contiguous(memory_format=FORMATS[channels_last])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gives_the_bits_of_both(isa, name, layout, dtype):
    torch.manual_seed(0)
    x, w, out, stride, padding, groups = CASES[name]
    x, weight = torch.randn(x).to(dtype).to(memory_format=layout), WidthWeight.pack(torch.randn(w).to(dtype))
    conv = {"stride": (stride,) * 2, "padding": (padding,) * 2}
    before = torch.get_num_threads()
    for norm in (line_of(out), (torch.randn(out), None, None, None, None), (None,) * 5):
        expected = apart(x, weight, out, norm, groups, **conv)
        residual = torch.randn_like(expected)
        for bias in (None, torch.randn(w[0])):
            given = {"mean": torch.randn(out), "var": torch.rand(out)}
            for after in ({}, {"relu": True}, {"residual": residual}, {"residual": residual, "relu": True} | given):
                expected = apart(x, weight, out, norm, groups, bias=bias, **after, **conv)
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    y = width_conv2d_norm(x, weight, out, norm, groups, bias=bias, **after, **conv)
                    assert torch.equal(y, expected) and y.stride() == expected.stride()
    torch.set_num_threads(before)


def test_a_bias_of_the_inputs_dtype():
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s).bfloat16() for s in ((2, 16, 9, 8), (24, 16, 3, 3), (24,)))
    packed, norm = WidthWeight.pack(weight), line_of(24, torch.bfloat16)
    y = width_conv2d_norm(x, packed, 24, norm, 24, bias=bias, padding=1)
    assert torch.equal(y, width_conv2d_norm(x, packed, 24, norm, 24, bias=bias.float(), padding=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_pools(isa, name, layout, dtype):
    torch.manual_seed(0)
    x, w, out, stride, padding, groups = CASES[name]
    x, weight = torch.randn(x).to(dtype).to(memory_format=layout), WidthWeight.pack(torch.randn(w).to(dtype))
    conv, norm = {"stride": (stride,) * 2, "padding": (padding,) * 2}, line_of(out)
    residual = torch.randn_like(apart(x, weight, out, norm, groups, **conv))
    x[:1, :1, -1, -1] = torch.nan
    before = torch.get_num_threads()
    for pool in POOLS:
        given = {"mean": torch.randn(out), "var": torch.rand(out)}
        for after in ({"relu": True}, {"residual": residual}, given):
            expected = apart(x, weight, out, norm, groups, max_pool=pool, **after, **conv)
            for threads in (1, 3):
                torch.set_num_threads(threads)
                y = width_conv2d_norm(x, weight, out, norm, groups, max_pool=pool, **after, **conv)
                assert y.stride() == expected.stride() or out == 1  # whose own stride means nothing
                assert torch.equal(y.isnan(), expected.isnan())
                assert torch.equal(y.nan_to_num(), expected.nan_to_num())
    torch.set_num_threads(before)


def test_a_residual_in_another_layout_is_copied(isa):
    weight, norm = WidthWeight.pack(torch.randn(8, 6, 3, 3)), line_of(7)
    for layout in FORMATS:
        x = torch.randn(3, 6, 5, 7).to(memory_format=layout)
        for other in FORMATS:
            residual = torch.randn(3, 7, 3, 5).to(memory_format=other)
            y = width_conv2d_norm(x, weight, 7, norm, residual=residual)
            assert torch.equal(y, apart(x, weight, 7, norm, 7, residual=residual))
            assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize(("n", "height"), [(8, 150), (1, 150), (3, 9), (9, 21)])
def test_pools_bands_of_rows(isa, n, height, layout, dtype):
    torch.manual_seed(0)
    x = torch.randn(n, 3, height, 224).to(dtype).to(memory_format=layout)
    weight, norm, bias = WidthWeight.pack(torch.randn(48, 3, 7, 7).to(dtype)), line_of(40), torch.randn(48)
    conv, given = {"stride": (2, 2), "padding": (3, 3)}, {"mean": torch.randn(40), "var": torch.rand(40)}
    for pool in ((3, 2, 1), (2, (5, 2), 0), ((3, 2), (1, 2), (1, 0)), ((3, 2), (10**6, 2), 1)):
        for after in ({"relu": True, "bias": bias}, {"relu": True}, {}):
            expected = apart(x, weight, 40, norm, 8, max_pool=pool, **conv, **given, **after)
            y = width_conv2d_norm(x, weight, 40, norm, 8, max_pool=pool, **conv, **given, **after)
            assert torch.equal(y, expected) and y.stride() == expected.stride()


@pytest.mark.parametrize("pool", [None, (3, 2, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_those_of_both(dtype, pool):
    torch.manual_seed(1)
    x, w = torch.randn(2, 5, 6, 7, dtype=dtype), torch.randn(9, 6, 3, 3, dtype=dtype)
    norm = [torch.randn(9, dtype=dtype) for _ in range(4)] + [torch.tensor(0.25, dtype=dtype)]
    leaves = [x, w, *norm]
    for leaf in leaves:
        leaf.requires_grad_()
    found, expected = (
        torch.autograd.grad(f(x, w, 8, norm, 4, padding=(1, 1), relu=True, max_pool=pool).square().sum(), leaves)
        for f in (width_conv2d_norm, apart)
    )
    assert all(map(torch.equal, found, expected))


def test_opcheck():
    for layout in FORMATS:
        x, weight = torch.randn(2, 4, 6, 5).to(memory_format=layout), torch.randn(6, 5, 3, 2)
        packed = WidthWeight.pack(weight).prepack()
        conv, norm = ([1, 2], [2, 1], [1, 1], 1), (*line_of(6), torch.randn(2, 6, 8, 3), 3, 1e-5, True)
        opcheck(OP, (x, weight, 6, None, *conv, packed, *norm, [], None, None))
        opcheck(
            OP, (x, weight, 6, torch.randn(6), *conv, None, *norm, [3, 2, 2, 1, 1, 0], torch.randn(6), torch.rand(6))
        )


def test_compiles():
    weight, norm = WidthWeight.pack(torch.randn(16, 16, 3, 3)), line_of(16)
    weight.prepack()
    compiled = torch.compile(width_conv2d_norm, fullgraph=True, backend="aot_eager")
    for inputs, out in ((16, 16), (4, 8), (7, 3)):
        x = torch.randn(2, inputs, 8, 9)
        expected = width_conv2d_norm(x, weight, out, norm, padding=(1, 1), relu=True)
        assert torch.equal(compiled(x, weight, out, norm, padding=(1, 1), relu=True), expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 7, 6, 6)}, ValueError, "width_conv2d: x has 7 channels"),
        ({"x": torch.ones(2, 4, 6, 6).half()}, TypeError, "width_conv2d: x must be float32 or bfloat16"),
        ({"out_channels": 6}, ValueError, "width_conv2d: .* out_channels is 6"),
        ({"norm_groups": 3}, ValueError, "line_norm: 3 groups do not divide 5 channels"),
        ({"norm_groups": 0}, ValueError, "line_norm: 0 groups do not divide 5 channels"),
        ({"norm_groups": 0, "weight": torch.ones(5, 4, 3, 3)}, ValueError, "line_norm: 0 groups do not divide 5"),
        ({"norm": (torch.ones(4), None, None, None, None)}, ValueError, "line_norm: weight0 must be .* at least 5"),
        ({"norm": (torch.ones(5), torch.ones(5), None, None, None)}, ValueError, "line_norm: a line needs an alpha"),
        ({"residual": torch.ones(2, 5, 6, 6)}, ValueError, r"line_norm: residual must be \(2, 5, 4, 4\)"),
        ({"max_pool": (3, 1, 2)}, ValueError, "padding .2, 2. is more than half of a window"),
        ({"max_pool": (0, 1, 0)}, ValueError, "kernel_size must be one number or two, 1 or more, got 0"),
        ({"max_pool": (7, 1, 1)}, ValueError, r"a window of \[7, 7\] does not fit \(2, 5, 4, 4\), padded by \[1, 1\]"),
        ({"dilation": (1, 3)}, ValueError, "width_conv2d: a kernel of 3, dilated by 3, does not fit"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, words):
    arguments = {
        "x": torch.ones(2, 4, 6, 6),
        "weight": WidthWeight.pack(torch.ones(5, 4, 3, 3)),
        "out_channels": 5,
        "norm": (None,) * 5,
    } | change
    with pytest.raises(error, match=words):
        width_conv2d_norm(**arguments)


def test_an_error_of_the_op_is_raised_as_it_is(monkeypatch):
    """As where memory is short: after the checks, and without another, larger run."""

    def ran(*_, **__):
        raise AssertionError("both ran")

    def failing(*_):
        raise failure

    failure, module = RuntimeError("no memory"), importlib.import_module("lcs_kernels.ops.width_conv2d_norm")
    monkeypatch.setattr(module, "_op", failing)
    for name in ("width_conv2d", "line_norm"):
        monkeypatch.setattr(module, name, ran)
    weight = WidthWeight.pack(torch.ones(5, 4, 3, 3))
    x, norm, residual = torch.ones(2, 4, 6, 6), (None,) * 5, torch.ones(2, 5, 3, 3)
    with pytest.raises(RuntimeError) as raised:
        width_conv2d_norm(x, weight, 5, norm, 5, padding=1, stride=2, residual=residual)
    assert raised.value is failure
    with pytest.raises(ValueError, match="line_norm: residual must be"):
        width_conv2d_norm(x, weight, 5, norm, 5, padding=1, residual=residual)


def test_a_number_as_alpha():
    x, weight, ends = torch.randn(2, 4, 6, 6), WidthWeight.pack(torch.randn(5, 4, 3, 3)), torch.randn(2, 5).unbind()

    def run(alpha):
        return width_conv2d_norm(x, weight, 5, (*ends, None, None, alpha))

    expected = run(torch.tensor(0.3))
    assert torch.equal(run(0.3), expected) and torch.equal(run(torch.tensor(0.3, dtype=torch.float64)), expected)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 2.0$"):
        run(2.0)


@pytest.mark.parametrize("grad", [False, True])
def test_geometry_and_groups_as_of_width_conv2d(isa, grad):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, 8, 8, requires_grad=grad), WidthWeight.pack(torch.randn(8, 1, 3, 3))
    for conv in ({"padding": 1}, {"stride": 2}, {"padding": (1, 1), "dilation": 2}):
        y = width_conv2d_norm(x, weight, 6, (None,) * 5, groups=8, **conv)
        assert torch.equal(y, line_norm(width_conv2d(x, weight, 6, groups=8, **conv), *[None] * 5, 6))
    with pytest.raises(ValueError, match="out_channels must be 6 where a depthwise"):
        width_conv2d_norm(x, weight, 8, (None,) * 5, groups=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 19, 15, 17), (3, 16, 4, 5), (1, 2, 2, 2), (2, 40, 70, 66)], ids=str)
def test_pools_behind_depthwise_layers(isa, shape, layout, dtype):
    torch.manual_seed(0)
    channels = shape[1]
    x, weight = torch.randn(shape).to(dtype).to(memory_format=layout), torch.randn(channels, 1, 3, 3).to(dtype)
    packed, norm = WidthWeight.pack(weight), line_of(channels)
    y = width_conv2d(x, packed, channels, None, 1, 1, groups=channels).to(memory_format=torch.channels_last)
    for given in ({}, {"mean": torch.randn(channels), "var": torch.rand(channels)}):
        for pool in POOLS[::2]:
            expected = F.max_pool2d(line_norm(y, *norm, channels, 1e-5, **given), *pool)
            conv = {"padding": (1, 1), "groups": channels, "max_pool": pool}
            found = width_conv2d_norm(x, packed, channels, norm, channels, **conv, **given)
            assert torch.equal(found, expected) and found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"bias": torch.ones(5, device="meta")}, ValueError),
        ({"bias": torch.ones(5, dtype=torch.float16)}, TypeError),
        ({"weight": WidthWeight.pack(torch.ones(5, 4, 3, 3)).to("meta")}, ValueError),
        ({"mean": torch.ones(5, device="meta"), "var": torch.ones(5)}, ValueError),
        ({"out_channels": 0}, ValueError),
        ({"eps": float("nan")}, ValueError),
    ],
    ids=str,
)
def test_what_the_op_would_take_silently_is_refused(change, error):
    arguments = {"x": torch.ones(1, 4, 6, 6), "weight": WidthWeight.pack(torch.ones(5, 4, 3, 3)), "out_channels": 5}
    with pytest.raises(error):
        width_conv2d_norm(**arguments | {"norm": (None,) * 5, "norm_groups": 1} | change)
