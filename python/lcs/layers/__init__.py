"""The modules of a converted model."""

from .base import SubspaceLayer
from .norms import (
    SubspaceBatchNorm1d,
    SubspaceBatchNorm2d,
    SubspaceBatchNorm3d,
    SubspaceGroupNorm,
    SubspaceInstanceNorm1d,
    SubspaceInstanceNorm2d,
    SubspaceInstanceNorm3d,
    SubspaceLayerNorm,
)
from .weights import SubspaceConv1d, SubspaceConv2d, SubspaceLinear

__all__ = [
    "SubspaceBatchNorm1d",
    "SubspaceBatchNorm2d",
    "SubspaceBatchNorm3d",
    "SubspaceConv1d",
    "SubspaceConv2d",
    "SubspaceGroupNorm",
    "SubspaceInstanceNorm1d",
    "SubspaceInstanceNorm2d",
    "SubspaceInstanceNorm3d",
    "SubspaceLayer",
    "SubspaceLayerNorm",
    "SubspaceLinear",
]
