import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import lcs
from lcs import level_cache, models
from lcs.level_cache import LevelCache
from lcs.measure import check_layers
from lcs_kernels import costs

from .stress_frozen import stress

DENSITIES = (0.0, 0.025, 0.1, 0.5, 1.0)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pays(monkeypatch):
    """Sets what the cost table answers: a function of the density."""

    def decide(answer):
        monkeypatch.setattr(costs, "pays", lambda op, x_shape, weight_shape, density, stride: answer(density))
        monkeypatch.setattr("lcs.sparse_packing._FEW", 0)  # else convolutions of few products are sparse anyway

    return decide


@pytest.fixture
def sparse(pays):
    pays(lambda density: True)


@pytest.fixture
def dense(pays):
    pays(lambda density: False)


@pytest.fixture
def direct(monkeypatch):
    """Dense layers run torch's ops, in whose order the subspace sums."""
    for module in ("dense_packing", "sparse_packing"):
        monkeypatch.setattr(f"lcs.{module}.pays_packed", lambda layer, x_shape: False)
    monkeypatch.setattr("lcs.sparse_packing._KEPT", {})


def resnet(recipe=None, dtype=torch.float32, **options):
    model = models.build("cpreresnet20", 10, seed=0)
    torch.manual_seed(1)
    line = {"init": "independent"} if recipe is None else {}
    subspace = lcs.convert(model, recipe or lcs.Unstructured(), dense=["conv1", "fc"], **line, **options)
    return subspace.to(dtype).eval()


def small(*layers, recipe=None, **options):
    torch.manual_seed(0)
    line = recipe or lcs.Unstructured()
    return lcs.convert(nn.Sequential(*layers), line, init="independent", **options).eval()


@torch.no_grad()
def expected(subspace, x, density):
    with subspace.at(density=density):
        return subspace(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recipe", [None, lcs.Unstructured(line=False)], ids=["line", "point"])
def test_dense_layers_compute_bit_for_bit_what_the_subspace_does(dense, direct, recipe, dtype):
    subspace = resnet(recipe, dtype)
    fast = subspace.freeze()
    for density in DENSITIES:
        assert torch.equal(fast(X.to(dtype), density=density), expected(subspace, X.to(dtype), density))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recipe", [None, lcs.Unstructured(line=False)], ids=["line", "point"])
def test_sparse_layers_are_within_the_rounding_of_a_float32_sum(sparse, recipe, dtype):
    fast = resnet(recipe, dtype).freeze(strict=True)
    packed = 23 if dtype == torch.float32 else 21  # with the first and the last one, small and dense
    for density in DENSITIES:
        assert check_layers(fast, X.to(dtype), fast.recipe.level(density)) == packed
        assert fast(X.to(dtype), density=density).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_integers_are_exact(sparse, dtype):
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2), nn.Flatten(), nn.Linear(196, 3)
    subspace = small(*layers, recipe=lcs.Unstructured(line=False))
    with torch.no_grad():
        for p in subspace.parameters():
            p.copy_(torch.randint(-1, 2, p.shape) * (torch.rand(p.shape) < 0.1))
    x = torch.randint(-1, 2, (2, 3, 16, 16)).to(dtype)
    fast = subspace.to(dtype).freeze()
    for density in DENSITIES:
        y = expected(subspace, x, density)
        assert y.abs().max() < 256 and (density < 0.5 or len(y.unique()) > 1)
        assert torch.equal(fast(x, density=density), y)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, (4, 2), padding="same", dilation=2),
        nn.Conv2d(4, 6, 3, padding="valid"),
        nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="circular", stride=2),
        nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect", bias=False),
        nn.Conv2d(4, 8, 3, groups=2, stride=(2, 1)),
        nn.Linear(12, 7, bias=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "one"])
def test_any_layer(sparse, layer, batched):
    fast = small(layer).freeze(strict=True)
    x = torch.randn(3, 4, 10, 12) if batched else torch.randn(4, 10, 12)
    assert check_layers(fast, x, lcs.Level(0.3, 0.3)) == 1


def test_a_view_is_the_call_at_its_level(pays):
    pays(lambda density: density < 0.3)
    fast = resnet().freeze()
    view = fast.at(density=0.1)
    assert view.level == lcs.Level(0.1, 0.1)
    assert torch.equal(view(X), fast(X, density=0.1))
    assert torch.equal(fast(X, level=view.level), view(X))
    assert torch.equal(fast(X, density=0.1, alpha=0.1), view(X))
    assert not torch.equal(fast(X, density=0.1, alpha=0.9), view(X))
    assert fast.counters.builds == 2


def test_it_is_a_copy_and_leaves_the_subspace_as_it_was(pays):
    pays(lambda density: density < 0.3)
    subspace = resnet().train()
    fast = subspace.freeze()
    before = fast(X, density=0.1)
    assert subspace.training and all(p.requires_grad for p in subspace.parameters())
    with subspace.at(density=0.1):
        subspace(X).sum().backward()
    with torch.no_grad():
        for p in subspace.parameters():
            p.add_(1.0)
    again = fast.at(density=0.1)
    fast._cache.limit = 0
    fast(X, density=0.5)
    assert torch.equal(again(X), before) and fast.counters.evictions
    assert not any(p.requires_grad or p.grad is not None for p in fast.model.parameters())
    assert not before.requires_grad


def test_of_a_compiled_subspace(dense, direct):
    subspace = resnet()
    y = expected(subspace, X, 0.1)
    subspace.compile(backend="eager")
    fast = subspace.freeze()
    with torch.no_grad():
        for p in subspace.parameters():
            p.zero_()
    assert torch.equal(fast(X, density=0.1), y)


def test_gradients_reach_x_alone(pays, direct):
    pays(lambda density: density < 0.3)
    subspace = resnet()
    fast = subspace.freeze()
    with torch.inference_mode():
        fast(X, density=0.5)  # the level is made here, and must serve a backward
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    fast(x, density=0.5).sum().backward()
    subspace.requires_grad_(False)  # by torch, as weights that train may not be
    with subspace.at(density=0.5):
        subspace(y).sum().backward()
    assert torch.equal(x.grad, y.grad)
    fast(x, density=0.1).sum().backward()


def test_autocast_changes_nothing(pays):
    pays(lambda density: density < 0.3)
    subspace = resnet()
    fast, other = subspace.freeze(), subspace.freeze()
    for density in (0.1, 1.0):
        with torch.autocast("cpu", torch.bfloat16):
            y = fast(X, density=density)
        assert y.dtype == torch.float32 and torch.equal(y, other(X, density=density))


@pytest.mark.filterwarnings("ignore:running statistics")
def test_other_modules_and_buffers_go_along(dense, direct):
    subspace = small(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(1568, 4), norm="keep", exclude="3")
    assert torch.equal(subspace.freeze()(X, density=0.5), expected(subspace, X, 0.5))


def test_a_pickled_one_computes_the_same(pays):
    pays(lambda density: density < 0.3)
    fast = resnet().freeze(cache_bytes=1234567, strict=True)
    y = fast(X, density=0.1)
    again = pickle.loads(pickle.dumps(fast))
    assert torch.equal(again(X, density=0.1), y)
    assert (again._cache.limit, again.strict, again.counters.builds) == (1234567, True, 1)


def test_the_shapes_at_hand_decide(monkeypatch):
    monkeypatch.setattr("lcs.sparse_packing._FEW", 0)  # else convolutions of few products are sparse anyway
    monkeypatch.setattr(
        costs, "pays", lambda op, x_shape, weight_shape, density, stride: x_shape[0] > 1 and density < 1
    )
    asked = small(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(2048, 4), dense="2").freeze()
    kernels = [[r.kernel for r in asked.report(X[:n], density=0.5).rows] for n in (1, 2)]
    assert kernels == [["width_conv2d", "torch"], ["sparse_conv2d", "torch"]]
    assert asked.counters.levels == 2
    asked(X[:1], density=0.5), asked(X, density=0.5)
    assert asked.counters.builds == 2
    assert asked.counters.dense == {
        "0: dense is faster here": 1,
    }


def test_report(pays):
    pays(lambda density: density < 0.3)
    fast = resnet().freeze()
    report = fast.report(X, density=0.1)
    rows = {row.layer: row for row in report.rows}
    assert rows["conv1"].why == "never compressed" and (rows["norm"].kernel, rows["norm"].why) == ("line_norm", "norm")
    row = rows["layer3.0.conv2"]
    assert (row.kernel, row.why, row.stored) == ("sparse_conv2d", "", 3686)
    assert row.bytes > 64 * 64 * 9 // 8 + 3686 * (4 + 6)  # bitmap, values, and the kernel's own copy with indices
    assert sum(row.bytes for row in report.rows) == fast.counters.nbytes
    assert "23 of 42 layers packed" in str(report) and "layer3.0.conv2" in str(report)
    full = {row.layer: row for row in fast.report(X, density=1.0).rows}["layer3.1.conv2"]
    held = 2 * 64 * 64 * 9 * 4  # the weight, and as the kernels read it
    assert (full.kernel, full.why, full.bytes) == ("width_conv2d", "dense is faster here", held)


def test_where_dense_is_faster_winograd_multiplies_and_is_counted(dense):
    subspace = small(nn.Conv2d(32, 40, 3, padding=1), nn.Conv2d(40, 8, 3))
    for parameter in subspace.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape).float()
    fast, x = subspace.freeze(), torch.randint(-3, 4, (2, 32, 9, 8)).float()
    assert [row.kernel for row in fast.report(x, alpha=0, density=1.0).rows] == ["width_conv2d"] * 2
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    y = fast(inputs[0], alpha=0, density=1.0)
    subspace.requires_grad_(False)  # by torch, as weights that train may not be
    with subspace.at(alpha=0, density=1.0):
        plain = subspace(inputs[1])
    assert torch.equal(y.round(), plain)  # of sums of integers
    y.sum().backward(), plain.sum().backward()
    assert torch.equal(inputs[0].grad.round(), inputs[1].grad)
    assert fast.counters.dense == {"0: dense is faster here": 1, "1: dense is faster here": 1}


def test_a_layer_without_a_sparse_kernel_runs_dense_and_is_named(sparse):
    subspace = small(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(32, 2))
    x = torch.randn(2, 3, 10)
    fast = subspace.freeze()
    fast(x, density=0.3)
    assert fast.counters.fallbacks == {"0: no sparse op for Conv1d": 1}
    assert fast.report(x, density=0.3).rows[1].kernel == "sparse_linear"
    with pytest.raises(RuntimeError, match="strict: 1 layers cannot run packed: 0: no sparse op for Conv1d"):
        subspace.freeze(strict=True)(x, density=0.3)
    wide = small(nn.Linear(4, 4)).double()
    fast = wide.freeze()
    assert torch.equal(fast(x.new_ones(1, 4).double(), density=0.5), expected(wide, torch.ones(1, 4).double(), 0.5))
    assert fast.counters.fallbacks == {"0: no sparse kernel for float64": 1}


def test_a_device_without_a_sparse_kernel_runs_dense_and_is_named(sparse):
    subspace = small(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(1568, 4)).to("meta")
    fast = subspace.freeze()
    assert fast(X.to("meta"), density=0.1).shape == (2, 4)
    assert list(fast.counters.fallbacks) == [
        f"{name}: {op} has no kernel on meta: reference"
        for name, op in (("0", "sparse_conv2d"), ("3", "sparse_linear"))
    ]
    with pytest.raises(
        RuntimeError, match="strict: 2 layers cannot run packed: 0: sparse_conv2d has no kernel on meta"
    ):
        subspace.freeze(strict=True)(X.to("meta"), density=0.1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f: f(X), ValueError, "give a level"),
        (lambda f: f(X, desnity=0.5), TypeError, "a level has no desnity; give density="),
        (lambda f: f(X, density="0.5"), TypeError, "density must be a number, got '0.5'"),
        (lambda f: f(X, density=1.5), ValueError, "density must lie in .* got 1.5"),
        (lambda f: f(X, level=0.5), TypeError, "a level is a lcs.Level, got 0.5"),
        (lambda f: f(X, level=lcs.Level(0, 1), density=0.5), ValueError, "give either"),
        (lambda f: f.at(), ValueError, "give a level"),
        (lambda f: f.at(density=float("nan")), ValueError, "density must lie in"),
        (lambda f: f.train(), RuntimeError, "a frozen network cannot train"),
        (lambda f: f.at(density=0.5).train(), RuntimeError, "a frozen network cannot train"),
        (lambda f: f.model(X), RuntimeError, "only inside a call of that network"),
        (lambda f: f(X.double(), density=0.5), RuntimeError, "type"),
        (lambda f: f.half(), AttributeError, "a Frozen is no nn.Module and has no half: .* before its `freeze`"),
        (lambda f: f.at(density=0.5).state_dict(), AttributeError, "a FrozenLevel is no nn.Module and has no state_d"),
        (lambda f: f.colour, AttributeError, "'Frozen' object has no attribute 'colour'"),
        (lambda f: lcs.Frozen(f.model, "structured"), TypeError, "lcs.Unstructured can be frozen, got str"),
        (lambda f: lcs.Frozen(f.model, f.recipe, cache_bytes=-1), ValueError, "cache_bytes must be at least 0, got -1"),
    ],
)
def test_errors(sparse, call, error, words):
    fast = resnet().freeze()
    with pytest.raises(error, match=words):
        call(fast)
    for network in (fast, fast.at(density=0.5)):
        assert network.eval() is network.train(False) is network


def test_a_sparse_layer_takes_its_own_dtype_alone(sparse):
    fast = small(nn.Linear(4, 4)).freeze()
    fast(torch.ones(1, 4), density=0.5)
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        fast(torch.ones(1, 4).double(), density=0.5)


def test_a_spent_subspace_cannot_be_frozen():
    subspace = resnet()
    lcs.unconvert(subspace, density=0.5)
    with pytest.raises(RuntimeError, match="was unconverted"):
        subspace.freeze()


def test_levels_are_held_up_to_the_byte_bound(pays):
    pays(lambda density: density < 0.3)
    subspace = resnet()
    fast = subspace.freeze()
    sizes = []
    for density in (0.1, 0.2, 0.5):
        fast(X, density=density)
        sizes.append(fast.counters.nbytes - sum(sizes))
    bounded = subspace.freeze(cache_bytes=sizes[1] + sizes[2])
    for density in (0.1, 0.2, 0.5):  # 0.1 goes
        bounded(X, density=density)
    assert (bounded.counters.evictions, bounded.counters.levels) == (1, 2)
    assert bounded.counters.nbytes == sizes[1] + sizes[2]
    bounded(X, density=0.2), bounded(X, density=0.1)  # 0.5 goes
    assert (bounded.counters.evictions, bounded.counters.levels, bounded.counters.builds) == (2, 2, 4)
    with pytest.warns(UserWarning, match="more than cache_bytes=100"):
        subspace.freeze(cache_bytes=100)(X, density=0.1)


class Box:
    def __init__(self, nbytes=1):
        self.nbytes = nbytes


def test_a_level_is_built_once_however_many_want_it():
    cache, builds, started = LevelCache(10, 9), [], threading.Barrier(8)

    def build():
        builds.append(threading.get_ident())
        time.sleep(0.05)
        return Box()

    found = []

    def want():
        started.wait()
        found.append(cache.get("level", build))

    threads = [threading.Thread(target=want) for _ in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(builds) == 1 and len(set(map(id, found))) == 1 and len(found) == 8


def test_a_new_shape_is_learned_once_however_many_bring_it(monkeypatch):
    fast, x, traced, trace = small(nn.Conv2d(3, 4, 3)).freeze(), torch.randn(2, 3, 5, 5), [], lcs.Frozen._trace

    def slow(*arguments):
        traced.append(arguments)
        time.sleep(0.2)
        return trace(*arguments)

    monkeypatch.setattr(lcs.Frozen, "_trace", slow)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: fast(x, density=0.5), range(8)))
    assert len(traced) == 1 and all(torch.equal(y, found[0]) for y in found)


def test_other_levels_are_served_during_a_build():
    cache = LevelCache(10, 9)
    assert cache.get("slow", lambda: (cache.get("fast", Box), Box(2))[1]).nbytes == 2
    assert len(cache) == 2


def test_a_build_that_fails_is_tried_by_those_who_wait():
    cache, failing = LevelCache(10, 9), threading.Event()

    def fail():
        failing.set()
        time.sleep(0.05)
        raise OSError("first")

    def first():
        with pytest.raises(OSError, match="first"):
            cache.get("level", fail)

    thread = threading.Thread(target=first)
    thread.start()
    failing.wait()
    assert isinstance(cache.get("level", Box), Box)
    thread.join()


def test_what_has_grown_is_counted_when_it_settles():
    cache, grown = LevelCache(10, 9), Box(4)
    cache.get(1, lambda: grown)
    cache.get(2, lambda: Box(4))
    grown.nbytes = 7
    cache.settle()
    assert (len(cache), cache.nbytes, cache.evictions) == (1, 4, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LevelCache(0, 9).get(1, Box)


def test_what_was_dropped_goes_back_to_the_system(monkeypatch):
    trims = []
    monkeypatch.setattr(level_cache, "_trim", lambda: trims.append(cache.evictions))
    cache = LevelCache(30 << 20, 9)
    for key in range(9):
        cache.get(key, lambda: Box(20 << 20))
    assert cache.evictions == 8 and trims == [4, 8]
    monkeypatch.undo()
    level_cache._trim()


def test_threads_get_their_own_level_whole(pays):
    pays(lambda density: density < 0.7)
    counts = stress(800)
    assert counts["right"] == 800 and counts["evictions"] > 100
    assert not counts["another level"] and not counts["of no level"]


class Viewed(nn.Module):
    """Its view fits one memory format alone, and may be changed in place."""

    def __init__(self, changed):
        super().__init__()
        self.first, self.second, self.changed = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), changed

    def forward(self, x):
        y = self.second(self.first(x)).view(x.shape[0], -1)
        return (y.mul_(2) if self.changed else y).amax(1)


@pytest.mark.parametrize("viewed", [None, "read", "changed"])
def test_images_get_channels_last_where_the_model_takes_them(viewed):
    model = Viewed(viewed == "changed") if viewed else nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    subspace = lcs.convert(model, lcs.Structured(line=False), dense=["second" if viewed else "1"])
    fast, x = subspace.freeze(), torch.randn(2, 3, 8, 8)
    with torch.no_grad(), subspace.at(width=0.5):
        torch.testing.assert_close(fast(x, width=0.5), subspace(x))
        torch.testing.assert_close(fast._call(fast.recipe.level(0.5), (x,), {}, fused=False), subspace(x))
    assert ("view" in fast.counters.contiguous) == (viewed == "changed")
    if not viewed:
        assert not fast.counters.contiguous and fast(x, width=0.5).is_contiguous(memory_format=torch.channels_last)


def test_a_first_layer_without_weights():
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 4, 3), nn.Flatten())
    fast = lcs.convert(model, lcs.Unstructured()).freeze()
    assert fast(torch.randn(2, 3, 8, 8), density=0.5).shape == (2, 144)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["group", "instance", "keep"])
@pytest.mark.filterwarnings("ignore:running statistics")
def test_what_a_point_leaves_as_it_was_runs_as_layers(norm):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    subspace = small(
        model, nn.GroupNorm(2, 8), nn.ReLU(), recipe=lcs.Unstructured(line=False), dense=["0.0"], norm=norm
    )
    fast = subspace.freeze()
    x = torch.randn(2, 3, 12, 12)
    assert check_layers(fast, x, fast.recipe.level(0.3)) == 2
    kernels = {row.layer: row.kernel for row in fast.report(x, density=0.3).rows}
    assert (kernels["0.0"], kernels["1"]) == ("width_conv2d_norm", "line_norm")
    assert type(subspace.model[0][0]) is nn.Conv2d and type(subspace.model[1]) is nn.GroupNorm  # the copy alone has not


@torch.no_grad()
def test_what_is_excluded_from_a_point_stays_as_it_is_and_levels_copy_nothing():
    layers = nn.Conv2d(3, 128, 3), nn.GroupNorm(2, 128), nn.Conv2d(128, 96, 3), nn.Conv2d(96, 8, 1)
    point = lcs.Unstructured(line=False)
    fast = small(*layers, recipe=point, dense=["0", "2"], exclude=["1"]).freeze()
    assert type(fast.model[1]) is nn.GroupNorm and fast.kept == ("0", "2")
    x = torch.randn(1, 3, 12, 12)
    for density in (0.3, 0.6):
        fast(x, density=density)
    assert fast.counters.nbytes < layers[0].weight.nbytes
