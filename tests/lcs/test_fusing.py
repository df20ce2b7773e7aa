"""The fused forward gives the model's own bits, or the model's own forward runs."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lcs
from lcs import models
from lcs.fusing import fused, max_pool2d
from lcs.in_place import add_into, add_relu_into, relu_into
from lcs.layers.norms import FusedNorm
from lcs_kernels import costs

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def frozen(model):
    return lcs.convert(model, lcs.Unstructured(), init="independent").eval().freeze()


def targets(frozen):
    return [node.target for node in frozen._fused.graph.nodes if node.op == "call_function"]


def norms(frozen):
    """What each norm of the fused forward, or a convolution in its place, does besides, in order."""
    nodes = [node for node in frozen._fused.graph.nodes if node.op == "call_module"]
    named = dict(frozen.model.named_modules())
    return [
        set(node.kwargs) - {"normed"}
        for node in nodes
        if isinstance(named[node.target], FusedNorm) or "normed" in node.kwargs
    ]


def sums(frozen):
    """The convolutions of the fused forward without a norm that add a residual, and what else they do."""
    nodes = [node for node in frozen._fused.graph.nodes if node.op == "call_module" and "normed" not in node.kwargs]
    named = dict(frozen.model.named_modules())
    return [
        set(node.kwargs) - {"residual"}
        for node in nodes
        if "residual" in node.kwargs and not isinstance(named[node.target], FusedNorm)
    ]


@torch.no_grad()
def own(fast, x, density):
    """By the forward as it is written."""
    fast._forwards.clear()
    fast._fused, kept = None, fast._fused
    fast._shapes.clear()
    try:
        return fast(x, density=density)
    finally:
        fast._fused = kept


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", models.NAMES)
def test_models_give_the_same_bits(name, memory_format):
    fast, x = frozen(models.build(name, 10, seed=0)), X.contiguous(memory_format=memory_format)
    for density in (0.1, 1.0):
        found = fast(x, density=density)
        assert fast.counters.unfused == "" and fast._forwards
        assert torch.equal(found, own(fast, x, density))
        fast._shapes.clear()
        fast._choices.clear()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])
def test_a_first_layer_that_stays_dense_norms_and_pools(memory_format, bias, monkeypatch):
    monkeypatch.setattr(costs, "pays", lambda *_, **__: True)
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 12, 7, 2, 3, bias=bias), nn.GroupNorm(4, 12), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    model = nn.Sequential(*stem, nn.Conv2d(12, 5, 3))
    fast = lcs.convert(model, lcs.Unstructured(), init="independent", dense=["0"]).eval().freeze()
    last = X.contiguous(memory_format=torch.channels_last)
    for density in (0.1, 1.0):
        found = fast(X.contiguous(memory_format=memory_format), density=density)
        assert fast.counters.unfused == "" and not targets(fast)
        assert fast.report(X, density=density).rows[0].kernel == "width_conv2d_norm"
        assert torch.equal(found, own(fast, last, density))
        fast._shapes.clear()
        fast._choices.clear()


def test_what_is_fused_in_a_residual_network():
    fast = frozen(models.build("resnet18", 10, seed=0))
    steps = targets(fast)
    assert not {max_pool2d, F.relu, relu_into, add_into, add_relu_into} & set(steps)
    found = norms(fast)
    assert (
        found[0] == {"relu", "pool"}
        and found.count({"relu"}) == 8
        and found.count({"residual", "relu"}) == 8
        and found.count(set()) == 3
    )
    pre_activation = frozen(models.build("cpreresnet20", 10, seed=0))
    assert norms(pre_activation) == [{"relu"}] * 19 and sums(pre_activation) == [set()] * 6
    assert not {F.relu, relu_into, add_into, add_relu_into} & set(targets(pre_activation))


class Mixed(nn.Module):
    """Norms whose result is read again, broadcast, added to itself or to another norm, or clamped before the sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.GroupNorm(1, 3) for _ in range(3))
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x):
        y = self.a(x)
        z = self.relu(y) + y
        z = self.b(z) + x.mean((2, 3), keepdim=True)
        z = self.relu(self.c(z)) + z
        w = self.conv(z)
        return self.relu(self.a(w) + self.b(w)) + torch.relu(w + self.c(w))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_norms_take_in_what_they_can(dtype):
    fast = frozen(Mixed().to(dtype))
    x = X.to(dtype)
    found = fast(x, density=0.5)
    assert fast.counters.unfused == "" and fast._forwards
    assert torch.equal(found, own(fast, x, 0.5))
    assert norms(fast) == [set(), {"residual"}, {"relu"}, set(), {"residual", "relu"}, {"residual", "relu"}]


class Reused(nn.Module):
    """Sums and ReLUs whose input is read again, broadcast, or the same twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 1, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.a(x)
        z = F.relu(y) + y
        y = self.a(z)
        y = y + y
        return self.b(y) + self.relu(self.a(y)) + 1


def test_a_value_that_is_read_again_keeps():
    fast = frozen(Reused())
    found = fast(X, density=0.5)
    assert fast.counters.unfused == "" and fast._forwards
    assert torch.equal(found, own(fast, X, 0.5))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


def test_a_forward_that_branches_on_data_runs_as_it_is_and_is_named():
    fast = frozen(Branching())
    assert torch.equal(fast(-X.abs(), density=0.5), -X.abs())
    assert "TraceError" in fast.counters.unfused


class Counting(nn.Module):
    """Its result depends on more than its arguments."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 3, 1), 0

    def forward(self, x):
        self.calls += 1
        return self.conv(x) + self.calls


def test_a_forward_that_counts_its_calls_is_not_fused():
    fast = frozen(Counting())
    first, second = fast(X, density=0.5), fast(X, density=0.5)
    assert torch.allclose(second - first, torch.ones(()), atol=1e-5)
    assert fast.counters.unfused == "its forward changes calls"


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.GroupNorm(1, 4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)


class SumInPlace(Stem):
    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        x += self.conv(y.relu())
        return y + x


class Clamped(Stem):
    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        x.clamp_(max=1.0)
        return self.conv(x) + y


class InPlaceModule(Stem):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        return self.act(x) + y


class NormedLater(Stem):
    """The first convolution may wait for no norm behind it."""

    def forward(self, x):
        y = self.stem(x)
        x.clamp_(max=0.5)
        return self.norm(y) + x[:, :1, 1:-1, 1:-1]


@pytest.mark.parametrize("kind", [SumInPlace, Clamped, InPlaceModule, NormedLater])
def test_nothing_waits_past_a_change_in_place(kind):
    """Which the first input, of zeros, does not show."""
    subspace = lcs.convert(kind(), lcs.Unstructured(), init="independent").eval()
    fast, x = subspace.freeze(), 3 * X[:, :, :16, :16]
    fast(torch.zeros_like(x), density=1.0)
    with torch.no_grad(), subspace.at(density=1.0):
        expected = subspace(x.clone())
    given = x.clone()
    assert torch.equal(fast(given, density=1.0), expected) and fast.counters.unfused == ""
    assert torch.equal(given, x.clamp(max=0.5) if kind is NormedLater else x)


class Skips(Stem):
    """The skip is what the sum has changed."""

    def __init__(self, change):
        super().__init__()
        self.head, self.change = nn.Conv2d(4, 2, 1), change

    def forward(self, x):
        x = self.stem(x).relu()
        skip = x
        x = self.change(x, self.conv(x))
        return self.head(self.conv(x) + skip)


def _halves(x, y):
    a, b = x.chunk(2, 1)
    a += b
    return x + y


CHANGES = {
    "iadd": lambda x, y: operator.iadd(x, y),
    "imul": lambda x, y: operator.imul(x, y),
    "contiguous": lambda x, y: operator.iadd(x.contiguous(), 1) + y,
    "dropout": lambda x, y: operator.iadd(F.dropout(x, 0.5, False), y),
    "detach": lambda x, y: operator.isub(x.detach(), y),
    "chunk": _halves,
}


@pytest.mark.parametrize("first", ["zeros", "nan", "density"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_skip_of_what_changes_in_place(change, first):
    """Which neither zeros nor NaN show, nor a level at which nothing gets through."""
    subspace = lcs.convert(Skips(CHANGES[change]), lcs.Unstructured(density=(0.01, 1.0)), init="independent").eval()
    fast, x = subspace.freeze(), X[:, :, :16, :16]
    given = {"zeros": 0 * x, "nan": x / 0 * 0, "density": x}[first]
    fast(given, density=0.01 if first == "density" else 1.0)
    with torch.no_grad(), subspace.at(density=1.0):
        expected = subspace(x)
    for _ in range(3):
        assert torch.allclose(fast(x, density=1.0), expected, atol=1e-5)


def test_a_residual_that_is_added_in_place_is_part_of_the_norm():
    class Block(Stem):
        def forward(self, x):
            x = self.stem(x)
            y = self.norm(self.conv(x))
            y += x
            return y.relu()

    fast = frozen(Block())
    fast(X[:, :, :16, :16], density=0.5)
    assert norms(fast) == [{"residual", "relu"}] and fast.counters.unfused == ""


@pytest.mark.parametrize("given", [torch.zeros_like(X), torch.full_like(X, torch.nan)], ids=["zeros", "nan"])
def test_a_first_input_that_hides_a_difference_is_not_believed(given):
    fast = frozen(nn.Sequential(nn.Conv2d(3, 3, 1, bias=False)))
    fast._fused.__dict__["forward"] = lambda x: 2 * fast.model(x)
    fast.prepare(given, density=0.5)
    assert fast.counters.unfused == "the fused forward gives another result"


def test_hooks_on_the_model_itself_still_run():
    model, seen = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), []
    model.register_forward_pre_hook(lambda m, args: (args[0].clamp(max=0.5),))
    model.register_forward_hook(lambda m, args, y: seen.append(y))
    fast = frozen(model)
    fast(torch.zeros_like(X), density=0.5)
    seen.clear()
    assert torch.equal(fast(X, density=0.5), fast(X.clamp(max=0.5), density=0.5)) and len(seen) == 2
    assert fast.counters.unfused == "somebody has registered a hook on the model"


def test_hooks_on_an_activation_still_run():
    model, seen = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)), []
    model[1].register_forward_hook(lambda m, args, y: seen.append(y))
    fast = frozen(model)
    fast(X, density=0.5)
    before = len(seen)
    fast(X, density=0.5)
    assert len(seen) == before + 1


@pytest.mark.parametrize("name", ["conv1", "norm1", "layer1", "layer2.0.conv1", "layer2.0.norm2"])
def test_hooks_of_later_on_see_what_a_module_gives(name):
    """Of a network from a file there are no others."""
    subspace = lcs.convert(models.build("resnet18", 10, seed=0), lcs.Unstructured(), init="independent").eval()
    fast, seen = subspace.freeze(), []
    found = fast(X, density=0.5)
    for model in (subspace.model, fast.model):
        model.get_submodule(name).register_forward_hook(lambda m, args, y: seen.append(y))
    with torch.no_grad(), subspace.at(density=0.5):
        subspace(X)
    assert torch.equal(fast(X, density=0.5), found)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4)
    assert len(seen) == 2 and "hook" in fast.counters.unfused


@pytest.mark.parametrize("build", [lambda: models.build("resnet18", 10, seed=0), Mixed, Reused])
def test_gradients_reach_x(build):
    fast = frozen(build())
    x = X.clone().requires_grad_()
    fast(x, density=0.5).square().sum().backward()
    found, x.grad = x.grad, None
    fast._forwards.clear()
    fast(x, density=0.5).square().sum().backward()
    assert torch.equal(found, x.grad)


POOLS = [
    (3, 2, 1, 1, False),
    (2, None, 0, 1, False),
    (2, [], 0, 1, False),
    ((3, 1), (1, 2), (1, 0), 1, False),
    (1, 3, 0, 1, False),
    (5, 2, 2, 1, True),
    (3, 1, 0, 2, False),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pooling_gives_the_same_bits(pool, dtype):
    x = X.to(dtype).clone()
    x[0, 0, 5, 5], x[0, 1, 3, 3], x[1, 2] = torch.nan, torch.inf, -torch.inf
    for case in (x, x[..., :7, :9].contiguous(), x.contiguous(memory_format=torch.channels_last), x[0]):
        found, expected = max_pool2d(case, *pool), F.max_pool2d(case, *pool)
        assert torch.equal(found.nan_to_num(), expected.nan_to_num()) and torch.equal(found.isnan(), expected.isnan())


def test_pooling_errors_are_torchs():
    with pytest.raises(RuntimeError, match="too small"):
        max_pool2d(X[..., :1, :1], 3, 2, 0, 1, False)
    with pytest.raises(RuntimeError, match="pad"):
        max_pool2d(X, 2, 2, 2, 1, False)


def test_pooling_has_a_gradient():
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: max_pool2d(x, 3, 2, 1, 1, False), X[:1, :1, :6, :6].double().requires_grad_()
    )
    assert max_pool2d(x, 3, 2, 1, 1, False).requires_grad


def test_sums_in_place_fit_or_broadcast():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    expected = a + b
    assert add_into(a, b) is a and torch.equal(a, expected)
    assert torch.equal(add_relu_into(a.clone(), b[:1]), F.relu(a + b[:1]))
    assert add_into(a, b.double()).dtype == torch.float64


def test_fusing_leaves_the_model_alone():
    subspace = lcs.convert(models.build("cpreresnet20", 10, seed=0), lcs.Unstructured()).eval()
    before = list(subspace.model.state_dict())
    fused(subspace.model)
    assert list(subspace.model.state_dict()) == before


@pytest.mark.parametrize(
    "words", ["DefaultCPUAllocator: can't allocate memory", "aoti_torch_empty_strided(...) failed"]
)
def test_a_shortage_of_memory_is_no_fault_of_the_fused_forward(words):
    subspace = lcs.convert(nn.Sequential(nn.Conv2d(3, 3, 1)), lcs.Unstructured(), init="independent").eval()
    fast = subspace.freeze()
    own = fast._fused.forward

    def fails(x):
        fast._fused.__dict__["forward"] = own
        raise RuntimeError(words)

    fast._fused.__dict__["forward"] = fails
    with torch.no_grad(), subspace.at(density=0.5):
        expected = subspace(X)
    assert torch.allclose(fast(X, density=0.5), expected, atol=1e-5) and not fast._forwards
    assert torch.allclose(fast(X, density=0.5), expected, atol=1e-5) and fast._forwards
    assert fast.counters.unfused == ""


class Steps(nn.Module):
    """Takes a time in [0, 1], the same for all images."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(1000, 3), nn.Conv2d(3, 3, 1)

    def forward(self, x, t):
        return self.conv(x + self.embedding((t * 999).long())[:, :, None, None])


@pytest.mark.parametrize("t", [0.0, 0.9, 1.0])
def test_inputs_that_are_all_alike_may_be_what_the_model_takes(t):
    fast = frozen(Steps())
    assert fast(X, torch.full((2,), t), density=0.5).shape == X.shape and fast.counters.unfused == ""
