"""A frozen network's fused forward runs only for the arguments that it was drawn for, and no call changes another's."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import lcs

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def frozen(model):
    return lcs.convert(model, lcs.Unstructured(), init="independent").eval().freeze()


class Optional(nn.Module):
    """Its graph is drawn without a mask."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x, mask=None):
        y = self.conv(x)
        return y if mask is None else y * mask.sum()


def test_arguments_that_do_not_fit_the_graph_run_the_model_and_are_named():
    fast = frozen(Optional())
    plain = fast(X, density=0.5)
    assert torch.equal(fast(X, None, density=0.5), fast(x=X, mask=None, density=0.5)) and fast.counters.unfused == ""
    assert torch.equal(fast(X, 2 * torch.ones(1), density=0.5), 2 * plain) and len(fast._forwards) == 3
    assert fast.counters.unfused == "the fused forward takes tensors, and no other values than the forward's defaults"


@dataclass(frozen=True)
class Switch:
    on: bool


class Switched(nn.Module):
    """A trace of it finds a proxy, which is not True, and draws the one way."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x, switch):
        y = self.conv(x)
        return y.softmax(1) if switch is True or getattr(switch, "on", None) is True else y


@pytest.mark.parametrize("kind", [bool, Switch])
def test_arguments_that_a_forward_compares_by_identity_are_told_apart(kind):
    fast = frozen(Switched())
    plain = fast(X, kind(False), density=0.5)
    assert torch.equal(fast(X, kind(True), density=0.5), plain.softmax(1))
    assert torch.equal(fast(X, kind(False), density=0.5), plain)
    assert "no other values than the forward's defaults" in fast.counters.unfused and not fast._forwards


class Keeping(nn.Module):
    """Changes its input, a list that it is given, and itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 3, 1), None
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x, seen=None):
        x.sub_(0.5)
        self.last = self.conv(x)
        self.steps += 1
        if seen is not None:
            seen.append(self.last)
        return self.last


def test_what_no_call_asked_for_changes_nothing(monkeypatch):
    monkeypatch.setattr("lcs.sparse_packing._FEW", 0)  # so that torch runs the convolution: other sums round otherwise
    for module in ("dense_packing", "sparse_packing"):
        monkeypatch.setattr(f"lcs.{module}.pays_packed", lambda layer, x_shape: False)
    model, seen = Keeping(), []
    for recipe in (lcs.Quantized(), lcs.Structured()):
        lcs.plan(nn.Sequential(model, nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), recipe, norm="keep", dense="2")
    assert model.last is None and model.steps == 0
    subspace = lcs.convert(model, lcs.Unstructured(), init="independent").eval()
    with torch.no_grad(), subspace.at(density=0.5):
        expected = subspace(X.clone())
    subspace.at(density=0.5).__enter__()
    subspace(X.clone()).sum().backward()  # leaves what torch copies only without its graph
    fast = subspace.freeze()
    x = X.clone()
    assert torch.equal(fast(x, seen, density=0.5), expected) and len(seen) == 1
    assert torch.equal(x, X - 0.5) and fast.counters.unfused == "its forward changes last and steps"


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, query, key):
        return self.a(query) if query is key else self.b(key)


def test_one_tensor_that_is_given_twice_is_told_from_two():
    fast, (x, y) = frozen(Pair()), torch.randn(2, 3, 4)
    apart = fast(y, x, density=0.5)
    assert not torch.equal(fast(x, x, density=0.5), apart) and torch.equal(fast(y, x, density=0.5), apart)
    assert fast.counters.unfused == "the fused forward gives another result"


class Typed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x.float() / 255 if x.dtype is torch.uint8 else x)


def test_inputs_of_another_dtype_are_told_apart():
    fast, x = frozen(Typed()), torch.randint(255, (2, 4), dtype=torch.uint8)
    whole = fast(x.float() / 255, density=0.5)
    assert torch.equal(fast(x, density=0.5), whole)


@dataclass
class Output:
    y: torch.Tensor
    scale: float


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 3, 1), nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x):
        return Output(self.pool(input=self.relu(input=self.conv(input=x))), float("nan"))


def test_keywords_and_dataclasses():
    fast = frozen(Named())
    found = fast(X, density=0.5)
    assert found.y.shape == (2, 3, 32, 32) and (found.y >= 0).all() and fast.counters.unfused == ""


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, noise):
        return self.fc(x) + noise * torch.randn(2, 4)


def test_a_tensor_that_a_forward_makes_is_made_by_each_call():
    fast, x = frozen(Noisy()), torch.randn(2, 4)
    fast(x, torch.zeros(()), density=0.5)
    assert not torch.equal(fast(x, torch.ones(()), density=0.5), fast(x, torch.ones(()), density=0.5))
    assert "its forward makes a tensor" in fast.counters.unfused
