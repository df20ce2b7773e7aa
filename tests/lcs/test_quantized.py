import copy
import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import lcs
from lcs.measure import check_layers
from lcs.quantized import folded_factor
from lcs_kernels import interpolate_quantize, quantize
from lcs_kernels.formats import NestedWeight

LINE = lcs.Quantized()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.hidden, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.hidden(self.body(self.stem(x)).mean((2, 3))).relu())


def subspace_of(recipe=LINE, seed=0):
    torch.manual_seed(seed)
    return lcs.convert(Net(), recipe, dense=["stem", "head"], init="independent")


def batch(n=4, seed=0):
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def draw(recipe, n, progress=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [level for _ in range(n) for level in recipe.sample(generator, progress)]


def test_each_width_has_its_place_on_the_line():
    assert [LINE.level(bits).alpha for bits in range(3, 9)] == [k / 6 for k in range(1, 7)]
    assert lcs.Quantized(bits=(4, 5)).level(4) == lcs.Level(0.5, bits=4)
    assert lcs.Quantized(line=False).level(2) == lcs.Level(0.0, bits=2)
    assert LINE.level(2, alpha=0.25) == lcs.Level(0.25, bits=2) and LINE.level(4.0) == LINE.level(4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lcs.Quantized(bits=(8, 3)), r"low <= high, got \(8, 3\)"),
        (lambda: lcs.Quantized(bits=(1, 8)), "bits must be a whole number from 2 to 8, got 1"),
        (lambda: lcs.Quantized(target=9), "target must be a whole number from 2 to 8, got 9"),
        (lambda: LINE.level(3.5), "bits must be a whole number from 2 to 8, got 3.5"),
        (lambda: LINE.level(float("inf")), "bits must be a whole number from 2 to 8, got inf"),
        (lambda: LINE.level(float("nan")), "bits must be a whole number from 2 to 8, got nan"),
        (lambda: LINE.level(2), r"bits must lie in \[3, 8\], got 2; else give alpha too"),
        (lambda: LINE.level(3, 1.5), r"alpha must lie in \[0, 1\], got 1.5.*lcs\.Level"),
        (lambda: lcs.Quantized(line=False).level(3, 0.5), "a point has no alpha"),
        (lambda: subspace_of().at(density=0.5), "lcs.Quantized has levels of bits, not of density"),
    ],
)
def test_bad_levels_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_line_draws_alpha_and_bits_together_and_rounds_inputs_late():
    levels = draw(LINE, 600)
    assert all(level == LINE.level(level.bits) for level in levels)
    assert all(80 <= sum(level.bits == bits for level in levels) <= 120 for bits in range(3, 9))
    early = draw(LINE, 600, progress=0.99)
    assert [level.bits for level in early] == [level.bits for level in levels]
    assert not any(level.inputs for level in early)


def test_a_point_trains_at_its_highest_width_until_inputs_are_rounded():
    point = lcs.Quantized(line=False, bits=(3, 7))
    assert set(draw(point, 50, 0.5)) == {lcs.Level(0.0, bits=7, inputs=False)}
    assert {level.bits for level in draw(point, 200)} == set(range(3, 8))
    assert draw(lcs.Quantized(target=6), 1, 0.5) == [lcs.Level(0.0, bits=6, inputs=False)]
    assert draw(lcs.Quantized(target=6), 1) == [lcs.Level(0.0, bits=6)]


def test_a_width_for_each_layer():
    recipe = lcs.Quantized(line=False, bits=(3, 6), per_layer=True)
    assert draw(recipe, 1, 0.5) == [lcs.Level(0.0, bits=6, inputs=False)]
    subspace, seen = subspace_of(recipe), []
    layers = [subspace.model.body[2], subspace.model.hidden]
    for level in draw(recipe, 200):
        with subspace.at(level), torch.no_grad():
            found = []
            for layer in layers:
                weight, _, bits = layer.tensors()
                assert torch.equal(weight, interpolate_quantize(layer.weight, None, 0.0, int(bits)))
                found.append(int(bits))
            seen.append(tuple(found))
    assert set(seen) == {(a, b) for a in range(3, 7) for b in range(3, 7)}
    again = draw(recipe, 1)[0]
    assert recipe.bits_of(layers[0], again) == recipe.bits_of(layers[0], again) == seen[0][0]
    for options in ({}, {"line": False, "target": 4}):
        with pytest.raises(ValueError, match="per_layer widths are of a point without target"):
            lcs.Quantized(per_layer=True, **options)


class Folding(nn.Module):
    """`a` is read by a norm alone, `b` by a norm and a sum, `c` twice, and `stem` is dense."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.a, self.b, self.c = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.norm_stem, self.norm_a, self.norm_b, self.norm_c = (nn.BatchNorm2d(6) for _ in range(4))

    def forward(self, x):
        x = self.norm_a(self.a(self.norm_stem(self.stem(x)))).relu()
        y = self.b(x)
        return self.norm_c(self.c(self.c(self.norm_b(y) + y))).mean((2, 3))


def folding(recipe):
    torch.manual_seed(0)
    model = Folding()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight), nn.init.uniform_(norm.running_var, 0.5, 2.0)
    model.norm_a.weight.data[2] = 0
    return lcs.convert(model, recipe, dense="stem", norm="keep", init="independent")


@pytest.mark.parametrize("line", [False, True])
def test_a_batch_norm_is_folded_where_it_alone_reads_a_convolution(line):
    recipe = lcs.Quantized(bits=(3, 8)) if line else lcs.Quantized(target=3)
    with pytest.warns(UserWarning, match="running statistics") if line else torch.no_grad():
        subspace = folding(recipe)
    subspace = copy.deepcopy(subspace).eval()
    model = subspace.model
    assert model.a.folded is model.norm_a and model.b.folded is None and model.c.folded is None
    assert not any("folded" in name for name in subspace.state_dict())
    with subspace.at(bits=3) as level:
        weight = model.a.tensors()[0]
        ends = (
            [
                (1 - level.alpha) * t + level.alpha * u
                for t, u in ((model.a.weight, model.a.weight_1), (model.norm_a.weight, model.norm_a.weight_1))
            ]
            if line
            else (model.a.weight, model.norm_a.weight)
        )
        factor = (ends[1] / (model.norm_a.running_var + model.norm_a.eps).sqrt()).detach()[:, None, None, None]
        folded = (weight * factor).detach()
        exact = (ends[0] * factor).detach()
        step = (exact.max().clamp(min=0) - exact.min().clamp(max=0)) / 7
        assert len((folded[folded.abs() > step / 4] / step).round().unique()) <= 8
        rounding = 16 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert ((folded - exact).abs() <= step + rounding).all() and not torch.equal(folded, exact)
        assert line or not weight[2].any()
        assert torch.equal(model.b.tensors()[0], interpolate_quantize(*model.b.ends("weight"), level.alpha, 3))
        grad = torch.randn_like(weight)
        weight.backward(grad)
    alive = torch.arange(6) != 2
    expected = (1 - level.alpha) * grad[alive]
    assert ((model.a.weight.grad[alive] - expected).abs() <= 8 * 2**-24 * expected.abs()).all()
    assert model.a.weight.grad.isfinite().all() and model.norm_a.weight.grad is None
    before = weight.detach()
    with torch.no_grad(), subspace.at(level):
        x = torch.randn(2, 1, 8, 8)
        first = subspace(x)
        model.norm_a.running_var.mul_(4.0)
        second, weight = subspace(x), model.a.tensors()[0]
    assert not torch.equal(first, second) and weight.shape == before.shape
    plain = lcs.unconvert(subspace, level)
    with torch.no_grad():
        assert torch.equal(plain.a.weight, weight) and not hasattr(plain.a, "folded")


@pytest.mark.parametrize("recipe", [lcs.Quantized(target=4), lcs.Quantized(line=False, nested=True)], ids=str)
def test_frozen_a_folded_layer_has_the_codes_of_training(recipe):
    subspace, x = folding(recipe).eval(), torch.randn(2, 1, 8, 8)
    frozen = subspace.freeze(strict=True)
    for bits in [4] if recipe.target else (3, 8):
        level = recipe.level(bits)
        with torch.no_grad(), subspace.at(level):
            weight = subspace.model.a.tensors()[0]
            expected = subspace(x)
        packed = frozen._packed(level, frozen._chosen(level, (x.shape,), (x,), {}))
        layer = frozen._named["a"]
        view = packed.tensors[layer.index][0]
        folded, shift = view.folded
        factor = layer.folded.weight / (layer.folded.running_var + layer.folded.eps).sqrt()
        assert folded.planes is view.whole.planes and folded._prepacks is view.whole._prepacks
        codes = NestedWeight.quantize(
            layer.weight.detach() * folded_factor(layer, level), 8 if recipe.nested else 4, nested=recipe.nested
        )
        alive = torch.arange(6) != 2
        assert torch.equal(folded.unpack(bits)[alive], codes.unpack(bits)[alive]) and not folded.unpack(bits)[2].any()
        assert ((view.whole.unpack(bits) - weight).abs() <= 4 * 2**-24 * weight.abs()).all()
        size = (layer.bias.abs() + layer.folded.running_mean.abs()) * factor.abs() + layer.folded.bias.abs()
        same = (layer.bias - layer.folded.running_mean) * factor + layer.folded.bias
        assert ((shift - same).abs() <= ((1 + 2.0**-24) ** (2 * 7) - 1) * size).all()  # 7 roundings each, 4 of a factor
        assert check_layers(frozen, x, level) == 3 + 1  # the dense stem
        with torch.no_grad():
            y = frozen(x, bits=bits)  # nothing rounds its inputs
            # Both round a term at most so often: as in five convolutions, four norms, a sum, a mean and four weights.
            roundings = (9 + 1) + 4 * (54 + 1) + 4 * 6 + 1 + 36 + 4 * 4
            plain = lcs.unconvert(copy.deepcopy(subspace), level).double()
            for tensor in (t for name, t in plain.state_dict().items() if not name.endswith("running_var")):
                tensor.abs_()
            for norm in (m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)):
                norm.running_mean.neg_()
            error = ((1 + 2.0**-24) ** roundings - 1) * plain(x.double().abs())
            assert ((y.double() - expected).abs() <= 2 * error).all()


def test_a_model_that_cannot_be_traced_is_refused_where_its_batch_norms_are_kept():
    """And left as it is."""

    class Branching(Folding):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    model = Branching()
    before = [type(m) for m in model.modules()]
    for call in (lcs.plan, lcs.convert):
        with pytest.raises(ValueError, match="the forward of Branching cannot be traced"):
            call(model, lcs.Quantized(target=4), dense="stem", norm="keep")
    assert [type(m) for m in model.modules()] == before
    assert lcs.convert(model, lcs.Quantized(target=4), dense="stem", norm="group")


@pytest.mark.parametrize("dense", [(), "2"])
def test_norms_are_folded_beside_linear_layers(dense):
    """Of whichever type: a trace goes around all layers."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(8, 4), nn.Flatten(), nn.Linear(128, 2))
    subspace = lcs.convert(model, lcs.Quantized(), norm="keep", dense=dense)
    assert model[0].folded is model[1] and "folded" not in dict(model[0].named_modules())
    with subspace.at(bits=4):
        assert subspace(torch.randn(2, 3, 8, 8)).shape == (2, 2)


@pytest.mark.parametrize("options", [{}, {"nested": True}, {"per_channel": True}], ids=str)
def test_compressed_weights_are_rounded_and_dense_ones_are_not(options):
    recipe = lcs.Quantized(**options)
    subspace = subspace_of(recipe).eval()
    with subspace.at(bits=4) as level, torch.no_grad():
        conv, stem = subspace.model.body[2], subspace.model.stem
        weight, bias = conv.tensors()
        assert torch.equal(weight, interpolate_quantize(conv.weight, conv.weight_1, level.alpha, 4, **options))
        torch.testing.assert_close(bias, torch.lerp(conv.bias, conv.bias_1, level.alpha))
        torch.testing.assert_close(stem.tensors()[0], torch.lerp(stem.weight, stem.weight_1, level.alpha))
        for rows in weight.flatten(1) if options.get("per_channel") else [weight]:
            assert len(rows.unique()) <= 16


def test_the_range_of_the_inputs_is_a_running_average_that_training_alone_moves():
    subspace = subspace_of()
    hidden, seen = subspace.model.hidden, []
    hidden.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    for seed in range(3):
        with subspace.at(bits=3 + seed):
            subspace(batch(seed=seed))
    low, high = seen[0].aminmax()
    for x in seen[1:]:
        low, high = low + 0.1 * (x.min() - low), high + 0.1 * (x.max() - high)
    torch.testing.assert_close(hidden.input_low, low)
    torch.testing.assert_close(hidden.input_high, high)
    before = copy.deepcopy(subspace.state_dict())
    with subspace.eval().at(bits=3), torch.no_grad():
        subspace(100 * batch())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), subspace.state_dict().values(), strict=True))


def test_inputs_are_rounded_once_their_range_is_known():
    """Before that they are exact: never a range of nothing."""
    subspace = subspace_of().eval()
    hidden, x = subspace.model.hidden, torch.randn(4, 8)
    with torch.no_grad(), subspace.at(bits=3):
        weight, bias = hidden.tensors()[:2]
        assert torch.equal(hidden(x), nn.functional.linear(x, weight, bias))
        subspace.train()(batch())
        subspace.eval()
        rounded = quantize(x, hidden.input_low, hidden.input_high, 3)
        assert torch.equal(hidden(x), nn.functional.linear(rounded, weight, bias))
    with torch.no_grad(), subspace.at(lcs.Level(0.0, bits=3, inputs=False)):
        weight, bias = hidden.tensors()
        assert torch.equal(hidden(x), nn.functional.linear(x, weight, bias))


def test_a_level_without_inputs_moves_no_range():
    subspace = subspace_of()
    with subspace.at(draw(LINE, 1, progress=0.5)[0]):
        subspace(batch()).sum().backward()
    assert not any(layer.input_known for layer in (subspace.model.hidden, subspace.model.body[2]))


def test_gradients_go_straight_through():
    subspace = subspace_of()
    with subspace.at(bits=3) as level:
        hidden, x = subspace.model.hidden, torch.randn(4, 8, requires_grad=True)
        y = hidden(x)
        grad = torch.randn_like(y)
        y.backward(grad)
        weight, rounded = hidden.tensors()[0], quantize(x.detach(), hidden.input_low, hidden.input_high, 3)
    torch.testing.assert_close(x.grad, grad @ weight)
    torch.testing.assert_close(hidden.weight.grad, (1 - level.alpha) * (grad.T @ rounded))
    torch.testing.assert_close(hidden.weight_1.grad, level.alpha * (grad.T @ rounded))


def test_ranges_are_saved_and_a_dense_model_has_none():
    subspace = subspace_of()
    with subspace.at(bits=8):
        subspace(batch())
    file = io.BytesIO()
    torch.save(subspace.state_dict(), file)
    file.seek(0)
    again = subspace_of(seed=1)
    again.load_state_dict(torch.load(file))
    with torch.no_grad(), again.eval().at(bits=3), subspace.eval().at(bits=3):
        assert torch.equal(again(batch()), subspace(batch()))
    fresh = subspace_of()
    fresh.load_state_dict({k: v for k, v in Net().state_dict().items() if "running" not in k and "num_b" not in k})
    assert not fresh.model.hidden.input_known


@pytest.mark.parametrize("way", ["trained", "to_empty", "assign"])
def test_after_a_dense_state_dict_the_ranges_of_inputs_are_unknown(way):
    dense, x = Net(), batch()
    with torch.device("meta" if way != "trained" else "cpu"):
        subspace = lcs.convert(Net(), lcs.Quantized(line=False), norm="keep")
    if way == "to_empty":
        subspace.to_empty(device="cpu")
        for buffer in subspace.buffers():
            buffer.fill_(7)
    if way == "trained":
        with subspace.at(bits=3):
            subspace(x)
    subspace.load_state_dict(dense.state_dict(), assign=way == "assign")
    dense.eval(), subspace.eval()
    with torch.no_grad(), subspace.at(subspace.recipe.full()):
        assert torch.equal(subspace(x), dense(x))
    known = [m.input_known for m in subspace.modules() if hasattr(m, "input_known")]
    assert len(known) == 4 and not any(known)
    with torch.no_grad(), subspace.at(bits=3):
        y = subspace(x)
        for p in known:
            p.fill_(1)  # with a range of 0 to 0, were it known
        assert y.any() and not torch.equal(subspace(x), y)


def test_unconverted_layers_hold_rounded_weights_and_nothing_else():
    subspace = subspace_of()
    with subspace.at(bits=4), torch.no_grad():
        weight = subspace.model.hidden.tensors()[0]
    model = lcs.unconvert(subspace, bits=4)
    assert type(model.hidden) is nn.Linear and torch.equal(model.hidden.weight, weight)
    assert not list(model.hidden.buffers())


@pytest.mark.parametrize("recipe", [LINE, lcs.Quantized(line=False)])
def test_compiles_once_for_all_widths(recipe):
    subspace, counter = subspace_of(recipe), CompileCounter()
    eager = copy.deepcopy(subspace)
    subspace.compile(backend=counter, fullgraph=True)
    for bits in (8, 3, 5, 4, 7, 6):
        with subspace.at(bits=bits), eager.at(bits=bits):
            assert torch.equal(subspace(batch()), eager(batch()))
    assert counter.frame_count == 1


def test_training_lowers_the_loss_at_every_width():
    torch.manual_seed(0)
    subspace = lcs.convert(Net(), LINE, dense=["stem", "head"], perturb=0.5)
    x, y = batch(48), torch.arange(48) % 3
    x[torch.arange(48), 0, 0, 0] += 6.0 * y
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(subspace.parameters(), 0.1, momentum=0.9)

    def losses():
        found = []
        for bits in (3, 5, 8):
            with torch.no_grad(), subspace.eval().at(bits=bits):
                found.append(loss(subspace(x), y).item())
        subspace.train()
        return found

    before = losses()
    for step in range(90):
        for level in subspace.sample(progress=step / 60):
            with subspace.at(level):
                loss(subspace(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(after < 0.7 * first for after, first in zip(losses(), before, strict=True))


def test_stored_bytes():
    subspace = subspace_of(lcs.Quantized(bits=(2, 8)))
    compressed = 8 * 8 * 9 + 8 * 6
    full = subspace.statistics(bits=8)
    for bits in range(2, 9):
        found = subspace.statistics(bits=bits)
        assert found.stored_bytes - 16 == full.dense_bytes - 4 * compressed + compressed * bits // 8


def test_a_snapshot_follows_the_scales_of_folded_norms_and_known_ranges():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    subspace = lcs.convert(model, lcs.Quantized(target=3), norm="keep").eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), subspace.at(bits=3):
        for change in (
            lambda: model[1].weight.copy_(torch.tensor([0.1, 1.0, 3.0, 0.5])),
            lambda: (model[0].input_low.fill_(-1), model[0].input_high.fill_(1), model[0].input_known.fill_(1)),
        ):
            before = subspace(x)
            change()
            after = subspace(x)
            subspace._slot.made = None
            assert not torch.equal(before, after) and torch.equal(after, subspace(x))


def test_a_batch_of_none_moves_no_range():
    subspace = lcs.convert(nn.Sequential(nn.Linear(4, 2)), lcs.Quantized(target=4)).train()
    with subspace.at(bits=4):
        assert subspace(torch.randn(0, 4)).shape == (0, 2) and subspace.model[0].input_known == 0
