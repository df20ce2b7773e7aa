"""A frozen network runs recorded ops where that is sure to make what its forward makes."""

import copy
import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import lcs
from lcs.recorded import Recorded, Unrecorded, can_record, record
from lcs_kernels.ops.replay import Recorder


class Net(nn.Module):
    """Layers of the engine in two runs, with an op of torch's between them that is not in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.norm_a, self.norm_b = nn.InstanceNorm2d(8, affine=True), nn.BatchNorm2d(8)
        self.end = nn.Linear(8, 5)

    def forward(self, x):
        first = self.norm_a(self.a(x)).relu()
        second = self.norm_b(self.b(first)).relu() + first
        between = torch.cat([second[:, 4:], second[:, :4].sigmoid()], 1)
        return {"logits": self.end(self.c(between).mean((2, 3))), "maps": [between, 3, None]}


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def frozen(model=None, **options):
    return lcs.convert((model or Net()).eval(), lcs.Unstructured(), norm="keep", **options).freeze()


def level_of(fast, x, **level):
    """What is stored of a level that has run on x."""
    level = fast.at(**level).level
    return fast._packed(level, fast._chosen(level, (((x.shape, x.dtype)),), (x,), {}))


def leaves(output):
    return [output["logits"], output["maps"][0]]


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_every_call_gives_the_bits_of_the_fused_forward(density):
    fast = frozen()
    for n in (1, 3):
        for x in torch.randn(4, n, 3, 9, 8):
            output = fast(x, density=density)
            packed = level_of(fast, x, density=density)
            expected = fast._run_fused(packed, ((x,), {}))
            assert all(map(torch.equal, leaves(output), leaves(expected)))
            assert output["maps"][1:] == [3, None]
        assert isinstance(packed.recorded[x.shape, x.stride(), x.dtype], Recorded)


class Classifier(nn.Module):
    """Layers of the engine, and what of torch's networks end with."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.end = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.Conv2d(64, 512, 1)

    def forward(self, x):
        return self.end(F.adaptive_avg_pool2d(self.norm(self.a(x)).relu(), 1)).flatten(1)


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("n", [1, 3, 16])
def test_the_end_of_a_network_is_a_part_of_the_one_step(n, layout):
    fast = frozen(Classifier(), dense=["end"])
    for x in torch.randn(4, n, 3, 9, 8):
        x = x.contiguous(memory_format=layout)
        output = fast(x, density=0.1)
        packed = level_of(fast, x, density=0.1)
        assert torch.equal(output, fast._run_fused(packed, ((x,), {})))
    (recorded,) = packed.recorded.values()
    assert len(recorded.steps) == 1 and not fast.counters.unfused


class Views(nn.Module):
    """Views of what is given, and of what an op of torch's has made, before and behind layers of the engine."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.a(x.view(-1, 4, 6, 6))
        z = self.b(F.adaptive_avg_pool2d(y.sigmoid().contiguous(memory_format=torch.channels_last), 1))
        return z.flatten(1), x.view(-1)


def test_views_of_what_comes_in_are_no_part_of_a_step():
    fast = frozen(Views())
    for x in torch.randn(4, 2, 4, 36):
        output = fast(x, density=0.5)
        packed = level_of(fast, x, density=0.5)
        assert all(map(torch.equal, output, fast._run_fused(packed, ((x,), {}))))
        assert output[1].data_ptr() == x.data_ptr()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_call_like_earlier_ones_is_found_at_a_glance_and_counted(layout):
    fast, x = frozen(Classifier()), torch.randn(2, 3, 9, 8).contiguous(memory_format=layout)
    runner = fast.at(density=0.3)
    for known in (False, False, True, True, True):
        assert bool(fast._ready) is known
        runner(x)
    assert (fast.counters.builds, fast.counters.hits) == (1, 4)
    packed = level_of(fast, x, density=0.3)
    expected = fast._run_fused(packed, ((x,), {}))
    with torch.autocast("cpu", torch.bfloat16):
        assert fast._find(runner.level, (x,), {}) is None
        assert torch.equal(runner(x), expected)
    assert fast._find(runner.level, (x,), {}) is not None
    handle = fast.model.norm.register_forward_hook(lambda module, args, output: output + 1)
    assert fast._find(runner.level, (x,), {}) is None
    assert not torch.equal(runner(x), expected)
    handle.remove()
    fast._cache._values.clear()
    assert fast._find(runner.level, (x,), {}) is None
    assert torch.equal(runner(x), expected)
    assert fast.counters.builds == 2


@pytest.mark.filterwarnings("ignore:running statistics")
def test_another_layout_is_another_recording():
    fast, x = frozen(), torch.randn(2, 3, 9, 8)
    last = x.contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        outputs = [fast(given, density=0.3) for given in (x, last)]
        for a, b in zip(*map(leaves, outputs), strict=True):
            torch.testing.assert_close(a, b)
    assert len(level_of(fast, x, density=0.3).recorded) == 2


@pytest.mark.filterwarnings("ignore:running statistics")
def test_results_are_new_and_nothing_between_them_lives_on():
    fast, x = frozen(), torch.randn(2, 3, 9, 8)
    kept = [fast(x, density=0.3) for _ in range(4)]
    assert len({leaf.data_ptr() for output in kept for leaf in leaves(output)}) == 8
    recorded = next(iter(level_of(fast, x, density=0.3).recorded.values()))
    seen = []
    for step in recorded.steps[:2]:

        def watched(values, step=step):
            step(values)
            seen.extend(weakref.ref(t) for t in values[1:] if t is not None)

        object.__setattr__(recorded, "steps", tuple(watched if s is step else s for s in recorded.steps))
    fast(x, density=0.3)
    gc.collect()
    assert seen and not any(ref() is not None for ref in seen)


@pytest.mark.filterwarnings("ignore:running statistics")
def test_gradients_and_watchers_see_the_forward_itself():
    fast, x = frozen(), torch.randn(2, 3, 9, 8)
    expected = leaves(fast(x, density=0.3))
    for _ in range(3):
        fast(x, density=0.3)
    with torch.enable_grad():
        given = x.clone().requires_grad_()
        fast(given, density=0.3)["logits"].sum().backward()
        assert given.grad.abs().sum() > 0
    with FlopCounterMode(display=False) as flops:
        fast(x, density=0.3)
    assert flops.get_total_flops() > 0  # of the linear layer
    with Recorder() as recorder:
        fast(x, density=0.3)
    assert not any(call.name == "replay" for call in recorder.calls)
    assert all(map(torch.equal, leaves(fast(x, density=0.3)), expected))


@pytest.mark.filterwarnings("ignore:running statistics")
def test_a_shared_weight_that_is_written_to_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 4, 3))
    fast, x = lcs.convert(model, lcs.Structured(), dense=["2"]).freeze(), torch.randn(2, 3, 9, 8)
    for _ in range(4):
        fast(x, width=0.5)
    fast.layers["0"].weight.zero_()
    with pytest.raises(RuntimeError, match="changed"):
        fast(x, width=0.5)


@pytest.mark.filterwarnings("ignore:running statistics")
def test_threads_record_and_run_at_once():
    fast, xs = frozen(), torch.randn(8, 2, 3, 9, 8)
    expected = [leaves(fast(x, density=0.3)) for x in xs]
    other, failed = copy.deepcopy(fast), []

    def serve(x, y):
        with torch.no_grad():
            for _ in range(20):
                if not all(map(torch.equal, leaves(other(x, density=0.3)), y)):
                    failed.append(x)

    threads = [threading.Thread(target=serve, args=pair) for pair in zip(xs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.filterwarnings("ignore:running statistics")
def test_a_level_keeps_a_bounded_number_of_recordings(monkeypatch):
    monkeypatch.setattr(lcs.frozen, "_RECORDED", 3)
    fast = frozen()
    for width in range(7, 15):
        x = torch.randn(1, 3, 9, width)
        outputs = [fast(x, density=0.3)["logits"] for _ in range(3)]
        assert torch.equal(outputs[0], outputs[2])
        assert 1 <= len(level_of(fast, x, density=0.3).recorded) <= 3


CANNOT = {
    "draws at random": lambda x: F.dropout(x, 0.5, training=True),
    "reads a result": lambda x: x * x.sum().item(),
    "depends on values": lambda x: x[x > 0],
    "writes to its input": lambda x: x.add_(1.0),
    "writes to a view of its input": lambda x: x[0].mul_(2.0),
    "writes to what outlives it": lambda x: COUNTER.add_(x.numel()) * x.sum(),
}
COUNTER = torch.zeros(())


@pytest.mark.parametrize("forward", CANNOT.values(), ids=CANNOT)
def test_what_would_not_be_the_same_again_is_not_recorded(forward):
    x = torch.randn(4, 3)
    before, counted = x.clone(), COUNTER.clone()
    output, recorded = record(forward, x)
    assert recorded is None and isinstance(output, torch.Tensor)
    written = forward is CANNOT["writes to its input"] or forward is CANNOT["writes to a view of its input"]
    assert torch.equal(x, before) != written
    assert COUNTER - counted in (0, x.numel())  # not twice


CAN = {
    "in place of its own": lambda x: (x + 1).mul_(2).relu_(),
    "into its own": lambda x: torch.maximum(a := x.clone(), x.flip(0), out=a[:]) + a,
    "views": lambda x: [x.t()[1:].contiguous(), x.reshape(-1)],
    "two results": lambda x: x.max(0)[::-1],
    "its input itself": lambda x: (x, x.sum()),
    "a constant": lambda x: (COUNTER, x @ WEIGHT.t()),
    "nothing": lambda x: None,
}
WEIGHT = torch.randn(2, 3)


@pytest.mark.parametrize("forward", CAN.values(), ids=CAN)
def test_what_is_the_same_again_is(forward):
    x, other = torch.randn(2, 4, 3)
    _, recorded = record(forward, x)
    before = other.clone()
    found, expected = recorded(other), forward(other)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.equal(other, before)


def test_inputs_that_are_not_recorded():
    x = torch.randn(2, 3)
    assert can_record((x,), {})
    assert not can_record((x, x), {}) and not can_record((x,), {"y": x}) and not can_record((3,), {})
    assert not can_record((nn.Parameter(x),), {}) and not can_record((x.to("meta"),), {})
    assert torch.vmap(lambda x: x + can_record((x,), {}))(torch.zeros(2)).tolist() == [0, 0]
    with forward_ad.dual_level():
        assert not can_record((forward_ad.make_dual(x, x),), {})
    with torch.enable_grad():
        assert not can_record((x.clone().requires_grad_(),), {})


def test_a_call_that_cannot_be_repeated_runs_its_forward():
    class Dropping(Net):
        def forward(self, x):
            return F.dropout(self.norm_a(self.a(x)), 0.5, True)

    fast, x = frozen(Dropping(), dense=["a"]), torch.randn(1, 3, 9, 8)
    outputs = [fast(x, density=0.3) for _ in range(4)]
    assert not any(torch.equal(a, b) for a, b in zip(outputs, outputs[1:], strict=False))
    recorded = level_of(fast, x, density=0.3).recorded
    assert not recorded or set(recorded.values()) == {Unrecorded.NEVER}


def test_the_oldest_recordings_of_all_levels_go(monkeypatch):
    monkeypatch.setattr(lcs.frozen, "_RECORDINGS", 3)
    fast, x = (
        lcs.convert(nn.Sequential(nn.Linear(4, 4)), lcs.Unstructured(line=False)).eval().freeze(),
        torch.ones(2, 4),
    )
    densities = [0.1, 0.2, 0.3, 0.4, 0.5]
    for density in densities:
        for _ in range(3):
            fast(x, density=density)
    kept = [bool(level_of(fast, x, density=density).recorded) for density in densities]
    assert kept == [False, False, True, True, True]
    expected = fast(x, density=0.1)
    for _ in range(3):
        assert torch.equal(fast(x, density=0.1), expected)


def test_no_call_is_recorded_before_another_has_made_the_weights_ready(monkeypatch):
    """Else a recording would hold what makes them, and read what nobody fills."""
    model = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    fast = lcs.convert(model, lcs.Unstructured(), dense=["0"]).freeze()
    x, began, goes_on = torch.randn(2, 4, 9, 9), threading.Event(), threading.Event()
    with torch.no_grad():
        expected = fast(x, density=0.5)  # of another level, so that only weights are made below
        runs, recorded = fast._run_fused, []

        def first(*given):
            monkeypatch.setattr(fast, "_run_fused", runs)
            began.set()
            goes_on.wait(60)
            return runs(*given)

        monkeypatch.setattr(fast, "_run_fused", first)
        monkeypatch.setattr("lcs.frozen.record", lambda *given: recorded.append(1) or record(*given))
        slow = threading.Thread(target=torch.no_grad()(fast), args=(x,), kwargs={"density": 0.3})
        slow.start()
        assert began.wait(60)
        found = fast(x, density=0.3)
        assert not recorded and found.shape == expected.shape
        goes_on.set()
        slow.join()
        for _ in range(2):
            assert torch.equal(fast(x, density=0.3), found)
    assert recorded


def test_calls_that_return_what_was_there_before_are_not_recorded():
    constant = torch.randn(3)
    lift = torch.ops.aten.lift_fresh.default  # returns its argument
    x = torch.randn(3)
    output, recorded = record(lambda x: x + lift(constant), x)
    assert recorded is None and torch.equal(output, x + constant)
