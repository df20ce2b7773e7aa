"""Many threads, random levels, and a thread that keeps publishing. By hand: python tests/lcs/stress_frozen.py 100000"""

import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import lcs
from lcs import sparse_packing
from lcs_kernels import costs

DENSITIES = [k / 40 for k in range(41)]


def tiny_subspace() -> lcs.Subspace:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 5)
    )
    return lcs.convert(model, lcs.Unstructured(density=(0.0, 1.0)), init="independent")


def stress(requests: int, threads: int = 8, cached_levels: float = 5) -> Counter:
    """Counts "right", "another level" and "of no level" outputs, bit for bit, and what the publishing thread built.

    The cache holds about `cached_levels` of 41 levels, so that most are dropped and made again all the time.
    """
    subspace, x = tiny_subspace(), torch.randn(2, 3, 5, 5)
    quiet = subspace.freeze()
    expected = [quiet(x, density=density) for density in DENSITIES]
    assert all(not torch.equal(a, b) for i, a in enumerate(expected) for b in expected[:i])
    frozen = subspace.freeze(cache_bytes=int(cached_levels * quiet.counters.nbytes / len(DENSITIES)))
    stop, counts, lock = threading.Event(), Counter(), threading.Lock()

    def publish() -> None:
        drawn = random.Random(0)
        while not stop.is_set():
            frozen.prepare(x, density=drawn.choice(DENSITIES))
            frozen.prepare(x, density=drawn.random())

    def serve(seed: int) -> None:
        drawn, found = random.Random(seed), Counter()
        for _ in range(requests // threads):
            index = drawn.randrange(len(DENSITIES))
            y = frozen(x, density=DENSITIES[index])
            if torch.equal(y, expected[index]):
                found["right"] += 1
            else:
                found["another level" if any(torch.equal(y, e) for e in expected) else "of no level"] += 1
        with lock:
            counts.update(found)

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(serve, range(1, threads + 1)))
    finally:
        stop.set()
        publisher.join()
    counters = frozen.counters
    assert counters.nbytes <= frozen._cache.limit
    return counts + Counter(builds=counters.builds, evictions=counters.evictions, hits=counters.hits)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sparse_packing._FEW = 0
    costs.pays = lambda op, x_shape, weight_shape, density, stride: density < 0.7  # both kinds of layers
    begin = time.perf_counter()
    print(dict(stress(int(sys.argv[1]))), f"{time.perf_counter() - begin:.1f} s")
