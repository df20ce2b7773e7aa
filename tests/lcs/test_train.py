import contextlib
import json
import math
import os
import signal
import threading
import time

import pytest
import safetensors.torch
import torch

from lcs import checkpoint, schedule
from lcs import train as training
from lcs.checkpoint import CheckpointError
from lcs.config import ConfigError
from lcs.loop import Loop, _ahead
from lcs.network import build, load_data, recipe
from lcs.rundir import Metrics, RunDirectory, RunError
from lcs.train import Interrupted, make_accelerator, train


def make_loop(config):
    config = config.resolved()
    data = load_data(config)
    return Loop(config, data, build(config, data), make_accelerator(config))


def read_metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lcs_l"},
        {"method": "lcs_p"},
        {"method": "target", "target_density": 0.1},
        {"method": "dense", "preset": "paper"},
        {"method": "lcs_l", "preset": "paper"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_run_of_each_method(tiny, changes):
    config = tiny(**changes)
    run = train(config)
    lines = read_metrics(run)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) for line in lines)
    tested = [line["density"] for line in lines if line["kind"] == "test"]
    ends = {"target": [0.1], "dense": [1.0]}.get(config.method, [0.025, 1.0])
    assert tested == ends
    assert RunDirectory(run).config() == config.resolved()
    assert len(json.loads((run / "environment.json").read_text())) == 1
    assert [path.name for path in checkpoint.paths(run / "checkpoints")] == [
        "step-000000006.safetensors",
        "step-000000003.safetensors",
    ]
    weights = safetensors.torch.load_file(run / "weights.safetensors")
    assert any(name.endswith("weight_1") for name in weights) == (config.method == "lcs_l")
    assert any("running_mean" in name for name in weights) == (config.resolved().norm == "batch")


def test_levels_follow_the_warmup(tiny):
    lines = [line for line in read_metrics(train(tiny(evaluation_interval=0))) if line["kind"] == "train"]
    steps = schedule.warmup_steps(0.8, 2, 20, 8)
    for line in lines:
        left = 1 - schedule.warmup_progress(line["step"] - 1, steps)
        a = line["alpha"]
        assert line["density"] == min(a + (1 - a) * left, 1.0)


def test_step_is_sgd_on_the_loss_and_regulariser(tiny):
    """One step against plain autograd and torch's own SGD, in float64."""
    config = tiny(precision="fp64", weight_decay=0.01)
    loop, twin = make_loop(config), make_loop(config)
    indices = schedule.batches(0, 0, 20, 8)[0]
    batch = loop.load_batch(indices, 0)
    (level,) = twin.subspace.sample(schedule.level_generator(0, 0), 0.0)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    with twin.subspace.at(level):
        loss = torch.nn.functional.cross_entropy(twin.subspace(images), batch.labels)
        (loss + twin.subspace.regularizer()).backward()
    lr = schedule.learning_rate(0.1, 0, 2)
    torch.optim.SGD(twin.subspace.model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01).step()
    result = loop.train_step(batch)
    assert result.level == level and result.lr == lr
    # Two orders of summing 8 losses; each gradient's share of 1 / 8 is exact.
    assert abs(result.loss - loss.item()) <= 8 * torch.finfo(torch.float64).eps * loss.item()
    for (name, p), q in zip(loop.parameters.items(), twin.subspace.model.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_weight_decay_reaches_every_parameter(tiny):
    """Also where a gradient is exactly 0, as of the end that a level does not touch."""
    loop = make_loop(tiny(beta=0.0, weight_decay=0.5))
    loop.subspace.sample = lambda generator, progress: [loop.subspace.recipe.level(1.0)]
    before = {name: p.detach().clone() for name, p in loop.parameters.items()}
    loop.train_step(loop.load_batch(list(range(8)), 0))
    lr = schedule.learning_rate(0.1, 0, 2)
    first_ends = [name for name in before if f"{name}_1" in before]
    assert first_ends
    for name in first_ends:
        expected = before[name].add(before[name] * 0.5, alpha=-lr)
        assert torch.equal(loop.parameters[name], expected), name


def test_regulariser_is_added_once_whatever_the_number_of_levels(tiny):
    loop = make_loop(tiny(precision="fp64", beta=3.0))
    levels = [loop.subspace.recipe.level(d) for d in (0.3, 0.7)]
    batch = loop.load_batch(list(range(8)), 0)

    def gradients(chosen, beta):
        loop.config = loop.config.model_copy(update={"beta": beta})
        loop.backward(batch, chosen)
        return {name: p.grad.clone() for name, p in loop.parameters.items()}

    both, one, other = gradients(levels, 3.0), gradients(levels[:1], 0.0), gradients(levels[1:], 0.0)
    loop.optimizer.zero_grad(set_to_none=False)
    (3.0 * loop.subspace.regularizer()).backward()
    for name, p in loop.parameters.items():
        parts = [one[name], other[name], p.grad]
        bound = 4 * torch.finfo(torch.float64).eps * sum(part.abs() for part in parts)
        assert ((both[name] - sum(parts)).abs() <= bound).all(), name


def test_bf16_autocast_keeps_float32_weights(tiny):
    loop = make_loop(tiny(precision="bf16"))
    dtypes = []
    classifier = loop.subspace.model.get_submodule(loop.subspace.model.classifier_name)
    classifier.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    result = loop.train_step(loop.load_batch(list(range(8)), 0))
    assert dtypes == [torch.bfloat16]
    assert math.isfinite(result.loss)
    assert {p.dtype for p in loop.parameters.values()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in loop.parameters.values())


def test_shifted_evaluation_of_the_paper(tiny):
    loop = make_loop(tiny(preset="paper"))
    level = loop.subspace.recipe.level(0.1)
    loop.step = 0
    assert loop._shifted(level).density == 1.0 and loop._shifted(level).alpha == 0.1
    loop.step = loop.warmup_steps
    assert loop._shifted(level) == level
    assert make_loop(tiny())._shifted(level) == level


@pytest.mark.parametrize("method", ["lcs_l", "lcs_p", "target", "dense"])
def test_recipe(tiny, method):
    target = 0.2 if method == "target" else None
    made = recipe(tiny(method=method, target_density=target, preset="paper").resolved())
    assert made.line == (method == "lcs_l")
    assert made.target == {"target": 0.2, "dense": 1.0}.get(method)
    assert made.keep_rounding == "truncate"


def test_initial_weights_depend_on_the_seed_alone(tiny):
    def weights(seed):
        config = tiny(seed=seed).resolved()
        return build(config, load_data(config)).model.state_dict()

    torch.manual_seed(3)
    first = weights(0)
    torch.manual_seed(4)
    assert all(torch.equal(t, first[name]) for name, t in weights(0).items())
    assert any(not torch.equal(t, first[name]) for name, t in weights(1).items())


def test_batches_prepared_ahead_come_in_order():
    assert list(_ahead(lambda x: x * x, range(20), 3)) == [x * x for x in range(20)]


def test_workers_do_not_change_the_weights(tiny, tmp_path):
    runs = [train(tiny(workers=n, evaluation_interval=0, out=tmp_path / str(n))) for n in (0, 2)]
    assert (runs[0] / "weights.safetensors").read_bytes() == (runs[1] / "weights.safetensors").read_bytes()


def test_refuses_to_overwrite(tiny):
    run = train(tiny(evaluation_interval=0))
    before = (run / "weights.safetensors").read_bytes()
    with pytest.raises(RunError, match="already holds a run; go on with --resume, replace it with --overwrite"):
        train(tiny(evaluation_interval=0))
    assert (run / "weights.safetensors").read_bytes() == before
    train(tiny(evaluation_interval=0, overwrite=True, seed=1))
    assert (run / "weights.safetensors").read_bytes() != before
    assert RunDirectory(run).config().seed == 1


def test_refuses_a_directory_with_other_files(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    thesis = tmp_path / "run" / "thesis.txt"
    thesis.write_text("words")
    for flag, words in (("overwrite", "is not empty and holds no run"), ("resume", "holds no run to resume")):
        with pytest.raises(RunError, match=words):
            train(tiny(**{flag: True}))
    assert os.listdir(tmp_path / "run") == ["thesis.txt"] and thesis.read_text() == "words"


def test_directory_that_cannot_be_made(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Loop, "train_step", lambda self, batch: pytest.fail("trained before it looked"))
    with pytest.raises(RunError, match="run: cannot be written: Not a directory; choose another directory with --out"):
        train(tiny(out=tmp_path / "file" / "run"))


def test_loss_that_is_not_finite_stops_the_run_before_the_weights_change(tiny):
    loop = make_loop(tiny())
    before = {name: p.detach().clone() for name, p in loop.parameters.items()}
    batch = loop.load_batch(list(range(8)), 0)
    batch.images.fill_(math.inf)
    with pytest.raises(RunError, match="the loss is nan at step 0; try a lower --lr than 0.1"):
        loop.train_step(batch)
    assert all(torch.equal(p, before[name]) for name, p in loop.parameters.items())
    assert loop.step == 0


def test_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(tiny):
    loop = make_loop(tiny())
    before = {name: p.detach().clone() for name, p in loop.parameters.items()}
    loop.parameters["fc.weight"].register_hook(lambda gradient: gradient.fill_(math.inf))
    with pytest.raises(RunError, match="the norm of the gradient is inf at step 0; try a lower --lr than 0.1"):
        loop.train_step(loop.load_batch(list(range(8)), 0))
    assert all(torch.equal(p, before[name]) for name, p in loop.parameters.items())


def test_an_update_that_is_not_finite_is_not_saved(tiny, monkeypatch):
    step = Loop.train_step

    def diverges(loop, batch):
        found = step(loop, batch)
        if loop.step == loop.total_steps:
            next(iter(loop.parameters.values())).data[0] = math.nan
        return found

    monkeypatch.setattr(Loop, "train_step", diverges)
    config = tiny()
    with pytest.raises(RunError, match="the norm of the weights is nan at step 6; try a lower --lr than 0.1"):
        train(config)
    assert [p.name for p in checkpoint.paths(config.out / "checkpoints")] == ["step-000000003.safetensors"]


def test_metrics_are_json_whatever_a_loss_is(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", 0)
    metrics.write("test", 1, loss=math.nan, accuracy=0.5, widths=(math.inf, 1.0))
    metrics.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert found == {"kind": "test", "step": 1, "loss": None, "accuracy": 0.5, "widths": [None, 1.0]}


def test_a_data_set_that_has_changed_is_not_gone_on_with(tiny):
    config = tiny(epochs=2)
    train(config)
    path = checkpoint.paths(config.out / "checkpoints")[0]
    tensors, manifest = checkpoint.load(path)
    assert manifest["data"] == {"training images": 20, "test images": 20, "classes": 10}
    manifest["data"]["training images"] = 21
    checkpoint.save(path, tensors, {k: v for k, v in manifest.items() if k != "format_version"})
    with pytest.raises(
        RunError, match="data of .*, 21 training images, which now has .*, 20 training images; put it back"
    ):
        train(config.model_copy(update={"resume": True}))


@pytest.mark.parametrize("count, processes, fits", [(20, 2, True), (19, 2, False), (18, 2, False), (18, 1, True)])
def test_processes_share_what_batch_norms_need(tiny, count, processes, fits):
    changes = {
        "method": "dense",
        "norm": "batch",
        "model": "resnet18",
        "image_size": 32,
        "batch_size": 8,
        "limit": count,
    }
    config = tiny(**changes).resolved()
    with contextlib.nullcontext() if fits else pytest.raises(ConfigError, match="which 2 processes share, too few"):
        build(config, load_data(config), processes)


@pytest.mark.parametrize("begun", [(), ("checkpoints",)], ids=["absent", "killed before its settings were written"])
def test_resume_starts_no_run(tiny, begun):
    run = tiny().out
    for name in begun:
        (run / name).mkdir(parents=True)
    with pytest.raises(RunError, match="run: holds no run to resume .*; give the --out directory of one, or start one"):
        train(tiny(resume=True))
    assert run.exists() == bool(begun) and not (run / "config.yaml").exists()


def test_resume_refuses_other_settings(tiny):
    train(tiny(evaluation_interval=0))
    with pytest.raises(CheckpointError, match=r"belongs to another run: lr 0.1 there and 0.2 here, seed 0 there and 1"):
        train(tiny(resume=True, lr=0.2, seed=1))


def test_resume_refuses_a_checkpoint_of_another_model(tiny, tmp_path):
    run = train(tiny(evaluation_interval=0))
    other = train(tiny(evaluation_interval=0, method="lcs_p", out=tmp_path / "other"))
    newest = checkpoint.paths(run / "checkpoints")[0]
    newest.write_bytes(checkpoint.paths(other / "checkpoints")[0].read_bytes())
    with pytest.raises(CheckpointError, match=f"{newest.name}: belongs to another run: method 'lcs_p' there"):
        train(tiny(resume=True))
    loop = make_loop(tiny())
    tensors, manifest = checkpoint.load(newest)
    with pytest.raises(CheckpointError, match="is of another model: tensor model.*weight_1 is absent there"):
        loop.load(newest, tensors, manifest["step"])


def test_interrupt_saves_whole_steps_and_resume_gives_the_same_weights(tiny, tmp_path, capsys):
    whole = train(tiny(evaluation_interval=0, out=tmp_path / "whole"))
    metrics = tmp_path / "run" / "metrics.jsonl"

    def interrupt():
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 1):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted, match="stopped and saved at step .*; go on with: lcs train --resume --out .*run"):
        train(tiny(evaluation_interval=0))
    thread.join()
    assert checkpoint.paths(tmp_path / "run" / "checkpoints")
    run = train(tiny(evaluation_interval=0, resume=True))
    assert "resuming at step" in capsys.readouterr().out
    assert (run / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_resume_after_the_newest_checkpoint_is_damaged(tiny, capsys):
    run = train(tiny(evaluation_interval=0))
    weights = (run / "weights.safetensors").read_bytes()
    newest, before = checkpoint.paths(run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-100])
    train(tiny(evaluation_interval=0, resume=True))
    shown = capsys.readouterr().out
    assert "damaged, going on from the one before" in shown and newest.name in shown
    assert f"resuming at step 3: {before}" in shown
    assert (run / "weights.safetensors").read_bytes() == weights


def test_metrics_drop_later_and_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n{"kind": "tra')
    metrics = Metrics(path, 1)
    metrics.write("train", 2, loss=0.5)
    metrics.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"kind": "train", "step": 1},
        {"kind": "train", "step": 2, "loss": 0.5},
    ]


def test_missing_gpu_is_named(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="device: cuda was asked for, but PyTorch sees no GPU"):
        train(tiny(device="cuda"))


def test_missing_package_names_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'accelerate, which is not installed: pip install "lcs-kernels\[train\]"'):
        training.train(tiny())
