"""Weights that a forward reads itself, as the window attention of Swin does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lcs
from lcs.reading import read_by_forwards


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x):
        x = F.layer_norm(x, self.norm.normalized_shape, self.norm.weight, self.norm.bias)
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        return F.linear(F.scaled_dot_product_attention(q, k, v), self.out.weight.data)


class Net(nn.Module):
    def __init__(self, branches):
        super().__init__()
        self.first, self.head, self.branches = nn.Linear(4, 8), nn.Linear(8, 3), branches
        self.blocks = nn.ModuleList([Attention(8), nn.Sequential(nn.Linear(8, 8), Attention(8))])
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if self.branches and x.sum() > 0:
            x = 2 * x
        y = torch.zeros(self.first.weight.shape[0], device=self.first.weight.device) + torch.rand(())
        y = y + self.first(x.type_as(self.first.weight)).view(-1, self.first.weight.size(0))
        for block in self.blocks:
            y = y + block(y)
        return self.head(y.to(self.head.weight))


@pytest.mark.parametrize("branches", [False, True])
def test_they_are_left_and_named(branches):
    torch.manual_seed(0)
    model, x = Net(branches).eval(), torch.randn(5, 4)
    before = torch.get_rng_state()
    plan = lcs.plan(model, lcs.Unstructured(), dense=["head"])
    assert torch.equal(torch.get_rng_state(), before) and model.calls == 0
    left = {row.name: row.reason for row in plan.rows if row.action == "leave"}
    inside = ("blocks.0.qkv", "blocks.0.out", "blocks.0.norm", "blocks.1.1.qkv", "blocks.1.1.out", "blocks.1.1.norm")
    assert left == dict.fromkeys(inside, "Attention reads its weight itself")
    fast = lcs.convert(model, lcs.Unstructured(), dense=["head"]).freeze(strict=True)
    assert [row.layer for row in fast.report(x, density=0.1).rows] == ["first", "head", "blocks.1.0"]


def test_one_that_is_called_as_well_is_left_too():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.middle = nn.Linear(8, 4, bias=False), nn.Linear(4, 4)

        def forward(self, x):
            return F.linear(self.middle(self.encode(x)), self.encode.weight.t())

    model = Tied()
    assert read_by_forwards(model) == {model.encode: "Tied"}
    with pytest.raises(ValueError, match="include: 'encode' covers no module.*Tied reads its weight itself"):
        lcs.plan(model, lcs.Unstructured(), include=["encode"])


def test_a_module_that_reads_its_own_is_refused_for_that():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(Standardised(3, 4, 3), nn.Conv2d(4, 4, 3))
    rows = lcs.plan(model, lcs.Unstructured()).rows
    assert [(row.action, row.reason) for row in rows] == [
        ("leave", "Standardised has a forward of its own"),
        ("compress", ""),
    ]


def test_widths_that_go_through_such_a_weight_are_refused():
    with pytest.raises(ValueError, match=r"the channels of first go into .*dense=\['first'\]"):
        lcs.plan(Net(False), lcs.Structured(), dense=["head"])
