"""What a level remembers of its layers' calls: later ones give the same bits and raise the same errors."""

import copy
import threading

import pytest
import torch
from torch import nn

import lcs
from lcs import models
from lcs.layers import frozen_norm
from lcs_kernels import costs

X = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
LAYOUTS = torch.contiguous_format, torch.channels_last


@pytest.fixture(params=[True, False], ids=["sparse", "dense"])
def pays(request, monkeypatch):
    monkeypatch.setattr(costs, "pays", lambda *_, **__: request.param)
    monkeypatch.setattr("lcs.sparse_packing._FEW", 0)  # else convolutions of few products are sparse anyway


def frozen(norm="keep", recipe=None, dtype=torch.float32, name="resnet18"):
    model = models.build(name, 10, seed=0, norm="batch" if norm == "keep" else norm).to(dtype).eval()
    recipe, kept = recipe or lcs.Unstructured(line=False), {"norm": norm} if norm == "keep" else {}
    return lcs.convert(model, recipe, dense=["conv1" if recipe.unit == "density" else "fc"], **kept).eval().freeze()


def plans(fast, x, **setting):
    level = fast.recipe.level(*setting.values())
    return fast._packed(level, fast._chosen(level, ((x.shape, x.dtype),), (x,), {})).plans


def refuse(*_, **__):
    raise AssertionError("made anew")


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", ["keep", "group"])
def test_later_calls_make_nothing_and_give_the_same_bits(norm, dtype, pays, monkeypatch):
    fast = frozen(norm, dtype=dtype)
    inputs = [X.to(dtype).flip(0).contiguous(memory_format=layout) for layout in LAYOUTS]
    expected = [copy.deepcopy(fast)(x, density=0.3) for x in inputs]
    leaves = [inputs[0].clone().requires_grad_() for _ in range(2)]
    results = [copy.deepcopy(fast)(leaves[0], density=0.3)]
    with torch.inference_mode():
        fast(X.to(dtype), density=0.3)
    monkeypatch.setattr(frozen_norm.NormBehind, "bound", refuse)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            assert all(torch.equal(fast(x, density=0.3), y) for x, y in zip(inputs, expected, strict=True))
    results.append(fast(leaves[1], density=0.3))
    assert torch.equal(*results)
    grads = [torch.autograd.grad(y.float().sum(), leaf)[0] for y, leaf in zip(results, leaves, strict=True)]
    assert torch.equal(*grads) and grads[0].abs().max() > 0


def test_widths_remember_their_own(monkeypatch):
    fast = frozen("instance", lcs.Structured())
    expected = {width: copy.deepcopy(fast)(X, width=width) for width in (0.25, 0.6, 1.0)}
    for width in expected:
        fast(X, width=width)
    monkeypatch.setattr(frozen_norm.NormBehind, "bound", refuse)
    assert all(torch.equal(fast(X, width=width), y) for width, y in expected.items())


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("norm", ["keep", "group"])
def test_what_does_not_fit_raises_as_at_first(norm, pays):
    fast = frozen(norm)
    wrong = [X.double(), X[:, :2], X.bfloat16(), X[0, 0], X.to("meta")]  # torch's and our ops name a device otherwise
    errors = []
    for _ in range(2):  # before anything is remembered, and after
        for x in wrong:
            with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError)) as raised:
                fast(x, density=0.3)
            errors.append("" if x.is_meta else (raised.type, str(raised.value)))
        fast(X, density=0.3)
    assert errors[: len(wrong)] == errors[len(wrong) :]


def test_a_packed_weight_that_has_been_written_to_is_still_noticed():
    fast = frozen("instance", lcs.Structured())
    fast(X, width=0.5)
    with torch.no_grad():
        fast.model.layer1[0].conv1.weight.mul_(2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="changed in place since it was packed"):
            fast(X, width=0.5)


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_a_norm_that_has_been_written_to_counts(norm, pays):
    fast = frozen(norm)
    before = fast(X, density=0.3)
    with torch.no_grad():
        fast.model.layer1[0].norm1.weight.mul_(2)
    assert torch.equal(fast(X, density=0.3), copy.deepcopy(fast)(X, density=0.3))
    assert not torch.equal(fast(X, density=0.3), before)


@pytest.mark.filterwarnings("ignore:running statistics")
def test_a_level_remembers_a_bounded_number_of_calls(monkeypatch):
    monkeypatch.setattr(frozen_norm, "_PLANS", 50)
    fast, expected = frozen(), frozen()
    for n in range(1, 9):
        x = torch.randn(n, 3, 32, 32)
        assert torch.equal(fast(x, density=0.3), expected(x, density=0.3))
        assert 0 < len(plans(fast, x, density=0.3)) <= 50


@pytest.mark.filterwarnings("ignore:running statistics")
def test_threads_that_bring_other_shapes(pays, monkeypatch):
    monkeypatch.setattr(frozen_norm, "_PLANS", 30)  # cleared during calls
    fast, wrong = frozen(), []
    inputs = [torch.randn(n, 3, 32, 32) for n in (1, 2, 3)]
    expected = [frozen()(x, density=0.3) for x in inputs]

    def run(i: int) -> None:
        with torch.no_grad():
            wrong.extend(
                j for j in range(i, i + 30) if not torch.equal(fast(inputs[j % 3], density=0.3), expected[j % 3])
            )

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_hooks_for_all_modules_see_each():
    fast, seen = frozen("group"), []
    fast(X, density=0.3)
    hook = nn.modules.module.register_module_forward_hook(lambda m, args, y: seen.append(m))
    try:
        fast(X, density=0.3)
        assert set(fast.model.modules()) - {*seen} <= {m for m in fast.model.modules() if isinstance(m, nn.ModuleList)}
        assert "hook" in fast.counters.unfused
    finally:
        hook.remove()
    assert fast.counters.unfused == ""


def test_pooling_by_lists():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d([3, 3], [2, 2], [1, 1]))
    model.append(nn.Conv2d(8, 8, 3))
    fast = lcs.convert(model, lcs.Unstructured(), dense=["0"]).eval().freeze()
    own = fast._call(fast.recipe.level(0.5), (X,), {}, fused=False)
    torch.testing.assert_close(fast(X, density=0.5), own)
    assert fast.counters.unfused == ""


@pytest.mark.filterwarnings("ignore:running statistics")
def test_an_export_leaves_nothing_without_data(pays):
    fast, expected = frozen(), frozen()(X, density=0.5)

    class Serving(nn.Module):
        def forward(self, x):
            return fast(x, density=0.5)

    fast.prepare(X, density=0.5)
    plans(fast, X, density=0.5).clear()
    exported = torch.export.export(Serving(), (X,), strict=False).module()
    assert torch.equal(exported(X), expected) and torch.equal(fast(X, density=0.5), expected)
