import math

import pytest
import torch

from lcs import Level, Quantized, Structured, Unstructured

RECIPES = [Unstructured(), Unstructured(line=False), Unstructured(target=0.1)]


def draw(recipe, n, progress=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [level for _ in range(n) for level in recipe.sample(generator, progress)]


def test_a_line_maps_density_to_alpha_and_a_point_has_alpha_0():
    assert Unstructured().level(0.3) == Level(alpha=0.3, density=0.3)
    assert Unstructured().level(0.3, 0.8) == Level(alpha=0.8, density=0.3)
    assert Unstructured(line=False).level(0.3) == Level(alpha=0.0, density=0.3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Unstructured().level(1.1), "density must lie in .* got 1.1"),
        (lambda: Unstructured().level(float("nan")), "density must lie in .* got nan"),
        (lambda: Unstructured().level(0.5, -0.1), r"alpha must lie in .* got -0.1.*lcs\.Level"),
        (lambda: Unstructured(line=False).level(0.5, 0.5), "a point has no alpha"),
        (lambda: Level(0.0, 2.0), "density must lie in .* got 2.0"),
        (lambda: Level(math.inf, 0.5), "alpha must be a finite number"),
        (lambda: Unstructured(density=(0.5, 0.1)), "low <= high"),
        (lambda: Unstructured(density=(-0.1, 1.0)), "low <= high"),
        (lambda: Unstructured(target=1.5), "target must lie in .* got 1.5"),
        (lambda: Unstructured(endpoint_probability=2), "endpoint_probability must lie in .* got 2"),
        (lambda: Unstructured(keep_rounding="up"), "half_even or truncate, got 'up'"),
    ],
)
def test_out_of_range_is_refused_by_name(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Unstructured(density=0.1), r"Unstructured: density must be \(low, high\), two numbers, got 0.1"),
        (lambda: Unstructured(density=(0.1, 0.5, 1.0)), r"density must be \(low, high\)"),
        (lambda: Unstructured(density=("0.1", 1.0)), r"density must be \(low, high\)"),
        (lambda: Structured(width=0.5), r"Structured: width must be \(low, high\), two numbers, got 0.5"),
        (lambda: Quantized(bits=4), r"Quantized: bits must be \(low, high\), two numbers, got 4; .* a target"),
    ],
)
def test_a_range_is_asked_for(call, words):
    with pytest.raises(TypeError, match=words):
        call()


def test_a_level_built_by_hand_may_leave_the_line():
    assert Level(1.5, 0.2).alpha == 1.5


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_a_line_draws_each_end_with_half_the_endpoint_probability(probability):
    n = 4000
    recipe = Unstructured(density=(0.025, 1.0), endpoint_probability=probability)
    drawn = [level.density for level in draw(recipe, n)]
    deviation = math.sqrt(n * probability / 2 * (1 - probability / 2))  # of a binomial count
    for end in (0.025, 1.0):
        assert abs(drawn.count(end) - n * probability / 2) <= 5 * deviation
    between = [d for d in drawn if 0.025 < d < 1.0]
    assert len(between) == n - drawn.count(0.025) - drawn.count(1.0)
    if between:
        error = (1.0 - 0.025) / math.sqrt(12 * len(between))  # of a uniform's mean
        assert abs(sum(between) / len(between) - (1.0 + 0.025) / 2) <= 5 * error


@pytest.mark.parametrize("progress", [-1.0, 0.0, 0.25, 0.75])
def test_warm_up_moves_a_lines_density_from_1_and_leaves_alpha(progress):
    left = 1 - max(progress, 0.0)
    for warm, done in zip(draw(Unstructured(), 50, progress), draw(Unstructured(), 50), strict=True):
        assert warm.alpha == done.alpha == done.density
        assert warm.density == min(done.density + (1 - done.density) * left, 1.0)


def test_a_point_trains_at_the_highest_density_and_then_uniformly_without_its_ends():
    recipe = Unstructured(line=False, density=(0.005, 0.05))
    assert {level.density for level in draw(recipe, 50, 0.999)} == {0.05}
    drawn = draw(recipe, 500)
    assert all(0.005 < level.density < 0.05 and level.alpha == 0.0 for level in drawn)


def test_target_is_a_point_that_decays_linearly_from_dense():
    recipe = Unstructured(target=0.2)
    assert not recipe.line
    densities = [draw(recipe, 1, progress)[0].density for progress in (0.0, 0.5, 1.0, 7.0)]
    assert densities == [1.0, 0.2 + 0.8 * 0.5, 0.2, 0.2]


@pytest.mark.parametrize("recipe", RECIPES)
def test_sampling_depends_on_the_generator_alone_and_takes_the_same_from_it_every_time(recipe):
    assert draw(recipe, 20, seed=3) == draw(recipe, 20, seed=3)
    early, late = (torch.Generator().manual_seed(5) for _ in range(2))
    recipe.sample(early, 0.0), Unstructured().sample(late, 1.0)
    assert torch.equal(early.get_state(), late.get_state())


@pytest.mark.parametrize(("density", "n", "even", "truncated"), [(0.9, 10, 9, 10), (0.025, 100, 2, 3), (0.5, 7, 4, 4)])
def test_keep_counts(density, n, even, truncated):
    assert Unstructured().keep(density, n) == even
    assert Unstructured(keep_rounding="truncate").keep(density, n) == truncated


@pytest.mark.parametrize("rounding", ["half_even", "truncate"])
@pytest.mark.parametrize("n", [0, 1, 2359296])
def test_keep_counts_are_exact_at_both_ends(rounding, n):
    recipe = Unstructured(keep_rounding=rounding)
    assert (recipe.keep(0.0, n), recipe.keep(1.0, n)) == (0, n)
