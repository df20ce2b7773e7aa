"""Each optimiser option takes torch's own steps, and goes on after a resume with the same bits."""

import pytest
import torch

from lcs import optimizers, schedule
from lcs.checkpoint import CheckpointError
from lcs.config import TrainConfig
from lcs.loop import Loop
from lcs.network import build, load_data
from lcs.train import make_accelerator

SETTINGS = [{"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}, {"optimizer": "adamw", "lr": 0.01}]
each_optimizer = pytest.mark.parametrize("changes", SETTINGS, ids=["sgd", "sgd-no-momentum", "adamw"])


def make_loop(config):
    config = config.resolved()
    data = load_data(config)
    return Loop(config, data, build(config, data), make_accelerator(config))


def steps(loop, count):
    for batch in list(loop.batches())[:count]:
        loop.train_step(batch)


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
