"""Normalisation layers. They are never pruned; on a line their scale and shift are interpolated."""

import torch.nn.functional as F
from torch import Tensor, fx, nn

from lcs_kernels import line_norm

from ..hooks import watched
from .base import SubspaceLayer


class FusedNorm(SubspaceLayer):
    """Runs `line_norm`: the ends are blended inside, and what comes after, a sum and a ReLU, may be done with it.

    `tensors` are those of a point, (weight, bias, ...), or both ends and alpha.
    """

    def affine_line(self) -> tuple[Tensor | None, ...]:
        """Both ends of the weight, then of the bias, and alpha, as `line_norm` takes them."""
        weight, bias, weight_1, bias_1, alpha = (*self.tensors(), None, None, None)[:5]
        return weight, weight_1, bias, bias_1, alpha

    def groups_of(self, channels: int) -> int:
        """How many groups so many channels are."""
        raise NotImplementedError

    def norm(self, input: Tensor, groups: int, residual: Tensor | None, relu: bool) -> Tensor:
        line = self.affine_line()
        if residual is None or (residual.shape == input.shape and residual.dtype == input.dtype):
            return line_norm(input, *line, groups, self.eps, residual=residual, relu=relu)
        y = line_norm(input, *line, groups, self.eps) + residual
        return y.relu_() if relu else y


def norm_relu(norm: nn.Module, input: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(norm(input) + residual); by one op, which keeps less for its gradient, where `norm` is a `FusedNorm` that
    nobody watches."""
    if isinstance(norm, FusedNorm) and not watched(norm) and not isinstance(input, fx.Proxy):
        return norm(input, residual, True)
    y = norm(input)
    return F.relu(y if residual is None else y + residual)


class SubspaceGroupNorm(FusedNorm, nn.GroupNorm):
    takes_ends = True

    def groups_of(self, channels: int) -> int:
        return self.num_groups

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_channels:
            raise ValueError(f"a norm of {self.num_channels} channels got an input of shape {tuple(input.shape)}")
        return self.norm(input, self.groups_of(input.shape[1]), residual, relu)


class SubspaceLayerNorm(SubspaceLayer, nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, *self.tensors(), self.eps)


class _InstanceNorm(FusedNorm):
    """With running statistics, which are one set, shared by all levels, it is torch's."""

    @property
    def takes_ends(self) -> bool:
        return not self.track_running_stats

    def groups_of(self, channels: int) -> int:
        return channels

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        self._check_input_dim(input)
        if self.was_batch_norm and input.dim() == self._get_no_batch_dim():
            raise ValueError(
                f"an instance norm in the place of a batch norm got {tuple(input.shape)}, one value a channel, which "
                f"has no deviation: put nn.GroupNorm(1, {self.num_features}) there before lcs.convert, or give it "
                "norm='keep'"
            )
        self._check_channels(input)
        if input.dim() == self._get_no_batch_dim():
            batched = None if residual is None else residual.unsqueeze(0)
            return self._normalize(input.unsqueeze(0), batched, relu).squeeze(0)
        return self._normalize(input, residual, relu)

    def _check_channels(self, input: Tensor) -> None:
        channels = input.shape[int(input.dim() != self._get_no_batch_dim())]
        if channels != self.num_features and self.affine:
            raise ValueError(f"a norm of {self.num_features} channels got an input of shape {tuple(input.shape)}")

    def _normalize(self, input: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        if self.takes_ends:
            if input.shape[2:].numel() == 1:
                raise ValueError(f"instance norm needs more than one element a channel, got {tuple(input.shape)}")
            return self.norm(input, self.groups_of(input.shape[1]), residual, relu)
        weight, bias, *statistics = self.tensors()
        mean, var = statistics or (self.running_mean, self.running_var)
        y = F.instance_norm(input, mean, var, weight, bias, self.training, self.momentum or 0.0, self.eps)
        y = y if residual is None else y + residual
        return y.relu_() if relu else y


class SubspaceInstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    pass


class SubspaceInstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    pass


class SubspaceInstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    pass


class _BatchNorm(SubspaceLayer):
    """Scale and shift are a line; the running statistics are one set, shared by all levels."""

    def forward(self, input: Tensor) -> Tensor:
        return self._normalize(input, *self.tensors(), self.running_mean, self.running_var)

    def _normalize(self, input, weight, bias, mean, var) -> Tensor:
        self._check_input_dim(input)
        momentum = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if momentum is None else momentum
        update = not self.training or self.track_running_stats
        statistics = (mean, var) if update else (None, None)
        from_batch = self.training or mean is None
        return F.batch_norm(input, *statistics, weight, bias, from_batch, momentum or 0.0, self.eps)


class SubspaceBatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class SubspaceBatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class SubspaceBatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    pass


BATCH_NORMS = {
    nn.BatchNorm1d: SubspaceBatchNorm1d,
    nn.BatchNorm2d: SubspaceBatchNorm2d,
    nn.BatchNorm3d: SubspaceBatchNorm3d,
}
INSTANCE_NORMS = {
    nn.BatchNorm1d: nn.InstanceNorm1d,
    nn.BatchNorm2d: nn.InstanceNorm2d,
    nn.BatchNorm3d: nn.InstanceNorm3d,
}
NORM_LAYERS = BATCH_NORMS | {
    nn.GroupNorm: SubspaceGroupNorm,
    nn.LayerNorm: SubspaceLayerNorm,
    nn.InstanceNorm1d: SubspaceInstanceNorm1d,
    nn.InstanceNorm2d: SubspaceInstanceNorm2d,
    nn.InstanceNorm3d: SubspaceInstanceNorm3d,
}


def without_batch_statistics(module: nn.Module, norm: str) -> nn.Module:
    """The plain norm that stands for a batch norm: its scale, shift and hooks, no running statistics.

    norm="group": GroupNorm with the most groups up to 32 that divide the channels (arXiv 2110.04252), except for
    BatchNorm1d, which gets one group: its input may be (N, C), where a group of one channel would be constant.
    norm="instance": InstanceNorm; after a BatchNorm1d the input must then be (N, C, L).
    """
    base = next((base for base in BATCH_NORMS if isinstance(module, base)), nn.BatchNorm2d)  # SyncBatchNorm: as 2d
    channels, options = module.num_features, {"eps": module.eps, "affine": module.affine, "device": "meta"}
    if norm == "instance":
        plain = INSTANCE_NORMS[base](channels, **options)
    else:
        groups = 1 if base is nn.BatchNorm1d else max(g for g in range(1, 33) if channels % g == 0)
        plain = nn.GroupNorm(groups, channels, **options)
    plain.__dict__ |= {k: v for k, v in module.__dict__.items() if "hook" in k or k in ("_parameters", "training")}
    return plain
