"""Quantised convolutions and what follows them, fused, and several of them in one call."""

import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lcs
from lcs import models, packed_steps
from lcs.measure import check_layers
from lcs_kernels import packed_conv2d

from .test_frozen_quantized import runs, trained


class Inverted(nn.Module):
    """MobileNetV2's residual block: to more channels, depthwise, and back, with ReLU6s in between."""

    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(8, 40, 1, bias=False), nn.BatchNorm2d(40)
        self.b, self.norm_b = nn.Conv2d(40, 40, 3, padding=1, groups=40, bias=False), nn.BatchNorm2d(40)
        self.c, self.norm_c = nn.Conv2d(40, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU6()

    def forward(self, x):
        return x + self.norm_c(self.c(F.relu6(self.norm_b(self.b(self.relu(self.norm_a(self.a(x))))))))


@pytest.mark.parametrize(("scale", "high"), [(1, None), (20, None), (20, 7.0)], ids=["below 6", "to 6", "beyond"])
def test_relu6_rounds_to_the_codes_of_what_it_clips(scale, high):
    """The fused forward is this composition, bit for bit, whose convolutions round what has been clipped; it leaves the
    clipping out where the range ends at 6 or before."""
    torch.manual_seed(4)
    model, x = Inverted(), torch.randn(2, 8, 9, 7)
    model.norm_a.weight.data *= scale
    subspace = trained(model, lcs.Quantized(line=False), x, norm="keep")
    end = subspace.model.b.input_high
    assert end == 6 if scale > 1 else end < 6
    if high:
        end.fill_(high)
    frozen, x = subspace.freeze(strict=True), 3 * x
    for bits in (8, 4):
        level = subspace.recipe.level(bits)
        packed = frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {}))
        y = x
        for name in ("a", "b", "c"):
            layer = getattr(frozen.model, name)
            whole, bias = packed.tensors[layer.index][0].folded
            ends, options = (layer.input_low, layer.input_high), {"padding": layer.padding, "groups": layer.groups}
            y = packed_conv2d(y, whole, bits, bias, **options, x_range=ends, x_bits=bits, relu=name != "c")
            y = y.clamp(max=6) if name != "c" else y
        assert torch.equal(frozen(x, bits=bits), x + y)
    kept = [node.kwargs.get("codes", False) for node in _nodes(frozen) if "cap" in node.kwargs]
    assert kept == [not high, True] and not any(isinstance(m, nn.ReLU6) for m in frozen._fused.modules())


def _nodes(frozen):
    """Those of layers, in all steps."""
    graphs = [frozen._fused.graph, *(run.graph for run in runs(frozen))]
    return [
        node for graph in graphs for node in graph.nodes if node.op == "call_module" and "packed" not in node.target
    ]


def test_what_a_quantised_residual_network_fuses():
    model = models.build("resnet18", 10, seed=0, norm="batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        subspace = lcs.convert(model, lcs.Quantized(line=False), norm="keep", dense=model.classifier_name)
    fused = subspace.eval().freeze()._fused
    nodes = [node for node in fused.packed_steps_0.steps.graph.nodes if node.op == "call_module"]
    assert nodes.pop().target == "fc" and "packed_steps_1" not in dict(fused.named_modules())
    found = Counter(frozenset(node.kwargs) for node in nodes)
    blocks = {frozenset({"norm", "relu", "codes"}): 8, frozenset({"norm", "relu", "residual"}): 8}
    assert found == blocks | {frozenset({"norm", "relu"}): 1, frozenset({"norm"}): 3}
    assert [node.op for node in fused.graph.nodes] == ["placeholder", "call_module", "output"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("images", [1, 5])
def test_a_run_of_packed_steps_gives_the_bits_of_each_step(monkeypatch, images, layout):
    torch.manual_seed(2)
    monkeypatch.setattr(F, "adaptive_avg_pool2d", lambda x, _: x.mean((2, 3), keepdim=True))  # which no run takes
    model, calls = models.build("resnet18", 10, seed=0, norm="batch"), []
    x = torch.randn(images, 3, 64, 64).to(memory_format=layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        recipe = lcs.Quantized(line=False, nested=True)
        subspace = trained(model, recipe, x, norm="keep", dense=model.classifier_name)
    frozen = subspace.freeze(strict=True)
    run = packed_steps.packed_network
    monkeypatch.setattr(packed_steps, "packed_network", lambda *given: calls.append(given) or run(*given))
    for bits in (8, 4, 3):
        found = frozen(x, bits=bits)
        assert len(calls) == 1 and frozen.counters.unfused == ""
        with monkeypatch.context() as one_by_one:
            one_by_one.setattr(packed_steps.PackedSteps, "_takes", lambda *_: False)
            assert torch.equal(frozen(x, bits=bits), found) and len(calls) == 1
        calls.clear()


def test_a_run_of_packed_steps_ends_in_no_codes():
    """As it would inside the blocks of cPreResNet20, whose sums are read by a norm and a later sum."""
    torch.manual_seed(4)
    x = torch.randn(3, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        recipe = lcs.Quantized(line=False, nested=True)
        subspace = trained(models.build("cpreresnet20", 10, seed=0, norm="batch"), recipe, x, norm="keep")
    frozen = subspace.freeze(strict=True)
    assert not any("codes" in list(run.graph.nodes)[-2].kwargs for run in runs(frozen))
    assert any("codes" in node.kwargs for node in frozen._fused.graph.nodes)
    for bits in (8, 3):
        assert frozen(x, bits=bits).isfinite().all() and frozen.counters.unfused == ""
    check_layers(frozen, x, frozen.recipe.level(3))


def test_a_norm_behind_a_1d_convolution_leaves_the_others_fused():
    torch.manual_seed(6)
    layers = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Unflatten(2, (8, 8))
    layers += nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    x = torch.randn(2, 3, 66)
    subspace = trained(nn.Sequential(*layers), lcs.Quantized(line=False), x, norm="keep")
    frozen = subspace.freeze()
    with torch.no_grad(), subspace.at(bits=4):
        torch.testing.assert_close(frozen(x, bits=4), subspace(x))
    assert frozen.counters.unfused == "" and len(runs(frozen)) == 1


def test_levels_remember_a_bounded_number_of_sizes(monkeypatch):
    """And all of them one network."""
    monkeypatch.setattr(packed_steps, "_NETWORKS", 4)
    torch.manual_seed(7)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    frozen = trained(nn.Sequential(*layers), lcs.Quantized(line=False), torch.randn(2, 3, 8, 8), norm="keep").freeze()
    assert len(runs(frozen)) == 1
    for width in range(4, 14):
        x = torch.randn(1, 3, 8, width)
        torch.testing.assert_close(frozen(x, bits=4), frozen._call(frozen.recipe.level(4), (x,), {}, fused=False))
        (level,) = frozen._cache._values.values()
        assert 1 < len(level.networks) <= 5 and len(set(map(id, level.networks.values()))) == 1


class Flattened(nn.Module):
    """By a view, which fits one layout alone, and which is changed in place."""

    def __init__(self, changed):
        super().__init__()
        self.changed, self.fc = changed, nn.Linear(128, 5)
        layers = [(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU()) for channels in (3, 8)]
        self.features = nn.Sequential(*layers[0], *layers[1])

    def forward(self, x):
        y = self.features(x)
        flat = y.view(y.shape[0], -1)
        return self.fc(flat.mul_(2) if self.changed else flat) + y.mean()


@pytest.mark.parametrize("changed", [False, True])
def test_a_view_fits_what_a_run_of_packed_steps_gives(changed):
    """With channels last, whatever the model's input is; where it has to share memory, nothing runs fused."""
    torch.manual_seed(5)
    x = torch.randn(2, 3, 8, 8)
    subspace = trained(Flattened(changed), lcs.Quantized(line=False), x, norm="keep")
    frozen = subspace.freeze(strict=True)
    with torch.no_grad(), subspace.at(bits=4):
        torch.testing.assert_close(frozen(x, bits=4), subspace(x))
    assert bool(frozen._forwards) != changed and ("view" in frozen.counters.unfused) == changed


def _in_one_call(monkeypatch, model, x, line):
    """A frozen network of `model`, what it makes of x at 4 bits, and the networks of all calls of packed steps: one, as
    there are none from now on."""
    calls, run = [], packed_steps.packed_network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        subspace = trained(model, lcs.Quantized(line=line), x, norm="keep", dense=model.classifier_name)
    frozen = subspace.freeze(strict=True)
    monkeypatch.setattr(packed_steps, "packed_network", lambda *given: calls.append(given[1]) or run(*given))
    found = frozen(x, bits=4)
    assert len(calls) == 1
    monkeypatch.setattr(packed_steps.PackedSteps, "_takes", lambda *_: False)
    return frozen, found, calls


def _sizes_of_sums(frozen, x, line, values):
    """Of the classifier's products with `values`, in magnitude."""
    packed = frozen._packed(level := frozen.recipe.level(4), frozen._chosen(level, (x.shape,), (x,), {}))
    w = packed.tensors[frozen.model.fc.index][0] if line else frozen.model.fc.weight
    return F.conv2d(values.abs(), w.abs()).flatten(1)


@pytest.mark.parametrize("line", [False, True])
def test_a_run_of_packed_steps_ends_in_the_classifier(monkeypatch, line):
    """Whose sums come in another order, of 512 products and of 4 positions."""
    torch.manual_seed(3)
    x = torch.randn(3, 3, 64, 64)
    frozen, found, calls = _in_one_call(monkeypatch, models.build("resnet18", 10, seed=0, norm="batch"), x, line)
    seen, product = [], frozen.model.fc._conv_forward
    monkeypatch.setattr(frozen.model.fc, "_conv_forward", lambda x, *given: seen.append(x) or product(x, *given))
    expected = frozen(x, bits=4)
    bound = (512 + 4 + 2) * torch.finfo(torch.float32).eps * _sizes_of_sums(frozen, x, line, seen[0])
    assert len(calls) == 1 and found.shape == expected.shape and ((found - expected).abs() <= bound).all()


@pytest.mark.parametrize("line", [False, True])
def test_a_run_of_packed_steps_takes_the_norm_before_the_mean(monkeypatch, line):
    """As pre-activation networks end: by 256 products, after 256 positions. Elements round a few times more."""
    torch.manual_seed(5)
    x = torch.randn(3, 3, 64, 64)
    model = models.build("cpreresnet20", 10, seed=0, norm="batch", norm_after=True)
    frozen, found, calls = _in_one_call(monkeypatch, model, x, line)
    mean = calls[0].steps[-2]
    assert mean.scales == 256 and mean.relu
    seen, norm = [], F.batch_norm
    monkeypatch.setattr(F, "batch_norm", lambda *given: seen.append(given) or norm(*given))
    expected = frozen(x, bits=4)
    values, mean, var, weight, bias, *_, eps = seen[-1]
    scale = (var + eps).rsqrt() * weight
    sizes = (values.abs() + mean.abs()[:, None, None]) * scale.abs()[:, None, None] + bias.abs()[:, None, None]
    most = _sizes_of_sums(frozen, x, line, sizes.mean((2, 3), keepdim=True))
    bound = (256 + 256 + 10) * torch.finfo(torch.float32).eps * most
    assert len(calls) == 1 and found.shape == expected.shape and ((found - expected).abs() <= bound).all()


class _Ends(nn.Module):
    """Two convolutions, and an end that a run of packed steps takes in as far as it can."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)
        self.norm, self.again, self.relu, self.kind = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU(), kind

    def forward(self, x):
        y = self.second(self.first(x).relu()).relu()
        mean = F.adaptive_avg_pool2d
        if self.kind == "sum before the norm":
            return self.fc(mean(self.norm(y * 2).relu(), 1)).flatten(1)
        if self.kind == "step between":
            normed = self.norm(y)
            other = torch.sigmoid(x).mean()
            return self.fc(mean(normed.relu(), 1)).flatten(1) + other
        if self.kind == "step behind the ReLU":
            normed = self.relu(self.norm(y))
            other = torch.sigmoid(x).mean()
            return self.fc(mean(normed, 1)).flatten(1) + other
        if self.kind == "by keyword":
            return self.fc(mean(self.relu(input=self.norm(y)), 1)).flatten(1)
        if self.kind == "two norms":
            return self.fc(mean(self.again(self.norm(y)), 1)).flatten(1)
        if self.kind == "read twice":
            normed = self.norm(y)
            return self.fc(mean(normed.relu(), 1)).flatten(1) + normed.mean()
        return self.fc(mean(self.norm(y), 1)).flatten(1)  # without ReLU


@pytest.mark.parametrize(
    "kind",
    [
        *("sum before the norm", "step between", "step behind the ReLU", "by keyword", "two norms", "read twice"),
        "without ReLU",
    ],
)
def test_a_run_of_packed_steps_drops_nothing(kind):
    torch.manual_seed(6)
    x = torch.randn(2, 3, 9, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        subspace = trained(_Ends(kind), lcs.Quantized(line=False), x, norm="keep", dense="fc")
    frozen = subspace.freeze(strict=True)
    for _ in range(3):  # as it is, as it is recorded, and as recorded
        found = frozen(x, bits=5)
        with torch.no_grad(), subspace.at(bits=5):
            torch.testing.assert_close(found, subspace(x))
