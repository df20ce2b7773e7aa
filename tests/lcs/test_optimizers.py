"""Each optimiser option takes torch's own steps, and goes on after a resume with the same bits."""

import pytest
import torch

from lcs import optimizers, schedule
from lcs.checkpoint import CheckpointError
from lcs.config import TrainConfig
from lcs.loop import Loop
from lcs.muon import Muon, orthogonalize
from lcs.network import build, load_data
from lcs.train import make_accelerator

SETTINGS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "adamw", "lr": 0.01},
    {"optimizer": "muon"},
]
DTYPES = torch.float32, torch.float64, torch.bfloat16
each_optimizer = pytest.mark.parametrize("changes", SETTINGS, ids=["sgd", "sgd-no-momentum", "adamw", "muon"])


def make_loop(config):
    config = config.resolved()
    data = load_data(config)
    return Loop(config, data, build(config, data), make_accelerator(config))


def steps(loop, count):
    for batch in list(loop.batches())[:count]:
        loop.train_step(batch)


@pytest.mark.parametrize("shape", [(3, 16, 27), (2, 40, 8), (1, 5, 5)], ids=str)
def test_orthogonalize_keeps_the_singular_vectors(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    aligned = left.mT @ orthogonalize(matrices) @ right.mT
    values = aligned.diagonal(dim1=1, dim2=2)
    assert ((values > 0.6) & (values < 1.3)).all()
    assert (aligned - torch.diag_embed(values)).abs().max() <= 1e-10


def test_orthogonalize_leaves_zero():
    assert not orthogonalize(torch.zeros(2, 4, 3)).any()


def test_muon_step_by_hand():
    w = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    b = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    before, gradients = [p.detach().clone() for p in (w, b)], (torch.randn_like(w), torch.tensor([0.5, -1e-9, 0.0]))
    w.grad, b.grad = gradients[0].clone(), gradients[1].double()
    Muon([w, b], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    turned = orthogonalize(gradients[0].view(1, 4, 2)).view(4, 2, 1, 1)
    assert torch.allclose(w, before[0] * (1 - 0.05) - 0.1 * 2**0.5 * turned, rtol=1e-12)
    assert torch.allclose(b, before[1] * (1 - 0.05) - 0.01 * gradients[1].double().sign(), rtol=1e-12)


def test_muon_takes_a_closure():
    w = torch.ones(3, 2, requires_grad=True)
    optimizer = Muon([w], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (w * torch.arange(6.0).view(3, 2)).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 15.0 and torch.equal(w.grad, torch.arange(6.0).view(3, 2))
    assert not torch.equal(w, torch.ones(3, 2)) and optimizer.step() is None


def test_muon_skips_what_has_no_gradient():
    w, b, unused = (torch.ones(s, requires_grad=True) for s in ((3, 2), (3,), (3, 2)))
    (w.sum() + b.sum()).backward()
    optimizer = Muon([unused, w, b], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3, 2)) and unused not in optimizer.state
    assert not torch.equal(w, torch.ones(3, 2)) and not torch.equal(b, torch.ones(3))


def test_muon_takes_dtypes_of_one_shape():
    gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together, apart = ([torch.ones(4, 3, dtype=t, requires_grad=True) for t in DTYPES] for _ in range(2))
    for p in (*together, *apart):
        p.grad = gradient.to(p.dtype)
    Muon(together, lr=0.1).step()
    for p in apart:
        Muon([p], lr=0.1).step()
    for p, q in zip(together, apart, strict=True):
        assert torch.equal(p, q) and p.dtype == q.dtype


def test_sgd_is_the_default():
    assert TrainConfig().optimizer == TrainConfig(preset="paper").optimizer == "sgd"


def test_adamw_takes_the_steps_of_torch(tiny):
    """Two steps against plain autograd and torch's own AdamW, in float64."""
    config = tiny(precision="fp64", optimizer="adamw", lr=0.01, momentum=0.8, weight_decay=0.1)
    loop, twin = make_loop(config), make_loop(config)
    own = torch.optim.AdamW(twin.subspace.model.parameters(), lr=0.0, betas=(0.8, 0.999), eps=1e-8, weight_decay=0.1)
    for step, batch in enumerate(list(loop.batches())[:2]):
        (level,) = twin.subspace.sample(schedule.level_generator(0, step), twin.warmup_progress)
        twin.subspace.model.zero_grad(set_to_none=False)
        with twin.subspace.at(level):
            logits = twin.subspace(batch.images)
        (torch.nn.functional.cross_entropy(logits, batch.labels) + twin.subspace.regularizer()).backward()
        own.param_groups[0]["lr"] = schedule.learning_rate(0.01, 0, 2)
        own.step()
        twin.step += 1
        assert loop.train_step(batch).level == level
    for (name, p), q in zip(loop.parameters.items(), twin.subspace.model.parameters(), strict=True):
        # Two orders of summing the losses, 8 terms; AdamW divides a gradient by its own size, so errors are relative.
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-9), name


@each_optimizer
def test_a_loaded_loop_goes_on_with_the_same_bits(tiny, changes, tmp_path):
    whole, again = make_loop(tiny(**changes)), make_loop(tiny(**changes))
    steps(whole, 2)
    saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    again.load(tmp_path / "checkpoint", saved, whole.step)
    for loop in (whole, again):
        steps(loop, 1)
    assert whole.tensors().keys() == again.tensors().keys()
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


@each_optimizer
def test_the_state_is_what_a_checkpoint_is_checked_for(tiny, changes):
    loop = make_loop(tiny(**changes))
    assert not optimizers.tensors(loop.config, loop.optimizer, loop.parameters)
    steps(loop, 1)
    state = optimizers.tensors(loop.config, loop.optimizer, loop.parameters)
    wanted = optimizers.expected(loop.config, loop.parameters)
    assert {n: (t.shape, t.dtype) for n, t in state.items()} == {n: (t.shape, t.dtype) for n, t in wanted.items()}


def test_a_checkpoint_of_another_optimiser_is_refused(tiny, tmp_path):
    loop, other = make_loop(tiny()), make_loop(tiny(optimizer="adamw"))
    steps(loop, 1)
    with pytest.raises(CheckpointError, match="mean.conv1.weight is absent there"):
        other.load(tmp_path / "checkpoint", loop.tensors(), 1)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)], ids=str)
def test_muon_leaves_parameters_without_elements_alone(shape):
    p = torch.zeros(shape, requires_grad=True)
    p.grad = torch.zeros(shape)
    Muon([p], lr=0.1).step()
