"""A convolution's weight that runs at any width, from one buffer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcs_kernels.ops.width_conv2d import width_conv2d_pack


@dataclass(frozen=True, eq=False)
class WidthWeight:
    """The weight of a convolution at its full width, of which `width_conv2d` reads the channels that a width uses.

    What is saved is the weight itself. What the kernels read (`prepack`) is derived from it on first use and kept
    beside it: float32, channels in blocks of 16, zeros past the last output channel, nothing past the last input one,

        [out 0 .. 15: [in 0 .. 15: [tap 0: [in 0: out 0 .. 15] ... [in 15: out 0 .. 15]] [tap 1: ...] ...]
                      [in 16 .. 31: ...] ...]
        [out 16 .. 31: ...] ...

    so that the first output channels are the first blocks, and the first input channels the first part of each: a
    change of width repacks nothing. Code that torch.compile traces before the first use derives it in each call.

    Attributes:
        weight: (out_channels, in_channels / groups, h, w), contiguous, float32 or bfloat16. It must not change.
    """

    weight: Tensor
    _prepacks: list[Tensor] = field(default_factory=list, repr=False)

    def __post_init__(self):
        if self.weight.dim() != 4 or not self.weight.is_contiguous() or self.weight.requires_grad:
            raise ValueError(
                "WidthWeight: weight must be contiguous (out_channels, in_channels / groups, h, w) without a gradient, "
                f"got shape {tuple(self.weight.shape)}; WidthWeight.pack takes any strides and parameters"
            )
        if self.weight.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"WidthWeight: weight must be float32 or bfloat16, got {self.weight.dtype}")

    @classmethod
    def pack(cls, w: Tensor) -> WidthWeight:
        """Of a weight or parameter, which is kept and not copied where it is contiguous."""
        return cls(w.detach().contiguous())

    def unpack(self) -> Tensor:
        """The weight."""
        return self.weight

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> WidthWeight:
        """On another device, or of another dtype."""
        return WidthWeight(self.weight.to(device=device, dtype=dtype))

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the saved form."""
        return self.weight.nbytes

    @property
    def prepacked_nbytes(self) -> int:
        """Bytes of what has been derived for the kernels so far."""
        return sum(part.nbytes for part in self._prepacks)

    def prepack(self) -> Tensor:
        """The form that the kernels read: float32 (blocks, in_channels / groups * h * w, 16); made once."""
        if self._prepacks:
            return self._prepacks[0]
        packed = width_conv2d_pack(self.weight)
        if not torch.compiler.is_compiling():  # a graph that changed the list would be traced anew each time
            self._prepacks.append(packed)
        return packed
