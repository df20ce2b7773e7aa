import copy
import importlib
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import lcs

snapshot = importlib.import_module("lcs.snapshot")


class Net(nn.Module):
    def __init__(self, bias=True, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=bias)
        self.body = nn.Sequential(norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=bias), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def features(self, x):
        return self.body(self.stem(x)).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


def group_norm(channels):
    return nn.GroupNorm(8, channels)


def subspace_of(line=True, seed=0, **options):
    torch.manual_seed(seed)
    options = {"dense": ["stem", "head"], "init": "independent"} | options
    return lcs.convert(Net(), lcs.Unstructured(line=line), **options)


def batch(n=4, seed=0):
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def makes(monkeypatch):
    """The levels at which weights were made for more than one layer at once, in order."""
    made = []
    make = snapshot.make

    def counted(layers, level, recipe):
        made.extend([level] if len(layers) > 1 else [])
        return make(layers, level, recipe)

    monkeypatch.setattr(snapshot, "make", counted)
    return made


@pytest.mark.parametrize("recipe", [lcs.Unstructured(), lcs.Unstructured(line=False), lcs.Unstructured(target=0.3)])
def test_training_lowers_the_loss_at_every_level(recipe):
    torch.manual_seed(0)
    subspace = lcs.convert(Net(), recipe, dense=["stem", "head"], perturb=0.5)
    x, y = batch(32), torch.arange(32) % 3
    x[torch.arange(32), 0, 0, 0] += 6.0 * y

    def losses():
        with torch.no_grad():
            return [at(subspace, level, lambda: loss(subspace(x), y).item()) for level in (0.3, 0.6, 1.0)]

    loss = nn.CrossEntropyLoss()
    before = losses()
    optimizer = torch.optim.SGD(subspace.parameters(), 0.2, momentum=0.9)
    for step in range(60):
        for level in subspace.sample(progress=step / 30):
            with subspace.at(level):
                loss(subspace(x), y).backward()
        (0.1 * subspace.regularizer()).backward() if recipe.line else None
        optimizer.step()
        optimizer.zero_grad()
    assert losses()[0] < 0.7 * before[0]
    if recipe.target is None:
        assert all(after < 0.7 * first for after, first in zip(losses(), before, strict=True))


def at(subspace, density, call):
    with subspace.at(density=density):
        return call()


def test_without_a_level_the_error_says_how_to_set_one():
    subspace = subspace_of()
    for call in (subspace, subspace.model, subspace.model.features):
        with pytest.raises(RuntimeError, match=r"with subspace\.at\(density=\.\.\.\)"):
            call(batch())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "give a level"),
        ({"alpha": 0.5}, ValueError, "give a level"),
        ({"density": 1.5}, ValueError, "density must lie in .* got 1.5"),
        ({"density": 0.5, "alpha": 1.5}, ValueError, "alpha must lie in .* got 1.5"),
        ({"level": lcs.Level(0.1, 0.1), "density": 0.5}, ValueError, "not both"),
        ({"level": 0.1}, TypeError, "density=0.1"),
    ],
)
def test_bad_levels_are_refused(arguments, error, words):
    subspace = subspace_of()
    for call in (subspace.at, subspace.set_level, subspace.statistics):
        with pytest.raises(error, match=words):
            call(**arguments)


def test_levels_nest_and_one_context_can_be_entered_again():
    subspace = subspace_of()
    outer = subspace.at(density=0.5)
    assert subspace.set_level(density=0.9) == subspace.level == lcs.Level(0.9, 0.9)
    with outer as level, subspace.at(density=0.1, alpha=0.2), outer:
        assert subspace.level == level == lcs.Level(0.5, 0.5)
        with pytest.raises(KeyError), subspace.at(lcs.Level(0.7, 0.3)):
            raise KeyError
        assert subspace.level == level
    assert subspace.level == lcs.Level(0.9, 0.9)


def test_a_level_does_not_depend_on_the_levels_before_it():
    subspace, x = subspace_of(), batch()
    with torch.no_grad():
        first = [at(subspace, density, lambda: subspace(x)) for density in (0.1, 0.9, 0.1, 1.0, 0.1)]
    assert torch.equal(first[0], first[2]) and torch.equal(first[0], first[4])
    assert not torch.equal(first[0], first[1])


def test_a_level_may_leave_the_line():
    subspace = lcs.convert(nn.Sequential(nn.Linear(2, 2, bias=False)), lcs.Unstructured(), init="independent")
    layer = subspace.model[0]
    with subspace.at(lcs.Level(alpha=2.0, density=1.0)):
        y = subspace(torch.eye(2))
    torch.testing.assert_close(y, (2 * layer.weight_1 - layer.weight).T)


def test_without_gradient_weights_are_made_once_per_level_and_parameters(makes):
    subspace, x = subspace_of(), batch()
    with torch.no_grad(), subspace.at(density=0.5):
        subspace(x), subspace.model(x)
        assert len(makes) == 1
        subspace.model.head.weight_1.mul_(2)
        y = subspace(x)
        assert len(makes) == 2
        subspace.to(torch.float64)
        wide = subspace(x.double())
        assert len(makes) == 3
    with torch.inference_mode(), subspace.at(density=0.6):
        subspace(x.double()), subspace(x.double())
        assert len(makes) == 4
    fresh = subspace_of()
    with torch.no_grad(), fresh.at(density=0.5):
        fresh.model.head.weight_1.mul_(2)
        assert torch.equal(fresh(x), y) and torch.equal(fresh.to(torch.float64)(x.double()), wide)


@pytest.mark.parametrize("way", ["set_level", "at"])
@pytest.mark.parametrize("write", ["data", "fused"])
def test_a_level_set_again_makes_the_weights_anew_after_a_write_that_torch_does_not_count(way, write):
    subspace, x = subspace_of(), batch()

    def run(subspace=subspace):
        if way == "at":
            return at(subspace, 0.5, lambda: subspace(x))
        subspace.set_level(density=0.5)
        return subspace(x)

    optimizer = torch.optim.SGD(subspace.parameters(), lr=1.0, fused=True)
    run().square().sum().backward()
    with torch.no_grad():
        y = run()
        if write == "data":
            for p in subspace.parameters():
                p.data.copy_(p - p.grad)
        else:
            optimizer.step()
        moved = run()
        assert not torch.equal(moved, y) and torch.equal(moved, run(copy.deepcopy(subspace)))


def test_a_dtype_and_back_which_may_end_in_the_same_memory_makes_the_weights_anew():
    subspace, x = subspace_of(), batch()
    subspace.set_level(density=0.5)
    with torch.no_grad():
        y = subspace(x)
        subspace.bfloat16().float()
        assert subspace._slot.made is None and not torch.equal(subspace(x), y)


def test_parameters_made_in_inference_mode_have_no_versions_and_are_read_at_every_forward():
    x = batch()
    with torch.inference_mode():
        subspace = subspace_of()
        subspace.set_level(density=0.5)
        y = subspace(x)
        subspace.model.head.weight_1.mul_(2)
        assert not torch.equal(subspace(x), y)


def test_a_copy_takes_no_weights_along():
    subspace = subspace_of()
    subspace.set_level(density=0.5)
    with torch.no_grad():
        subspace(batch())
    twin = copy.deepcopy(subspace)
    assert subspace._slot.made is not None and twin._slot.made is None and twin.level == subspace.level


def test_with_gradient_each_forward_makes_weights_of_its_own(makes):
    subspace, x = subspace_of(), batch()
    optimizer = torch.optim.SGD(subspace.parameters(), 0.1)
    with subspace.at(density=0.5):
        with torch.no_grad():
            subspace(x)
        first, second = subspace(x), subspace(2 * x)
        first.sum().backward()
        second.sum().backward()
        optimizer.step()
        assert not torch.equal(subspace(x), first)
        subspace(x).sum().backward()
    assert len(makes) == 5


def test_gradients_of_both_ends_equal_those_of_the_composition(plain_norms_round_alike):
    subspace = subspace_of().to(torch.float64)
    model, x, alpha, density = subspace.model, batch().double(), 0.3, 0.4
    ends = dict(model.named_parameters())
    firsts = [name for name in ends if not name.endswith("_1")]
    with subspace.at(density=density, alpha=alpha):
        loss = subspace(x).square().sum()
    grads = dict(zip(ends, torch.autograd.grad(loss, list(ends.values())), strict=True))

    blended = {name: (1 - alpha) * ends[name] + alpha * ends[f"{name}_1"] for name in firsts}
    w = blended["body.2.weight"]
    order = w.detach().abs().flatten().argsort(stable=True)
    mask = torch.zeros(w.numel(), dtype=w.dtype).index_fill(0, order[-round(density * w.numel()) :], 1.0)
    blended["body.2.weight"] = w * mask.view(w.shape)
    by_hand = torch.func.functional_call(Net(norm=group_norm).double(), blended, x).square().sum()
    assert torch.equal(loss, by_hand)
    for name, grad in zip(ends, torch.autograd.grad(by_hand, list(ends.values())), strict=True):
        assert torch.equal(grads[name], grad), name


def test_evaluation_keeps_no_graph_and_neither_does_a_finished_forward():
    subspace, x = subspace_of(), batch()
    with subspace.at(density=0.5):
        with torch.no_grad():
            assert not subspace(x).requires_grad
        kept = [tensor for pair in subspace._slot.made.snapshot for tensor in pair if tensor is not None]
        assert kept and not any(tensor.grad_fn for tensor in kept)
        assert subspace(x).requires_grad and subspace._slot.running is None and subspace._slot.made is None


def test_a_failed_forward_leaves_no_weights_behind():
    subspace = subspace_of()
    with subspace.at(density=0.5):
        with pytest.raises(RuntimeError, match="channels"):
            subspace(torch.zeros(1, 5, 6, 6))
        assert subspace._slot.running is None


@pytest.mark.parametrize("grad", [True, False])
def test_a_part_of_the_model_can_be_called_alone(grad):
    subspace, x = subspace_of(), batch()
    with torch.set_grad_enabled(grad), subspace.at(density=0.3):
        y = subspace(x)
        assert torch.equal(subspace.model.head(subspace.model.features(x)), y)
        with subspace.at(density=0.6):
            assert not torch.equal(subspace.model.head(subspace.model.features(x)), y)


def test_activation_checkpointing_gives_the_same_gradients():
    subspace, x = subspace_of(), batch()
    grads = []
    for run in (lambda f, h: f(h), lambda f, h: checkpoint(f, h, use_reentrant=False)):
        with subspace.at(density=0.3):
            hidden = run(subspace.model.body, subspace.model.stem(x))
            grads.append(torch.autograd.grad(hidden.sum(), subspace.model.body[2].weight_1)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("grad", [True, False])
def test_autocast_makes_and_caches_weights_in_its_dtype(grad, makes):
    subspace, x = subspace_of(), batch()
    seen = []
    layer = subspace.model.body[2]
    layer.register_forward_pre_hook(lambda module, args: seen.append(module.tensors()[0].dtype))
    with torch.set_grad_enabled(grad), subspace.at(density=0.5):
        subspace(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = subspace(x)
            subspace(x)
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16] and len(makes) == (3 if grad else 2)
    assert y.dtype == torch.bfloat16
    if grad:
        y.float().sum().backward()
        assert layer.weight_1.grad.dtype == torch.float32 and layer.weight_1.grad.any()


def test_regularizer_is_the_squared_cosine_over_all_weights_together():
    subspace = subspace_of()
    ends = {name: p.detach().double() for name, p in subspace.model.named_parameters()}
    names = ("stem.weight", "body.2.weight", "head.weight")
    w0 = torch.cat([ends[name].flatten() for name in names]).requires_grad_()
    w1 = torch.cat([ends[f"{name}_1"].flatten() for name in names]).requires_grad_()
    expected = torch.cosine_similarity(w0, w1, dim=0).square()
    value = subspace.regularizer()
    value.backward()
    assert value.shape == () and value.dtype == torch.float32
    bound = 2 * w0.numel() * torch.finfo(torch.float32).eps  # of sums of n float32 products, relative
    assert abs(value.item() - expected.item()) <= bound
    expected.backward()
    grad = torch.cat([subspace.model.get_parameter(f"{name}_1").grad.flatten() for name in names])
    torch.testing.assert_close(grad.double(), w1.grad, rtol=bound, atol=bound * w1.grad.abs().max().item())
    assert subspace.model.body[0].weight.grad is None and subspace.model.stem.bias.grad is None


def test_regularizer_of_equal_ends_zero_ends_and_points():
    equal = subspace_of(init="copy").to(torch.bfloat16)
    assert equal.regularizer().dtype == torch.float32 and abs(equal.regularizer() - 1) < 1e-5
    for parameter in equal.parameters():
        nn.init.zeros_(parameter)
    zero = equal.regularizer()
    zero.backward()
    assert zero == 0 and not equal.model.stem.weight.grad.any()
    points = subspace_of(line=False)
    point = points.regularizer()
    point.backward()  # as of a line, of nothing
    assert point == 0 and point.shape == () and all(p.grad is None for p in points.parameters())


def test_regularizer_of_frozen_ends_has_a_backward_to_nothing():
    subspace = subspace_of().requires_grad_(False)
    value = subspace.regularizer()
    value.backward()
    assert 0 < value < 1 and all(p.grad is None for p in subspace.parameters())
    with torch.no_grad():
        assert not subspace.regularizer().requires_grad


def test_sample_uses_the_subspaces_generator_unless_given_one():
    first, second = subspace_of(), subspace_of(seed=1)
    drawn = [first.sample() for _ in range(5)]
    assert drawn == [second.sample() for _ in range(5)]
    assert [first.sample(torch.Generator().manual_seed(3), progress=0.5) for _ in range(5)] == [
        first.recipe.sample(torch.Generator().manual_seed(3), 0.5) for _ in range(5)
    ]
    assert first.sample() == second.sample()  # a generator that was passed left the own one alone
    for subspace in (first, copy.deepcopy(second)):
        subspace.generator.manual_seed(second.generator.initial_seed())
        assert [subspace.sample() for _ in range(5)] == drawn


def test_a_subspace_can_be_sent_to_a_spawned_process():
    spawned = torch.multiprocessing.get_context("spawn").Process(target=lcs.Subspace.sample, args=(subspace_of(),))
    spawned.start(), spawned.join()
    assert spawned.exitcode == 0


def test_state_dict_has_the_models_keys_and_loads_exactly():
    source, target = subspace_of(), subspace_of(seed=1)
    state = source.state_dict()
    assert set(state) == set(source.model.state_dict()) and "stem.weight_1" in state
    for load in (target.load_state_dict, target.model.load_state_dict):
        nn.init.zeros_(target.model.head.weight_1)
        assert not any(load(state))
        assert all(torch.equal(value, target.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("first", ["model", "head"])
def test_state_dict_of_a_model_with_a_part_named_model(first):
    inner, parts = nn.Module(), {"model": nn.ModuleDict({"head": nn.Linear(4, 4)}), "head": nn.Linear(4, 4)}
    for name in sorted(parts, key=first.__eq__, reverse=True):
        inner.add_module(name, parts[name])
    state = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    subspace = lcs.convert(inner, lcs.Unstructured(line=False))
    found = subspace.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    subspace.load_state_dict({name: 2 * tensor for name, tensor in state.items()})
    assert all(torch.equal(tensor, 2 * state[name]) for name, tensor in inner.state_dict().items())


def test_state_dict_inside_another_module():
    source, target = (nn.Sequential(subspace_of(seed=seed)) for seed in (0, 1))
    state = source.state_dict()
    assert "0.stem.weight_1" in state and not any("model" in name for name in state)
    target.load_state_dict(state)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("through", ["subspace", "model"])
@pytest.mark.parametrize("line", [True, False])
def test_a_dense_state_dict_loads_into_both_ends(through, line, assign):
    dense, subspace = Net(), subspace_of(line)
    nn.init.normal_(dense.body[0].weight)
    state, keys = dense.state_dict(), set(dense.state_dict())
    (subspace if through == "subspace" else subspace.model).load_state_dict(state, assign=assign)
    assert set(state) == keys
    for name, first in dense.named_parameters():
        assert torch.equal(subspace.model.get_parameter(name), first)
        if line:
            second = subspace.model.get_parameter(f"{name}_1")
            assert torch.equal(second, first) and second.data_ptr() != subspace.model.get_parameter(name).data_ptr()


def test_a_dense_state_dict_loads_running_statistics_where_the_norm_is_kept():
    with pytest.warns(UserWarning, match="body.0"):
        subspace = subspace_of(norm="keep")
    dense = Net()
    dense(batch())
    subspace.load_state_dict(dense.state_dict())
    assert torch.equal(subspace.model.body[0].running_var, dense.body[0].running_var)
    dense.eval(), subspace.eval()
    with subspace.at(density=1.0):
        torch.testing.assert_close(subspace(batch()), dense(batch()))


@pytest.mark.parametrize("line", [True, False])
def test_a_state_dict_that_does_not_fit_is_refused(line):
    state = subspace_of(not line).state_dict()
    if line:
        del state["head.weight"]
    with pytest.raises(RuntimeError, match="head.weight" if line else "head.weight_1"):
        subspace_of(line).load_state_dict(state)


@pytest.mark.parametrize("way", ["subspace.compile", "torch.compile(model)", "Sequential"])
def test_compiled_any_number_of_levels_is_one_graph_with_gradient_and_one_without(way):
    torch._dynamo.reset()
    subspace, x, counter = subspace_of(), batch(), CompileCounter()
    if way == "Sequential":
        subspace = lcs.convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)), subspace.recipe)
    eager = {}
    for i in range(0, 100, 33):
        eager[i] = at(subspace, i / 99, lambda: subspace(x))
    run = subspace
    if way == "torch.compile(model)":
        run = torch.compile(subspace.model, backend=counter, fullgraph=True)
    else:
        subspace.compile(backend=counter, fullgraph=True)
    for grad in (True, False):
        for i in range(100):
            with torch.set_grad_enabled(grad), subspace.at(density=i / 99):
                y = run(x)
            if i in eager:
                assert torch.equal(y, eager[i])
            if grad and i % 50 == 0:
                y.sum().backward()
    assert counter.frame_count == 2
    torch._dynamo.reset()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda subspace: pickle.loads(pickle.dumps(subspace))])
def test_a_copy_of_a_compiled_subspace_runs_its_own_parameters(copied):
    torch._dynamo.reset()
    subspace, x = subspace_of(), batch()
    subspace.compile(backend="eager")
    y = at(subspace, 0.5, lambda: subspace(x))
    twin = copied(subspace)
    with torch.no_grad():
        for p in subspace.parameters():
            p.zero_()
    assert torch.equal(at(twin, 0.5, lambda: twin(x)), y) and not at(subspace, 0.5, lambda: subspace(x)).any()
    assert type(twin.model.forward) is type(subspace.model.forward)
    torch._dynamo.reset()


def test_extra_repr_says_what_a_layer_is():
    model = subspace_of().model
    assert "line, compressed" in repr(model.body[2]) and repr(model.head).endswith("bias=True, line)")
