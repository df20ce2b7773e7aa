import copy
import ctypes
import gc
import random
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import lcs
from lcs.frozen import LEVELS
from lcs.measure import check_layers
from lcs_kernels import line_norm, width_conv2d
from lcs_kernels.formats import WidthWeight


class Net(nn.Module):
    """A residual block with a shortcut, a depthwise convolution and a flattened image: 3 x 6 x 6 -> 4 logits."""

    def __init__(self, norm=lambda c: nn.InstanceNorm2d(c, affine=True)):
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.norm1, self.conv1 = norm(10), nn.Conv2d(10, 18, 3, padding=1, bias=False)
        self.norm2, self.depthwise = norm(18), nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.shortcut = nn.Conv2d(10, 18, 1)
        self.hidden, self.head = nn.Linear(18 * 9, 14), nn.Linear(14, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.depthwise(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        y = F.avg_pool2d(y + self.shortcut(x), 2)
        return self.head(self.hidden(y.flatten(1)).relu())


def subspace_of(recipe=None, seed=0, **options):
    torch.manual_seed(seed)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    return lcs.convert(model, recipe or lcs.Structured(), **{"dense": ["head"], "init": "independent"} | options)


def batch(n=4, seed=0):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("count", "width", "kept"), [(10, 0.25, 2), (18, 0.25, 4), (2, 0.25, 1), (6, 0.25, 2), (7, 1, 7)]
)
def test_counts_are_rounded_half_to_even_and_at_least_one(count, width, kept):
    assert lcs.Structured().channels(count, lcs.Level(0.0, width=width)) == kept


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": (0.0, 1.0)}, r"0 < low <= high <= 1, got \(0.0, 1.0\)"),
        ({"width": (0.5, 0.25)}, "0 < low <= high <= 1"),
        ({"width": (0.5, 0.5)}, "a line needs two widths"),
        ({"samples": 1}, "samples must be at least 2, .* got 1"),
        ({"target": 1.5}, r"target must lie in \(0, 1\], got 1.5"),
        ({"target": "half"}, "target must be a number, got 'half'"),
        ({"fixed": 0.5}, "fixed must be a tuple of widths, got 0.5"),
    ],
)
def test_bad_recipes(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        lcs.Structured(**options)


def test_alpha_follows_from_the_width_on_a_line():
    recipe = lcs.Structured(width=(0.25, 1.0))
    assert [recipe.level(w).alpha for w in (0.25, 0.625, 1.0)] == [0.0, 0.5, 1.0]
    assert recipe.level(0.1, alpha=0.5) == lcs.Level(0.5, width=0.1)
    for width, alpha, words in (
        (0.1, None, r"lie in \[0.25, 1.0\], got 0.1"),
        (0.5, 1.5, "alpha must"),
        (0, 1, "width"),
    ):
        with pytest.raises(ValueError, match=words):
            recipe.level(width, alpha)
    point = lcs.Structured(line=False)
    assert point.level(0.1) == lcs.Level(0.0, width=0.1)
    with pytest.raises(ValueError, match="a point has no alpha"):
        point.level(0.5, 0.5)


@pytest.mark.parametrize("line", [True, False])
def test_a_step_trains_both_ends_and_widths_between_them(line):
    recipe = lcs.Structured(line=line, width=(0.25, 1.0), samples=4)
    drawn = [recipe.sample(torch.Generator().manual_seed(seed)) for seed in range(50)]
    for low, high, *between in drawn:
        assert (low.width, high.width, len(between)) == (0.25, 1.0, 2)
        assert (low.alpha, high.alpha) == ((0.0, 1.0) if line else (0.0, 0.0))
        for level in between:
            assert level == (recipe.level(level.width, level.alpha)) and 0.25 < level.width < 1.0
            assert level.alpha == (pytest.approx((level.width - 0.25) / 0.75) if line else 0.0)
    assert len({level for levels in drawn for level in levels}) == 102
    assert len(lcs.Structured(samples=2).sample(None)) == 2
    assert lcs.Structured(target=0.5).sample(None, 0.1) == [lcs.Level(0.0, width=0.5)]


def test_a_level_is_the_composition_of_the_first_channels():
    subspace, x = subspace_of().double(), batch().double()
    p = dict(subspace.model.named_parameters())
    alpha, width = 0.3, 0.45
    c10, c18, c14 = 4, 8, 6

    def norm(name, x):
        scale, shift = (
            ((1 - alpha) * p[f"{name}.{k}"] + alpha * p[f"{name}.{k}_1"])[: x.shape[1]] for k in ("weight", "bias")
        )
        return line_norm(x, scale, None, shift, None, None, x.shape[1])

    def forward(x):
        x = F.conv2d(x, p["stem.weight"][:c10], p["stem.bias"][:c10], padding=1)
        y = F.conv2d(norm("norm1", x).relu(), p["conv1.weight"][:c18, :c10], padding=1)
        y = norm("norm2", y).relu()
        y = F.conv2d(y, p["depthwise.weight"][:c18], p["depthwise.bias"][:c18], padding=1, groups=c18)
        y = F.avg_pool2d(y + F.conv2d(x, p["shortcut.weight"][:c18, :c10], p["shortcut.bias"][:c18]), 2).flatten(1)
        y = F.linear(y, p["hidden.weight"][:c14, : 9 * c18], p["hidden.bias"][:c14]).relu()
        return F.linear(y, p["head.weight"][:, :c14], p["head.bias"])

    with subspace.at(width=width, alpha=alpha):
        found = subspace(x)
    assert torch.equal(found, forward(x))
    names = list(p)
    grads = (torch.autograd.grad(y.square().sum(), [p[name] for name in names]) for y in (found, forward(x)))
    for name, ours, by_hand in zip(names, *grads, strict=True):
        assert torch.equal(ours, by_hand), name


def test_only_norms_are_lines_and_only_their_scales_are_regularised():
    subspace = subspace_of()
    assert list(subspace.lines()) == ["norm1", "norm2"]
    subspace.regularizer().backward()
    reached = {name for name, p in subspace.model.named_parameters() if p.grad is not None}
    assert reached == {"norm1.weight", "norm1.weight_1", "norm2.weight", "norm2.weight_1"}
    ends = [
        torch.cat([getattr(layer, name).detach() for layer in subspace.lines().values()]).double()
        for name in ("weight", "weight_1")
    ]
    expected = torch.cosine_similarity(*ends, dim=0).square()
    assert abs(subspace.regularizer() - expected) <= 2 * len(ends[0]) * torch.finfo(torch.float32).eps
    assert not subspace_of(lcs.Structured(line=False)).lines()


def test_one_backward_for_each_width_gives_the_gradient_of_the_summed_loss():
    subspace, x, y = subspace_of().double(), batch(8).double(), torch.arange(8) % 4
    levels = subspace.sample()
    losses = []
    for level in levels:
        with subspace.at(level):
            losses.append(F.cross_entropy(subspace(x), y))
    sum(losses).backward()
    together = {name: p.grad.clone() for name, p in subspace.named_parameters()}
    alone = []
    for level in levels:
        subspace.zero_grad()
        with subspace.at(level):
            F.cross_entropy(subspace(x), y).backward()
        alone.append({name: p.grad.clone() for name, p in subspace.named_parameters()})
    subspace.zero_grad()
    for level in levels:
        with subspace.at(level):
            F.cross_entropy(subspace(x), y).backward()
    for name, p in subspace.named_parameters():  # four terms of each, summed in another order
        terms = sum(each[name].abs() for each in alone)
        assert ((p.grad - together[name]).abs() <= len(levels) * torch.finfo(torch.float64).eps * terms).all(), name


@pytest.mark.parametrize("recipe", [lcs.Structured(), lcs.Structured(line=False), lcs.Structured(target=0.5)])
def test_training_lowers_the_loss_at_every_width(recipe):
    subspace, x, y = subspace_of(recipe), batch(8), torch.arange(8) % 4
    widths = [recipe.target] if recipe.target else [0.25, 0.6, 1.0]

    def losses():
        found = []
        for width in widths:
            with torch.no_grad(), subspace.at(width=width):
                found.append(F.cross_entropy(subspace(x), y).item())
        return found

    before = losses()
    optimizer = torch.optim.Adam(subspace.parameters(), 0.01)
    for _ in range(60):
        for level in subspace.sample():
            with subspace.at(level):
                F.cross_entropy(subspace(x), y).backward()
        subspace.regularizer().backward() if recipe.line else None
        optimizer.step()
        optimizer.zero_grad()
    assert all(after < 0.7 * first for after, first in zip(losses(), before, strict=True))


@pytest.mark.parametrize("norm", [None, "keep"])
def test_unconverted_it_is_the_slim_network_in_plain_modules(plain_norms_round_alike, norm):
    torch.manual_seed(0)
    model = Net(nn.BatchNorm2d)
    model.depthwise.padding_mode = "reflect"
    with pytest.warns(UserWarning, match="running statistics") if norm else torch.no_grad():
        subspace = lcs.convert(model, lcs.Structured(), dense=["head"], init="independent", norm=norm)
    with subspace.at(width=0.6):
        subspace(batch())
    expected = lcs.Structured().level(0.45)
    subspace.eval()
    with torch.no_grad(), subspace.at(expected):
        y = subspace(batch())
    slim = lcs.unconvert(copy.deepcopy(subspace), expected)
    assert not any(isinstance(m, lcs.layers.SubspaceLayer) for m in slim.modules())
    with torch.no_grad():
        assert torch.equal(slim(batch()), y)
    shapes = {name: tuple(p.shape) for name, p in slim.named_parameters()}
    assert shapes["conv1.weight"] == (8, 4, 3, 3) and shapes["depthwise.weight"] == (8, 1, 3, 3)
    assert shapes["norm2.weight"] == (8,) and shapes["hidden.weight"] == (6, 72) and shapes["head.weight"] == (4, 6)
    assert (slim.depthwise.groups, slim.conv1.in_channels, slim.hidden.in_features) == (8, 4, 72)
    assert slim.norm2.num_features == 8 and (norm is None or len(slim.norm2.running_mean) == 8)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in slim.parameters())


@pytest.mark.parametrize("line", [True, False])
@pytest.mark.parametrize("norm", ["keep", None])
def test_compiled_any_number_of_widths_is_one_graph_with_gradient_and_one_without(line, norm):
    torch._dynamo.reset()
    torch.manual_seed(0)
    counter, x = CompileCounter(), batch()
    with pytest.warns(UserWarning, match="running statistics") if norm else torch.no_grad():
        subspace = lcs.convert(Net(nn.BatchNorm2d), lcs.Structured(line=line), dense=["head"], norm=norm)
    subspace.eval()
    widths = [0.25 + 0.75 * i / 49 for i in range(50)]
    eager = {}
    for width in widths[::7]:
        with subspace.at(width=width):
            eager[width] = subspace(x)
    subspace.compile(backend=counter, fullgraph=True)
    for grad in (True, False):
        for width in widths[::-1]:
            with torch.set_grad_enabled(grad), subspace.at(width=width):
                y = subspace(x)
            assert width not in eager or torch.equal(y, eager[width])
            if grad and width in eager:
                y.sum().backward()
    assert counter.frame_count == 2
    torch._dynamo.reset()


def test_a_dense_state_dict_loads(plain_norms_round_alike):
    dense, subspace = Net(), subspace_of()
    subspace.load_state_dict(dense.state_dict())
    with torch.no_grad(), subspace.at(width=1.0):
        assert torch.equal(subspace(batch()), dense(batch()))
    assert torch.equal(subspace.model.norm1.weight_1, dense.norm1.weight)


def test_perturbed_scales_give_the_regulariser_a_gradient():
    subspace = subspace_of(init="copy", perturb=0.1)
    layer = subspace.model.norm2
    assert 0 < (layer.weight_1 - layer.weight).abs().mean() < 0.3 * layer.weight.square().mean().sqrt()
    subspace.regularizer().backward()
    assert layer.weight.grad.any()


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 5, 5), (2, 2, 6, 6), (2, 1, 6, 6)])
@pytest.mark.parametrize("width", [1.0, 0.3])
def test_an_input_of_another_size_than_the_model_takes_is_refused(shape, width):
    subspace, x = subspace_of(), torch.randn(shape)
    frozen = subspace.freeze()
    for run in (lambda: subspace(x), lambda: frozen(x, width=width)):
        with (
            pytest.raises(RuntimeError, match="shapes cannot be multiplied|to have 3 channels"),
            subspace.at(width=width),
        ):
            run()


def test_the_plan_tells_whole_outputs_from_cut_ones():
    plan = lcs.plan(Net(nn.BatchNorm2d), lcs.Structured(), dense=["head"])
    assert {row.name: row.action for row in plan.rows} == {
        "stem": "compress",
        "norm1": "norm",
        "conv1": "compress",
        "norm2": "norm",
        "depthwise": "compress",
        "shortcut": "compress",
        "hidden": "compress",
        "head": "dense",
    }
    assert "becomes InstanceNorm2d" in str(plan)


def test_group_norm_is_refused():
    with pytest.raises(
        ValueError, match="norm must be one of instance, keep, got 'group': groups of channels do not divide"
    ):
        lcs.convert(Net(nn.BatchNorm2d), lcs.Structured(), dense=["head"], norm="group")


@pytest.mark.parametrize("per_width", [True, False])
def test_fixed_widths_train_together_with_statistics_of_their_own_or_one_set(per_width):
    torch.manual_seed(0)
    recipe = lcs.Structured(fixed=(1.0, 0.5), per_width=per_width)
    with pytest.warns(UserWarning, match="running statistics"):
        subspace = lcs.convert(Net(nn.BatchNorm2d), recipe, dense=["head"], norm="keep")
    assert not recipe.line and [level.width for level in subspace.sample()] == [1.0, 0.5]
    norm, seen = subspace.model.norm1, []
    for level in subspace.sample():
        norm.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().double()))
        with subspace.at(level):
            subspace(batch())
        norm._forward_pre_hooks.clear()
    full, half = (0.1 * x.mean((0, 2, 3)) for x in seen)
    # A term is rounded in every sum at most, as that is divided, by 0.1 and 0.9, rounded too, and as these are added.
    share = ((1 + 2.0**-24) ** (seen[0][:, 0].numel() + 6) - 1) * 0.1
    full_error, half_error = (share * x.abs().mean((0, 2, 3)) for x in seen)
    if per_width:
        assert ((norm.running_mean_0 - full).abs() <= full_error).all()
        assert ((norm.running_mean_1 - half).abs() <= half_error).all()
        assert not norm.running_mean.any()
    else:
        for both, added in ((full, half), (full_error, half_error)):
            both[:5] = 0.9 * both[:5] + added
        assert ((norm.running_mean - full).abs() <= full_error).all()
    subspace.eval()
    with torch.no_grad(), subspace.at(width=0.5):
        y = subspace(batch())
    slim = lcs.unconvert(copy.deepcopy(subspace), width=0.5)
    with torch.no_grad():
        assert torch.equal(slim(batch()), y)
    assert set(slim.norm1.state_dict()) == set(nn.BatchNorm2d(5).state_dict())


@pytest.mark.parametrize("line", [True, False])
def test_frozen_every_width_runs_from_one_buffer(line, plain_norms_round_alike, monkeypatch):
    subspace, x = subspace_of(lcs.Structured(line=line)).eval(), batch()
    frozen = subspace.freeze(strict=True)
    views = {}
    for width in (0.25, 0.45, 0.8, 1.0):
        report = frozen.report(x, width=width)
        kernels = {row.layer: row.kernel for row in report.rows}
        assert all(kernels[name] == "width_conv2d" for name in ("stem", "conv1", "depthwise", "shortcut"))
        slim = lcs.unconvert(copy.deepcopy(subspace), width=width)
        assert {row.layer: row.stored for row in report.rows}["conv1"] == slim.conv1.weight.numel()
        assert check_layers(frozen, x, subspace.recipe.level(width)) == 4
        y = frozen(x, width=width)
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(F, "conv2d", lambda x, w, *rest: width_conv2d(x, WidthWeight.pack(w), None, *rest))
            assert torch.equal(y, slim(x.contiguous(memory_format=torch.channels_last)))
        bias = 4 * len(slim.stem.bias)
        views[width] = {row.layer: row.bytes - bias * (row.layer == "stem") for row in report.rows}
    assert len({(sizes["conv1"], sizes["stem"]) for sizes in views.values()}) == 1
    assert len(frozen._packer._packed) == 4
    norms = 2 * 4 * sum(round(10 * w) + round(18 * w) for w in views) if line else 0
    assert frozen.counters.nbytes == norms and not frozen.counters.fallbacks


def test_frozen_bfloat16_is_within_the_bound_of_winograds_products():
    torch.manual_seed(0)
    settings = ({"padding": 1}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}, {"padding": (0, 2)})
    convolutions = [nn.Conv2d(40, 40, 3, **more) for more in settings]
    model = nn.Sequential(*convolutions, nn.Conv2d(40, 5, 1))
    frozen = lcs.convert(model, lcs.Structured(line=False), dense=["4"]).eval().bfloat16().freeze()
    for width in (0.5, 1.0):
        assert check_layers(frozen, torch.randn(2, 40, 30, 29).bfloat16(), frozen.recipe.level(width)) == 5


class Ops(TorchDispatchMode):
    """The ops that ran, by name, and all that they made that is no view."""

    def __init__(self):
        super().__init__()
        self.names, self.made = set(), []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        self.names.add(op.name())
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
            self.made.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("line", [True, False])
def test_a_thousand_new_widths_copy_no_weight(line):
    """A point's level makes no tensor at all; a line's makes scalars and its norms' scales and shifts."""
    frozen, x = subspace_of(lcs.Structured(line=line)).eval().freeze(strict=True), batch()
    frozen(x, width=1.0)
    packed = [whole.prepack() for whole in frozen._packer._packed.values()]
    held = frozen._packer, sum(whole.prepacked_nbytes for whole in frozen._packer._packed.values())
    with Ops() as ops:
        for i in range(1000):
            frozen.prepare(x, width=0.25 + 0.75 * (i + 0.5) / 1000)
    assert not any("pack" in name for name in ops.names)
    assert {len(shape) for shape in ops.made} <= ({0, 1} if line else set())
    assert max((shape[0] for shape in ops.made if shape), default=0) <= 18
    assert all(whole.prepack() is before for whole, before in zip(held[0]._packed.values(), packed, strict=True))
    assert sum(whole.prepacked_nbytes for whole in held[0]._packed.values()) == held[1]
    assert frozen.counters.builds == 1001 and frozen.counters.levels == LEVELS
    assert frozen.counters.nbytes <= (LEVELS * 2 * 4 * (10 + 18) if line else 0)


def bytes_in_use():
    """Of all that malloc has given out."""
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    kind = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names.split()]})
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = kind
    found = mallinfo2()
    return found.uordblks + found.hblkhd


@pytest.mark.parametrize("line", [True, False])
def test_a_thousand_calls_at_new_widths_keep_no_memory(line):
    """After as many as are held: of each call less than one float of malloc's, and less than one Python object."""
    frozen, x, generator = subspace_of(lcs.Structured(line=line)).eval().freeze(strict=True), batch(), random.Random(0)

    def call(count):
        for _ in range(count):
            frozen(x, width=generator.uniform(0.25, 1.0))
        gc.collect()
        return bytes_in_use(), sys.getallocatedblocks()

    with torch.no_grad():
        frozen(x, width=1.0)
        memory, objects = call(2 * LEVELS)
        later_memory, later_objects = call(1000)
    assert later_memory - memory < 4 * 1000 and later_objects - objects < 1000


def test_a_thousand_widths_compile_nothing_anew():
    torch._dynamo.reset()
    frozen, x, counter = subspace_of().eval().freeze(strict=True), batch(), CompileCounter()
    fast = torch.compile(lambda x, width: frozen(x * 2, width=width) + 1, backend=counter)
    widths = [0.25 + 0.75 * (i + 0.5) / 1000 for i in range(1000)]
    random.Random(0).shuffle(widths)
    with torch.no_grad():
        for width in (1.0, 0.5, 0.25):
            fast(x, width)
        before = counter.frame_count
        assert before >= 2  # what comes before the frozen network, and what comes after
        for width in widths:
            assert torch.equal(fast(x, width), frozen(x * 2, width=width) + 1)
    assert counter.frame_count == before
    torch._dynamo.reset()


def test_statistics_of_each_width_come_from_a_dense_state_dict():
    def dense():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 2))

    trained = dense()
    trained(torch.randn(4, 3, 6, 6))
    recipe = lcs.Structured(fixed=(0.5, 1.0), per_width=True)
    subspace = lcs.convert(dense(), recipe, norm="keep", dense=["3"])
    subspace.load_state_dict(trained.state_dict())
    norm = subspace.model[1]
    assert torch.equal(norm.running_mean_0, trained[1].running_mean[:4])
    assert torch.equal(norm.running_var_1, trained[1].running_var)


@pytest.mark.parametrize("pool", [nn.AvgPool3d((3, 1, 1), 1, (1, 0, 0)), nn.ConstantPad3d((0, 0, 0, 0, 1, 1), 0.0)])
def test_pooling_and_padding_over_the_channels_is_refused(pool):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), pool, nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="go into 1, which is not known to keep them the first ones"):
        lcs.plan(model, lcs.Structured(), dense=["4"])


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_buffers_made_in_inference_mode_have_no_versions_and_are_traced(device):
    with torch.inference_mode(), torch.device(device):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
        before = [buffer.clone() for buffer in model.buffers()]
        subspace = lcs.convert(model, lcs.Structured(), dense=["2"], norm="keep").eval()
        with subspace.at(width=0.5):
            assert subspace(torch.ones(1, 3, 6, 6)).shape == (1, 4, 4, 4)
    assert device == "meta" or all(map(torch.equal, model.buffers(), before))
