"""What a training run shows: a progress bar on a terminal, a line per epoch elsewhere, nothing on other processes."""

from __future__ import annotations

import time
from types import TracebackType

from . import optional

optional.require("rich")
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn  # noqa: E402
from rich.progress import ProgressColumn as Column  # noqa: E402
from rich.text import Text  # noqa: E402


class ImagesPerSecond(Column):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "- images/s")


class Display:
    """Counts images; `quiet` shows nothing."""

    def __init__(self, images: int, done: int, epochs: int, *, quiet: bool = False):
        self.console = Console(quiet=quiet, soft_wrap=True)
        self.epochs = epochs
        self._total, self._done, self._first = images, done, done
        self._began = time.monotonic()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}% loss {task.fields[loss]:.3f} accuracy {task.fields[accuracy]:.1%}"),
            ImagesPerSecond(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._progress.add_task(
            "train", total=images, completed=done, epoch=0, epochs=epochs, loss=float("nan"), accuracy=0.0
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def print(self, message: str) -> None:
        self._progress.console.print(message, highlight=False, markup=False)

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        self._done += images
        self._progress.update(self._task, advance=images, epoch=epoch + 1, loss=loss, accuracy=accuracy)

    def epoch(self, epoch: int, loss: float, accuracy: float) -> None:
        """The line of a finished epoch (mean loss and accuracy of its steps), where there is no bar."""
        if self.console.is_terminal:
            return
        rate = (self._done - self._first) / max(time.monotonic() - self._began, 1e-9)
        eta = time.strftime("%H:%M:%S", time.gmtime((self._total - self._done) / rate)) if rate else "-"
        self.print(
            f"epoch {epoch + 1}/{self.epochs}  loss {loss:.3f}  accuracy {accuracy:.1%}  "
            f"{rate:,.0f} images/s  ETA {eta}"
        )
