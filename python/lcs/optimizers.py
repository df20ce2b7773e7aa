"""The optimisers of a training run, and their state as named tensors, for a resume without a trace."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .config import TrainConfig
from .muon import Muon

BETA2 = 0.999  # AdamW's decay of the squared gradient, as in its paper (arXiv 1711.05101)
STATE = {
    "sgd": {"momentum": "momentum_buffer"},
    "adamw": {"mean": "exp_avg", "square": "exp_avg_sq"},
    "muon": {"momentum": "momentum_buffer"},
}


def make(config: TrainConfig, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    """The optimiser that `config` names. Weight decay reaches every parameter (arXiv 2110.04252)."""
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters.values(), betas=(config.momentum, BETA2), **common)
    if config.optimizer == "muon":
        return Muon(parameters.values(), momentum=config.momentum, **common)
    return torch.optim.SGD(parameters.values(), momentum=config.momentum, **common)


def tensors(config: TrainConfig, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict:
    """The state by name, <kind>.<parameter>; empty before the first step."""
    state = {
        f"{kind}.{name}": optimizer.state[parameter].get(key)
        for kind, key in STATE[config.optimizer].items()
        for name, parameter in parameters.items()
    }
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def expected(config: TrainConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each tensor that `tensors` holds after a step, one of its shape and dtype."""
    if config.optimizer == "sgd" and not config.momentum:
        return {}
    return {f"{kind}.{name}": p for kind in STATE[config.optimizer] for name, p in parameters.items()}


def load(
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    step: int,
) -> None:
    """Puts `optimizer` where `tensors` was taken after `step` steps."""
    for kind, key in STATE[config.optimizer].items():
        for name, parameter in parameters.items():
            if f"{kind}.{name}" in stored:
                state = optimizer.state[parameter]
                state[key] = stored[f"{kind}.{name}"].to(parameter.device, copy=True)
                if config.optimizer == "adamw":
                    state["step"] = torch.tensor(float(step))
