"""Convolutions that do the norm behind them give the bits of both after each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lcs
from lcs import models
from lcs.layers import frozen_norm
from lcs_kernels import costs

from .test_fusing import frozen, norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_convolution_of_all_widths_does_the_norm_behind_it(dtype):
    model = models.build("resnet18", 10, in_channels=3, seed=0, norm="instance").to(dtype)
    fast = lcs.convert(model, lcs.Structured(), dense=["fc"], init="independent").freeze()
    x = torch.randn(2, 3, 65, 70).to(dtype)
    for width in (0.25, 0.61, 1.0):
        found = fast(x, width=width)
        assert torch.equal(found, fast._call(fast.recipe.level(width), (x,), {}, fused=False))
    assert fast.counters.unfused == "" and fast._forwards and norms(fast)[0] == {"relu", "pool"}
    assert sum(node.kwargs.get("normed", False) for node in fast._fused.graph.nodes) == 20
    assert fast(x.clone().requires_grad_(), width=0.5).requires_grad


class Convolutions(nn.Module):
    """What a sparse convolution can do with the norm behind it, and what it leaves to the norm."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2))
        self.strided = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.InstanceNorm2d(8, affine=True))
        self.pointwise = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8))
        self.groups = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.GroupNorm(4, 8))
        self.same = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same"), nn.GroupNorm(4, 8))
        self.reflect = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(1, 8))
        self.running = nn.Sequential(nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8, track_running_stats=True))

    def forward(self, x):
        y = self.plain(x)
        y = self.strided(y) + y.mean((2, 3), keepdim=True)
        y = self.same(self.groups(F.relu(self.pointwise(y) + y)) + y)
        return self.running(F.relu(self.reflect(y) + y))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:running statistics")
def test_a_sparse_convolution_does_the_norm_behind_it(dtype, memory_format, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(costs, "pays", lambda *_, **__: True)
    fast = frozen(Convolutions().to(dtype))
    calls = []
    one = frozen_norm.bound_sparse_conv2d_norm
    monkeypatch.setattr(
        frozen_norm, "bound_sparse_conv2d_norm", lambda *a, **k: calls.append(a[0].shape) or one(*a, **k)
    )
    for n in (2, 9):
        x = torch.randn(n, 3, 20, 22).to(dtype).contiguous(memory_format=memory_format)
        for density in (0.1, 0.5):
            calls.clear()
            found = fast(x, density=density)
            assert len(calls) == 2 and fast.counters.unfused == ""
            assert torch.equal(found, fast._call(fast.recipe.level(density), (x,), {}, fused=False))
    x.requires_grad_()
    grads = [
        torch.autograd.grad(fast._call(fast.recipe.level(0.5), (x,), {}, fused=fused).square().sum(), x)[0]
        for fused in (True, False)
    ]
    assert torch.equal(*grads)


class Kept(nn.Module):
    """Batch norms behind convolutions of every kind, with what may follow; one of two readers, and one read twice."""

    def __init__(self):
        super().__init__()

        def normed(*conv, **options):
            layer = nn.Conv2d(*conv, **options)
            return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels, eps=0.0, affine=options.get("bias", True)))

        self.first = nn.Sequential(normed(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.expand = nn.Sequential(normed(8, 12, 1, bias=False), nn.ReLU6())
        self.depthwise = nn.Sequential(normed(12, 12, 3, 2, 1, groups=12), nn.ReLU6())
        self.project, self.short = normed(12, 8, 1), normed(8, 8, 3, 2, 1)
        self.dense, self.same = normed(8, 32, 3, padding=1), normed(32, 32, 3, padding="same")
        self.read, self.last = normed(32, 4, 1), normed(4, 4, 1)

    def forward(self, x):
        x = self.first(x)
        y = F.relu(self.project(self.depthwise(self.expand(x))) + self.short(x))
        z = F.relu6(self.dense(y))
        z = F.relu(self.same(z) + z)
        before = self.read[0](z)
        return self.last(F.relu(self.read[1](before) + before.amax((2, 3), keepdim=True)))


# What convolutions of `Kept` do beside their norms.
DONE = {
    "first.0.0": {"relu", "pool"},
    "expand.0.0": {"relu", "cap"},
    "depthwise.0.0": {"relu", "cap"},
    "project.0": {"residual", "relu"},
    "short.0": set(),
    "dense.0": {"relu", "cap"},
    "same.0": {"residual", "relu"},
    "last.0": set(),
}


def done_behind(fast):
    nodes = [node for node in fast._fused.graph.nodes if node.op == "call_module" and "normed" in node.kwargs]
    return {node.target: set(node.kwargs) - {"normed"} for node in nodes}


def integer_model(model):
    """Sums, and the norms of them, are exact in float32."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randint(-1, 2, tensor.shape) if "running_var" not in name else torch.tensor(4.0))
    return model


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("pays", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("recipe", [lcs.Unstructured(), lcs.Unstructured(line=False)], ids=["line", "point"])
def test_a_convolution_does_the_batch_norm_behind_it(recipe, pays, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(costs, "pays", lambda *_, **__: pays)
    monkeypatch.setattr("lcs.sparse_packing._FEW", 0)  # else convolutions of few products are sparse anyway
    fast = lcs.convert(integer_model(Kept().eval()), recipe, norm="keep", dense=["first.0.0"]).eval().freeze()
    level = fast.recipe.level(0.6, 1.0 if recipe.line else None)
    for n in (2, 9):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randint(-1, 2, (n, 3, 22, 26)).float().contiguous(memory_format=layout)
            found = fast(x, level=level)
            assert fast.counters.unfused == "" and fast._forwards and found.abs().max() > 1
            assert torch.equal(found, fast._call(level, (x,), {}, fused=False))
    assert done_behind(fast) == DONE
    kernels = {row.layer: row.kernel for row in fast.report(x, level=level).rows}
    assert kernels["depthwise.0.0"] == "width_conv2d" and kernels["dense.0"] == (
        "sparse_conv2d" if pays else "width_conv2d"
    )


@pytest.mark.filterwarnings("ignore:running statistics")
def test_gradients_pass_a_batch_norm_in_a_convolution(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(costs, "pays", lambda *_, **__: True)
    fast = lcs.convert(integer_model(Kept().eval()), lcs.Unstructured(line=False), norm="keep").eval().freeze()
    x = torch.randint(-1, 2, (2, 3, 22, 26)).float().requires_grad_()
    with torch.inference_mode():  # what it has made then serves calls with gradients, too
        fast(x, density=0.6)
    grads = [
        torch.autograd.grad(fast._call(fast.recipe.level(0.6), (x,), {}, fused=fused).sum(), x)[0]
        for fused in (True, False)
    ]
    assert torch.equal(*grads) and grads[0].abs().max() > 0


_FIXED = lcs.Structured(fixed=(0.5, 1.0), per_width=True)


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "recipe", [lcs.Structured(), lcs.Structured(line=False), _FIXED], ids=["line", "point", "per width"]
)
def test_a_convolution_of_all_widths_does_the_batch_norm_behind_it(recipe, layout):
    torch.manual_seed(0)
    subspace = lcs.convert(integer_model(Kept().eval()), recipe, norm="keep", dense=["last.0"])
    integer_model(subspace.model)
    fast = subspace.eval().freeze()
    for n in (2, 9):
        x = torch.randint(-1, 2, (n, 3, 22, 26)).float().contiguous(memory_format=layout)
        for width in (0.5, 0.8, 1.0):
            level = fast.recipe.level(width, 1.0 if recipe.line else None)
            found = fast(x, level=level)
            assert fast.counters.unfused == "" and fast._forwards and found.abs().max() > 1
            assert torch.equal(found, fast._call(level, (x,), {}, fused=False))
    x.requires_grad_()
    grads = [torch.autograd.grad(fast._call(level, (x,), {}, fused=fused).sum(), x)[0] for fused in (True, False)]
    assert torch.equal(*grads) and grads[0].abs().max() > 0
    assert done_behind(fast) == DONE
