import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lcs

RECIPE = lcs.Structured(line=False)


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Model(nn.Module):
    """Two convolutions, joined by `join`, and a classifier that stays whole."""

    def __init__(self, join, *, first=8, second=8, third=8, head=8, **options):
        super().__init__()
        self.a, self.b, self.c = conv(3, first), conv(3, second), conv(third, 8, **options)
        self.norm, self.head = nn.GroupNorm(4, 8), nn.Linear(head, 5)
        self.join = join

    def forward(self, x):
        return self.head(self.join(self, x).mean((2, 3)))


def convert(join, dense=("head",), exclude=(), **options):
    torch.manual_seed(0)
    model = Model(join, **options)
    return lcs.convert(model, RECIPE, dense=list(dense), exclude=[*exclude, "norm"])


WORKS = {
    "a sum": lambda m, x: m.a(x) + m.b(x),
    "a product with a gate": lambda m, x: m.a(x) * m.b(x).mean((2, 3), keepdim=True).sigmoid(),
    "a chain": lambda m, x: m.c(F.relu(m.a(x))),
    "a sum with a scalar": lambda m, x: m.a(x) * 2 + 1,
    "pools and activations": lambda m, x: F.adaptive_avg_pool2d(F.gelu(F.max_pool2d(m.a(x), 2)), 1),
    "a layer that is called twice": lambda m, x: m.c(m.c(m.a(x))),
    "branches": lambda m, x: m.c(m.a(x)) + m.a(x),
}


@pytest.mark.parametrize("case", WORKS)
def test_widths_apply(case):
    subspace, x = convert(WORKS[case]), torch.randn(2, 3, 8, 8)
    for width in (0.1, 0.3, 0.77, 1.0):
        with subspace.at(width=width):
            assert subspace(x).shape == (2, 5)


REFUSED = {
    "concatenation": (
        lambda m, x: torch.cat([m.a(x), m.b(x)], 1),
        {"head": 16},
        r"the channels of a and b go into cat, which is not known to keep them .* dense=\['a', 'b'\]",
    ),
    "reshaped channels": (lambda m, x: m.a(x).view(-1, 4, 8, 8), {"head": 4}, "the channels of a go into view"),
    "channels taken out": (lambda m, x: m.a(x)[:, :4], {"head": 4}, "the channels of a go into getitem"),
    "flattened with the batch": (lambda m, x: m.a(x).flatten(0)[None, :, None, None], {}, "a go into flatten"),
    "a sum with the input": (lambda m, x: m.a(x) + x.sum(1, keepdim=True), {}, "a meet all those of the model's input"),
    "grouped": (lambda m, x: m.c(m.a(x)), {"groups": 2}, "c, whose 2 groups a width would cut through"),
    "a mean over channels": (lambda m, x: m.a(x).mean(1, keepdim=True), {"head": 1}, "a go into mean"),
    "a softmax over channels": (lambda m, x: m.a(x).softmax(1), {}, "a go into softmax"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_widths_that_cannot_be_applied_name_the_layers_and_the_step(case):
    join, options, words = REFUSED[case]
    with pytest.raises(ValueError, match=f"lcs.Structured: .*{words}"):
        convert(join, **options)


def test_layers_that_meet_must_be_cut_alike():
    with pytest.raises(ValueError, match=r"of a meet all those of b in add: compress both, or neither"):
        convert(lambda m, x: m.a(x) + m.b(x), dense=["head", "b"])
    with pytest.raises(ValueError, match="of a meet all those of b in add"):
        convert(lambda m, x: m.a(x) + m.b(x), exclude=["b"])
    subspace = convert(lambda m, x: m.c(m.a(x) + m.b(x)), dense=["head", "b", "a"])
    with subspace.at(width=0.5):
        assert subspace(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_as_many_channels_of_other_counts_disagree():
    model = nn.ModuleDict(
        {"a": conv(3, 3), "d": nn.Conv2d(3, 6, 1, groups=3), "b": conv(3, 6), "head": nn.Linear(6, 5)}
    )

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            y = self.layers["d"](self.layers["a"](x)) + self.layers["b"](x)
            return self.layers["head"](y.mean((2, 3)))

    with pytest.raises(ValueError, match="the channels of layers.a and layers.b meet in add, but are not as many"):
        lcs.convert(Net(), RECIPE, dense=["layers.head"])


def test_a_layer_called_with_other_channels_is_refused():
    with pytest.raises(ValueError, match="the channels of a both go into b"):
        convert(lambda m, x: m.b(x) + m.b(m.a(x)), first=3)


def test_a_layer_that_is_left_alone_takes_no_cut_channels():
    with pytest.raises(ValueError, match=r"the channels of a go into c, which is left as it is.*dense=\['a'\]"):
        convert(lambda m, x: m.c(m.a(x)), exclude=["c"])
    with pytest.raises(ValueError, match="the channels of a go into norm, which is left as it is"):
        convert(lambda m, x: m.norm(m.a(x)))


def test_a_group_norm_is_named():
    model = nn.Sequential(conv(3, 8), nn.GroupNorm(4, 8), conv(8, 5))
    with pytest.raises(ValueError, match="of 0 go into 1, whose 4 groups do not divide every width"):
        lcs.convert(model, RECIPE, dense=["2"])


@pytest.mark.parametrize("groups", [1, 8])
def test_a_group_norm_of_one_group_or_of_one_channel_each_is_cut(plain_norms_round_alike, groups):
    model = nn.Sequential(conv(3, 8), nn.GroupNorm(groups, 8), conv(8, 5))
    subspace, x = lcs.convert(model, RECIPE, dense=["2"]), torch.randn(2, 3, 8, 8)
    with torch.no_grad(), subspace.at(width=0.4):
        y = subspace(x)
    assert torch.equal(lcs.unconvert(subspace, width=0.4)(x), y) and model[1].num_channels == 3


@pytest.mark.parametrize("line", [False, True])
def test_a_group_norm_of_several_groups_behind_a_dense_layer_keeps_them(plain_norms_round_alike, line):
    model = nn.Sequential(conv(3, 8), nn.GroupNorm(4, 8), conv(8, 6), nn.ReLU(), conv(6, 5))
    subspace = lcs.convert(model, lcs.Structured(line=line), dense=["0", "4"], init="independent")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), subspace.at(width=0.4):
        y = subspace(x)
    fast = subspace.freeze()
    plain = lcs.unconvert(subspace, width=0.4)
    assert plain[1].num_groups == 4 and torch.equal(plain(x), y)
    assert torch.allclose(fast(x, width=0.4), y, atol=1e-5)


def test_grouped_layers_are_told_to_be_dense():
    with pytest.raises(ValueError, match=r"c has 2 groups.*dense=\['c'\], whose inputs must then be whole too"):
        convert(lambda m, x: m.c(m.a(x)), groups=2, dense=["head", "a"])
    subspace, x = convert(lambda m, x: m.c(m.a(x)), groups=2, dense=["head", "a", "c"]), torch.ones(1, 3, 4, 4)
    with subspace.at(width=0.5):
        assert subspace(x).shape == (1, 5)


def test_a_narrowed_output_of_the_model_is_refused():
    with pytest.raises(ValueError, match=r"the channels of head are outputs of the model.*dense=\['head'\]"):
        convert(WORKS["a sum"], dense=())


def test_a_forward_that_cannot_be_traced_is_refused():
    with pytest.raises(ValueError, match="the forward of Model cannot be traced.*TraceError"):
        convert(lambda m, x: m.a(x) if x.sum() > 0 else m.b(x))


def test_a_linear_network_with_a_layer_norm():
    model = nn.Sequential(nn.Linear(7, 12), nn.LayerNorm(12), nn.GELU(), nn.Dropout(0.0), nn.Linear(12, 3))
    subspace, x = lcs.convert(model, lcs.Structured(), dense=["4"]), torch.randn(2, 5, 7)
    with torch.no_grad(), subspace.at(width=0.3):
        y = subspace(x)
    assert y.shape == (2, 5, 3) and torch.equal(lcs.unconvert(subspace, width=0.3)(x), y)
    assert model[1].normalized_shape == (4,)


@pytest.mark.filterwarnings("ignore:running statistics")
def test_a_batch_norm_of_one_value_a_channel_is_named():
    def model(norm):
        return nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 4))

    for call in (lcs.plan, lcs.convert):
        with pytest.raises(ValueError, match=r"1 would be an instance norm of what 0 makes.*nn\.GroupNorm\(1, 16\)"):
            call(model(nn.BatchNorm1d(16)), lcs.Structured(), dense=["3"])
    for norm, how in ((nn.BatchNorm1d(16), {"norm": "keep"}), (nn.GroupNorm(1, 16), {})):
        subspace = lcs.convert(model(norm), lcs.Structured(), dense=["3"], **how)
        with subspace.at(width=0.5):
            assert subspace(torch.randn(4, 8)).shape == (4, 4)


@pytest.mark.parametrize("view", [lambda x: x.view(x.size(0), -1), lambda x: x.reshape((x.shape[0], -1)), nn.Flatten()])
def test_a_flattened_image_keeps_its_first_channels(view):
    subspace = lcs.convert(Flattened(view), RECIPE, dense=["head"])
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad(), subspace.at(width=0.5):
        y = subspace(x)
        hidden = F.conv2d(x, subspace.model.a.weight[:4], subspace.model.a.bias[:4], padding=1)
        whole = torch.cat([hidden, torch.zeros_like(hidden)], 1).flatten(1)
        torch.testing.assert_close(y, F.linear(whole, subspace.model.head.weight, subspace.model.head.bias))


class Flattened(nn.Module):
    def __init__(self, view):
        super().__init__()
        self.a, self.head, self.view = conv(3, 8), nn.Linear(128, 5), view

    def forward(self, x):
        return self.head(self.view(self.a(x)))
