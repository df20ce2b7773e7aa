import pytest
import torch
from torch.nn import functional as F

import lcs_kernels
from lcs_kernels import line_norm
from lcs_kernels.ops.line_norm import blend, reference, reference_backward

from ..conftest import machine_isas
from .sparse_cases import integers

OP = torch.ops.lcs.line_norm.default
BACKWARD = torch.ops.lcs.line_norm_backward.default
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# x, and groups
SHAPES = {
    "instance": ((3, 16, 8, 9), 16),
    "group": ((2, 64, 7, 7), 32),
    "small planes": ((2, 48, 5, 9), 3),
    "one group": ((3, 6, 5, 7), 1),
    "one channel": ((2, 1, 9, 9), 1),
    "several chunks": ((2, 6, 61, 67), 3),
    "several pieces": ((2, 40, 31, 33), 8),
    "tiny planes": ((5, 24, 2, 2), 8),
    "three channels of many pixels": ((2, 3, 70, 71), 3),
    "wide rows": ((2, 515, 3, 3), 5),
    "pixels alone": ((3, 12, 1, 1), 4),
    "sequence": ((3, 10, 17), 5),
    "short sequence": ((3, 10, 1), 2),
    "volume": ((2, 8, 3, 4, 5), 4),
    "vectors": ((7, 45), 9),
    "a vector": ((1, 5), 1),
}


def in_layout(x, layout):
    """Where images are asked for as channels last, so are volumes; what has no pixels has no such layout."""
    if layout == "channels_last" and x.dim() in (4, 5):
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    return x


def laid_out(shapes):
    """Each name of (x, groups) with the layouts that x can have."""
    images = {name for name, (shape, _) in shapes.items() if len(shape) in (4, 5)}
    return [(name, layout) for name in shapes for layout in LAYOUTS if layout == "contiguous" or name in images]


def ends_of(channels, dtype=torch.float32, make=torch.randn):
    """Longer than needed: weight0, weight1, bias0, bias1."""
    return [make(channels + 3).to(dtype) for _ in range(4)]


# Whose moments are exact where +1 and -1 come in pairs: so are the means of the parts that are summed first.
PAIRED = {
    "instance": ((3, 16, 6, 8), 16),
    "group": ((2, 64, 8, 8), 32),
    "several chunks": ((2, 6, 64, 96), 3),
    "several pieces": ((2, 32, 32, 64), 8),
    "one group": ((3, 7, 4, 12), 1),
    "tiny planes": ((5, 24, 2, 2), 8),
    "pixels alone": ((3, 12, 1, 1), 6),
    "sequence": ((3, 10, 16), 5),
    "volume": ((2, 8, 2, 4, 4), 4),
    "vectors": ((7, 48), 8),
}


def paired(shape, middle=0.0):
    """+1 and -1 in pairs, in either order, around `middle`; and without it."""
    first = torch.randint(0, 2, (torch.Size(shape).numel() // 2, 1)) * 2.0 - 1
    signs = torch.cat([first, -first], 1).view(shape)
    return signs + middle, signs


@pytest.mark.parametrize("middle", [0.0, 3.0, 2.0**20], ids=str)
@pytest.mark.parametrize(("shape", "layout"), laid_out(PAIRED))
def test_exact_moments_give_exact_results(isa, shape, layout, middle):
    """Also where the mean is a million deviations away from 0."""
    torch.manual_seed(0)
    shape, groups = PAIRED[shape]
    x, signs = paired(shape, middle)
    ends = ends_of(shape[1], make=integers)
    weight, bias = (v[: shape[1]].view(-1, *[1] * (len(shape) - 2)) for v in (ends[0] * 0.75 + ends[1] * 0.25, ends[3]))
    y = line_norm(in_layout(x, layout), *ends[:2], ends[3], None, 0.25, groups, 0.0, relu=True)
    assert torch.equal(y, F.relu(signs * weight + bias))


def roundings(size, pixels, layout):
    """At most how many roundings a sum takes: of a chunk of 4096 in 64 lanes and then a tree, or of up to 16384 pixels
    of a channel. What is put together of these is float64."""
    return 32 + (min(pixels, 16384) if layout == "channels_last" else min(size, 4096) // 64)


def exact(x, ends, alpha, groups, eps, roundings):
    """y without residual and ReLU in float64, and what float32 may be off, in units of 2^-24."""
    x64, shape = x.double(), (-1, *[1] * (x.dim() - 2))
    grouped = x64.reshape(len(x), groups, -1)
    mean, var = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
    rstd = (var + eps).rsqrt()
    normed = ((grouped - mean) * rstd).view(x.shape)
    per_element = [t.expand(grouped.shape).reshape(x.shape) for t in (mean, var.sqrt(), rstd)]
    mean, deviation, rstd = per_element
    a, channels = torch.tensor(alpha, dtype=torch.promote_types(ends[0].dtype, torch.float32)), x.shape[1]
    w, b = (blend(*pair, a)[:channels].view(shape).double() for pair in (ends[:2], ends[2:]))
    size_w, size_b = w.abs(), b.abs()
    # The mean: `roundings` of a sum of deviations, and one. The variance: the same, of what was at most 11 times it.
    off_mean = (mean.abs() + (roundings + 2) * 4 * deviation) * rstd * size_w
    off_rstd = (11 * (roundings + 4) / 2 + 8) * normed.abs() * size_w
    return normed * w + b, off_mean + off_rstd + 8 * size_b


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "layout"), laid_out(SHAPES))
def test_rounds_as_often_as_it_must(isas, shape, dtype, layout):
    torch.manual_seed(1)
    shape, groups = SHAPES[shape]
    size, pixels = torch.Size(shape).numel() // shape[0] // groups, torch.Size(shape[2:]).numel()
    for spread, middle in ((1.0, 0.0), (0.01, 1.0), (100.0, -3.0)):
        x = in_layout((torch.randn(shape) * spread + middle).to(dtype), layout)
        ends = ends_of(shape[1], dtype)
        expected, off = exact(x, ends, 0.3, groups, 1e-5, roundings(size, pixels, layout))
        last = 0 if dtype == torch.float32 else UNIT[dtype]
        bound = off * 2.0**-24 + last * (expected.abs() + off * 2.0**-24) + 2.0**-24
        for _ in isas():
            y = line_norm(x, *ends, 0.3, groups)
            assert ((y.double() - expected).abs() <= bound).all()
            assert y.dtype == dtype and y.stride() == x.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "layout"), laid_out(SHAPES))
def test_instruction_sets_and_threads_change_nothing(shape, dtype, layout):
    torch.manual_seed(2)
    shape, groups = SHAPES[shape]
    shape = (shape[0] * 5, *shape[1:])
    x, grad = (in_layout(torch.randn(shape).to(dtype), layout) for _ in range(2))
    ends, alpha = ends_of(shape[1]), torch.tensor(0.3)
    before, found = (lcs_kernels.isa.max_name(), torch.get_num_threads()), []
    for name in machine_isas():
        lcs_kernels.isa.set_max(name)
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            y, statistics = OP(x, *ends, alpha, None, None, grad, groups, 1e-5, True)
            grads = BACKWARD(grad, x, *ends, alpha, None, None, statistics, groups, 1e-5, True)
            found.append((y, statistics, *grads))
    lcs_kernels.isa.set_max(before[0])
    torch.set_num_threads(before[1])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "layout"), laid_out(PAIRED))
def test_the_affine_part_the_residual_and_the_relu(isas, shape, dtype, layout):
    """Of one normed x, which is exact, in all combinations."""
    torch.manual_seed(3)
    shape, groups = PAIRED[shape]
    x, signs = (in_layout(t.to(dtype), layout) for t in paired(shape))
    residual = in_layout(integers(*shape, dtype=dtype), layout)
    weight, other, bias, _ = ends_of(shape[1], make=integers)
    for affine in ((None,) * 4, (weight, None, None, None), (weight, None, bias, None), (weight, other, bias, other)):
        for r in (None, residual):
            for relu in (False, True):
                a = 0.5 if affine[1] is not None else None
                expected = reference(x, *affine, torch.tensor(0.5), None, None, r, groups, 0.0, relu)[0]
                for _ in isas():
                    y = line_norm(x, *affine, a, groups, 0.0, residual=r, relu=relu)
                    assert torch.equal(y, expected) and y.stride() == x.stride()
    assert all(torch.equal(line_norm(x, *[None] * 5, groups, 0.0), signs) for _ in isas())


def test_a_residual_in_another_layout_is_copied(isa):
    x, residual = torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)
    expected = line_norm(x, *[None] * 5, 3, residual=residual)
    for layout in LAYOUTS.values():
        for other in LAYOUTS.values():
            y = line_norm(
                x.contiguous(memory_format=layout), *[None] * 5, 3, residual=residual.contiguous(memory_format=other)
            )
            # the sums of the two layouts round differently: by what their numbers of roundings allow
            off = 2 * (exact(x, [torch.ones(6)] * 2 + [torch.zeros(6)] * 2, 0.0, 3, 1e-5, 32 + 64)[1] + y.abs())
            assert ((y - expected).abs() <= off * 2.0**-24).all() and y.is_contiguous(memory_format=layout)


GIVEN = {name: SHAPES[name] for name in ("instance", "several pieces", "tiny planes", "sequence", "volume", "vectors")}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "layout"), laid_out(GIVEN))
def test_given_statistics(isa, shape, dtype, layout):
    """As of batch norm: powers of 2 for deviations, so that all is exact."""
    torch.manual_seed(4)
    shape, _ = GIVEN[shape]
    x, grad = (in_layout(integers(*shape, dtype=dtype), layout) for _ in range(2))
    mean, var = integers(shape[1] + 1), 4.0 ** torch.randint(-1, 2, (shape[1] + 1,))
    ends, alpha = ends_of(shape[1], make=integers), torch.tensor(0.5)
    given = (*ends, alpha, mean, var)
    y, statistics = OP(x, *given, None, 7, 0.0, True)
    assert torch.equal(y, reference(x, *given, None, 7, 0.0, True)[0]) and statistics.numel() == 0
    shaped = F.batch_norm(x.float(), mean[: shape[1]], var[: shape[1]], eps=0.0)
    assert torch.equal(line_norm(x, *[None] * 5, 1, 0.0, mean=mean, var=var), shaped.to(dtype))
    found, expected = (f(grad, x, *given, statistics, 7, 0.0, True) for f in (BACKWARD, reference_backward))
    assert all(map(torch.equal, found, expected))


def test_given_statistics_have_no_groups():
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    mean, var = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    line_norm(x, *[None] * 5, 0, mean=mean, var=var).sum().backward()
    assert torch.equal(x.grad, (var + 1e-5).rsqrt()[:, None].expand(2, 5, 3))


POWERS_OF_2 = {
    "group": ((4, 16, 8, 8), 8),
    "several pieces": ((2, 4, 32, 64), 2),
    "tiny planes": ((3, 32, 2, 2), 16),
    "vectors": ((5, 64), 4),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "layout"), laid_out(POWERS_OF_2))
def test_exact_gradients(isa, shape, relu, layout):
    """Groups of a power of 2: every step is exact."""
    torch.manual_seed(5)
    shape, groups = POWERS_OF_2[shape]
    x = in_layout(paired(shape, 2.0)[0], layout)
    grad, ends, alpha = in_layout(integers(*shape), layout), ends_of(shape[1], make=integers), torch.tensor(0.25)
    y, statistics = OP(x, *ends, alpha, None, None, None, groups, 0.0, relu)
    assert torch.equal(statistics[1], torch.ones(shape[0], groups))
    arguments = (grad, x, *ends, alpha, None, None, statistics, groups, 0.0, relu)
    found, expected = BACKWARD(*arguments), reference_backward(*arguments)
    assert all(map(torch.equal, found, expected)) and found[0].stride() == x.stride()
    masked = torch.where(y > 0, grad, 0) if relu else grad
    total = masked.sum([0, *range(2, x.dim())])
    assert torch.equal(found[3][: shape[1]], 0.75 * total) and torch.equal(found[4][: shape[1]], 0.25 * total)
    assert not any(g[shape[1] :].any() for g in found[1:5])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "layout"), laid_out(SHAPES))
def test_gradients_round_as_often_as_they_must(isa, shape, dtype, layout):
    """Against float64 with the same statistics; where the ReLU's input is next to 0, the gradient is 0."""
    torch.manual_seed(6)
    shape, groups = SHAPES[shape]
    x, grad = (in_layout(torch.randn(shape).to(dtype), layout) for _ in range(2))
    ends, alpha = ends_of(shape[1]), torch.tensor(0.3)
    _, statistics = OP(x, *ends, alpha, None, None, None, groups, 1e-5, True)
    size, pixels = torch.Size(shape).numel() // shape[0] // groups, torch.Size(shape[2:]).numel()
    k, unit = roundings(size, pixels, layout) + 8, 2.0**-24
    middle, rstd = (
        s.double().repeat_interleave(shape[1] // groups, 1).view(*shape[:2], *[1] * (len(shape) - 2))
        for s in statistics
    )
    normed, channel = (x.double() - middle) * rstd, (-1, *[1] * (len(shape) - 2))
    w, b = (blend(p.double(), q.double(), alpha.double())[: shape[1]].view(channel) for p, q in (ends[:2], ends[2:]))
    before, steps = normed * w + b, 16 * unit * ((normed.abs() + 1) * 8 + middle.abs() * rstd * w.abs())
    grad = torch.where(before.abs() > steps, grad, 0)
    arguments = (x, *ends, alpha, None, None, statistics, groups, 1e-5, True)
    found = BACKWARD(grad, *arguments)
    wide = [t.double() if isinstance(t, torch.Tensor) else t for t in arguments]
    expected = reference_backward(grad.double(), *wide)

    masked = torch.where(before > 0, grad.double(), 0).abs()
    off = (normed.abs() + middle.abs() * rstd * unit).clamp(min=unit)  # x - mean is rounded too
    inner = [0, *range(2, x.dim())]
    of_weight, of_bias = ((masked * t).sum(inner) * (k + 4) * unit for t in (off, 1))
    grouped = (len(x), groups, -1)
    means = [
        (masked * w.abs() * t).reshape(grouped).mean(2, keepdim=True).expand(len(x), groups, size).reshape(shape)
        for t in (torch.ones_like(off), off)
    ]
    of_x = (masked * w.abs() * 8 + (means[0] + off * means[1]) * (k + 8)) * rstd * unit
    last = 0 if dtype == torch.float32 else UNIT[dtype]
    assert ((found[0].double() - expected[0]).abs() <= of_x * (1 + last) + last * expected[0].abs() + 2.0**-25).all()
    for g, e, share, bound in zip(
        found[1:5], expected[1:5], (0.7, 0.3) * 2, (of_weight, of_weight, of_bias, of_bias), strict=True
    ):
        assert ((g.double() - e).abs()[: shape[1]] <= bound * share + e.abs()[: shape[1]] * 3 * unit).all()
    apart = [(q - p).double().abs()[: shape[1]] for p, q in (ends[:2], ends[2:])]
    bound = (apart[0] * of_weight).sum() + (apart[1] * of_bias).sum() + expected[5].abs() * 2 * unit
    assert abs(float(found[5].double() - expected[5])) <= float(bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_arrive_where_they_are_wanted(dtype):
    torch.manual_seed(8)
    x, residual = (torch.randn(2, 6, 4, 4).to(dtype).requires_grad_() for _ in range(2))
    ends = [e.requires_grad_() for e in ends_of(6, dtype)]
    alpha = torch.tensor(0.3, requires_grad=True)
    y = line_norm(x, *ends, alpha, 3, residual=residual, relu=True)
    grad = torch.randn(y.shape).to(dtype)
    y.backward(grad)
    assert torch.equal(residual.grad, torch.where(y > 0, grad, 0))
    assert all(t.grad.dtype == t.dtype and t.grad.shape == t.shape for t in (x, residual, alpha, *ends))
    leaves = (x, *ends)
    for wanted in leaves:
        for leaf in leaves:
            leaf.grad = None
            leaf.requires_grad_(leaf is wanted)
        line_norm(x, *ends, 0.3, 3).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [leaf is wanted for leaf in leaves]


def test_no_second_derivative():
    x = torch.randn(2, 4, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(line_norm(x, *[None] * 5, 2).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_where_it_is_torchs_norm():
    """Group and instance norm, to what two ways of rounding differ by; the bound is that of each, added."""
    torch.manual_seed(9)
    x, (weight, _, bias, _) = torch.randn(4, 32, 9, 9), ends_of(32)
    ends = [weight[:32], weight[:32], bias[:32], bias[:32]]
    for groups in (32, 8):
        theirs = F.group_norm(x, groups, weight[:32], bias[:32])
        off = 2 * 2.0**-24 * exact(x, ends, 0.0, groups, 1e-5, 32 + 81 * 32 // groups)[1]
        assert ((line_norm(x, weight, None, bias, None, None, groups) - theirs).abs() <= off + 2.0**-24).all()


@pytest.mark.parametrize("fill", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_group_alone(isa, fill):
    for layout in LAYOUTS.values():
        x = torch.randn(3, 8, 6, 7).contiguous(memory_format=layout)
        x[1, 5, 3, 3] = fill
        y = line_norm(x, *[None] * 5, 4)
        spoilt = torch.zeros(3, 8, dtype=torch.bool)
        spoilt[1, 4:6] = True
        assert torch.equal(y.isnan().all(3).all(2), spoilt) and torch.equal(y.isnan().any(3).any(2), spoilt)
        assert torch.equal(line_norm(x, *[None] * 5, 4, relu=True).isnan(), y.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (3, 6, 0, 4), (0, 6)], ids=str)
def test_nothing_to_norm(isa, shape, dtype):
    x, ends = torch.randn(shape, dtype=dtype, requires_grad=True), [e.to(dtype).requires_grad_() for e in ends_of(6)]
    y = line_norm(x, *ends, 0.3, 3, relu=True)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape and not any(e.grad.any() for e in ends)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(2, 3),
        lambda x: x[:, ::2, 1:, 2:],
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x.permute(0, 3, 1, 2)[:, :8],
    ],
    ids=["transposed", "strided", "expanded", "cut"],
)
def test_other_strides_are_copied(isa, view):
    x = view(torch.randn(3, 8, 9, 10))
    y = line_norm(x, *[None] * 5, 2)
    assert y.is_contiguous() and torch.equal(y, line_norm(x.contiguous(), *[None] * 5, 2))
