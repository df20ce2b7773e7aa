"""`lcs demo`: trains one subspace on handwritten digits, shows its accuracy and speed at 8 densities, in minutes."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import write_atomic
from .config import TrainConfig
from .evaluate import Evaluation, evaluate
from .plot import plot
from .table import print_table
from .train import train

DENSITIES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
MEASURE_BATCH = 16
ACCURACY_WANTED = {1.0: 0.97, 0.1: 0.95}
SETTINGS = TrainConfig(
    model="cpreresnet20",
    data="digits",
    image_size=32,
    method="lcs_l",
    density=(0.1, 1.0),
    init="copy",
    epochs=12,
    batch_size=16,
    optimizer="muon",
    lr=0.03,
    warmup_fraction=0.3,
    seed=0,
    evaluation_interval=0,
    overwrite=True,
)
QUICK = {"epochs": 2, "limit": 64}


class DemoError(ValueError):
    """The demo's training did not reach the accuracy that it should."""


def demo(out: Path, *, quick: bool = False) -> Evaluation:
    """Trains, evaluates, times, plots into `out`, replacing an earlier demo. `quick`: a few steps, no accuracy wanted.

    Raises DemoError if the full run misses an accuracy of `ACCURACY_WANTED`.
    """
    config = SETTINGS.model_copy(update={"out": out, **(QUICK if quick else {})})
    run = train(config)
    evaluation = evaluate(run, DENSITIES, measure_batch=MEASURE_BATCH)
    print_table(evaluation)
    write_atomic(run / "evaluation.json", evaluation.to_json().encode())
    plot(evaluation, run / "evaluation.png")
    print(f"plot: {run / 'evaluation.png'}")
    if not quick:
        _check(evaluation)
    return evaluation


def _check(evaluation: Evaluation) -> None:
    accuracy = {row.value: row.accuracy for row in evaluation.rows}
    misses = [
        f"{accuracy[density]:.2%} at density {density:g}, wanted {wanted:.0%}"
        for density, wanted in ACCURACY_WANTED.items()
        if accuracy[density] < wanted
    ]
    if misses:
        raise DemoError(f"{evaluation.run}: test accuracy {'; '.join(misses)}")
