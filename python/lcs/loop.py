"""The training loop (arXiv 2110.04252, sections 3 and 4). Its whole state is the model, the optimiser and the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from . import checkpoint, evaluate, optimizers, schedule
from .config import TrainConfig
from .layers.support import is_batch_norm
from .levels import Level
from .rundir import RunError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .data import Data
    from .subspace import Subspace


@dataclass(frozen=True)
class Batch:
    """This process's part of a global batch of `count` images; `weights` is 0 for an image that only fills a part."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    count: int


@dataclass(frozen=True)
class StepResult:
    """Mean loss and accuracy over the global batch, without the regulariser, at the last level sampled."""

    loss: float
    accuracy: float
    level: Level
    lr: float
    images: int


class Loop:
    """One run's model, optimiser and step counter."""

    def __init__(self, config: TrainConfig, data: Data, subspace: Subspace, accelerator: Accelerator):
        self.config, self.data, self.subspace, self.accelerator = config, data, subspace, accelerator
        self.model = accelerator.prepare(subspace.model)
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.parameters = {k: p for k, p in subspace.model.named_parameters() if p.requires_grad}
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)  # decayed even in a step that does not reach it
        # L1 on these, through the gradient (arXiv 1708.06519).
        norms = (m for m in subspace.model.modules() if config.scale_l1 and is_batch_norm(m))
        self.scales = [norm.weight for norm in norms]
        self.optimizer = optimizers.make(config, self.parameters)
        images = len(data.train)
        self.steps_per_epoch = schedule.steps_per_epoch(images, config.batch_size)
        self.warmup_steps = schedule.warmup_steps(config.warmup_fraction, config.epochs, images, config.batch_size)
        self.step = 0

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Of the next step."""
        return self.step // self.steps_per_epoch

    @property
    def images_done(self) -> int:
        full, part = divmod(self.step, self.steps_per_epoch)
        return full * len(self.data.train) + part * self.config.batch_size

    @property
    def warmup_progress(self) -> float:
        return schedule.warmup_progress(self.step, self.warmup_steps)

    def batches(self) -> Iterator[Batch]:
        """What is left of this epoch, prepared ahead by `workers` threads."""
        epoch, begin = divmod(self.step, self.steps_per_epoch)
        config = self.config
        remaining = schedule.batches(config.seed, epoch, len(self.data.train), config.batch_size)[begin:]
        yield from _ahead(lambda indices: self.load_batch(indices, epoch), remaining, config.workers)

    def load_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """This process's part of the global batch `indices`."""
        mine = schedule.rank_slice(indices, self.accelerator.process_index, self.accelerator.num_processes)
        images, labels = self.data.train.batch(mine or indices[:1], epoch=epoch, seed=self.config.seed, augment=True)
        weights = torch.full((len(labels),), 1.0 if mine else 0.0, dtype=self.dtype)
        return Batch(images.to(self.dtype), labels, weights, len(indices))

    def train_step(self, batch: Batch) -> StepResult:
        """One update: the mean loss over the global batch at each level sampled, plus the regulariser once.

        Raises RunError if the loss or a gradient is not finite, before the weights change.
        """
        config, epoch = self.config, self.epoch
        lr = schedule.learning_rate(config.lr, epoch, config.epochs, config.lr_warmup)
        generator = schedule.level_generator(config.seed, self.step)
        levels = self.subspace.sample(generator, self.warmup_progress)
        self.model.train()
        loss, accuracy = self.backward(batch, levels)
        for scale in self.scales:
            scale.grad.add_(scale.detach().sign(), alpha=config.scale_l1)
        self._check_finite("loss", loss)
        self._check_finite("norm of the gradient", _norm(p.grad for p in self.parameters.values()))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        return StepResult(loss, accuracy, levels[-1], lr, batch.count)

    def check_weights(self) -> None:
        """Raises RunError where the last update has left one that is not finite."""
        self._check_finite("norm of the weights", _norm(p.detach() for p in self.parameters.values()))

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            at = f"the {name} is {value} at step {self.step}"
            raise RunError(f"{self.config.out}: {at}; try a lower --lr than {self.config.lr}")

    def backward(self, batch: Batch, levels: Sequence[Level]) -> tuple[float, float]:
        """Sets the gradients of the global batch, on every process the same; loss and accuracy at the last level."""
        self.optimizer.zero_grad(set_to_none=False)
        device, processes = self.accelerator.device, self.accelerator.num_processes
        images, labels, weights = (t.to(device, non_blocking=True) for t in (batch.images, batch.labels, batch.weights))
        if device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)  # in which convolutions cost less
        for i, level in enumerate(levels):
            last = i == len(levels) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model), self.subspace.at(level):
                with self.accelerator.autocast():
                    logits = self.model(images)
                losses = F.cross_entropy(logits, labels, reduction="none") * weights
                # Processes average their gradients; their parts may differ in size, so each adds its share of the sum.
                loss = losses.sum() * (processes / batch.count)
                if last:
                    loss = loss + self.config.beta * self.subspace.regularizer()
                self.accelerator.backward(loss)
        correct = (logits.detach().argmax(1) == labels) * weights
        sums = torch.stack([losses.detach().sum(), correct.sum()]).double()
        mean_loss, accuracy = (self.accelerator.reduce(sums, "sum") / batch.count).tolist()
        return mean_loss, accuracy

    def evaluate(self) -> list[tuple[Level, float, float]]:
        """(level asked for, accuracy, mean loss) on the test images, at the ends of the range or the one level."""
        self._share_buffers()
        results = []
        for value in evaluate.values_of(self.config, ends=True):
            level = self.subspace.recipe.level(value)
            sums = evaluate.measure(
                self.subspace,
                self.data.test,
                self._shifted(level),
                batch_size=self.config.batch_size,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
            )
            accuracy, loss = (self.accelerator.reduce(sums, "sum") / len(self.data.test)).tolist()
            results.append((level, accuracy, loss))
        return results

    def _share_buffers(self) -> None:
        """Running averages are of a process's own images; a step starts from the first one's, and these are saved."""
        for buffer in self.subspace.model.buffers() if self.accelerator.num_processes > 1 else ():
            torch.distributed.broadcast(buffer, 0)

    def _shifted(self, level: Level) -> Level:
        """The level whose density is shifted as training's are, where the paper's evaluation does so."""
        if self.config.warmup_evaluation != "shifted":
            return level
        return replace(level, density=level.density + (1 - level.density) * (1 - self.warmup_progress))

    def tensors(self) -> dict[str, Tensor]:
        """The state by name: model.<name>, and the optimiser's once there is any (momentum.<name> of SGD)."""
        state = {f"model.{name}": tensor for name, tensor in self.subspace.model.state_dict().items()}
        return state | optimizers.tensors(self.config, self.optimizer, self.parameters)

    def load(self, path: Path, tensors: Mapping[str, Tensor], step: int) -> None:
        """Goes on from `tensors` after `step` steps. Raises CheckpointError if they are of another model."""
        wanted = {k: t for k, t in self.tensors().items() if k.startswith("model.")}
        if step:
            wanted |= optimizers.expected(self.config, self.parameters)
        checkpoint.check_tensors(path, tensors, wanted)
        model = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
        self.subspace.model.load_state_dict(model)
        optimizers.load(self.config, self.optimizer, self.parameters, tensors, step)
        self.step = step


def _norm(tensors: Iterable[Tensor]) -> float:
    return torch.nn.utils.get_total_norm(list(tensors)).item()


def _ahead(function, items: Sequence, workers: int) -> Iterator:
    """map(function, items) in order, with up to 2 * workers results computed ahead; in this thread for 0 workers."""
    if not workers:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = iter(items)
        queue = [pool.submit(function, item) for item in islice(waiting, 2 * workers)]
        while queue:
            result = queue.pop(0).result()
            queue += [pool.submit(function, item) for item in islice(waiting, 1)]
            yield result
