"""A weight as a bitmap of what is stored and the stored values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcs_kernels.ops.sparse_pack import sparse_pack, sparse_prepack, sparse_prepack_tiles, sparse_unpack

TILES = 0  # among the prepacks' block sizes


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """An unstructured sparse weight of any shape, output channels first.

    The weights count in row-major order; weight i is stored if bit i % 32 of word i // 32 is set, and the stored values
    follow each other:

        weight      0    1    2    3   ...  31 | 32 ...
        mask_bits   [ 0 1 1 0 ... word 0      ] [ word 1 ]      int32, ceil(n / 32) words, bits past n are 0
        values      [ w1 ][ w2 ] ...                            float32 or bfloat16, one per set bit

    so ceil(n / 32) * 4 + stored * itemsize bytes. That is the form to save. What the kernels read (`prepack`: 6 bytes a
    stored value; `prepack_tiles`: 2, and 4 for 32 weights) is derived from it on first use and kept beside it; code
    that torch.compile traces before that derives it in each call.

    Attributes:
        mask_bits, values: the two tensors, contiguous and on one device. They are never changed.
        shape: of the dense weight.
    """

    mask_bits: Tensor
    values: Tensor
    shape: tuple[int, ...]
    _prepacks: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if not self.shape:
            raise ValueError("SparseWeight: shape must have at least one dimension")
        words = (self.numel() + 31) // 32
        if self.mask_bits.dtype != torch.int32 or tuple(self.mask_bits.shape) != (words,):
            raise ValueError(
                f"SparseWeight: mask_bits must be {words} int32 words for shape {self.shape}, "
                f"got {self.mask_bits.dtype} {tuple(self.mask_bits.shape)}"
            )
        if self.values.dtype not in (torch.float32, torch.bfloat16) or self.values.dim() != 1:
            raise TypeError(
                f"SparseWeight: values must be a float32 or bfloat16 vector, got {self.values.dtype} "
                f"{tuple(self.values.shape)}"
            )
        if self.mask_bits.device != self.values.device:
            raise ValueError(f"SparseWeight: mask_bits are on {self.mask_bits.device}, values on {self.values.device}")

    def __reduce__(self):
        """A copy derives what the kernels read anew."""
        return SparseWeight, (self.mask_bits, self.values, self.shape)

    @classmethod
    def pack(cls, w: Tensor, mask_bits: Tensor | None = None) -> SparseWeight:
        """Stores the weights of `w` that `mask_bits` names, by default those that are not 0 (NaN is not).

        Args:
            w: dense, float32 or bfloat16.
            mask_bits: as `interpolate_prune` makes them: int32 (ceil(n / 32),).
        """
        mask_bits, values = sparse_pack(w.detach(), mask_bits)
        return cls(mask_bits, values, tuple(w.shape))

    def unpack(self) -> Tensor:
        """The dense weight, exactly."""
        return sparse_unpack(self.mask_bits, self.values, self.shape)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SparseWeight:
        """On another device, or with values of another dtype."""
        return SparseWeight(self.mask_bits.to(device=device), self.values.to(device=device, dtype=dtype), self.shape)

    def numel(self) -> int:
        """Weights of the dense form."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """The fraction of weights that is stored."""
        return self.values.numel() / max(self.numel(), 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the saved form."""
        return self.mask_bits.nbytes + self.values.nbytes

    @property
    def prepacked_nbytes(self) -> int:
        """Bytes of what has been derived for the kernels so far."""
        return sum(part.nbytes for parts in list(self._prepacks.values()) for part in parts)

    def prepack(self, block: int) -> list[Tensor]:
        """The form that the kernels read, its columns cut into blocks of `block`; made once per block size."""
        return self._prepack(block, sparse_prepack, block)

    def prepack_tiles(self) -> list[Tensor]:
        """The form that kernels with matrix tiles read, of bfloat16 values; made once."""
        return self._prepack(TILES, sparse_prepack_tiles)

    @property
    def has_tiles(self) -> bool:
        """Whether `prepack_tiles` has been made."""
        return TILES in self._prepacks

    def _prepack(self, key: int, make: Callable[..., list[Tensor]], *arguments: int) -> list[Tensor]:
        parts = self._prepacks.get(key)
        if parts is None:
            parts = make(self.mask_bits, self.values, self.shape[0], math.prod(self.shape[1:]), *arguments)
            if not torch.compiler.is_compiling():  # a graph that changed the dict would be traced anew each time
                parts = self._prepacks.setdefault(key, parts)
        return parts
