"""Each kind of layer against the plain torch module that holds the hand-made weights of the level."""

import copy
import pickle

import pytest
import torch
from torch import nn

import lcs

from ..ops.test_line_norm import UNIT, exact

ALPHA, DENSITY = 0.3, 0.5
IMAGE, SEQUENCE, FLAT = (3, 8, 6, 6), (3, 8, 9), (3, 8)
WEIGHT_KINDS = {
    "linear": (lambda: nn.Linear(8, 5), FLAT),
    "linear on 3d": (lambda: nn.Linear(9, 5, bias=False), SEQUENCE),
    "conv1d": (lambda: nn.Conv1d(8, 6, 3, padding=1, padding_mode="circular"), SEQUENCE),
    "conv1d strided": (lambda: nn.Conv1d(8, 4, 3, stride=2, dilation=2, groups=2, bias=False), SEQUENCE),
    "conv2d": (lambda: nn.Conv2d(8, 6, 3), IMAGE),
    "conv2d grouped": (lambda: nn.Conv2d(8, 8, (3, 1), stride=(2, 1), groups=8, bias=False), IMAGE),
    "conv2d same": (lambda: nn.Conv2d(8, 4, 3, padding="same", dilation=2), IMAGE),
    "conv2d reflect": (lambda: nn.Conv2d(8, 4, 3, padding=2, padding_mode="reflect"), IMAGE),
}
NORM_KINDS = {
    "group norm": (lambda: nn.GroupNorm(2, 8, eps=1e-3), IMAGE),
    "layer norm": (lambda: nn.LayerNorm((6, 6)), IMAGE),
    "layer norm without bias": (lambda: nn.LayerNorm(9, bias=False), SEQUENCE),
    "instance norm 1d": (lambda: nn.InstanceNorm1d(8, affine=True), SEQUENCE),
    "instance norm 2d": (lambda: nn.InstanceNorm2d(8, affine=True), IMAGE),
    "instance norm 2d unbatched": (lambda: nn.InstanceNorm2d(8, affine=True), (8, 6, 6)),
    "instance norm 3d": (lambda: nn.InstanceNorm3d(8, affine=True), (2, 8, 3, 3, 3)),
}
KEPT_NORMS = {
    "instance norm tracked": (lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True), IMAGE),
    "batch norm 1d": (lambda: nn.BatchNorm1d(8), FLAT),
    "batch norm 2d": (lambda: nn.BatchNorm2d(8, momentum=None), IMAGE),
    "batch norm 2d untracked": (lambda: nn.BatchNorm2d(8, track_running_stats=False), IMAGE),
    "batch norm 3d": (lambda: nn.BatchNorm3d(8), (2, 8, 3, 3, 3)),
}


class Tail(nn.Module):
    """`layer`, and a weight layer beside it so that there is always something to compress."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.other = layer, nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)


def randomise(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def line_of(make, dtype=torch.float32, **options):
    model = randomise(Tail(make()), 0).to(dtype)
    subspace = lcs.convert(model, lcs.Unstructured(), norm="keep", **options)
    randomise(subspace, 1)
    return subspace


def pruned(w, density):
    keep = lcs.Unstructured().keep(density, w.numel())
    mask = torch.zeros(w.numel(), dtype=torch.bool)
    mask[w.detach().abs().flatten().argsort(stable=True)[w.numel() - keep :]] = True
    return torch.where(mask.view(w.shape), w, 0)


def composed(layer, alpha, density):
    """The tensors of the level, by hand from the ends."""
    wide = torch.promote_types(layer.weight.dtype, torch.float32)
    a = torch.tensor(alpha, dtype=wide)
    out = {}
    for name in ("weight", "bias"):
        if getattr(layer, name) is not None:
            p0, p1 = (p.to(wide) for p in (getattr(layer, name), getattr(layer, f"{name}_1")))
            out[name] = ((1 - a) * p0 + a * p1).to(layer.weight.dtype)
    if layer.compressed:
        out["weight"] = pruned(out["weight"], density)
    return out


def check_against_plain(make, shape, dtype=torch.float32, **options):
    subspace = line_of(make, dtype, **options)
    layer, plain = subspace.model.layer, make().to(dtype)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    for training in (True, False):
        subspace.train(training), plain.train(training)
        with subspace.at(density=DENSITY, alpha=ALPHA):
            y = subspace(x)
        if layer.takes_ends:
            check_fused_norm(layer, x, y)
        else:
            expected = torch.func.functional_call(plain, composed(layer, ALPHA, DENSITY), x)
            torch.testing.assert_close(y, expected, rtol=0, atol=0)
    for name, buffer in plain.named_buffers():
        assert torch.equal(layer.get_buffer(name), buffer)
    return subspace


def check_fused_norm(layer, x, y):
    """Against the norm in float64, to what the op's roundings allow."""
    batched = x if x.dim() == y.dim() and x.shape[1] == len(layer.weight) else x[None]
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else layer.num_features
    ends = [layer.weight, layer.weight_1, layer.bias, layer.bias_1]
    expected, off = exact(batched, ends, ALPHA, groups, layer.eps, roundings=x.numel())
    unit = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    last = UNIT.get(x.dtype, 0.0)
    error = (y.double() - expected.view(y.shape)).abs()
    assert y.dtype == x.dtype and (error <= unit * off.view(y.shape) + last * (expected.abs().view(y.shape) + 1)).all()


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@pytest.mark.parametrize("dense", [(), ("layer",)], ids=["compressed", "dense"])
def test_weight_layers(kind, dense):
    make, shape = WEIGHT_KINDS[kind]
    layer = check_against_plain(make, shape, dense=dense).model.layer
    assert isinstance(layer, type(make())) and isinstance(layer, lcs.layers.SubspaceLayer)
    assert layer.compressed is (not dense)


@pytest.mark.parametrize("kind", NORM_KINDS)
def test_norms(kind):
    make, shape = NORM_KINDS[kind]
    assert isinstance(check_against_plain(make, shape).model.layer, type(make()))


@pytest.mark.parametrize("kind", KEPT_NORMS)
@pytest.mark.filterwarnings("ignore:running statistics")
def test_norms_that_keep_running_statistics(kind):
    make, shape = KEPT_NORMS[kind]
    assert isinstance(check_against_plain(make, shape).model.layer, type(make()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "layer norm", "group norm"])
def test_dtypes(kind, dtype):
    make, shape = (WEIGHT_KINDS | NORM_KINDS)[kind]
    subspace = check_against_plain(make, shape, dtype)
    assert subspace.model.layer.weight_1.dtype == dtype


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_a_point_has_one_end(kind):
    make, shape = WEIGHT_KINDS[kind]
    model = randomise(Tail(make()), 0)
    subspace = lcs.convert(model, lcs.Unstructured(line=False))
    layer, x = model.layer, torch.randn(shape)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    with subspace.at(density=DENSITY):
        y = subspace(x)
    weights = {"weight": pruned(layer.weight, DENSITY), "bias": layer.bias}
    assert torch.equal(y, torch.func.functional_call(make(), weights, x))


@pytest.mark.parametrize("kind", ["linear", "conv2d reflect", "layer norm", "group norm"])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_gradients_of_both_ends_are_those_of_the_composition(plain_norms_round_alike, kind, density):
    make, shape = (WEIGHT_KINDS | NORM_KINDS)[kind]
    subspace = line_of(make, torch.float64)
    layer, x = subspace.model.layer, torch.randn(shape, dtype=torch.float64)
    parameters = list(layer.parameters())
    with subspace.at(density=density, alpha=ALPHA):
        grads = torch.autograd.grad(subspace(x).square().sum(), parameters)
    y = torch.func.functional_call(make().double(), composed(layer, ALPHA, density), x)
    expected = torch.autograd.grad(y.square().sum(), parameters)
    for name, grad, hand in zip(dict(layer.named_parameters()), grads, expected, strict=True):
        assert torch.equal(grad, hand), name


def test_a_pruned_weight_gets_no_gradient_and_a_kept_one_does():
    subspace = line_of(WEIGHT_KINDS["linear"][0])
    layer = subspace.model.layer
    with subspace.at(density=0.25, alpha=0.5):
        subspace(torch.rand(FLAT) + 1).sum().backward()
    assert int((layer.weight.grad != 0).sum()) == int((layer.weight_1.grad != 0).sum()) == 10


def test_conversion_keeps_parameters_hooks_attributes_and_mode():
    conv = nn.Conv2d(3, 4, 3)
    conv.note, seen = "mine", []
    handle = conv.register_forward_hook(lambda *args: seen.append(1))
    conv.weight.requires_grad_(False)
    model = nn.Sequential(conv).eval()
    subspace = lcs.convert(model, lcs.Unstructured())
    layer = model[0]
    assert layer.weight is conv.weight and layer.bias is conv.bias and layer.note == "mine" and not layer.training
    assert not layer.weight_1.requires_grad and layer.bias_1.requires_grad
    assert "weight_1" not in dict(conv.named_parameters())
    with subspace.at(density=0.5):
        subspace(torch.rand(1, 3, 5, 5))
        handle.remove()
        subspace(torch.rand(1, 3, 5, 5))
    assert seen == [1]


def test_an_optimizer_made_before_the_conversion_still_moves_the_first_end():
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    subspace = lcs.convert(model, lcs.Unstructured())
    before = model[0].weight.detach().clone()
    with subspace.at(density=1.0, alpha=0.5):
        subspace(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before - 0.05)


class Patient(nn.Conv2d):
    """A user's subclass without a forward of its own."""

    def patience(self):
        return "long"


def test_a_subclass_without_its_own_forward_comes_back_as_itself():
    model = nn.Sequential(Patient(3, 4, 3))
    subspace = lcs.convert(model, lcs.Unstructured())
    assert isinstance(model[0], lcs.layers.SubspaceConv2d)
    assert lcs.unconvert(subspace, density=0.5)[0].patience() == "long"


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("what", ["subspace", "model"])
def test_a_copy_computes_the_same_and_shares_nothing(copier, what):
    subspace = line_of(WEIGHT_KINDS["conv2d"][0])
    subspace.set_level(density=0.4)
    x = torch.randn(IMAGE)
    y = subspace(x)  # leaves no graph behind that could not be copied
    twin = copier(subspace if what == "subspace" else subspace.model)
    assert torch.equal(twin(x), y)
    randomise(twin, 7)
    assert torch.equal(subspace(x), y) and not torch.equal(twin(x), y)
    if what == "subspace":
        with twin.at(density=1.0):
            assert subspace.level == lcs.Level(0.4, 0.4)
        assert twin.sample() == subspace.sample()


@pytest.mark.parametrize("recipe", [lcs.Structured(), lcs.Unstructured()], ids=str)
def test_an_instance_norm_of_single_values_is_refused(recipe):
    """Which torch would take for one sample without a batch. Behind a layer that no width cuts only a forward shows."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 2))
    subspace = lcs.convert(model, recipe, dense=["0", "3"], norm="instance")
    for samples in (3, 8):
        with pytest.raises(ValueError, match=rf"\({samples}, 8\), one value a channel.*nn.GroupNorm\(1, 8\)"):
            with subspace.at(**{recipe.unit: 1.0}):
                subspace(torch.randn(samples, 4))


NORM_RELU_KINDS = {
    "group norm": lambda: nn.GroupNorm(2, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "instance norm tracked": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "batch norm": lambda: nn.BatchNorm2d(8),
    "layer norm": lambda: nn.LayerNorm((6, 6)),
}


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("added", [False, True], ids=["alone", "sum"])
@pytest.mark.parametrize("converted", [False, True], ids=["plain", "converted"])
@pytest.mark.parametrize("kind", NORM_RELU_KINDS)
def test_a_norm_and_its_relu_in_one_are_the_two(kind, converted, added):
    torch.manual_seed(2)
    tail = randomise(Tail(NORM_RELU_KINDS[kind]()), seed=3)
    if converted:
        subspace = lcs.convert(tail, lcs.Unstructured(), norm="keep")
        subspace.set_level(alpha=ALPHA, density=1.0)
    found = []
    for together in (True, False):
        layer = copy.deepcopy(tail.layer)
        x, residual = (torch.randn(IMAGE, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in (4, 5))
        if together:
            y = lcs.norm_relu(layer, x, residual if added else None)
        else:
            y = torch.relu(layer(x) + residual if added else layer(x))
        y.backward(torch.randn(IMAGE, generator=torch.Generator().manual_seed(6)))
        gradients = [x.grad, *(p.grad for p in layer.parameters())]
        found.append([y.detach(), *gradients, *([residual.grad] if added else [])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][0].count_nonzero() not in (0, found[0][0].numel())


@pytest.mark.parametrize("hook", ["register_forward_pre_hook", "register_forward_hook"])
def test_a_norm_that_somebody_watches_is_its_own_step(hook):
    """What a hook sees is the norm's, and what it returns stands for that."""
    subspace = lcs.convert(Tail(nn.GroupNorm(2, 8)), lcs.Unstructured())
    layer, seen, (x, residual) = subspace.model.layer, [], torch.randn(2, *IMAGE)
    subspace.set_level(density=0.5)
    alone = layer(x)

    def watch(module, inputs, *output):
        seen.append((inputs, *output))
        return output[0] if output else inputs

    getattr(layer, hook)(watch)
    assert torch.equal(lcs.norm_relu(layer, x, residual), torch.relu(alone + residual))
    ((inputs, *output),) = seen
    assert len(inputs) == 1 and (not output or torch.equal(output[0], alone))
