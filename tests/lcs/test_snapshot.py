"""What the tensors of a level are made of, and when they are made anew."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import lcs


@dataclass(slots=True)
class Output:
    logits: Tensor


class Named(dict):
    """pytree knows dicts, not their subclasses."""


HOLDERS = {
    "tensor": lambda x: x,
    "list": lambda x: [x],
    "subclass": lambda x: Named(logits=x),
    "dataclass": Output,
    "object": lambda x: SimpleNamespace(logits=[x]),
}


class Checkpointed(nn.Module):
    def __init__(self, reentrant, holder="tensor"):
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(2))
        self.reentrant, self.holder = reentrant, holder

    def forward(self, x):
        for part in (self.first, self.second):
            x = part(x) if self.reentrant is None else checkpoint(part, x, use_reentrant=self.reentrant)
        return HOLDERS[self.holder](x)


def held(output, holder):
    if holder == "tensor":
        return output
    return output[0] if holder == "list" else output["logits"] if holder == "subclass" else output.logits


RECIPES = [lcs.Unstructured(), lcs.Quantized(), lcs.Structured()]
# torch.fx, which draws a network of widths, takes no plain object.
HELD = [(holder, recipe) for holder in HOLDERS for recipe in RECIPES if not (recipe.cuts and holder == "object")]


@pytest.mark.parametrize(("holder", "recipe"), HELD, ids=str)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_in_the_forward_give_the_same_gradients(reentrant, holder, recipe):
    """Of several forwards at different levels, after the levels have been left."""
    grads = []
    for way in (None, reentrant):
        torch.manual_seed(0)
        model = Checkpointed(way, holder)
        subspace = lcs.convert(model, recipe, init="independent", dense=["second.2"]).eval()
        x = torch.randn(2, 4).requires_grad_()
        losses = []
        for value in (5, 8) if recipe.unit == "bits" else (0.3, 1.0):
            with subspace.at(**{recipe.unit: value}):
                output = held(subspace(x), holder)
            losses.append((output[0] if holder == "object" else output).square().sum())
        sum(losses).backward()
        assert subspace._slot.replay is None
        grads.append([p.grad for p in subspace.parameters()])
    assert all(torch.allclose(a, b, rtol=2**-20, atol=0) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("recipe", [lcs.Unstructured(line=False), lcs.Quantized(line=False)], ids=str)
def test_parameters_that_take_the_place_in_memory_of_others_are_read(recipe):
    """As those of torch.func.functional_call do, which are gone after it."""
    subspace = lcs.convert(nn.Sequential(nn.Linear(16, 16, bias=False)), recipe).eval()
    x, values = torch.ones(1, 16), [float(i) for i in range(1, 41)]
    with torch.no_grad(), subspace.at(recipe.full()):
        outputs = [
            torch.func.functional_call(subspace, {"model.0.weight": torch.full((16, 16), value)}, (x,))[0, 0].item()
            for value in values
        ]
    assert outputs == [16 * value for value in values]


@pytest.mark.parametrize("recipe", [lcs.Unstructured(), lcs.Structured()], ids=str)
def test_a_weight_that_a_hook_sets_is_refused_where_it_would_lag_behind(recipe):
    """By a step: such a hook runs when its layer is called. A parametrization computes whenever it is asked."""
    subspace = lcs.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), recipe, dense=["1"])
    prune.l1_unstructured(subspace.model[0], "weight", amount=0.5)
    with subspace.at(recipe.level(0.5)), pytest.raises(RuntimeError, match="a Linear is set by a hook"):
        subspace(torch.ones(1, 4))
    prune.remove(subspace.model[0], "weight")
    parametrizations.weight_norm(subspace.model[0])
    with subspace.at(recipe.level(0.5)):
        before = subspace(torch.ones(1, 4))
        subspace.model[0].parametrizations.weight.original0.data.zero_()
        assert not torch.equal(subspace(torch.ones(1, 4)), before)
