import pytest
from torch import nn

import lcs


@pytest.fixture
def subspace():
    return lcs.convert(nn.Sequential(nn.Linear(4, 4)), lcs.Unstructured())


def test_a_level_is_given_as_one_or_by_the_unit_of_the_recipe(subspace):
    assert subspace.at(density=0.3)._level == subspace.at(lcs.Level(0.3, 0.3))._level == lcs.Level(0.3, 0.3)
    assert subspace.set_level(density=0.3, alpha=None, bits=None) == lcs.Level(0.3, 0.3)
    assert subspace.recipe.value(lcs.Level(0.1, 0.3)) == 0.3


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ({}, ValueError, r"give a level: density=\.\.\."),
        ({"alpha": 0.5}, ValueError, r"give a level: density=\.\.\."),
        ({"bits": 4}, ValueError, "lcs.Unstructured has levels of density, not of bits"),
        ({"density": 0.5, "width": 0.5}, ValueError, "levels of density, not of width"),
        ({"dense": 0.5}, TypeError, r"a level has no dense; give density=\.\.\."),
        ({"level": lcs.Level(0, 1), "density": 0.5}, ValueError, "give either Level.* or density=0.5, not both"),
        ({"level": lcs.Level(0, bits=4)}, ValueError, "levels of density, not of bits: got Level"),
        ({"level": 0.5}, TypeError, "as a density it is density=0.5"),
    ],
)
def test_what_is_no_level_is_named(subspace, setting, error, words):
    with pytest.raises(error, match=words):
        subspace.at(**setting)
    if "dense" not in setting:  # which would be the model's own keyword
        with pytest.raises(error, match=words):
            subspace.freeze().at(**setting)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha": float("nan")}, "alpha must be a finite number, got nan"),
        ({"alpha": 0, "density": 1.5}, "density must lie in .*, got 1.5"),
        ({"alpha": 0, "width": 0.0}, "width must lie in .*, got 0.0"),
        ({"alpha": 0, "bits": 9}, "bits must be a whole number from 2 to 8, got 9"),
        ({"alpha": 0, "bits": 3.0}, "bits must be a whole number"),
    ],
)
def test_levels_out_of_range(values, words):
    with pytest.raises(ValueError, match=words):
        lcs.Level(**values)
