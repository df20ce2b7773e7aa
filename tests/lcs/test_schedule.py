import math

import pytest
import torch

from lcs import schedule
from lcs.unstructured import Unstructured


def test_learning_rate_of_the_paper():
    rates = [schedule.learning_rate(0.1, epoch, 200) for epoch in range(200)]
    assert rates[:5] == [0.1 * (epoch + 1) / 5 for epoch in range(5)]
    assert rates[5:] == [0.1 * 0.5 * (1 + math.cos(math.pi * (epoch - 5) / 195)) for epoch in range(5, 200)]


@pytest.mark.parametrize("epochs", range(1, 13))
def test_learning_rate_of_short_runs(epochs):
    rates = [schedule.learning_rate(1.0, epoch, epochs) for epoch in range(epochs)]
    peak = rates.index(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < min(rates) and max(rates) == 1.0


@pytest.mark.parametrize("epochs", [3, 5, 7])
def test_learning_rate_of_the_papers_short_runs(epochs):
    rates = [schedule.learning_rate(0.1, epoch, epochs, "five") for epoch in range(epochs)]
    rising = [0.1 * (epoch + 1) / 5 for epoch in range(min(epochs, 5))]
    falling = [0.1 * 0.5 * (1 + math.cos(math.pi * (epoch - 5) / (epochs - 5))) for epoch in range(5, epochs)]
    assert rates == rising + falling


def test_density_warmup_of_the_paper():
    assert schedule.warmup_steps(0.8, 200, 50_000, 128) == 62_500


def test_density_warmup_has_no_float_error():
    assert schedule.warmup_steps(0.8, 3, 1280, 128) == 24  # 0.8 * 3 * 10 is 24.000000000000004 in floats


def test_warmup_progress():
    assert [schedule.warmup_progress(step, 4) for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    assert schedule.warmup_progress(0, 0) == 1.0


def test_batches_cover_each_image_once_and_differ_by_epoch_and_seed():
    first = schedule.batches(0, 0, 21, 8)
    assert [len(batch) for batch in first] == [8, 8, 5]
    assert sorted(sum(first, [])) == list(range(21))
    assert first == schedule.batches(0, 0, 21, 8)
    assert first != schedule.batches(0, 1, 21, 8) and first != schedule.batches(1, 0, 21, 8)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_rank_slices_cover_the_batch(world_size):
    parts = [schedule.rank_slice(list(range(5)), rank, world_size) for rank in range(world_size)]
    assert sorted(sum(parts, [])) == list(range(5))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_levels_are_a_pure_function_of_seed_and_step():
    recipe = Unstructured()

    def levels(seed):
        return [recipe.sample(schedule.level_generator(seed, step)) for step in range(50)]

    torch.manual_seed(1)
    first = levels(0)
    torch.manual_seed(2)
    assert levels(0) == first
    assert levels(1) != first
    assert len({level.alpha for (level,) in first}) > 20


def test_generators_of_different_purposes_differ():
    draws = [torch.rand(4, generator=schedule.generator(purpose, 0)).tolist() for purpose in ("level", "order")]
    assert draws[0] != draws[1]
