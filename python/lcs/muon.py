"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum SGD whose update is orthogonalised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic that drives singular values of (0, 1] to about 1, fastest
_STEPS = 5
_VECTOR_SHARE = 0.1


def orthogonalize(matrices: Tensor) -> Tensor:
    """(B, rows, columns): singular values made 1 or close to it (0.7 to 1.2; tiny ones less), the vectors kept."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-12)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Every direction of a weight matrix is learnt at the same rate, however weak its gradient.

    A convolution's weight is a matrix of out_channels rows. Norm scales and biases act as diagonal matrices, of which
    the orthogonalised update is the sign; it is taken with a tenth of the rate. Nesterov momentum, decoupled decay.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices = defaultdict(list)
            for p in group["params"]:
                if p.grad is None or not p.numel():
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(p.grad)
                update = p.grad.add(buffer, alpha=group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                if p.dim() < 2:
                    p.add_(update.sign_(), alpha=-group["lr"] * _VECTOR_SHARE)
                else:
                    matrices[p.shape[0], p[0].numel(), p.dtype, p.device].append((p, update.flatten(1)))
            for (rows, columns, *_), pairs in matrices.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.add_(update.view_as(p), alpha=-rate)
        return loss
