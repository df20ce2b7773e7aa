"""Inference engines in Python environments of their own, which take turns with our kernels over a pipe."""

from __future__ import annotations

import json
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .peer_worker import ENGINES

WORKER = Path(__file__).with_name("peer_worker.py")
OPSET = 13  # the newest that DeepSparse reads
# How far an engine's result may be off, of the largest output; those of bfloat16 and int8 round by design.
BOUNDS = {"deepsparse": 0.01, "openvino": 0.01, "openvino-bfloat16": 0.1, "openvino-int8": 0.5}


class PeerError(RuntimeError):
    """An engine cannot be started, cannot run a model, or computes something else than it."""


@dataclass(frozen=True)
class Model:
    """What a row computes, as a module for other engines to import. `float32`: checked against torch's result."""

    module: nn.Module
    x: Tensor


class Peer:
    """One engine's process. It holds one model at a time: `load` it, then `seconds` times it."""

    def __init__(self, name: str, python: str, threads: int):
        if name not in ENGINES:
            raise PeerError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
        if not python:
            raise PeerError(f"{name}: name the Python of its environment: --peer {name}=PYTHON")
        self.name = name
        try:
            self._process = subprocess.Popen(
                [python, str(WORKER), name, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            raise PeerError(f"{name}: cannot start {python}: {error}") from None
        try:
            (self.versions,) = self._ask({"versions": True})
        except PeerError:
            self.close()
            raise

    def load(self, model: Model) -> None:
        """Exports the model and checks the engine's result: to `BOUNDS` of the largest output."""
        with tempfile.TemporaryDirectory(prefix="lcs-peer-") as folder:
            path, x, y = (str(Path(folder) / name) for name in ("model.onnx", "x.npy", "y.npy"))
            _export(model, path)
            np.save(x, model.x.numpy())
            self._ask({"model": path, "x": x, "y": y})
            found = torch.from_numpy(np.load(y))
        with torch.no_grad():
            expected = model.module(model.x)
        if found.shape != expected.shape:
            raise PeerError(f"{self.name}: its result is of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
        error, bound = float((found - expected).abs().max() / expected.abs().max()), BOUNDS[self.name]
        if not error <= bound:
            raise PeerError(
                f"{self.name}: its result is not that of the model: off by {error:.1%}, {bound:.0%} at most"
            )

    def seconds(self, repeats: int, first: int = 0) -> tuple[float, float]:
        """What `repeats` calls after `first` others took, and how long the engine's threads waited for a core
        meanwhile."""
        elapsed, waited = self._ask({"repeats": repeats, "first": first})
        return elapsed, waited

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _ask(self, request: dict):
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"{self.name}: its process ended ({self._process.wait()}); run peer_worker.py by hand")
        reply = json.loads(line)
        if isinstance(reply, dict):
            raise PeerError(f"{self.name}: {reply['error']}")
        return reply


def _export(model: Model, path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, which is deprecated but writes what old engines read
        try:
            torch.onnx.export(model.module, (model.x,), path, dynamo=False, opset_version=OPSET)
        except torch.onnx.errors.OnnxExporterError as error:
            raise PeerError(f"cannot export to ONNX ({error}): pip install onnx") from None
