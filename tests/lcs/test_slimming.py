import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lcs
from lcs import evaluate, models
from lcs import measure as speed
from lcs.config import TrainConfig
from lcs.loop import Loop
from lcs.macs import count_macs
from lcs.network import build, load_data
from lcs.plot import plot
from lcs.slimming import ChannelSelection
from lcs.table import print_table
from lcs.train import make_accelerator, train

WIDTHS = (0.02, 0.1, 0.5, 0.9, 1.0)


def of_integers(model, seed=0):
    """`model` in float64 with small integers for weights, such that every value of a forward is a small multiple of a
    power of 1/2 and every sum is exact."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.double().eval().modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            rows = module.weight.data.zero_().flatten(1)
            places = torch.randint(rows.shape[1], (len(rows), 3), generator=generator)
            rows.scatter_(1, places, torch.randint(-1, 2, places.shape, generator=generator).double())
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            module.eps = 0.0
            module.weight.data = torch.randint(-3, 4, module.weight.shape, generator=generator).double()
            module.bias.data = torch.randint(-1, 2, module.bias.shape, generator=generator).double()
            module.running_mean.copy_(torch.randint(-1, 2, module.bias.shape, generator=generator))
    return model


def masked(model, slimmed, widths):
    """`model` with the scale and bias of each channel that is gone at 0, from the scales alone."""
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for row in slimmed.rows:
        norm = norms[row.norm]
        keep = widths[row.norm]
        assert len(keep) == row.left
        gone = torch.ones(row.channels, dtype=torch.bool)
        gone[keep] = False
        norm.weight.data[gone] = norm.bias.data[gone] = 0
    return model


def kept(model, slimmed):
    """The channels left of each norm, found in the rebuilt network by the names that its channels were given."""
    numbered = copy.deepcopy(model)
    for module in numbered.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.arange(module.num_features))
    small = lcs.slim(numbered, slimmed, selection="exact").model
    return {
        name.removesuffix(".1")
        if isinstance(small.get_submodule(name.rpartition(".")[0]), nn.Sequential)
        and isinstance(small.get_submodule(name.rpartition(".")[0])[0], ChannelSelection)
        else name: m.running_mean.long()
        for name, m in small.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    }


@pytest.mark.parametrize("width", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("name", models.NAMES)
def test_the_small_network_is_the_masked_one(name, width):
    model = of_integers(models.build(name, 10, seed=0, norm="batch"))
    slimmed = lcs.slim(model, width)
    x = torch.randint(-2, 3, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        y = slimmed.model(x)
        assert y.abs().max() < 2**30 and torch.equal(y * 2**8, (y * 2**8).round())
        assert torch.equal(y, masked(copy.deepcopy(model), slimmed, kept(model, width))(x))
        assert width < 1 or torch.equal(y, model(x))
    left = sum(p.numel() for p in slimmed.model.parameters())
    assert (left < sum(p.numel() for p in model.parameters())) == (width < 1)
    assert (count_macs(slimmed.model, x) < count_macs(model, x)) == (width < 1)


@pytest.mark.parametrize("name", models.NAMES)
def test_the_largest_scales_of_all_norms_together_are_chosen(name):
    model = of_integers(models.build(name, 10, seed=0, norm="batch"))
    every = torch.cat([m.weight.abs() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    for width in WIDTHS:
        count = round(width * len(every))
        chosen = torch.zeros(len(every), dtype=torch.bool)
        chosen[sorted(range(len(every)), key=lambda i: (every[i].item(), i))[len(every) - count :]] = True
        rows, begin = lcs.slim(model, width).rows, 0
        for row in rows:
            assert row.chosen == chosen[begin : begin + row.channels].sum()
            begin += row.channels
        assert begin == len(every) and sum(row.chosen for row in rows) == count


def test_what_a_residual_sum_keeps_is_told():
    torch.manual_seed(0)
    model = models.build("resnet18", 10, seed=0, norm="batch")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    slimmed = lcs.slim(model, 0.3)
    rows = {row.norm: row for row in slimmed.rows}
    assert rows["layer1.0.norm1"].left == rows["layer1.0.norm1"].chosen and not rows["layer1.0.norm1"].why
    group = ("norm1", "layer1.0.norm2", "layer1.1.norm2")
    scales = [model.get_submodule(name).weight.detach().abs() for name in group]
    least = torch.cat([m.weight.abs() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]).sort().values
    threshold = least[len(least) - round(0.3 * len(least))]
    union = int((torch.stack(scales) >= threshold).any(0).sum())
    assert {rows[name].left for name in group} == {union} and union > rows["norm1"].chosen
    assert rows["layer1.0.norm2"].why == "added to norm1, layer1.1.norm2"
    assert slimmed.model.layer1[1].conv2.out_channels == slimmed.model.conv1.out_channels == union
    assert not any(isinstance(m, ChannelSelection) for m in slimmed.model.modules())
    assert "channels chosen" in str(slimmed) and "added to" in str(slimmed)


def test_a_preactivated_norm_selects_from_the_sum():
    model = of_integers(models.build("cpreresnet20", 10, seed=0, norm="batch"))
    small = lcs.slim(model, 0.4).model
    block = small.layer2[1]
    selection, norm = block.norm1
    assert len(selection.index) == norm.num_features == block.conv1.in_channels < 128 == selection.channels
    assert block.conv3.out_channels == 128 and block.conv3.in_channels == block.norm3.num_features
    assert small.fc.in_channels == small.norm[1].num_features and small.conv1.out_channels == 16
    assert small.layer2[0].downsample.weight.shape == (128, 64, 1, 1)


def two_norms(first, second):
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    ).eval()
    model[1].weight.data, model[4].weight.data = torch.tensor(first), torch.tensor(second)
    return model


def test_no_layer_is_deleted():
    slimmed = lcs.slim(two_norms([0.1, -0.3, 0.2], [1.0, 2.0, 3.0]), 1 / 3)
    assert [(row.chosen, row.left) for row in slimmed.rows] == [(0, 1), (2, 2)]
    assert slimmed.rows[0].why == "the largest, as none was chosen" and slimmed.model[1].weight.item() == torch.tensor(
        -0.3
    )
    assert [tuple(slimmed.model[i].weight.shape[:2]) for i in (0, 3, 5)] == [(1, 1), (2, 1), (2, 2)]
    assert slimmed.model(torch.ones(1, 1, 2, 2)).shape == (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("selection", "width", "left"),
    [
        ("exact", 1.0, 6),
        ("strict", 1.0, 5),
        ("exact", 0.5, 3),
        ("strict", 0.5, 2),
        ("exact", 0.75, 4),
        ("strict", 0.75, 4),
    ],
)
def test_selections(selection, width, left):
    """Strict: above the one at place int(6 * (1 - width)), 0, 3 and 1 of those in order."""
    slimmed = lcs.slim(two_norms([0.6, 0.5, 0.4], [0.3, 0.2, 0.1]), width, selection=selection)
    assert sum(row.chosen for row in slimmed.rows) == left


def test_equal_scales_keep_the_later_ones():
    slimmed = lcs.slim(two_norms([1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]), 0.5)
    assert [row.chosen for row in slimmed.rows] == [0, 3]


class Joined(nn.Module):
    def __init__(self, join, *, grouped=1, norm=nn.BatchNorm2d):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=grouped)
        self.norm_a, self.norm_b, self.norm_c, self.head = norm(8), norm(8), norm(8), nn.Conv2d(8, 4, 1)
        self.join = join

    def forward(self, x):
        return self.head(self.join(self, x)).mean((2, 3))


JOINS = {
    "a chain": (lambda m, x: m.norm_c(m.c(F.relu(m.norm_a(m.a(x))))), {}),
    "a grouped convolution": (lambda m, x: m.norm_c(m.c(F.relu(m.norm_a(m.a(x))))), {"grouped": 2}),
    "an activation that is not 0 at 0": (lambda m, x: m.norm_c(m.c(m.norm_a(m.a(x)).sigmoid())), {}),
    "a constant added": (lambda m, x: m.norm_c(m.c(m.norm_a(m.a(x)) + 1)), {}),
    "a product": (lambda m, x: m.norm_a(m.a(x)) * m.norm_b(m.b(x)), {}),
    "a layer that is called twice": (lambda m, x: m.norm_c(m.c(m.c(m.norm_a(m.a(x))))), {}),
    "a norm that is called twice": (lambda m, x: m.norm_a(m.a(x)) + m.norm_a(m.b(x)), {}),
    "sums of sums": (lambda m, x: m.norm_c(m.c(m.norm_a(m.a(x)))) + (m.norm_b(m.b(x)) + m.norm_a.weight.sum()), {}),
    "sums of norms": (lambda m, x: F.relu(m.norm_a(m.a(x)) + m.norm_b(m.b(x))) + m.norm_c(m.c(m.a(x))), {}),
    "a convolution added": (lambda m, x: m.norm_a(m.a(x)) + m.b(x), {}),
    "concatenation": (lambda m, x: torch.cat([m.norm_a(m.a(x)), m.norm_b(m.b(x))], 1)[:, 4:12], {}),
    "instance norms": (
        lambda m, x: m.norm_c(m.c(F.relu(m.norm_a(m.a(x))))),
        {"norm": lambda c: nn.InstanceNorm2d(c, affine=True)},
    ),
}


@pytest.mark.parametrize("case", JOINS)
def test_any_step_gives_the_masked_network_or_is_left_whole(case):
    join, options = JOINS[case]
    torch.manual_seed(0)
    model, x = Joined(join, **options).double().eval(), torch.randn(2, 3, 5, 5).double()
    norms = {name: m for name, m in model.named_modules() if name.startswith("norm")}
    for norm in norms.values():
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    slimmed = lcs.slim(model, 0.4)
    threshold = torch.cat([m.weight.abs() for m in norms.values()]).sort().values[-round(0.4 * 24)]
    rows = {row.norm: row for row in slimmed.rows}
    reached = dict(slimmed.model.named_parameters())
    for name, norm in norms.items():
        if rows[name].left == rows[name].channels:
            continue
        weight = reached.get(f"{name}.weight", reached.get(f"{name}.1.weight"))
        gone = ~torch.isin(norm.weight, weight)
        assert gone.sum() == 8 - rows[name].left and (norm.weight[gone].abs() < threshold).all()
        norm.weight.data[gone] = norm.bias.data[gone] = 0
    with torch.no_grad():
        small, full = slimmed.model(x), model(x)
    # Sums of at most 3 + 72 + 8 terms in another order, layer by layer.
    assert ((small - full).abs() <= 100 * 83 * torch.finfo(torch.float64).eps * full.abs().max()).all()
    if case in ("a chain", "sums of norms", "instance norms"):
        assert sum(row.left for row in slimmed.rows) < 24
    elif case not in ("sums of sums",):
        assert rows["norm_a"].left == 8 and rows["norm_a"].why


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1)), {}, "has no batch or instance norm"),
        (two_norms([1.0] * 3, [1.0] * 3), {"width": 0.0}, r"width must lie in \(0, 1\], got 0.0"),
        (two_norms([1.0] * 3, [1.0] * 3), {"selection": "loose"}, "selection must be exact or strict"),
    ],
)
def test_refusals(model, options, words):
    with pytest.raises(ValueError, match=words):
        lcs.slim(model, **{"width": 0.5} | options)


def test_a_subspace_is_refused():
    subspace = lcs.convert(two_norms([1.0] * 3, [1.0] * 3), lcs.Structured(target=1.0), norm="keep", dense="5")
    with pytest.raises(ValueError, match="is converted; lcs.unconvert its lcs.Subspace first"):
        lcs.slim(subspace.model, 0.5)


def test_the_l1_norm_of_the_scales_enters_the_gradient(tiny):
    found = {}
    for l1 in (0.0, 0.5):
        config = tiny(compression="structured", method="lec", scale_l1=l1, momentum=0.0, weight_decay=0.0).resolved()
        data = load_data(config)
        loop = Loop(config, data, build(config, data), make_accelerator(config))
        before = {k: p.detach().clone() for k, p in loop.parameters.items()}
        result = loop.train_step(next(loop.batches()))
        found[l1] = {k: (p.grad.clone(), p.detach().clone()) for k, p in loop.parameters.items()}
    for name, (grad, after) in found[0.5].items():
        norm = before[name].dim() == 1 and name.endswith("weight")
        assert torch.equal(grad, found[0.0][name][0] + (0.5 * before[name].sign() if norm else 0)), name
        assert torch.equal(after, torch.sub(before[name], grad, alpha=result.lr)) or not norm


@pytest.mark.parametrize("model", ["cpreresnet20", "resnet18"])  # with selections, and without
def test_a_run_is_rebuilt_at_each_width(model, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    monkeypatch.setattr(speed, "ROUNDS", (3, 3))
    options = {"epochs": 1, "limit": 8, "evaluation_interval": 1, "model": model, "image_size": 32}
    run = train(tiny(compression="structured", method="lec", **options))
    found = evaluate.evaluate(run, (0.05, 0.5, 1.0), measure_batch=2)
    assert evaluate.values_of(TrainConfig(compression="structured", method="lec")) == list(evaluate.SLIMMING_GRID)
    small, half, full = found.rows
    assert small.macs < half.macs < full.macs and small.parameters < half.parameters < full.parameters
    assert full.sparsity == 0 and full.stored_bytes == full.dense_bytes == 4 * full.parameters
    assert 4 * half.parameters <= half.stored_bytes <= 4 * half.parameters + 300
    assert [row.value for row in found.speed.rows] == [0.05, 0.5, 1.0]
    assert found.speed.rows[0].resident_bytes == 4 * small.parameters and found.speed.rows[0].packed_layers == 0
    print_table(evaluate.evaluate(run, (0.5,)))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("MMACs", "parameters", f"{half.parameters:,}"))
    plot(found, tmp_path / "plot.png")


class Listed(nn.Module):
    """Its norm has two names; another is called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.norm, self.twice = nn.BatchNorm2d(8), nn.BatchNorm2d(2)
        self.norms = nn.ModuleList([self.norm])

    def forward(self, x):
        return self.twice(self.twice(self.head(self.conv(self.norms[0](self.stem(x)).relu()))))


def test_a_norm_is_replaced_under_all_its_names():
    model = Listed()
    nn.init.normal_(model.norm.weight), nn.init.zeros_(model.twice.weight)
    slimmed = lcs.slim(model, 0.5)
    network = slimmed.model
    assert network.norm is network.norms[0] and network.norm.num_features < 8
    assert network(torch.randn(1, 3, 8, 8)).shape == (1, 2, 6, 6)
    assert {row.norm: row.why for row in slimmed.rows}["twice"] == "called twice"
