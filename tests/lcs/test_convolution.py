"""Training convolutions: by the engine where that is faster, else torch's own."""

import pytest
import torch
from torch import nn

import lcs
import lcs_kernels
from lcs.layers import convolution
from lcs_kernels import isa

UNIT = 2.0**-24
LEVELS = {
    "unstructured": (lcs.Unstructured(), {"alpha": 0.3, "density": 0.5}),
    "quantized": (lcs.Quantized(), {"alpha": 0.3, "bits": 6}),
    "structured": (lcs.Structured(), {"alpha": 0.3, "width": 1.0}),
    "structured, narrow": (lcs.Structured(), {"alpha": 0.3, "width": 0.5}),
}


def subspace_of(recipe, channels=70, **options):
    torch.manual_seed(0)
    middle = nn.Conv2d(channels, channels, 3, padding=1, **options)
    model = nn.Sequential(nn.Conv2d(3, channels, 1), middle, nn.Conv2d(channels, 5, 1))
    subspace = lcs.convert(model, recipe, dense=["2"], init="independent", generator=torch.manual_seed(1))
    return subspace.train()


def steps(call):
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages()}


def trained(layer, x):
    layer.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
    return y.detach(), x.grad, [p.grad for p in layer.parameters()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", LEVELS)
def test_a_step_is_torchs_but_for_the_bounds_of_the_products(monkeypatch, kind, layout):
    """Both sums may be off, a direct one of n products by n * n * 2^-24 times the largest ones."""
    recipe, level = LEVELS[kind]
    subspace = subspace_of(recipe)
    layer, images, height, width = subspace.model[1], 2, 9, 14
    with subspace.at(**level):
        with torch.no_grad():
            subspace(torch.randn(images, 3, height, width))  # which moves the range of a quantised input
            subspace.eval()
            c = subspace.model[0](torch.randn(1, 3, 1, 1)).shape[1]
            w = layer.tensors()[0].abs().max()
        x = torch.randn(images, c, height, width).contiguous(memory_format=layout)
        y, to_x, found = trained(layer, x)
        monkeypatch.setattr(convolution, "trains_by_winograd", lambda *_: False)
        expected, expected_to_x, others = trained(layer, x)
    grad, most = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).abs().max(), x.abs().max()
    terms = ((c + 25) * 880 * c + (9 * c) ** 2) * UNIT * w
    assert y.stride() == expected.stride() and to_x.stride() == expected_to_x.stride()
    assert ((y - expected).abs() <= terms * most).all() and ((to_x - expected_to_x).abs() <= terms * grad).all()
    tiles, pixels = images * 3 * 4, images * height * width
    terms = ((tiles + 30) * 1250 * tiles + pixels**2) * UNIT * grad * most
    for a, b in zip(found, others, strict=True):  # an end has a share of the weight's gradient, rounded once more
        assert ((a - b).abs() <= terms * (1 + 2 * UNIT)).all() and a.any()


def test_it_runs_while_the_weight_trains():
    subspace, x = subspace_of(lcs.Unstructured()), torch.randn(2, 3, 8, 8)
    subspace.set_level(density=0.5)
    trained = steps(lambda: subspace(x).sum().backward())
    assert {"lcs::width_conv2d", "lcs::width_conv2d_weight_gradient"} <= trained
    with torch.no_grad():
        assert "lcs::width_conv2d" not in steps(lambda: subspace(x))


@pytest.mark.parametrize(
    "options",
    [{"channels": 31}, {"stride": 2}, {"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}],
    ids=lambda options: next(iter(options)),
)
def test_other_geometries_are_torchs(options):
    subspace, x = subspace_of(lcs.Unstructured(), **options), torch.randn(2, 3, 8, 8)
    subspace.set_level(density=0.5)
    assert "lcs::width_conv2d" not in steps(lambda: subspace(x).sum().backward())


def test_what_has_no_such_products_is_torchs():
    subspace, x = subspace_of(lcs.Unstructured()), torch.randn(2, 3, 8, 8)
    subspace.set_level(density=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert "lcs::width_conv2d" not in steps(lambda: subspace(x).float().sum().backward())
    assert "lcs::width_conv2d" not in steps(lambda: subspace(x[0]).sum().backward())  # an image without a batch
    subspace.to(torch.bfloat16)
    assert "lcs::width_conv2d" not in steps(lambda: subspace(x.bfloat16()).sum().backward())


def test_inputs_of_other_channels_are_refused_as_by_torch():
    subspace = subspace_of(lcs.Unstructured())
    subspace.set_level(density=0.5)
    with pytest.raises(RuntimeError, match="to have 70 channels, but got 40 channels"):
        subspace.model[1](torch.randn(2, 40, 8, 8))


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_numbers_in_place_of_pairs_are_torchs(name):
    subspace, x = subspace_of(lcs.Unstructured()), torch.randn(2, 3, 8, 8)
    subspace.set_level(density=0.5)
    setattr(subspace.model[1], name, 1)
    assert "lcs::width_conv2d" not in steps(lambda: subspace(x).sum().backward())


def test_transforms_see_torchs():
    """vmap and forward mode, which the engine's gradients do not know."""
    subspace = subspace_of(lcs.Structured())
    layer, x = subspace.model[1], torch.randn(3, 2, 70, 6, 7)
    with subspace.at(width=1.0):
        each = torch.stack([nn.functional.conv2d(part, *layer.tensors(), padding=1) for part in x])
        assert torch.equal(torch.func.vmap(layer)(x), each)
        y, moved = torch.func.jvp(layer, (x[0],), (x[1],))
    assert torch.equal(y, each[0]) and torch.equal(moved, nn.functional.conv2d(x[1], layer.weight, padding=1))


def test_a_missing_compiler_leaves_training_to_torch(monkeypatch):
    def refuse():
        raise lcs_kernels.LcsUnavailableError("no compiler")

    monkeypatch.setattr(convolution._load, "ensure_loaded", refuse)
    convolution._has_kernels.cache_clear()
    weight = torch.randn(64, 64, 3, 3, requires_grad=True)
    x = torch.randn(1, 64, 5, 5)
    with pytest.warns(UserWarning, match="convolutions train by torch, as there are no kernels: no compiler"):
        y = convolution.conv2d(x, weight, None, (1, 1), (1, 1), (1, 1), 1)
    assert torch.equal(y, nn.functional.conv2d(x, weight, padding=1))
    monkeypatch.undo()
    convolution._has_kernels.cache_clear()


def test_scalar_kernels_are_slower_than_torch():
    subspace, x, before = subspace_of(lcs.Unstructured()), torch.randn(2, 3, 8, 8), isa.max_name()
    subspace.set_level(density=0.5)
    try:
        isa.set_max("scalar")
        assert "lcs::width_conv2d" not in steps(lambda: subspace(x).sum().backward())
    finally:
        isa.set_max(before)
