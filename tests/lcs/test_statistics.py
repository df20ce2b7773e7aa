import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lcs
from lcs.macs import count_macs

# Sparsity in per cent that the paper's accounting gives at each density (arXiv 2110.04252), stem and classifier dense.
REPORTED = {
    ("cpreresnet20", 10): {0.025: 96.15, 0.05: 93.68, 0.1: 88.75, 0.5: 49.31},
    ("resnet18", 1000): {0.025: 93.15, 0.05: 90.76, 0.1: 85.98, 0.5: 47.77},
    ("vgg19", 1000): {0.025: 95.06, 0.05: 92.62, 0.1: 87.75, 0.5: 48.75},
}


# Of lcs.Structured, by width: millions of multiply-accumulates of one image, and per cent of the weights cut away.
WIDTHS = {
    ("cpreresnet20", 10, 32): {
        1.0: (33.75, 0.0),
        0.875: (25.89, 23.3),
        0.75: (19.07, 43.5),
        0.625: (13.29, 60.6),
        0.5: (8.55, 74.7),
        0.375: (4.85, 85.6),
        0.25: (2.20, 93.5),
    },
    ("resnet18", 1000, 224): {
        1.0: (1814.1, 0.0),
        0.875: (1401.9, 22.9),
        0.75: (1042.7, 42.9),
        0.625: (736.4, 59.9),
        0.5: (483.2, 73.9),
        0.375: (282.9, 84.9),
        0.25: (135.6, 92.9),
    },
}
PARAMETERS = {"cpreresnet20": (219_472, 222_192), "resnet18": (11_688_512, 11_698_112)}  # of a point and of a line


def reference_model(name, classes, rounding):
    model = lcs.models.build(name, classes, seed=0)
    recipe = lcs.Unstructured(line=False, keep_rounding=rounding)
    return lcs.convert(model, recipe, dense=[model.stem_name, model.classifier_name])


@pytest.mark.parametrize(("name", "classes"), REPORTED)
def test_reported_sparsity_of_the_reference_models(name, classes):
    subspace = reference_model(name, classes, "truncate")
    for density, reported in REPORTED[name, classes].items():
        assert round(100 * subspace.statistics(density=density).sparsity, 2) == reported


def test_the_default_rounding_is_at_most_one_weight_per_layer_from_the_reported_count():
    paper, default = (reference_model("cpreresnet20", 10, rounding) for rounding in ("truncate", "half_even"))
    layers = sum(row.compressed for row in default._layers().values())
    assert layers == 21
    for density in REPORTED["cpreresnet20", 10]:
        zeros = paper.statistics(density=density).zeros
        assert 0 <= default.statistics(density=density).zeros - zeros <= layers


@pytest.mark.parametrize("line", [True, False])
def test_counts_and_bytes(line):
    model = nn.Sequential(nn.Linear(10, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Conv1d(1, 1, 1), nn.Linear(3, 2))
    subspace = lcs.convert(model, lcs.Unstructured(line=line), dense=["2"], exclude=["3", "4"], init="independent")
    statistics = subspace.statistics(density=0.3)
    weights, others = 70 + 21 + 1 + 6, 7 + 14 + 3 + 1 + 2
    assert statistics == lcs.LevelStatistics(
        level=lcs.Level(0.3 if line else 0.0, 0.3),
        sparsity=49 / weights,
        zeros=49,
        weights=weights,
        parameters=weights + others,
        stored_bytes=4 * (21 + 21 + 1 + 6 + others) + 9,
        dense_bytes=4 * (weights + others),
    )


def test_zeros_are_counted_in_the_weights_and_not_derived_from_the_density():
    model = nn.Sequential(nn.Linear(4, 4))
    subspace = lcs.convert(model, lcs.Unstructured())
    with torch.no_grad():
        model[0].weight[0], model[0].weight_1[0] = 0.0, 0.0
    assert subspace.statistics(lcs.Level(0.5, 1.0)).zeros == 4
    assert subspace.statistics(density=0.0).sparsity == 1.0


def test_statistics_leave_the_level_and_the_gradients_alone():
    subspace = lcs.convert(nn.Sequential(nn.Linear(4, 4)), lcs.Unstructured())
    with subspace.at(density=0.5) as level:
        y = subspace(torch.ones(1, 4))
        subspace.statistics(density=0.25)
        y.sum().backward()
        assert subspace.level == level and subspace.model[0].weight.grad is not None


@pytest.mark.parametrize("line", [True, False])
@pytest.mark.parametrize(("name", "classes", "size"), WIDTHS)
def test_reported_operations_and_sparsity_by_width(name, classes, size, line):
    model = lcs.models.build(name, classes, seed=0, norm="instance")
    subspace = lcs.convert(model, lcs.Structured(line=line), dense=[model.classifier_name])
    assert sum(p.numel() for p in subspace.parameters()) == PARAMETERS[name][line]
    decimals = 2 if name == "cpreresnet20" else 1
    for width, (macs, sparsity) in WIDTHS[name, classes, size].items():
        found = subspace.statistics(width=width, example=torch.zeros(1, 3, size, size) if line else None)
        assert round(100 * found.sparsity, 1) == sparsity
        assert found.macs is None if not line else round(found.macs / 1e6, decimals) == macs
        slim = lcs.unconvert(copy.deepcopy(subspace), width=width)
        assert found.parameters == sum(p.numel() for p in slim.parameters()) == found.stored_bytes // 4


def test_operations_of_every_kind_of_layer():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    subspace = lcs.convert(model, lcs.Structured(line=False), dense=["5"])
    for width, c in ((1.0, 8), (0.5, 4)):
        found = subspace.statistics(width=width, example=torch.zeros(2, 3, 8, 8))
        convolutions, pools = 64 * (27 * c + 9 * c), 4 * 16 * c + 16 * c
        assert found.macs == 2 * (convolutions + pools + 4 * c * 5)
        slim = lcs.unconvert(copy.deepcopy(subspace), width=width)
        assert count_macs(slim, torch.zeros(2, 3, 8, 8)) == found.macs


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(4, 3), nn.Dropout()

    def forward(self, x):
        if x.dim() == 1:
            raise RuntimeError("no batch")
        return self.drop(self.fc(input=x))


def test_operations_of_transposed_convolutions_and_of_layers_called_by_keyword():
    transposed = nn.ConvTranspose2d(4, 6, 2, 2, groups=2)
    assert count_macs(transposed, torch.randn(1, 4, 8, 8)) == 64 * 4 * 3 * 4
    assert count_macs(ByKeyword(), torch.randn(5, 4)) == 5 * 4 * 3


class PoolsByKeyword(nn.Module):
    def forward(self, x):
        x = F.avg_pool2d(kernel_size=2, input=x)
        return F.adaptive_avg_pool2d(input=x, output_size=1)


def test_operations_of_pools_called_by_keyword():
    assert count_macs(PoolsByKeyword(), torch.randn(1, 3, 8, 8)) == 3 * 16 * 4 + 3 * 16


def test_statistics_leave_the_modes_of_all_modules_alone():
    subspace = lcs.convert(ByKeyword(), lcs.Unstructured()).train()
    subspace.model.drop.eval()
    subspace.statistics(density=0.5, example=torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="no batch"):
        subspace.statistics(density=0.5, example=torch.randn(4))
    assert subspace.model.training and subspace.model.fc.training and not subspace.model.drop.training
