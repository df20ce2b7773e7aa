import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import lcs
from lcs import models, packed_steps
from lcs.measure import check_layers, measure_speed
from lcs.packing import RUNNING
from lcs_kernels import packed_conv2d
from lcs_kernels.formats import NestedWeight
from lcs_kernels.ops.replay import Recorder

RECIPES = [
    lcs.Quantized(),
    lcs.Quantized(per_channel=True),
    lcs.Quantized(nested=True),
    lcs.Quantized(line=False),
    lcs.Quantized(line=False, nested=True, per_channel=True),
    lcs.Quantized(target=5),
]


def trained(model, recipe, x, dense=(), **options):
    """With input ranges, as training leaves them."""
    line = {"init": "independent", "generator": torch.manual_seed(0)} if recipe.line else {}
    subspace = lcs.convert(model, recipe, dense=dense, **line, **options)
    subspace.train()
    with subspace.at(bits=recipe.target or 8), torch.no_grad():
        for scale in (1.0, 2.0):
            subspace(x * scale)
    return subspace.eval()


def small(recipe=RECIPES[0], *layers, x=None):
    torch.manual_seed(0)
    model = nn.Sequential(*(layers or (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))))
    return trained(model, recipe, torch.randn(2, 3, 8, 8) if x is None else x)


def widths(recipe):
    return [recipe.target] if recipe.target else range(3, 9)


def outputs(subspace, x, level):
    with subspace.at(level), torch.no_grad():
        return subspace(x)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_layer_computes_what_training_evaluates(recipe):
    """The very codes of the subspace's weights, and, of the inputs that it gets, their products within rounding."""
    torch.manual_seed(1)
    model, x = models.build("cpreresnet20", 10, seed=0), torch.randn(4, 3, 32, 32)
    subspace = trained(model, recipe, x, dense=[model.stem_name, model.classifier_name])
    frozen = subspace.freeze(strict=True)
    for bits in widths(recipe):
        level = recipe.level(bits)
        assert check_layers(frozen, x, level) == 21 + 1  # the float32 stem
        packed = frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {}))
        layers = [layer for layer in frozen._layers if layer.compressed]
        for layer, w in zip(layers, recipe.weights(layers, level), strict=True):
            view = packed.tensors[layer.index][0]
            assert view.bits == bits and torch.equal(view.whole.unpack(bits), w)
    assert not frozen.counters.fallbacks


@pytest.mark.parametrize("recipe", RECIPES[:5:3], ids=str)
@pytest.mark.parametrize("bits", range(3, 9))
def test_bit_for_bit_where_no_step_rounds(recipe, bits):
    """Weights and inputs of whole steps, whose products float32 sums exactly."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    x = torch.randint(low, high + 1, (3, 6, 9, 8)).float()
    x[:, 0, 0, :2] = torch.tensor([low, high])
    layers = nn.Conv2d(6, 9, 3, padding=1, bias=False), nn.Flatten(2), nn.Conv1d(9, 4, 1), nn.Flatten(0, 1)
    subspace = small(recipe, *layers[:2], x=x)
    layer = subspace.model[0]
    for end in layer.ends("weight"):
        if end is not None:
            end.data.copy_(torch.randint(low, high + 1, end.shape))
            end.data.view(-1)[:2] = torch.tensor([low, high])
    if recipe.line:
        layer.weight_1.data.copy_(layer.weight)
    layer.input_low.fill_(low), layer.input_high.fill_(high)
    assert torch.equal(subspace.freeze(strict=True)(x, bits=bits), outputs(subspace, x, recipe.level(bits)))


@pytest.mark.parametrize("recipe", RECIPES[:5], ids=str)
def test_all_kinds_of_layers(recipe):
    layers = (
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect", bias=True),
        nn.Conv2d(8, 8, (3, 2), stride=2, dilation=(2, 1), groups=2),
        nn.Flatten(2),
        nn.Conv1d(8, 6, 3, padding=1, stride=2, groups=2),
        nn.Linear(15, 5),
    )
    x = torch.randn(2, 3, 14, 12)
    frozen = small(recipe, *layers, x=x).freeze(strict=True)
    for bits in (3, 8):
        assert check_layers(frozen, x, recipe.level(bits)) == 4


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(3, 4, 3), (3, 6, 5)), (nn.Conv1d(3, 4, 3), (3, 6)), (nn.Linear(6, 4), (6,))],
    ids=["conv2d", "conv1d", "linear"],
)
def test_single_inputs(layer, shape):
    x = torch.randn(3, *shape)
    frozen = small(RECIPES[0], copy.deepcopy(layer), x=x).freeze(strict=True)
    whole = frozen(x, bits=4)
    assert torch.equal(frozen(x[1], bits=4), whole[1])


@pytest.mark.parametrize("recipe", RECIPES[:5], ids=str)
def test_without_ranges_only_weights_are_rounded(recipe):
    torch.manual_seed(2)
    subspace = lcs.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)), recipe).eval()
    x, frozen = torch.randn(2, 3, 8, 8), subspace.freeze(strict=True)
    for bits in (3, 8):
        assert check_layers(frozen, x, recipe.level(bits)) == 2
    known = small(recipe)
    level = lcs.Level(recipe.level(4).alpha, bits=4, inputs=False)
    frozen = known.freeze(strict=True)
    assert check_layers(frozen, x, level) == 2
    assert not torch.equal(frozen(x, level=level), frozen(x, bits=4))


def test_one_weight_serves_all_widths_of_a_nested_point():
    recipe, x = lcs.Quantized(line=False, nested=True), torch.randn(2, 3, 8, 8)
    frozen = small(recipe).freeze()
    views = []
    for bits in range(3, 9):
        frozen(x, bits=bits)
        level = recipe.level(bits)
        packed = frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {}))
        views.append(packed.tensors[0][0])
        assert packed.nbytes < 64  # of the numbers of the inputs' bits alone
    assert all(view.whole is views[0].whole for view in views) and [view.bits for view in views] == [*range(3, 9)]
    builds = frozen.counters.builds
    for bits in range(3, 9):
        frozen(x, bits=bits)
    assert frozen.counters.builds == builds


@pytest.mark.parametrize("recipe", RECIPES[:5], ids=str)
def test_a_width_reads_its_share_of_the_bytes(recipe):
    x, frozen = torch.randn(2, 3, 8, 8), small(recipe).freeze()
    planes = {}
    for bits in (3, 6, 8):
        view = frozen._packed(recipe.level(bits), frozen._chosen(recipe.level(bits), (x.shape,), (x,), {})).tensors[0][
            0
        ]
        planes[bits] = view.nbytes - view.whole.scales.nbytes - view.whole.zero_points.nbytes
        words, blocks, steps = 7, 1, 6  # of 32 weights, of 32 output channels, of 8 columns: a kernel's row has 9
        assert planes[bits] == 4 * words * bits and view.prepacked_nbytes == blocks * steps * 32 * bits
        assert frozen.report(x, bits=bits).rows[0].bytes == view.nbytes + view.prepacked_nbytes + 8 * 4
    assert planes[3] * 8 == planes[8] * 3


def test_a_pickled_one_computes_the_same():
    x, frozen = torch.randn(2, 3, 8, 8), small().freeze()
    again = pickle.load(io.BytesIO(pickle.dumps(frozen)))
    for bits in (3, 8):
        assert torch.equal(again(x, bits=bits), frozen(x, bits=bits))


def test_full_precision_runs_dense():
    subspace, x = small(), torch.randn(2, 3, 8, 8)
    level, frozen = lcs.Level(0.5), subspace.freeze(strict=True)
    assert torch.equal(frozen(x, level=level), outputs(subspace, x, level))
    assert {row.why for row in frozen.report(x, level=level).rows} == {"full precision"}


def test_sums_of_too_many_products_run_dense_and_are_named():
    x = torch.randn(2, 16_411)  # a prime
    subspace = small(lcs.Quantized(line=False), nn.Linear(16_411, 3), nn.Linear(3, 3), x=x)
    frozen = subspace.freeze()
    assert frozen(x, bits=4).isfinite().all()
    assert frozen.counters.fallbacks == {"0: more than 16,384 products in a sum": 1}


@pytest.mark.parametrize("recipe", [RECIPES[0], RECIPES[4]], ids=str)
@pytest.mark.parametrize(("features", "parts"), [(16_386, 2), (16_385, 5), (35_000, 4)])
def test_sums_of_too_many_products_are_split_evenly(recipe, features, parts):
    """The very codes; each part's sum of integers is rounded twice, and the sum of the parts, as often as torch's."""
    x = torch.randn(3, features)
    subspace = small(recipe, nn.Linear(features, 7), x=x)
    frozen = subspace.freeze(strict=True)
    layer = subspace.model[0]
    for bits in (3, 8):
        level = recipe.level(bits)
        with subspace.at(level), torch.no_grad():
            w, bias, *_ = layer.tensors()
            rounded = layer.rounded(x, bits)
        view = frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {})).tensors[0][0]
        assert view.whole.shape == (parts * 7, features // parts, 1, 1)
        assert torch.equal(torch.cat(view.whole.unpack(bits).flatten(1).split(7), 1), w)
        expected, sizes = (F.linear(*(f(t.double()) for t in (rounded, w, bias))) for f in (lambda t: t, torch.abs))
        assert ((frozen(x, bits=bits).double() - expected).abs() <= (parts + 4) * 2**-24 * sizes).all()


def test_other_dtypes_run_dense_and_are_named():
    subspace = small().to(torch.bfloat16)
    x = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    frozen = subspace.freeze()
    assert torch.equal(frozen(x, bits=4), outputs(subspace, x, subspace.recipe.level(4)))
    assert frozen.counters.fallbacks == {f"{i}: no codes of bfloat16 weights": 1 for i in (0, 2)}
    with pytest.raises(RuntimeError, match="strict: 2 layers cannot run packed: 0: no codes of bfloat16"):
        subspace.freeze(strict=True)(x, bits=4)


def test_gradients_reach_x_through_folded_norms_and_convolutions_that_would_pass_codes():
    """What training's evaluation gives, but for 2^-24 a rounding of the 36 and 16 products, the factors and the sum."""
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
    layers = first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(2)
    torch.manual_seed(5)
    x = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        subspace = trained(nn.Sequential(*layers), lcs.Quantized(line=False), x, norm="keep")
    frozen = subspace.freeze(strict=True)
    assert "codes" in next(node.kwargs for run in runs(frozen) for node in run.graph.nodes if node.op == "call_module")
    x.requires_grad_()
    (found,) = torch.autograd.grad(frozen(x, bits=4).sum(), x)
    with subspace.at(bits=4):
        (expected,) = torch.autograd.grad(subspace(x).sum(), x)
        tensors = [subspace.model[i].tensors()[0] for i in (0, 3)]
    factors = [(norm.running_var + norm.eps).rsqrt()[:, None, None, None] for norm in (layers[1], layers[4])]
    w0, w1 = ((w * factor).abs() for w, factor in zip(tensors, factors, strict=True))
    sizes = F.conv_transpose2d(F.conv_transpose2d(torch.ones(2, 2, 6, 6), w1), w0)
    assert ((found - expected).abs() <= (36 + 16 + 12) * 2**-24 * sizes).all() and found.any()


def runs(frozen):
    return [m.steps for m in frozen._fused.modules() if isinstance(m, packed_steps.PackedSteps)]


def test_inputs_of_another_dtype_are_refused():
    x, frozen = torch.randn(2, 3, 8, 8), small().freeze()
    frozen(x, bits=4)
    with pytest.raises(RuntimeError, match="Input type .* should be the same"):
        frozen(x.bfloat16(), bits=4)


def test_gradients_reach_x_straight_through():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    subspace = small(lcs.Quantized(), nn.Conv2d(3, 8, 3))
    subspace.freeze()(x, bits=4).sum().backward()
    (weight,) = subspace.recipe.weights([subspace.model[0]], subspace.recipe.level(4))
    ones = torch.ones(2, 8, 6, 6)
    assert torch.equal(x.grad, torch.nn.grad.conv2d_input(x.shape, weight, ones))


def test_the_input_is_worth_the_same_in_any_batch_and_layout():
    x, frozen = torch.randn(6, 3, 8, 8), small().freeze()
    whole = frozen(x, bits=5)
    assert torch.equal(frozen(x[:2], bits=5), whole[:2])
    assert torch.equal(frozen(x.to(memory_format=torch.channels_last), bits=5), whole)


def test_measured_next_to_float_layers():
    subspace, x = small(lcs.Quantized(line=False, nested=True)), torch.randn(2, 3, 8, 8)
    found = measure_speed(subspace, x, [subspace.recipe.level(bits) for bits in (3, 8)], seconds=0)
    assert [(row.value, row.packed_layers) for row in found.rows] == [(3, 2), (8, 2)]
    assert found.rows[0].resident_bytes < found.rows[1].resident_bytes
    plain = lcs.unconvert(copy.deepcopy(subspace), subspace.recipe.full())
    assert torch.equal(plain[0].weight, subspace.model[0].weight)


class Block(nn.Module):
    """A residual block whose batch norms are folded, the shortcut with one of its own, and a last layer."""

    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(5, 70, 3, 2, padding=1), nn.BatchNorm2d(70)
        self.b, self.norm_b = nn.Conv2d(70, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9)
        self.short, self.norm_short = nn.Conv2d(5, 9, 1, 2), nn.BatchNorm2d(9)
        self.c, self.d = nn.Conv2d(9, 6, 1), nn.Conv2d(6, 4, 2, padding="same")

    def forward(self, x):
        y = self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))
        return self.d(self.c(F.relu(y + self.norm_short(self.short(x)))) + y.mean((1, 2, 3), keepdim=True))


def blocks(recipe):
    torch.manual_seed(3)
    model = Block()
    for norm in (model.norm_a, model.norm_b, model.norm_short):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the statistics that all widths share
        subspace = lcs.convert(model, recipe, norm="keep", init="independent" if recipe.line else "copy")
    x = torch.randn(3, 5, 11, 10)
    subspace.train()
    with subspace.at(bits=8), torch.no_grad():
        subspace(x), subspace(x * 2)
    return subspace.eval(), x


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("recipe", RECIPES[:5], ids=str)
def test_activations_stay_integers_between_convolutions(recipe, layout, monkeypatch):
    """The fused forward is this composition of the op, bit for bit; and each layer alone is what training evaluates."""
    subspace, x = blocks(recipe)
    frozen, x = subspace.freeze(strict=True), x.to(memory_format=layout)
    seen = []
    product = frozen.model.b.packed
    monkeypatch.setattr(packed_steps.PackedSteps, "_takes", lambda *_: False)  # one step after the other
    for bits in (8, 4, 3):
        level = recipe.level(bits)
        assert check_layers(frozen, x, level) == 5
        packed = frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {}))

        def conv(name, y, after=None, packed=packed, frozen=frozen, level=level, **options):
            layer = getattr(frozen.model, name)
            view, bias, _ = packed.tensors[layer.index]
            whole, bias = view.folded if layer.folded is not None else (view.whole, bias)
            if after:
                reader = getattr(frozen.model, after)
                options |= {"y_range": (reader.input_low, reader.input_high), "y_bits": level.bits}
            ends, geometry = (layer.input_low, layer.input_high), (layer.stride, layer.padding)
            return packed_conv2d(y, whole, level.bits, bias, *geometry, x_range=ends, x_bits=level.bits, **options)

        codes = conv("a", x, "b", relu=True)
        assert codes.dtype == torch.int8
        y = conv("b", codes)
        short = conv("short", x)
        z = conv("c", F.relu(y + short)) + y.mean((1, 2, 3), keepdim=True)
        with monkeypatch.context() as patched:
            patched.setattr(frozen.model.b, "packed", lambda y, *a, **k: seen.append(y.dtype) or product(y, *a, **k))
            found = frozen(x, bits=bits)
        assert frozen.counters.unfused == "" and frozen._forwards
        token = RUNNING.set(packed)
        assert torch.equal(found, frozen.model.d(z))  # which pads its input itself
        RUNNING.reset(token)
    assert seen == [torch.int8] * 3


def test_a_change_of_width_runs_no_operator_and_allocates_nothing():
    """All widths of a nested point are held once each has been asked for: a change is a look-up."""
    x, frozen = torch.randn(2, 3, 8, 8), small(lcs.Quantized(line=False, nested=True)).freeze()
    for bits in range(3, 9):
        frozen(x, bits=bits)
    before = frozen.counters
    prepacks = [view.whole.prepack(9, 1, 3)[0].data_ptr() for view, *_ in _tensors(frozen, x, 3)[:1]]

    class None_(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise AssertionError(f"a change of width runs {func}")

    with None_(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for bits in [3, 8, 4, 7, 5, 6] * 20:
            frozen.prepare(x, bits=bits)
    assert not [event for event in seen.events() if event.cpu_memory_usage or event.name.startswith("aten::")]
    after = frozen.counters
    assert (after.builds, after.nbytes, after.levels) == (before.builds, before.nbytes, before.levels)
    assert prepacks == [view.whole.prepack(9, 1, 3)[0].data_ptr() for view, *_ in _tensors(frozen, x, 8)[:1]]


def _tensors(frozen, x, bits):
    level = frozen.recipe.level(bits)
    return frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {})).tensors


def test_the_views_weight_is_a_2d_convolutions():
    frozen, x = small(lcs.Quantized(), nn.Linear(7, 5), x=torch.randn(4, 7)).freeze(), torch.randn(4, 7)
    y = frozen(x, bits=3)
    level = frozen.recipe.level(3)
    view, bias, _ = frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {})).tensors[0]
    assert isinstance(view.whole, NestedWeight) and view.whole.shape == (5, 7, 1, 1) and view.whole.depth == 3
    ends = frozen.model[0].input_low, frozen.model[0].input_high
    expected = packed_conv2d(x.view(4, 7, 1, 1), view.whole, 3, bias, x_range=ends, x_bits=3)
    assert torch.equal(y, expected.view(4, 5))


@pytest.mark.parametrize("nested", [False, True])
def test_a_level_that_draws_bits_for_each_layer(nested):
    recipe = lcs.Quantized(line=False, nested=nested, per_layer=True)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)
    x = torch.randn(4, 3, 8, 8)
    subspace = small(recipe, *layers, x=x)
    frozen = subspace.freeze(strict=True)
    for level in (lcs.Level(0.0, bits=8, mixed=seed) for seed in range(3)):
        packed = frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {}))
        bits = [view.bits for view, *_ in packed.tensors]
        assert bits == [recipe.bits_of(layer, level) for layer in frozen._layers]
        check_layers(frozen, x, level)


@pytest.mark.parametrize("recipe", [RECIPES[0], RECIPES[4]], ids=str)
@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
def test_a_weight_that_cannot_be_rounded_is_named_at_freeze(recipe, wrong):
    subspace = small(recipe)
    with torch.no_grad():
        [w for w in subspace.model[2].ends("weight") if w is not None][-1][0, 1] = wrong
    with pytest.raises(ValueError, match="freeze: the weight of 2 holds 1 values that are not finite"):
        subspace.freeze()


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("recipe", [RECIPES[0], RECIPES[3]], ids=str)
@pytest.mark.parametrize("images", [1, 5])
def test_a_float32_first_layer_is_one_op_and_all_behind_it_another(recipe, images):
    """The pooled result is a residual of the network of integers, and its x."""
    torch.manual_seed(0)
    model, x = models.build("resnet18", 10, norm="batch", seed=0), torch.randn(images, 3, 64, 64)
    subspace = trained(model, recipe, x, dense=[model.stem_name, model.classifier_name], norm="keep")
    frozen, level = subspace.freeze(strict=True), recipe.level(8)
    report = frozen.report(x, level=level)
    assert report.rows[0].kernel == "width_conv2d_norm"
    packed = frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {}))
    with torch.no_grad(), Recorder() as recorder:
        y = frozen._run_fused(packed, ((x,), {}))
    assert [call.name for call in recorder.calls] == ["width_conv2d_norm", "packed_network"]
    assert not frozen.counters.unfused and y.isfinite().all()
    assert check_layers(frozen, x, level) == len(report.rows) - sum(row.kernel == "torch" for row in report.rows)
