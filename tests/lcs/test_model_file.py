import copy
import gc
import json
import weakref

import pytest
import torch
from torch import nn

import lcs
from lcs import checkpoint, models
from lcs.checkpoint import CheckpointError

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
RECIPES = {
    "density": (lcs.Unstructured(), [{"density": 0.1}, {"density": 0.7, "alpha": 0.2}]),
    "width": (lcs.Structured(), [{"width": 0.25}, {"width": 1.0}]),
    "bits": (lcs.Quantized(bits=(3, 8)), [{"bits": 3}, {"bits": 8}]),
    "nested": (lcs.Quantized(line=False, nested=True, per_channel=True), [{"bits": 2}, {"bits": 6}]),
    "per width": (lcs.Structured(line=False, fixed=(1.0, 0.5), per_width=True), [{"width": 0.5}]),
}


class Network(nn.Module):
    """Of no builder: batch norms, a layer that is left alone, one that stays dense, a plain buffer."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.body, self.last, self.head = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.register_buffer("shift", torch.tensor(0.25), persistent=False)

    def forward(self, x):
        x = self.body(self.norm(self.stem(x)).relu()).relu()
        return self.head(self.last(x).mean((2, 3)) + self.shift)


def subspace_of(recipe, norm=None):
    norm = norm or ("keep" if getattr(recipe, "per_width", False) else recipe.norm)
    model = models.build("cpreresnet20", 7, seed=0, norm="batch" if norm == "keep" else norm)
    dense = ["fc"] if recipe.cuts else ["conv1", "fc"]
    generator = torch.Generator().manual_seed(1)
    return lcs.convert(model, recipe, dense=dense, norm=norm, init="independent", generator=generator)


def own_network():
    torch.manual_seed(2)
    subspace = lcs.convert(Network(), lcs.Unstructured(), dense=["head"], exclude=["last"], init="independent")
    return subspace.freeze()


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("name", RECIPES)
def test_gives_the_same_results(name, tmp_path):
    recipe, settings = RECIPES[name]
    subspace = subspace_of(recipe)
    if recipe.unit == "bits":
        with subspace.at(bits=recipe.bits[1]):
            subspace.train()(X)  # which sets the inputs' ranges
    frozen, file = subspace.freeze(), tmp_path / "model.lcs"
    lcs.save(frozen, file)
    found = lcs.load(file)
    assert found.recipe == recipe and found.nbytes == frozen.nbytes
    for setting in settings:
        assert torch.equal(found(X, **setting), frozen(X, **setting)), setting
        assert found.report(X, **setting).rows == frozen.report(X, **setting).rows


@pytest.mark.filterwarnings("ignore:running statistics")
@pytest.mark.parametrize("name", RECIPES)
def test_a_network_is_freed_with_its_last_use(name, tmp_path, monkeypatch):
    """Not when Python looks for cycles, which a server that loads new weights now and then seldom does."""
    recipe, (setting, *_) = RECIPES[name]
    file, made, freeze = tmp_path / "model.lcs", [], lcs.Subspace.freeze

    def noting(subspace, **options):
        made.extend(map(weakref.ref, subspace.parameters()))
        return freeze(subspace, **options)

    monkeypatch.setattr(lcs.Subspace, "freeze", noting)
    gc.disable()
    try:
        lcs.save(subspace_of(recipe).freeze(), file)
        frozen = lcs.load(file)
        frozen(X, **setting)
        made.extend(map(weakref.ref, frozen.model.parameters()))
        del frozen
        assert made and not any(tensor() is not None for tensor in made)
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_keeps_the_dtype(dtype, tmp_path):
    frozen = subspace_of(lcs.Unstructured()).to(dtype).freeze()
    lcs.save(frozen, tmp_path / "model.lcs")
    x = X.to(dtype)
    assert torch.equal(lcs.load(tmp_path / "model.lcs")(x, density=0.2), frozen(x, density=0.2))


def test_a_model_of_ones_own_is_given(tmp_path):
    frozen, file = own_network(), tmp_path / "own.lcs"
    lcs.save(frozen, file)
    with pytest.raises(CheckpointError, match=r"own\.lcs.*a Network.*model=Network\(\.\.\.\)"):
        lcs.load(file)
    found = lcs.load(file, Network())
    assert torch.equal(found(X, density=0.3), frozen(X, density=0.3))
    assert {name: layer.compressed for name, layer in found.layers.items()} == {
        "stem": True,
        "norm": False,
        "body": True,
        "head": False,
    }
    assert isinstance(found.model.norm, nn.GroupNorm) and type(found.model.last) is nn.Conv2d
    assert not found.model.training and not any(p.requires_grad for p in found.model.parameters())


def test_another_model_is_refused_by_name(tmp_path):
    file = tmp_path / "own.lcs"
    lcs.save(own_network(), file)
    wider = Network()
    wider.last = nn.Conv2d(8, 8, 3)
    with pytest.raises(CheckpointError, match=r"own\.lcs: is of another model: tensor last\.weight"):
        lcs.load(file, wider)
    with pytest.raises(CheckpointError, match=r"Sequential has no module body"):
        lcs.load(file, nn.Sequential(nn.Linear(3, 3)))
    for model, words in ((Network, "got the class Network: make one"), ({}, "got a dict")):
        with pytest.raises(TypeError, match=f"lcs.load: model must be an nn.Module, {words}"):
            lcs.load(file, model)


def test_a_model_that_does_not_fit_stays_as_it_was(tmp_path):
    file, model = tmp_path / "own.lcs", Network()
    lcs.save(own_network(), file)
    model.head = nn.Linear(8, 7)
    modules, parameters = list(model.modules()), list(model.parameters())
    with pytest.raises(CheckpointError, match="tensor head.bias"):
        lcs.load(file, model)
    assert all(p is before for p, before in zip(model.parameters(), parameters, strict=True))
    assert list(model.modules()) == modules and not model._forward_hooks and not model._forward_pre_hooks
    model.head = nn.Linear(8, 5)
    with pytest.raises(ValueError, match="cache_bytes"):
        lcs.load(file, model, cache_bytes=-1)
    assert torch.equal(lcs.load(file, model)(X, density=0.3), lcs.load(file, Network())(X, density=0.3))


def test_what_is_damaged_is_said(tmp_path):
    frozen, file = subspace_of(lcs.Unstructured()).freeze(), tmp_path / "model.lcs"
    lcs.save(frozen, file)
    data = file.read_bytes()
    for wrong in (data[:-1], data[:1000], b"", data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]):
        file.write_bytes(wrong)
        with pytest.raises(CheckpointError, match=r"model\.lcs"):
            lcs.load(file)
    with pytest.raises(CheckpointError, match="absent.lcs: cannot be read"):
        lcs.load(tmp_path / "absent.lcs")
    checkpoint.save(file, {"w": torch.zeros(1)}, {"step": 1})
    with pytest.raises(CheckpointError, match="training checkpoint.*lcs freeze"):
        lcs.load(file)


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"type": "Recipe"}},
        {"recipe": {"type": "Unstructured", "density": [2, 3]}},
        {"recipe": {"type": "Unstructured", "colour": 1}},
        {"architecture": {"name": "cpreresnet20", "num_classes": 10**15}},
        {"architecture": {"name": "no such"}},
        {"layers": {"no.such": True}},
        {"layers": []},
        {"norm": "no such"},
        {"recipe": {"type": "Quantized", "bits": [float("inf"), 8]}},
        {"architecture": {"name": "cpreresnet20", "num_classes": 7, "in_channels": 2**62}},
        {"layers": {"conv1": 1}},
        {"kept": [["a"]]},
        {"kept": ["zzz"]},
        {"kept": "conv1"},
    ],
    ids=json.dumps,
)
def test_a_manifest_that_does_not_fit_is_said(change, tmp_path):
    frozen, file = subspace_of(lcs.Unstructured()).freeze(), tmp_path / "model.lcs"
    lcs.save(frozen, file)
    tensors, manifest = checkpoint.load(file)
    checkpoint.write_atomic(file, checkpoint.encode(tensors, {**manifest, **change}))
    with pytest.raises(CheckpointError, match=r"model\.lcs"):
        lcs.load(file)


def resaved(file, change):
    """`file` with each of its tensors as change(name, tensor) makes it."""
    tensors, manifest = checkpoint.load(file)
    tensors = {name: change(name, tensor) for name, tensor in tensors.items()}
    checkpoint.write_atomic(file, checkpoint.encode(tensors, manifest))


def cast(part, dtype):
    return lambda name, tensor: tensor.to(dtype) if part in name else tensor


@pytest.mark.parametrize(
    "change, message",
    [
        (cast("", torch.int32), r"tensor conv1\.weight is int32 \(16, 3, 3, 3\) there and float32 \(16"),
        (cast("", torch.bool), "is bool"),
        (cast("", torch.complex64), "is complex64"),
        (cast("", torch.float8_e4m3fn), "is float8_e4m3fn"),
        (cast("conv1.weight_1", torch.bfloat16), "cannot run: conv1 is of bfloat16 and float32; save it again in one"),
        (cast("fc", torch.float64), "cannot run: its layers are of float32 and float64; save it again in one dtype"),
        (cast("norm", torch.bfloat16), "cannot run: its layers are of bfloat16 and float32"),
    ],
    ids=["integers", "bool", "complex", "float8", "ends", "layers", "norms"],
)
def test_dtypes_that_cannot_run_are_said(change, message, tmp_path):
    file = tmp_path / "model.lcs"
    lcs.save(subspace_of(lcs.Unstructured()).freeze(), file)
    resaved(file, change)
    with pytest.raises(CheckpointError, match=rf"model\.lcs: .*{message}"):
        lcs.load(file)


def test_float32_norms_of_halves_stay_so(tmp_path):
    frozen, file = subspace_of(lcs.Unstructured()).to(torch.bfloat16), tmp_path / "model.lcs"
    for module in frozen.model.modules():
        if isinstance(module, nn.GroupNorm):
            module.float()
    frozen = frozen.freeze()
    lcs.save(frozen, file)
    x = X.bfloat16()
    assert torch.equal(lcs.load(file)(x, density=0.2), frozen(x, density=0.2))


class Casting(Network):
    def forward(self, x):
        x = self.body(self.norm(self.stem(x)).relu()).relu()
        return self.head(self.last(x).mean((2, 3)).to(self.head.weight.dtype))


def test_layers_of_ones_own_model_may_differ_in_dtype(tmp_path):
    subspace, file = lcs.convert(Casting(), lcs.Unstructured(), exclude=["last"]), tmp_path / "own.lcs"
    subspace.model.head.double()
    frozen = subspace.freeze()
    lcs.save(frozen, file)
    assert torch.equal(lcs.load(file, Casting())(X, density=0.3), frozen(X, density=0.3))
    resaved(file, cast("head.bias", torch.float32))
    with pytest.raises(CheckpointError, match=r"own\.lcs: cannot run: head is of float32 and float64"):
        lcs.load(file, Casting())


@pytest.mark.parametrize("end", ["weight", "weight_1"])
def test_values_that_cannot_be_rounded_are_said(end, tmp_path):
    file, model = tmp_path / "own.lcs", Network()
    lcs.save(lcs.convert(Network(), lcs.Quantized(), exclude=["last"]).freeze(), file)
    resaved(file, lambda name, tensor: tensor.fill_(float("nan")) if name == f"body.{end}" else tensor)
    before = dict(model.named_parameters())
    with pytest.raises(CheckpointError, match=rf"own\.lcs: body\.{end} holds NaN or infinity"):
        lcs.load(file, model)
    assert all(p is before[name] for name, p in model.named_parameters())


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    frozen, file = own_network(), tmp_path / "model.lcs"
    lcs.save(frozen, file)
    before = file.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"model\.lcs: [\d,]+ bytes cannot be written: No space left"):
        lcs.save(frozen, file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    with pytest.raises(TypeError, match="takes what Subspace.freeze returns, got Network"):
        lcs.save(Network(), file)


def test_a_tensor_with_several_names_is_saved_with_each(tmp_path):
    shared = nn.Conv2d(3, 3, 3, padding=1)

    def model():
        return nn.Sequential(shared, nn.ReLU(), shared, nn.Flatten())

    fast = lcs.convert(model(), lcs.Unstructured(), init="independent").freeze()
    lcs.save(fast, tmp_path / "shared.lcs")
    shared = nn.Conv2d(3, 3, 3, padding=1)
    again = lcs.load(tmp_path / "shared.lcs", model=model())
    assert torch.equal(again(X, density=0.3), fast(X, density=0.3))


class Stateful(nn.Identity):
    def get_extra_state(self):
        return {"calls": 3}


def test_a_state_that_is_no_tensor_is_named(tmp_path):
    fast = lcs.convert(nn.Sequential(Stateful(), nn.Linear(4, 2)), lcs.Unstructured()).freeze()
    with pytest.raises(CheckpointError, match="tensors alone, and of the state 0._extra_state is a dict"):
        lcs.save(fast, tmp_path / "state.lcs")
    assert not list(tmp_path.iterdir())


class Reads(nn.Module):
    """A convolution whose weight its own forward does not read, and one whose it does."""

    def __init__(self):
        super().__init__()
        self.first, self.read = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.last = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = nn.functional.conv2d(self.first(x), self.read.weight * 2)
        return self.last(self.norm(x).relu())


@torch.no_grad()
def test_what_a_point_kept_runs_as_before(tmp_path):
    torch.manual_seed(0)
    frozen = lcs.convert(Reads(), lcs.Unstructured(line=False), dense=["first"]).eval().freeze()
    assert frozen.kept == ("first", "norm")
    lcs.save(frozen, tmp_path / "point.lcs")
    loaded = lcs.load(tmp_path / "point.lcs", model=Reads())
    x = torch.randn(2, 3, 16, 16)
    for other in (loaded, copy.deepcopy(frozen)):
        assert other.kept == frozen.kept and torch.equal(other(x, density=0.3), frozen(x, density=0.3))
        assert str(other.report(x, density=0.3)) == str(frozen.report(x, density=0.3))
