import math
from types import SimpleNamespace

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from lcs import Unstructured, convert
from lcs.models import NAMES, build

# model: classes, parameters of a point, compressible weights, all convolution weights, convolutions, norms
COUNTS = {
    "cpreresnet20": (10, 219_472, 213_760, 216_752, 23, 19),
    "resnet18": (1000, 11_688_512, 11_157_504, 11_678_912, 21, 20),
    "vgg19": (1000, 20_541_888, 20_017_152, 20_530_880, 17, 16),
}


def of_type(model: nn.Module, kind: type) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def lines(model: nn.Module) -> dict[str, SimpleNamespace]:
    """What a conversion makes of the model, as far as the second end goes, filled with NaN."""
    layers = {}
    for name, module in (of_type(model, nn.Conv2d) | of_type(model, nn.GroupNorm)).items():
        bias = None if module.bias is None else torch.full_like(module.bias, torch.nan)
        layers[name] = SimpleNamespace(weight_1=torch.full_like(module.weight, torch.nan), bias_1=bias)
    return layers


def assert_normal(weight: torch.Tensor, std: float, name: str) -> None:
    """Mean within 6 and deviation within 6 standard errors of N(0, std)."""
    n = weight.numel()
    assert abs(weight.mean().item()) < 6 * std / math.sqrt(n), name
    assert abs(weight.std().item() - std) < 6 * std / math.sqrt(2 * n), name


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_papers(name):
    classes, parameters, compressible, conv_weights, num_convs, num_norms = COUNTS[name]
    model = build(name, classes)
    convs = of_type(model, nn.Conv2d)
    dense = convs[model.stem_name].weight.numel() + convs[model.classifier_name].weight.numel()
    total = sum(conv.weight.numel() for conv in convs.values())
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (total - dense, total) == (compressible, conv_weights)
    assert (len(convs), len(of_type(model, nn.GroupNorm))) == (num_convs, num_norms)
    assert list(convs)[0] == model.stem_name and list(convs)[-1] == model.classifier_name


@pytest.mark.parametrize(("name", "parameters"), [("cpreresnet20", 438_944), ("resnet18", 23_377_024)])
def test_a_line_has_twice_the_parameters(name, parameters):
    model = build(name, COUNTS[name][0])
    convert(model, Unstructured(), dense=[model.stem_name, model.classifier_name])
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "channels"), [((32, 32), 3), ((48, 40), 1)])
def test_forward_takes_any_size_and_channels(name, size, channels):
    model = build(name, 7, in_channels=channels, seed=0)
    logits = model(torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_cpreresnet20_shapes():
    shapes = [tuple(conv.weight.shape) for conv in of_type(build("cpreresnet20", 10), nn.Conv2d).values()]
    expected = [(16, 3, 3, 3)]
    for in_channels, width in ((16, 16), (64, 32), (128, 64)):
        tail = [(width, width, 3, 3), (4 * width, width, 1, 1)]
        expected += [(width, in_channels, 1, 1), *tail, (4 * width, in_channels, 1, 1)]
        expected += [(width, 4 * width, 1, 1), *tail]
    assert shapes == [*expected, (10, 256, 1, 1)]


def test_cpreresnet20_with_norms_after_its_convolutions():
    model = build("cpreresnet20", 10, seed=0, norm_after=True)
    assert sum(p.numel() for p in model.parameters()) == 220_848 and len(of_type(model, nn.GroupNorm)) == 22
    convs, others = (of_type(m, nn.Conv2d) for m in (model, build("cpreresnet20", 10, seed=0)))
    assert [tuple(c.weight.shape) for c in convs.values()] == [tuple(c.weight.shape) for c in others.values()]
    x = torch.randn(2, 64, 8, 8)
    with torch.no_grad():
        for block in (model.layer1[1], model.layer2[0]):
            assert torch.equal(block(x), block(x.relu())) and not torch.equal(x, x.relu())
            for norm in (block.norm1, block.norm2, block.norm3):
                nn.init.zeros_(norm.weight)
            shortcut = x.relu() if block.downsample is None else block.downsample(x.relu())
            assert torch.equal(block(x), shortcut)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="norm_after is of cpreresnet20 alone; vgg19"):
        build("vgg19", 10, norm_after=True)


def test_cpreresnet20_shortcut_takes_the_raw_input():
    block = build("cpreresnet20", 10, seed=0).layer1[0].eval()
    nn.init.zeros_(block.conv3.weight)
    x = torch.randn(1, 16, 8, 8)
    assert torch.equal(block(x), block.downsample(x))


@pytest.mark.parametrize("name", NAMES)
def test_group_norm_rule(name):
    for norm in of_type(build(name, 10), nn.GroupNorm).values():
        assert norm.num_groups == min(32, norm.num_channels) and norm.eps == 1e-5


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("instance", nn.InstanceNorm2d)])
@pytest.mark.parametrize("name", NAMES)
def test_norm_argument_keeps_the_parameters(name, norm, kind):
    model, group = build(name, 10, norm=norm), build(name, 10)
    assert len(of_type(model, kind)) == len(of_type(group, nn.GroupNorm))
    assert [tuple(p.shape) for p in model.parameters()] == [tuple(p.shape) for p in group.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights(name):
    model = build(name, 10, seed=3)
    for layer, conv in of_type(model, nn.Conv2d).items():
        assert_normal(conv.weight, math.sqrt(2 / conv.weight[0].numel()), layer)
    for norm in of_type(model, nn.GroupNorm).values():
        assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_seed_fixes_the_weights_and_spares_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (build("cpreresnet20", 10, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(build("vgg19", 2).classifier.weight, build("vgg19", 2).classifier.weight)


@pytest.mark.parametrize("name", NAMES)
def test_second_end_is_the_papers(name):
    model = build(name, 10, seed=0)
    layers = lines(model)
    model.reset_second_end(layers, torch.Generator().manual_seed(1))
    scale = 1.0 if name == "resnet18" else 0.5
    for layer, line in layers.items():
        weight = line.weight_1
        if weight.dim() == 1:
            assert (weight == scale).all() and (line.bias_1 == 0).all(), layer
            continue
        fan = weight[0].numel() if name == "resnet18" or layer == "fc" else weight[:, 0].numel()
        std = 0.01 if (name, layer) == ("vgg19", "classifier") else math.sqrt(2 / fan)
        assert_normal(weight, std, layer)


@pytest.mark.parametrize("name", NAMES)
def test_second_end_follows_its_generator(name):
    model = build(name, 10, seed=0)
    first, again, other = lines(model), lines(model), lines(model)
    for layers, seed in ((first, 1), (again, 1), (other, 2)):
        model.reset_second_end(layers, torch.Generator().manual_seed(seed))
    stem = model.stem_name
    assert all(torch.equal(first[layer].weight_1, again[layer].weight_1) for layer in first)
    assert not torch.equal(first[stem].weight_1, other[stem].weight_1)


def test_second_end_writes_parameters_in_place():
    model = build("cpreresnet20", 10, seed=0)
    layer = nn.Module()
    layer.weight_1 = nn.Parameter(torch.zeros(16, 3, 3, 3))
    model.reset_second_end({"conv1": layer}, None)
    assert layer.weight_1.requires_grad and layer.weight_1.is_leaf and layer.weight_1.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet50"}, "unknown model 'resnet50'; choose one of cpreresnet20, resnet18, vgg19"),
        ({"num_classes": 0}, "num_classes of vgg19 must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels of vgg19 must be at least 1, got 0"),
        ({"norm": "layer"}, "unknown norm 'layer' for vgg19; choose one of group, batch, instance"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**{"name": "vgg19", "num_classes": 10} | arguments)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_a_converted_model_has_no_relu_of_its_own(name):
    subspace = convert(build(name, 10, in_channels=3, seed=0), Unstructured())
    subspace.set_level(density=0.5)
    with torch.profiler.profile() as profile:
        subspace(torch.randn(2, 3, 32, 32)).square().sum().backward()
    steps = {event.key: event.count for event in profile.key_averages()}
    assert steps["lcs::line_norm"] == steps["lcs::line_norm_backward"] == COUNTS[name][-1]
    assert not {"aten::relu", "aten::clamp_min"} & set(steps)
    sums = 8 if name == "resnet18" else 0  # whose gradient is that of both terms
    assert steps.get("aten::threshold_backward", 0) == sums


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_records_each_relu(name):
    model = build(name, 10, in_channels=3, seed=0)
    called = [node.target for node in fx.symbolic_trace(model).graph.nodes]
    relus = {n for n, module in model.named_modules() if isinstance(module, nn.ReLU)} | {F.relu}
    assert sum(target in relus for target in called) == {"cpreresnet20": 19, "resnet18": 17, "vgg19": 16}[name]


def test_every_relu_of_vgg_is_called_where_somebody_may_see_it():
    """Of a plain model, of one that is watched, and of another kind."""
    seen, x = [], torch.randn(1, 3, 16, 16)
    plain = build("vgg19", 10, in_channels=3, seed=0)
    for module in of_type(plain, nn.ReLU).values():
        module.register_forward_hook(lambda *_: seen.append(1))
    plain(x)
    assert len(seen) == 16
    converted = convert(build("vgg19", 10, in_channels=3, seed=0), Unstructured())
    converted.set_level(density=0.5)
    converted.model.features[2].register_forward_hook(lambda *_: seen.append(1))
    converted.model.features[5] = type("Other", (nn.ReLU,), {"forward": lambda self, y: seen.append(1) or y.relu()})()
    converted(x)
    assert len(seen) == 18
