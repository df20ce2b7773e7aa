"""What the runs on the CPU would catch: barriers that are missing, selections that are off by one, tails left out."""

import os
import resource

import pytest
import torch

from .host import SimtError, build
from .test_interpolate_prune_simt import SHAPES, SIZES, check, layers

SMALL_SAMPLE = ("kSample = 4096", "kSample = 64")
LONG_LIST = ("kPerListed = 8", "kPerListed = 1")
LISTED = ("listed_ties", "mask_bit")  # seen only where all of a bracket is listed
BLEND = "__fadd_rn(__fmul_rn(__fsub_rn(1.0f, alpha), w0), __fmul_rn(alpha, w1))"
FLAWS = {
    "rank": ("rank > count; count =", "rank >= count; count ="),
    "rank_of_the_bracket": ("interval.rank = segment.keep - int64", "interval.rank = segment.keep + 1 - int64"),
    "listed_ties": ("before[r] >= state.drop", "before[r] > state.drop"),
    "dense_ties": ("rank++ >= drop", "rank++ > drop"),
    "shared_ties": ("left = surplus - gone - before[r]", "left = surplus - gone - before[r] - 1"),
    "mask_bit": ("1u << i % 32", "1u << (i + 1) % 32"),
    "last_tile": ("(n + kTile - 1) / kTile", "n / kTile"),
    "last_vector": ("if (i + j < n) put_bits", "if (i + j + 1 < n) put_bits"),
    "last_word": ("% 8 == 0 && i < tile.row.n", "% 8 == 0 && i + 32 < tile.row.n"),
    "contraction": (BLEND, "fmaf(alpha, w1, __fmul_rn(__fsub_rn(1.0f, alpha), w0))"),
}
# What stands before a barrier, up to the barrier that is removed.
BARRIERS = {
    "after_the_bins_are_cleared": "shared.bins[i] = 0;\n  __syncthreads();",
    "before_the_sums_are_read": "shared.warp_sums[warp] = sum;\n  __syncthreads();",
    "of_the_grid_after_the_guess": "guess(work, shared, int(s));\n  grid_sync();",
    "of_the_grid_before_ties_are_shared": "count_ties(work, shared, t);\n    grid_sync();",
    "of_the_grid_before_the_interval_narrows": "    count(work, shared);\n    grid_sync();",
}


CPU_SECONDS = 10  # more than twice what all cases take


def run_cases(library) -> None:
    torch.set_num_threads(1)  # a forked process has no others
    for seed, kind in enumerate(("integers", "normal", "two_values")):
        torch.manual_seed(seed)
        w0s, w1s = layers(kind)
        for keep in (torch.tensor([n // 3 for n in SIZES]), torch.tensor(sum(SIZES) // 7)):
            check(library, w0s, w1s, 0.3, keep, seed=100 * seed)


def is_caught(library) -> bool:
    """Whether some case that the kernels pass fails, in a process of its own: a flaw may crash it, or never end."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        try:
            run_cases(library)
        except AssertionError:  # a SimtError too
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


@pytest.mark.parametrize("extra", [[SMALL_SAMPLE], [SMALL_SAMPLE, LONG_LIST]], ids=["dense", "listed"])
def test_no_flaw_is_seen_where_there_is_none(objects, extra):
    assert not is_caught(build(objects / f"sound_{len(extra)}", extra))


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_caught(objects, flaw):
    extra = [SMALL_SAMPLE, LONG_LIST][: 2 if flaw in LISTED else 1]
    assert is_caught(build(objects / flaw, [FLAWS[flaw], *extra]))


@pytest.mark.parametrize("barrier", BARRIERS)
def test_a_missing_barrier_is_caught(objects, barrier):
    words = BARRIERS[barrier]
    without = words[: words.rindex("\n")]
    assert is_caught(build(objects / barrier, [(words, without), SMALL_SAMPLE]))


def test_a_race_is_named(objects):
    words = BARRIERS["after_the_bins_are_cleared"]
    library = build(objects / "named", [(words, words[: words.rindex("\n")])])
    with pytest.raises(SimtError, match="race: thread .* shared memory, which thread"):
        for seed in range(3):
            check(library, [torch.randn(SHAPES[4])], [], 0.0, torch.tensor([7]), seed=seed)
