"""A weight as codes in bit planes, of which the first few are the same weight at fewer bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcs_kernels.ops._library import check_finite_weights
from lcs_kernels.ops.nested_pack import PLANES, nested_pack, nested_prepack, nested_unpack
from lcs_kernels.ops.quantize import grid

LEVELS = 255  # steps between the least and the largest code


@dataclass(frozen=True, eq=False)
class NestedWeight:
    """A weight of any shape, output channels first, that is read at 2 to 8 bits from one stored copy.

    Weight i, in row-major order, has a code q of `depth` bits, 8 unless told. Plane p holds bit depth - 1 - p of all:

        code        7 6 5 4 3 2 1 0   of weight i:  bit i % 32 of word i / 32 of
        planes      | | | +-----------------------  planes[3]                   int32 (depth, ceil(n / 32)),
                    | | +-------------------------  planes[2]                   bits past n are 0
                    | +---------------------------  planes[1]
                    +-----------------------------  planes[0]
        scales, zero_points                         float32, uint8 (1 or output channels, groups)

    so at b bits, planes[:b] is all that is read, b / depth of the bytes, and all widths together take `depth` bits a
    weight and the scales. A width keeps the top of the code and stands for the middle of what it has dropped:

        value = scale * ((q >> (depth - b) << (depth - b)) + (2^(depth - b) - 1) / 2 - zero_point)

    That is the form to save. What the kernels read (`prepack`) is derived from it on first use, serves every width, and
    is kept beside it; code that torch.compile traces before that derives it in each call.

    Attributes:
        planes, scales, zero_points: the tensors, contiguous and on one device. They are never changed.
        shape: of the dense weight.
        group: weights of an output channel, in their order, that share a scale; all of them where there is one group.
    """

    planes: Tensor
    scales: Tensor
    zero_points: Tensor
    shape: tuple[int, ...]
    group: int
    _prepacks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if not self.shape:
            raise ValueError("NestedWeight: shape must have at least one dimension")
        if self.group < 1:
            raise ValueError(f"NestedWeight: group must be 1 or more, got {self.group}")
        words = (self.numel() + 31) // 32
        planes = tuple(self.planes.shape)
        if self.planes.dtype != torch.int32 or len(planes) != 2 or not 2 <= planes[0] <= PLANES or planes[1] != words:
            raise ValueError(
                f"NestedWeight: planes must be 2 to {PLANES} x {words} int32 words for shape {self.shape}, "
                f"got {self.planes.dtype} {tuple(self.planes.shape)}"
            )
        groups = max(-(-self.columns // self.group), 1)
        for name, tensor, dtype in (
            ("scales", self.scales, torch.float32),
            ("zero_points", self.zero_points, torch.uint8),
        ):
            if tensor.dtype != dtype or tuple(tensor.shape) not in ((1, groups), (self.shape[0], groups)):
                raise ValueError(
                    f"NestedWeight: {name} must be {dtype} (1 or {self.shape[0]}, {groups}), "
                    f"got {tensor.dtype} {tuple(tensor.shape)}"
                )
        if not self.planes.device == self.scales.device == self.zero_points.device:
            raise ValueError(
                f"NestedWeight: planes are on {self.planes.device}, scales on {self.scales.device}, zero_points on "
                f"{self.zero_points.device}"
            )
        if self.scales.shape != self.zero_points.shape:
            raise ValueError(
                f"NestedWeight: scales are {tuple(self.scales.shape)}, zero_points {tuple(self.zero_points.shape)}"
            )

    def __reduce__(self):
        """A copy derives what the kernels read anew."""
        return NestedWeight, (self.planes, self.scales, self.zero_points, self.shape, self.group)

    @classmethod
    def pack(cls, w: Tensor, per: str = "channel", group: int | None = None) -> NestedWeight:
        """Rounds `w` to 8 bits, affinely, zero being a code of its own.

        Args:
            w: dense, a floating-point dtype.
            per: what shares a scale: "tensor", "channel" (of the output), or "group" of so many weights of a channel.
            group: how many, for per="group".
        """
        if per not in ("tensor", "channel", "group") or (per == "group") != (group is not None):
            raise ValueError(
                f"NestedWeight: per must be 'tensor', 'channel', or 'group' with group=..., got {per!r} with {group}"
            )
        if w.dim() == 0 or not w.is_floating_point():
            raise ValueError(
                f"NestedWeight: w must be a float tensor of one dimension or more, got {w.dtype} {w.dim()}-d"
            )
        check_finite_weights("NestedWeight", w=w)
        flat = w.detach().float().reshape(w.shape[0], math.prod(w.shape[1:]))
        columns = max(flat.shape[1], 1)
        size = min(group, columns) if group is not None else columns
        if size < 1:
            raise ValueError(f"NestedWeight: group must be 1 or more, got {group}")
        blocks = torch.nn.functional.pad(flat, (0, -flat.shape[1] % size)).unflatten(1, (-1, size)).double()
        if not flat.shape[1]:
            blocks = flat.new_zeros(w.shape[0], 1, 1).double()
        low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
        if per == "tensor":
            none = low.new_zeros(1, 1)  # for weights without channels
            low, high = torch.cat([low, none]).amin(0, keepdim=True), torch.cat([high, none]).amax(0, keepdim=True)
        scales = ((high - low) / LEVELS).float()
        inverse = torch.where(scales > 0, 1 / scales.double(), 0)
        zero_points = (-low * inverse).round().clamp(0, LEVELS)
        codes = ((blocks * inverse[..., None]).round() + zero_points[..., None]).clamp(0, LEVELS).to(torch.uint8)
        codes = codes.flatten(1)[:, : flat.shape[1]].reshape(w.shape)
        return cls(nested_pack(codes), scales, zero_points.to(torch.uint8), tuple(w.shape), size)

    @classmethod
    def quantize(cls, w: Tensor, bits: int = PLANES, per: str = "tensor", *, nested: bool = False) -> NestedWeight:
        """The very values that `lcs_kernels.interpolate_quantize` rounds a float32 point to.

        Args:
            w: dense, float32.
            bits: codes of so many bits, to be read at that width alone.
            per: what shares a scale: "tensor", or "channel" (of the output).
            nested: codes of 8 bits whose width b is what `interpolate_quantize(..., nested=True)` gives at b bits.
        """
        if per not in ("tensor", "channel") or (nested and bits != PLANES):
            raise ValueError(
                f"NestedWeight: per must be 'tensor' or 'channel', and nested codes have {PLANES} bits; "
                f"got {per!r}, {bits}"
            )
        if w.dim() == 0 or w.dtype != torch.float32:
            raise ValueError(f"NestedWeight: w must be float32 of one dimension or more, got {w.dtype} {w.dim()}-d")
        check_finite_weights("NestedWeight", w=w)
        rows = w.detach().reshape(1 if per == "tensor" else w.shape[0], -1 if w.numel() else 0)
        low, high = rows.aminmax(dim=1, keepdim=True) if w.numel() else [rows.new_zeros(len(rows), 1)] * 2
        scales, inverse, zero, lowest, highest = grid(low, high, torch.tensor(bits, device=w.device), w.dtype, nested)
        codes = ((rows * inverse).round_() + zero).clamp_(lowest, highest) - lowest
        return cls.from_codes(codes.to(torch.uint8).view(w.shape), scales, (zero - lowest).to(torch.uint8), depth=bits)

    @classmethod
    def from_codes(
        cls, codes: Tensor, scales: Tensor, zero_points: Tensor, group: int | None = None, depth: int = PLANES
    ) -> NestedWeight:
        """Stores given codes.

        Args:
            codes: uint8, of the weight's shape, below 2^depth.
            scales, zero_points: float32 and uint8, 0-d, one per output channel, or (1 or channels, groups).
            group: weights of a channel that share a scale, by default all.
            depth: bits of a code, from 2 to 8.
        """
        if codes.dim() == 0:
            raise ValueError("NestedWeight: shape must have at least one dimension")
        scales, zero_points = (t.reshape(-1, 1) if t.dim() < 2 else t.contiguous() for t in (scales, zero_points))
        group = max(math.prod(codes.shape[1:]), 1) if group is None else group
        return cls(nested_pack(codes, depth), scales, zero_points, tuple(codes.shape), group)

    def unpack(self, bits: int | None = None) -> Tensor:
        """The dense weight at `bits` bits, by default all, float32: the value above, rounded once."""
        bits = self.depth if bits is None else bits
        if not 2 <= bits <= self.depth:
            raise ValueError(f"NestedWeight: bits must lie in [2, {self.depth}], got {bits}")
        return nested_unpack(self.planes, self.scales, self.zero_points, self.shape, self.group, bits)

    def split(self, parts: int) -> NestedWeight:
        """Its columns cut into runs: the weight (parts * out, columns / parts, 1, 1) of a convolution of `parts` groups
        whose results, added up, are this one's. For sums of more products than the kernels' integers hold.

        Args:
            parts: of the columns, which must divide evenly and share their scales.
        """
        out, columns = self.shape[0], self.columns
        if parts < 1 or columns % parts or self.group < columns:
            raise ValueError(
                f"NestedWeight: {columns} columns in groups of {self.group} cannot be split into {parts} parts"
            )
        plain = self.scales.new_ones(1, 1), self.zero_points.new_zeros(1, 1)
        codes = nested_unpack(self.planes, *plain, (out, columns), self.group, self.depth).to(torch.uint8)
        codes = codes.view(out, parts, columns // parts).transpose(0, 1).reshape(parts * out, columns // parts, 1, 1)
        ends = (t.repeat(parts, 1) if len(t) > 1 else t for t in (self.scales, self.zero_points))
        return NestedWeight.from_codes(codes, *ends, depth=self.depth)

    def to(self, device: torch.device | str) -> NestedWeight:
        """On another device."""
        return NestedWeight(
            self.planes.to(device), self.scales.to(device), self.zero_points.to(device), self.shape, self.group
        )

    @property
    def depth(self) -> int:
        """Bits of a code, the widest that it is read at."""
        return self.planes.shape[0]

    def numel(self) -> int:
        """Weights of the dense form."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Weights of an output channel."""
        return math.prod(self.shape[1:])

    def nbytes_at(self, bits: int) -> int:
        """Bytes of the saved form that a width reads."""
        return self.planes[:bits].nbytes + self.scales.nbytes + self.zero_points.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the saved form, which holds every width."""
        return self.nbytes_at(self.depth)

    @property
    def prepacked_nbytes(self) -> int:
        """Bytes of what has been derived for the kernels so far."""
        return sum(planes.nbytes for planes in list(self._prepacks.values()))

    def prepack(self, taps: int = 1, parts: int = 1, joined: int = 1) -> list[Tensor]:
        """The form that the kernels read at every width; made once for linear layers, and per geometry of convolutions.

        Args:
            taps: of a convolution's kernel.
            parts: the groups of a convolution.
            joined: taps after each other whose channels lie together.
        """
        planes = self._prepacks.get((taps, parts, joined))
        if planes is None:
            planes = nested_prepack(self.planes, self.shape[0], self.columns, self.group, taps, parts, joined)
            # A graph that changed the dict would be traced anew each time; one that records kernels has not run them.
            if not (torch.compiler.is_compiling() or (planes.is_cuda and torch.cuda.is_current_stream_capturing())):
                planes = self._prepacks.setdefault((taps, parts, joined), planes)
        return [planes]
