"""Two CPU processes (gloo): the same levels on both, and the gradients of one process. Run as a script, this is one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lcs
from lcs import schedule
from lcs.config import TrainConfig
from lcs.evaluate import evaluate
from lcs.loop import Loop
from lcs.network import build, load_data
from lcs.train import leave_processes, make_accelerator, train

STEPS = 12
AVERAGES = {"compression": "quantized", "method": "target", "target_bits": 4, "norm": "batch", "warmup_fraction": 0.0}
BATCHES = {"even": [3, 1, 4, 15], "uneven": [9, 2, 6, 5, 13], "one image": [7]}


def settings(out: Path, **changes) -> TrainConfig:
    fixed = {"data": "synthetic", "image_size": 16, "limit": 20, "batch_size": 8, "epochs": 2, "threads": 1}
    device = "cpu" if torch.cuda.is_available() else "auto"
    return TrainConfig(device=device, precision="fp64", out=out, **{**fixed, **changes}).resolved()


def make_loop(config: TrainConfig) -> Loop:
    data = load_data(config)
    return Loop(config, data, build(config, data), make_accelerator(config))


def levels(loop: Loop) -> list[tuple[float, float]]:
    drawn = [
        loop.subspace.sample(schedule.level_generator(loop.config.seed, step), step / STEPS) for step in range(STEPS)
    ]
    return [(level.alpha, level.density) for step in drawn for level in step]


def gradients(loop: Loop, indices: list[int]) -> dict[str, torch.Tensor]:
    loop.model.train()
    loop.backward(loop.load_batch(indices, epoch=0), [loop.subspace.recipe.level(0.3)])
    return {name: p.grad.clone() for name, p in loop.parameters.items()}


def gradients_of_parts(shard: Callable[[nn.Module], object]) -> list[Tensor]:
    """Of a loss and the regulariser, all of each, where `shard` has parted the parameters."""
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.GroupNorm(5, 5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    for i, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    recipe = lcs.Unstructured()
    subspace = lcs.convert(model, recipe, init="independent", generator=torch.Generator().manual_seed(0)).double()
    shard(subspace)
    with subspace.at(density=0.3):
        subspace(torch.arange(32.0, dtype=torch.float64).reshape(2, 1, 4, 4).sin()).square().sum().backward()
    subspace.regularizer().backward()
    grads = [p.grad for p in subspace.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]


def worker(out: Path) -> None:
    """What each process does: levels and gradients, then a whole run, into files of its rank."""
    rank = int(os.environ["RANK"])
    torch.manual_seed(100 + rank)
    record(make_loop(settings(out / "run")), out)
    train(settings(out / "run"))
    train(settings(out / "averages", **AVERAGES))
    mesh = init_device_mesh("cpu", (2,))
    torch.save(gradients_of_parts(lambda subspace: fully_shard(subspace, mesh=mesh)), out / f"sharded{rank}.pt")
    leave_processes()


def record(loop: Loop, out: Path) -> None:
    rank = loop.accelerator.process_index
    assert loop.accelerator.num_processes == 2
    torch.save({name: gradients(loop, batch) for name, batch in BATCHES.items()}, out / f"gradients{rank}.pt")
    (out / f"levels{rank}.json").write_text(json.dumps(levels(loop)))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(out)],
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        shown = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(shown)
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Loop:
    return make_loop(settings(tmp_path_factory.mktemp("one") / "run"))


def test_all_ranks_draw_the_levels_of_one_process(two, one):
    drawn = [json.loads((two / f"levels{rank}.json").read_text()) for rank in (0, 1)]
    assert drawn[0] == drawn[1] == [list(level) for level in levels(one)]


@pytest.mark.parametrize("name", BATCHES)
def test_gradients_are_those_of_one_process(two, one, name):
    """A weight's gradient sums at most `images * 16 * 16` products; two orders of summing differ by at most twice that
    many roundings of the sum of magnitudes, here that of the images' own gradients."""
    expected, batch = gradients(one, BATCHES[name]), BATCHES[name]
    each = [gradients(one, [index]) for index in batch]
    for rank in (0, 1):
        found = torch.load(two / f"gradients{rank}.pt", weights_only=True)[name]
        assert found.keys() == expected.keys()
        for parameter, gradient in expected.items():
            magnitude = sum(g[parameter].abs().max() for g in each) / len(batch)
            bound = 2 * len(batch) * 16 * 16 * torch.finfo(torch.float64).eps * magnitude
            assert magnitude > 0
            assert (found[parameter] - gradient).abs().max() <= bound, parameter


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_of_sharded_parameters_are_those_of_whole_ones(two, rank):
    found = torch.load(two / f"sharded{rank}.pt", weights_only=True)
    for gradient, whole in zip(found, gradients_of_parts(lambda subspace: None), strict=True):
        assert whole.any() and torch.equal(gradient, whole)


def test_a_run_of_two_processes_is_recorded_once(two):
    lines = [json.loads(line) for line in (two / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_run_of_two_processes_follows_that_of_one(two, tmp_path):
    """Levels, rates and counts of correct images are equal at every step; losses are sums in another order."""
    run = train(settings(tmp_path / "run"))
    found, expected = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (two / "run", run)
    )
    for a, b in zip(found, expected, strict=True):
        assert {k: v for k, v in a.items() if k != "loss"} == {k: v for k, v in b.items() if k != "loss"}


def test_what_processes_average_for_themselves_is_evaluated_as_it_is_saved(two):
    """Statistics of norms and ranges of inputs."""
    lines = [json.loads(line) for line in (two / "averages" / "metrics.jsonl").read_text().splitlines()]
    told = next(line for line in lines if line["kind"] == "test")
    (row,) = evaluate(two / "averages", device="cpu").rows
    assert told["accuracy"] == row.accuracy
    assert abs(told["loss"] - row.loss) <= 2 * 20 * torch.finfo(torch.float64).eps * row.loss


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
