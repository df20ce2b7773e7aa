"""A convolution's weight that runs at any width, from one buffer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcs_kernels import isa
from lcs_kernels.ops.width_conv2d import width_conv2d_pack

MANY = 16  # channels of either kind from which on transforming x and its products costs less than it saves
FEW = 16  # input channels below which pairing those of x costs more than it saves


def packing_pays(weight: Tensor) -> bool:
    """Whether a convolution of stride 1, no dilation and one group is faster by `width_conv2d` than by torch: with a
    packed weight it mostly goes by Winograd's products."""
    return weight.dtype == torch.float32 and weight.shape[2:] == (3, 3) and min(weight.shape[:2]) >= MANY


@dataclass(frozen=True, eq=False)
class WidthWeight:
    """The weight of a convolution at its full width, of which `width_conv2d` reads the channels that a width uses.

    What is saved is the weight itself. What the kernels read (`prepack`) is derived from it on first use and kept
    beside it: float32, channels in blocks of 16, zeros past the last output channel, nothing past the last input one,

        [out 0 .. 15: [in 0 .. 15: [tap 0: [in 0: out 0 .. 15] ... [in 15: out 0 .. 15]] [tap 1: ...] ...]
                      [in 16 .. 31: ...] ...]
        [out 16 .. 31: ...] ...

    or bfloat16, with pairs of input channels, [in 0, out 0] [in 1, out 0] [in 0, out 1] ..., where there is one of
    float32, the last filled up with 0. So the first output channels are the first blocks, and the first input channels
    the first part of each: a change of width repacks nothing. Winograd's products read these forms too, and transform
    parts of them in each call, beside x, in memory that each thread keeps: at most 9 MiB and a tile of x. Code that
    torch.compile traces before the first use derives it in each call. Of a depthwise weight the kernels read the saved
    form.

    Attributes:
        weight: (out_channels, in_channels / groups, h, w), contiguous, float32 or bfloat16. It must not change: where
            an operation in place has written to it, `prepack` raises.
    """

    weight: Tensor
    _prepacks: dict[bool, Tensor] = field(default_factory=dict, repr=False)
    _version: int | None = field(default=None, init=False, repr=False)  # torch's count of writes; None: it keeps none

    def __post_init__(self):
        if self.weight.dim() != 4 or not self.weight.is_contiguous() or self.weight.requires_grad:
            raise ValueError(
                "WidthWeight: weight must be contiguous (out_channels, in_channels / groups, h, w) without a gradient, "
                f"got shape {tuple(self.weight.shape)}; WidthWeight.pack takes any strides and parameters"
            )
        if self.weight.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"WidthWeight: weight must be float32 or bfloat16, got {self.weight.dtype}")
        if not (torch.compiler.is_compiling() or self.weight.is_inference()):
            object.__setattr__(self, "_version", self.weight._version)

    def __reduce__(self):
        """A copy derives what the kernels read anew, and its tensor counts its own writes."""
        return WidthWeight, (self.weight,)

    @classmethod
    def pack(cls, w: Tensor) -> WidthWeight:
        """Of a weight or parameter, which is kept and not copied where it is contiguous: pack it again once it has
        been trained on, or pack a clone."""
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
        return sum(part.nbytes for part in list(self._prepacks.values()))

    def check_unchanged(self) -> None:
        """Raises RuntimeError where an operation in place has written to the weight."""
        if self._version is not None and not torch.compiler.is_compiling() and self.weight._version != self._version:
            raise RuntimeError(
                "WidthWeight: weight has been changed in place since it was packed, and the kernels read what it was; "
                "pack it again, or pack(w.clone()) to keep that"
            )

    def prepack(self, pairs: bool = False) -> Tensor:
        """The form that the kernels read: float32 (blocks, in_channels / groups * h * w, 16); made once.

        pairs: rather bfloat16 (blocks, ceil(in_channels / 2) * h * w, 32), for x of bfloat16, if the weight is, too, of
            16 input channels or more, and `lcs_kernels.isa.multiplies_pairs()`.
        """
        self.check_unchanged()
        compiling = torch.compiler.is_compiling()
        pairs = pairs and self.weight.dtype == torch.bfloat16 and self.weight.shape[1] >= FEW
        pairs = pairs and (compiling or isa.multiplies_pairs())
        packed = self._prepacks.get(pairs)
        if packed is not None:
            return packed
        if compiling:  # a graph that changed the dict would be traced anew each time; floats serve in place of pairs
            packed = self._prepacks.get(False)
            return width_conv2d_pack(self.weight) if packed is None else packed
        return self._prepacks.setdefault(pairs, width_conv2d_pack(self.weight, pairs))
