"""What the runs on the CPU would catch: barriers that are missing, selections that are off by one, tails left out."""

import math
import os
import resource

import pytest
import torch

from .host import CUDA, Edit, SimtError, build
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
SOURCES = ("interpolate_prune_cuda.cu", "interpolate_prune_tile.cuh")
BARRIERS = [
    (name, word, k)
    for name in SOURCES
    for word in ("__syncthreads();", "__syncwarp();", "grid_sync();")
    for k in range((CUDA / name).read_text().count(word))
]


def without(name: str, word: str, k: int) -> Edit:
    """Removes the k-th such barrier of a source, named by so much in front of it as no other place holds."""
    texts, at = [path.read_text() for path in CUDA.iterdir()], -1
    text = (CUDA / name).read_text()
    for _ in range(k + 1):
        at = text.index(word, at + 1)
    begin = at
    while sum(t.count(text[begin : at + len(word)]) for t in texts) > 1:
        begin -= 1
    return text[begin : at + len(word)], text[begin:at]


ORDERS = 3  # of threads and blocks, each case
CASE_SECONDS = 3  # of a processor, more than ten times what a case takes


def check_in_time(library, *arguments, **order) -> None:
    """`check`, and the end of the process where it takes too long: with a flaw it may never end."""
    used = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + CASE_SECONDS, resource.RLIM_INFINITY))
    check(library, *arguments, **order)


def run_cases(library) -> None:
    torch.set_num_threads(1)  # a forked process has no others
    for order in range(ORDERS):  # outermost: what shows in any order soon shows
        for seed, kind in enumerate(("integers", "normal", "two_values")):
            torch.manual_seed(seed)
            w0s, w1s = layers(kind)
            for keep in (torch.tensor([n * 3 // 5 for n in SIZES]), torch.tensor(sum(SIZES) // 7)):
                check_in_time(library, w0s, w1s, 0.3, keep, seed=100 * seed + order)


def run_neighbours(library) -> None:
    """A layer whose ties overflow its list, next to one whose list holds its bracket."""
    torch.set_num_threads(1)
    w0s = [torch.ones(8192), torch.randn(8192, generator=torch.Generator().manual_seed(0))]
    for order in range(ORDERS):
        check_in_time(library, w0s, [], 0.0, torch.tensor([999, 999]), seed=order)


def is_caught(library, run=run_cases) -> bool:
    """Whether some case that the kernels pass fails, in a process of its own: a flaw may crash it, or never end."""
    child = os.fork()
    if child == 0:
        try:
            run(library)
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


@pytest.mark.parametrize(("name", "word", "k"), BARRIERS)
def test_every_barrier_is_needed(objects, name, word, k):
    folder = objects / f"{SOURCES.index(name)}{word[:6]}{k}"
    assert is_caught(build(folder, [without(name, word, k), SMALL_SAMPLE]))


def test_a_list_that_is_written_past_its_room_is_caught(objects):
    assert not is_caught(build(objects / "rooms"), run_neighbours)
    flaw = build(objects / "no_room", [("if (at < tile.room) {", "if (at < tile.room || true) {")])
    assert is_caught(flaw, run_neighbours)


def test_a_race_is_named(objects):
    library = build(objects / "named", [without("interpolate_prune_tile.cuh", "__syncthreads();", 4)])
    with pytest.raises(SimtError, match="race: thread .* shared memory, which thread"):
        for seed in range(3):
            check(library, [torch.randn(SHAPES[4])], [], 0.0, torch.tensor([7]), seed=seed)
