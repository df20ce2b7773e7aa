"""`lcs train`: a run from its settings to its final weights, killed and resumed as often as it may be."""

from __future__ import annotations

import gc
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import checkpoint, optional
from .config import TrainConfig
from .loop import Loop, StepResult
from .network import build, load_data
from .progress import Display
from .rundir import Metrics, RunDirectory, RunError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: the run stopped after a whole step, and saved."""


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The process's device and its place among the processes. Raises RunError if the device asked for is missing."""
    accelerate = optional.require("accelerate")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise RunError("device: cuda was asked for, but PyTorch sees no GPU; use --device cpu or auto")
    if not torch.distributed.is_initialized():
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run in this process
    precision = "bf16" if config.precision == "bf16" else "no"
    torch.backends.cudnn.deterministic = True
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = config.device == "cpu" or not has_gpu  # several processes there find each other only if told so
    return accelerate.Accelerator(cpu=on_cpu, mixed_precision=precision)


def train(config: TrainConfig) -> Path:
    """Trains as `config` says and returns the run directory.

    The weights after a resume are bit for bit those of a run that was never stopped, on the same machine with the same
    number of threads and processes.

    Raises ConfigError, RunError, CheckpointError (all ValueError), or Interrupted after Ctrl-C.
    """
    config, directory = config.resolved(), RunDirectory(config.out)
    if config.resume and not directory.exists():
        raise RunError(
            f"{directory.path}: holds no run to resume (no config.yaml); give the --out directory of one, or start one "
            "without --resume"
        )
    accelerator = make_accelerator(config)
    with _threads(config.threads):
        dataset = load_data(config)
        subspace = build(config, dataset, accelerator.num_processes)
        with directory.prepared(config) if accelerator.is_main_process else nullcontext():
            accelerator.wait_for_everyone()
            loop = Loop(config, dataset, subspace, accelerator)
            notices = restore(loop, directory) if config.resume else []
            Run(loop, directory).finish(notices)
            accelerator.wait_for_everyone()  # the weights are written
    return directory.path


def leave_processes() -> None:
    """Before a distributed program ends. A model wrapped for gradients that outlives this can hang its destructor."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def restore(loop: Loop, directory: RunDirectory) -> list[str]:
    """Puts `loop` where the newest intact checkpoint was saved; returns what the user should know."""
    wanted = loop.config.identity()
    checkpoint.check_identity(directory.config_path, directory.config().identity(), wanted)
    found = checkpoint.load_newest(directory.checkpoints)
    if found is None:
        return [f"{directory.path}: no checkpoint yet, starting at step 0"]
    tensors, manifest, notices = found
    path = checkpoint.path_for(directory.checkpoints, manifest["step"])
    checkpoint.check_identity(path, manifest["config"], wanted)
    there, here = manifest.get("data", loop.data.sizes), loop.data.sizes
    if there != here:
        raise RunError(f"{path}: was trained on data of {_counts(there)}, which now has {_counts(here)}; put it back")
    loop.load(path, tensors, manifest["step"])
    return [*(f"damaged, going on from the one before: {n}" for n in notices), f"resuming at step {loop.step}: {path}"]


def _counts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(sizes.items()))


class Run:
    """Drives a loop to its end and keeps its directory."""

    def __init__(self, loop: Loop, directory: RunDirectory):
        self.loop, self.directory = loop, directory
        self.main = loop.accelerator.is_main_process
        self.metrics = Metrics(directory.metrics_path, loop.step) if self.main else None
        total = loop.config.epochs * len(loop.data.train)
        self.display = Display(total, loop.images_done, loop.config.epochs, quiet=not self.main)

    def finish(self, notices: list[str]) -> None:
        """Trains what is left and writes the final weights."""
        with self.display, _interruptible() as interrupted:
            for notice in notices:
                self.display.print(notice)
            try:
                while self.loop.step < self.loop.total_steps:
                    self._epoch(interrupted)
            finally:
                if self.metrics is not None:
                    self.metrics.close()
        if self.main:
            self._write_weights()

    def _epoch(self, interrupted: threading.Event) -> None:
        loop, epoch, results = self.loop, self.loop.epoch, []
        for batch in loop.batches():
            results.append(loop.train_step(batch))
            self._record(epoch, results[-1])
            ends = loop.step % loop.steps_per_epoch == 0
            interval = loop.config.checkpoint_interval
            if not ends and (interrupted.is_set() or (interval and loop.step % interval == 0)):
                self.save()
            if not ends and interrupted.is_set():
                self._stop()
        images = sum(r.images for r in results)
        mean_loss, mean_accuracy = (
            sum(getattr(r, name) * r.images for r in results) / images for name in ("loss", "accuracy")
        )
        loop.check_weights()
        self.display.epoch(epoch, mean_loss, mean_accuracy)
        self._evaluate(epoch)
        self.save()
        if interrupted.is_set() and loop.step < loop.total_steps:
            self._stop()

    def _record(self, epoch: int, result: StepResult) -> None:
        self.display.step(epoch, result.images, result.loss, result.accuracy)
        if self.metrics is not None:
            values = {"loss": result.loss, "accuracy": result.accuracy, "lr": result.lr, **vars(result.level)}
            self.metrics.write("train", self.loop.step, epoch=epoch, **values)

    def _evaluate(self, epoch: int) -> None:
        interval, last = self.loop.config.evaluation_interval, epoch + 1 == self.loop.config.epochs
        if not interval or ((epoch + 1) % interval and not last):
            return
        for level, accuracy, loss in self.loop.evaluate():
            unit, value = self.loop.config.unit, self.loop.subspace.recipe.value(level)
            self.display.print(f"epoch {epoch + 1}  {unit} {value:g}  test accuracy {accuracy:.2%}")
            if self.metrics is not None:
                self.metrics.write("test", self.loop.step, epoch=epoch, **{unit: value}, loss=loss, accuracy=accuracy)

    def save(self) -> None:
        """A checkpoint of this step. The metrics up to it are on disk first."""
        if self.metrics is None:
            return
        self.metrics.sync()
        config = self.loop.config
        manifest = {"step": self.loop.step, "config": config.identity()}
        manifest["data"] = self.loop.data.sizes
        checkpoint.save(checkpoint.path_for(self.directory.checkpoints, self.loop.step), self.loop.tensors(), manifest)

    def _stop(self) -> None:
        out = self.directory.path
        raise Interrupted(f"stopped and saved at step {self.loop.step}; go on with: lcs train --resume --out {out}")

    def _write_weights(self) -> None:
        pack = optional.require("safetensors.torch").save
        weights = {name: t.detach().cpu().contiguous() for name, t in self.loop.subspace.model.state_dict().items()}
        manifest = json.dumps({"config": self.loop.config.identity()}, sort_keys=True)
        try:
            checkpoint.write_atomic(self.directory.weights_path, pack(weights, metadata={"manifest": manifest}))
        except OSError as error:
            raise RunError(f"{self.directory.weights_path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that a step is never torn; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number, frame):
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
