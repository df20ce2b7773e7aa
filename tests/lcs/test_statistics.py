import pytest
import torch
from torch import nn

import lcs

# Sparsity in per cent that the paper's accounting gives at each density (arXiv 2110.04252), stem and classifier dense.
REPORTED = {
    ("cpreresnet20", 10): {0.025: 96.15, 0.05: 93.68, 0.1: 88.75, 0.5: 49.31},
    ("resnet18", 1000): {0.025: 93.15, 0.05: 90.76, 0.1: 85.98, 0.5: 47.77},
    ("vgg19", 1000): {0.025: 95.06, 0.05: 92.62, 0.1: 87.75, 0.5: 48.75},
}


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
