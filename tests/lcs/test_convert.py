import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import lcs
from lcs.layers import SubspaceConv2d, SubspaceGroupNorm, SubspaceLayer, SubspaceLinear

LINE, POINT = lcs.Unstructured(), lcs.Unstructured(line=False)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return x + self.bn1(self.conv1(x)).relu()


class Net(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3)
        self.layer1 = nn.Sequential(Block(channels), Block(channels))
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        return self.fc(self.layer1(self.conv1(x)).mean((2, 3)))


def actions(model, recipe=LINE, **options):
    return {row.name: row.action for row in lcs.plan(model, recipe, **options).rows}


def test_the_plan_says_what_happens_and_changes_nothing():
    model = Net()
    before = {name: type(module) for name, module in model.named_modules()}
    plan = lcs.plan(model, LINE, dense=["conv1", "fc"])
    assert [(row.name, row.kind, row.weights, row.action) for row in plan.rows] == [
        ("conv1", "Conv2d", 216, "dense line"),
        ("layer1.0.conv1", "Conv2d", 576, "compress"),
        ("layer1.0.bn1", "BatchNorm2d", 8, "norm"),
        ("layer1.1.conv1", "Conv2d", 576, "compress"),
        ("layer1.1.bn1", "BatchNorm2d", 8, "norm"),
        ("fc", "Linear", 40, "dense line"),
    ]
    assert plan.rows[1].kernel == "interpolate_prune_foreach" and "GroupNorm of 8 groups" in plan.rows[2].reason
    assert {name: type(module) for name, module in model.named_modules()} == before
    lines = str(plan).splitlines()
    assert len(lines) == 8 and lines[2].split()[:4] == ["layer1.0.conv1", "Conv2d", "576", "compress"]
    assert lines[-1].startswith("dense line: 2, compress: 2, norm: 2; interpolate_prune_foreach: ")


def test_the_conversion_does_what_the_plan_says():
    model = Net()
    subspace = lcs.convert(model, LINE, dense=["conv1", "fc"])
    assert isinstance(subspace, lcs.Subspace) and subspace.model is model and subspace.recipe is LINE
    converted = {name: module for name, module in model.named_modules() if isinstance(module, SubspaceLayer)}
    assert list(converted) == list(actions(Net())) == list(subspace.lines())
    assert [name for name, layer in converted.items() if layer.compressed] == ["layer1.0.conv1", "layer1.1.conv1"]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("conv1", {"conv1"}),
        (["layer1.0"], {"layer1.0.conv1", "layer1.0.bn1"}),
        (["*.conv1", "fc"], {"layer1.0.conv1", "layer1.1.conv1", "fc"}),
        (["layer1.?.bn1"], {"layer1.0.bn1", "layer1.1.bn1"}),
        (nn.Linear, {"fc"}),
        ([Block], {"layer1.0.conv1", "layer1.0.bn1", "layer1.1.conv1", "layer1.1.bn1"}),
    ],
)
@pytest.mark.parametrize("recipe", [LINE, POINT], ids=["line", "point"])
def test_patterns(pattern, left, recipe):
    every = actions(Net(), recipe)
    assert "leave" not in every.values()
    excluded = actions(Net(), recipe, exclude=pattern)
    assert {name for name in every if excluded[name] == "leave"} == left
    weights = {name for name in left if "bn" not in name}
    if weights:
        included = actions(Net(), recipe, include=pattern)
        assert {name for name in every if included[name] != "leave"} == left
    if len(weights) < 4:
        dense = actions(Net(), recipe, dense=pattern)
        assert {name for name in every if dense[name] == ("dense line" if recipe.line else "leave")} == weights


def test_exclude_is_stronger_than_dense_and_dense_is_included():
    plan = actions(Net(), include=["layer1.0"], dense=["conv1", "fc"], exclude=["layer1.0.bn1", "fc"])
    assert (plan["conv1"], plan["layer1.0.conv1"]) == ("dense line", "compress")
    assert plan["layer1.0.bn1"] == plan["fc"] == plan["layer1.1.conv1"] == "leave"


@pytest.mark.parametrize("argument", ["include", "exclude", "dense"])
@pytest.mark.parametrize(("pattern", "shown"), [("conv2", "'conv2'"), ("block.*", "'block.*'"), (nn.GRU, "GRU")])
def test_a_pattern_that_matches_nothing_is_an_error_that_names_it(argument, pattern, shown):
    with pytest.raises(ValueError, match=argument) as error:
        lcs.convert(Net(), LINE, **{argument: ["fc", pattern]})
    assert shown in str(error.value) and "Net" in str(error.value)


def test_the_error_names_what_is_near():
    with pytest.raises(ValueError, match="near it: layer1.0.conv1"):
        lcs.plan(Net(), LINE, dense=["layer1.0.conv"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lcs.convert(Net(), LINE, norm="batch"), "norm must be one of group, instance, keep, got 'batch'"),
        (lambda: lcs.convert(Net(), LINE, init="zero"), "init must be one of copy, independent, got 'zero'"),
        (lambda: lcs.convert(Net(), LINE, perturb=-0.1), "perturb must be at least 0"),
        (lambda: lcs.convert(Net(), LINE, perturb=0.1, init="independent"), "perturb .* 'independent'"),
        (lambda: lcs.convert(nn.Linear(3, 3), LINE), r"itself a Linear .* nn.Sequential\(model\)"),
        (lambda: lcs.convert(nn.DataParallel(Net()), LINE), "wrapped in DataParallel"),
        (lambda: lcs.convert(nn.Sequential(nn.LSTM(3, 3)), LINE), r"(?s)nothing of Sequential.*LSTM .*not supported"),
        (lambda: lcs.convert(Net(), LINE, dense=["*"]), "nothing of Net would be compressed"),
        (lambda: lcs.convert(lcs.convert(Net(), LINE).model, LINE), "Net is converted already.*its lcs.Subspace"),
        (lambda: lcs.convert(nn.Sequential(lcs.convert(Net(), LINE)), LINE), "Sequential is converted already"),
    ],
)
def test_refused_conversions(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lcs.convert(Net(), "line"), "expected an nn.Module and a recipe"),
        (lambda: lcs.plan(Net(), LINE, dense=[3]), "dense: a pattern is .*, got 3"),
        (lambda: lcs.unconvert(lcs.convert(Net(), LINE).model, density=0.1), "takes the lcs.Subspace .*, got a Net"),
        (lambda: lcs.unconvert(lcs.convert(Net(), LINE).freeze(), density=0.1), "takes the lcs.Subspace .* a Frozen"),
    ],
)
def test_refused_types(call, words):
    with pytest.raises(TypeError, match=words):
        call()


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


def quantised():
    return torch.ao.nn.quantized.Linear(4, 4)


def patched():
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x
    return layer


ODD = {
    "own forward": (lambda: OwnForward(3, 3, 3), "OwnForward has a forward of its own"),
    "patched forward": (patched, "forward of its own"),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "parametrization"),
    "spectral_norm hook": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "parametrization"),
    "prune": (lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 1), "parametrization"),
    "lazy": (lambda: nn.LazyLinear(4), "lazy"),
    "quantised": (quantised, "quantised"),
    "lstm": (lambda: nn.LSTM(4, 4), "type not supported"),
    "transposed": (lambda: nn.ConvTranspose2d(3, 3, 3), "type not supported"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.complex64), "complex64"),
    "script": (lambda: torch.jit.script(nn.Linear(4, 4)), "TorchScript"),
}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Lazy modules", "ignore:torch.quantize"
)
@pytest.mark.parametrize("odd", ODD)
def test_what_cannot_be_converted_is_left_with_the_reason_and_refused_by_name(odd):
    make, reason = ODD[odd]
    model = nn.Sequential(nn.Linear(4, 4), make())
    kind = type(model[1])
    row = next(row for row in lcs.plan(model, LINE).rows if row.name == "1")
    assert row.action == "leave" and reason in row.reason
    for argument in ("include", "dense"):
        with pytest.raises(ValueError, match=f"(?s){argument}: '1' covers no module.*{reason}"):
            lcs.plan(model, LINE, **{argument: ["1"]})
    lcs.convert(model, LINE)
    assert type(model[1]) is kind and isinstance(model[0], SubspaceLinear)


@pytest.mark.parametrize("line", [True, False])
def test_weights_that_a_parent_reads_itself_are_left(line):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(layer, nn.Linear(8, 3)).eval()
    x = torch.randn(2, 5, 8)
    hidden = layer(x)
    plan = lcs.plan(model, lcs.Unstructured(line=line))
    assert "TransformerEncoderLayer reads" in next(row.reason for row in plan.rows if row.name == "0.linear1")
    subspace = lcs.convert(model, lcs.Unstructured(line=line))
    with torch.no_grad(), subspace.at(density=0.1):
        subspace(x)
        torch.testing.assert_close(model[0](x), hidden)


def test_of_a_transformer_encoder_the_last_norm_alone_is_converted():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, nn.LayerNorm(8))
    plan = actions(nn.Sequential(encoder, nn.Linear(8, 3)))
    assert {name for name, action in plan.items() if action != "leave"} == {"0.norm", "1"}
    with pytest.raises(ValueError, match="nothing of TransformerEncoder would be compressed"):
        lcs.convert(encoder, LINE)


def test_a_module_registered_twice_is_converted_once_and_comes_back_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    subspace = lcs.convert(model, LINE, dense=[])
    assert model[0] is model[2][0] and isinstance(model[0], SubspaceLinear) and len(subspace.lines()) == 1
    assert lcs.unconvert(subspace, density=0.5)[0] is model[2][0] and type(model[0]) is nn.Linear


def test_two_modules_with_one_parameter_are_refused_by_name_unless_both_are_excluded():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight
    for exclude in ((), ("0",)):
        with pytest.raises(ValueError, match=r"0\.weight and 2\.weight are one Parameter"):
            lcs.convert(model, LINE, exclude=exclude)
    lcs.convert(model, LINE, exclude=["2"])
    assert model[2].weight is model[0].weight


@pytest.mark.parametrize(("channels", "groups"), [(16, 16), (32, 32), (64, 32), (48, 24), (37, 1), (66, 22)])
def test_a_batch_norm_becomes_the_group_norm_with_most_groups(channels, groups):
    model = nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels, eps=1e-3))
    weight = model[1].weight
    lcs.convert(model, LINE)
    norm = model[1]
    assert isinstance(norm, SubspaceGroupNorm)
    assert (norm.num_groups, norm.eps) == (groups, 1e-3) and norm.weight is weight and not list(norm.buffers())


def test_a_replaced_batch_norm_keeps_its_hooks_and_mode():
    model, seen = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), []
    model[1].register_forward_hook(lambda *args: seen.append(1))
    subspace = lcs.convert(model, LINE)
    with subspace.at(density=1.0):
        subspace(torch.ones(1, 3, 2, 2))
    assert seen == [1] and not model[1].training


@pytest.mark.parametrize("recipe", [LINE, POINT], ids=["line", "point"])
def test_a_batch_norm_1d_gets_one_group_as_its_input_may_have_one_value_per_channel(recipe):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    subspace, x = lcs.convert(model, recipe), torch.randn(3, 4)
    with subspace.at(density=1.0):
        hidden = nn.functional.linear(x, model[0].weight, model[0].bias)
        torch.testing.assert_close(subspace(x), nn.functional.layer_norm(hidden, (8,)))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: (nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)), nn.InstanceNorm1d),
        (lambda: (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.InstanceNorm2d),
        (lambda: (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), nn.InstanceNorm2d),
        (lambda: (nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4)), nn.InstanceNorm2d),
        (lambda: (nn.Conv2d(3, 4, 1), nn.BatchNorm3d(4)), nn.InstanceNorm3d),
    ],
)
def test_instance_norm_on_request(make, kind):
    model = nn.Sequential(*make())
    affine = model[1].affine
    lcs.convert(model, LINE, norm="instance")
    assert isinstance(model[1], kind) and not model[1].track_running_stats and model[1].affine == affine


def test_a_point_keeps_norms_other_than_batch_norm():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    assert actions(model, POINT) == {"0": "compress", "1": "leave", "2": "compress", "3": "norm"}
    lcs.convert(model, POINT)
    assert type(model[1]) is nn.LayerNorm and [n for n, _ in model[3].named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("options", [{"norm": "keep"}, {"exclude": nn.BatchNorm2d}])
@pytest.mark.parametrize("line", [True, False])
def test_kept_batch_statistics_are_warned_of_by_name(options, line):
    words = r"valid for none of them: layer1\.0\.bn1, layer1\.1\.bn1; .*norm='group'"
    with pytest.warns(UserWarning, match=words) as caught:
        lcs.convert(Net(), lcs.Unstructured(line=line), **options)
    assert caught[0].filename == __file__


def test_no_warning_for_one_fixed_density_or_without_batch_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lcs.convert(Net(), lcs.Unstructured(target=0.1), norm="keep")
        lcs.convert(Net(), LINE)


def test_copied_ends_are_equal_and_do_not_share_memory():
    model = Net()
    lcs.convert(model, LINE)
    for layer in (model.conv1, model.layer1[0].bn1, model.fc):
        assert torch.equal(layer.weight, layer.weight_1) and torch.equal(layer.bias, layer.bias_1)
        assert layer.weight.data_ptr() != layer.weight_1.data_ptr()


def test_perturbed_ends_differ_by_noise_in_units_of_the_layer():
    def ends(seed, perturb=0.1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(100, 100), nn.LayerNorm(100))
        lcs.convert(model, LINE, perturb=perturb, generator=torch.Generator().manual_seed(seed))
        return model

    first, again, other = ends(1), ends(1), ends(2)
    noise = (first[0].weight_1 - first[0].weight) / (0.1 * first[0].weight.std(correction=0))
    assert torch.equal(first[0].weight_1, again[0].weight_1) and not torch.equal(first[0].weight_1, other[0].weight_1)
    assert abs(noise.mean()) < 5 / 100 and abs(noise.var() - 1) < 5 * 2**0.5 / 100  # 5 deviations of each, n = 10^4
    for name in ("bias", "weight"):
        assert torch.equal(first[1].get_parameter(name), first[1].get_parameter(f"{name}_1"))


def test_independent_ends():
    model = Net(64)
    nn.init.constant_(model.layer1[0].bn1.weight, 3.0)
    first = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    lcs.convert(model, LINE, init="independent", generator=torch.Generator().manual_seed(0))
    for name, parameter in first.items():
        assert torch.equal(model.get_parameter(name), parameter)
    conv, norm = model.layer1[0].conv1, model.layer1[0].bn1
    n, variance = conv.weight_1.numel(), 2 / (64 * 9)
    assert abs(conv.weight_1.var() / variance - 1) < 5 * (2 / n) ** 0.5  # 5 deviations of a variance of n samples
    assert not conv.bias_1.any() and (norm.weight_1 == 1).all() and not norm.bias_1.any()


def test_independent_ends_are_the_models_own_where_it_has_them():
    class Own(Net):
        def reset_second_end(self, layers, generator):
            nn.init.constant_(layers["fc"].weight_1, generator.initial_seed())

    model = Own()
    lcs.convert(model, LINE, init="independent", generator=torch.Generator().manual_seed(9))
    assert (model.fc.weight_1 == 9).all() and model.conv1.weight_1.std() > 0
    lcs.convert(Own(), LINE)


@pytest.mark.parametrize("recipe", [LINE, POINT], ids=["line", "point"])
def test_unconvert_bakes_one_level_into_plain_modules(plain_norms_round_alike, recipe):
    model, x = Net(), torch.randn(2, 3, 6, 6)
    subspace = lcs.convert(model, recipe, dense=["conv1", "fc"], init="independent")
    with torch.no_grad(), subspace.at(density=0.2):
        y = subspace(x)
    assert lcs.unconvert(subspace, density=0.2) is model
    assert not any(isinstance(module, SubspaceLayer) for module in model.modules())
    assert type(model.conv1) is nn.Conv2d and type(model.layer1[0].bn1) is nn.GroupNorm
    assert not any(name.endswith("_1") for name, _ in model.named_parameters())
    assert not model._forward_pre_hooks and not model._forward_hooks
    assert torch.equal(model(x), y)
    assert int((model.layer1[0].conv1.weight != 0).sum()) == round(0.2 * 576)
    with pytest.raises(RuntimeError, match="unconverted"):
        subspace.at(density=0.5)
    lcs.convert(model, recipe)


def test_unconvert_at_another_alpha():
    model = nn.Sequential(nn.Linear(4, 4))
    subspace = lcs.convert(model, LINE, init="independent")
    second = model[0].weight_1.detach().clone()
    assert torch.equal(lcs.unconvert(subspace, density=1.0, alpha=1.0)[0].weight, second)


def test_a_model_on_the_meta_device_can_be_planned_and_converted():
    with torch.device("meta"):
        model = Net()
    subspace = lcs.convert(model, LINE, init="independent")
    assert isinstance(model.conv1, SubspaceConv2d) and model.conv1.weight_1.is_meta and len(subspace.lines()) == 6


class Kept(nn.Module):
    """Its forward reaches its layers by other ways than its children."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.pair, self.named, self.size = (self.a, [self.b]), {"c": self.c}, (4, 4)

    def forward(self, x):
        return self.named["c"](self.pair[1][0](self.pair[0](x)))


def test_layers_that_are_kept_in_lists_tuples_and_dicts_are_replaced():
    model = Kept()
    subspace = lcs.convert(model, lcs.Unstructured(), init="independent")
    assert (model.pair, model.named, model.size) == ((model.a, [model.b]), {"c": model.c}, (4, 4))
    x = torch.randn(2, 4)
    results = []
    for density in (0.2, 1.0):
        with subspace.at(density=density):
            results.append(subspace(x))
    assert not torch.equal(*results)
    plain = lcs.unconvert(subspace, density=1.0)
    assert plain.pair == (plain.a, [plain.b]) and type(plain.a) is nn.Linear and torch.equal(plain(x), results[1])
