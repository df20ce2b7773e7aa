"""Kernels for compressible subspaces (arXiv 2110.04252). Importing this defines every op under torch.ops.lcs."""

from pathlib import Path

# A checkout keeps triton_kernels/ and benchmarks/ beside this package; a wheel carries them inside.
if not (Path(__file__).parent / "benchmarks").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

from . import _cuda, _load, _triton, formats, isa
from ._backends import backends
from .errors import LcsUnavailableError
from .levels import keep_count
from .memory import release_memory
from .ops.cosine_squared import cosine_squared
from .ops.interpolate_prune import interpolate_prune
from .ops.interpolate_prune_foreach import interpolate_prune_foreach, interpolate_prune_foreach_masks
from .ops.interpolate_quantize import interpolate_quantize
from .ops.line_norm import line_norm
from .ops.nested_pack import nested_pack
from .ops.packed_conv2d import packed_conv2d
from .ops.packed_linear import packed_linear
from .ops.packed_network import packed_network
from .ops.quantize import quantize
from .ops.replay import replay
from .ops.sparse_conv2d import sparse_conv2d
from .ops.sparse_conv2d_norm import sparse_conv2d_norm
from .ops.sparse_linear import sparse_linear
from .ops.sparse_pack import sparse_pack
from .ops.width_conv2d import width_conv2d
from .ops.width_conv2d_norm import width_conv2d_norm

__all__ = [
    "LcsUnavailableError",
    "backends",
    "cosine_squared",
    "formats",
    "interpolate_prune",
    "interpolate_prune_foreach",
    "interpolate_prune_foreach_masks",
    "interpolate_quantize",
    "isa",
    "keep_count",
    "line_norm",
    "nested_pack",
    "packed_conv2d",
    "packed_linear",
    "packed_network",
    "quantize",
    "release_memory",
    "replay",
    "sparse_conv2d",
    "sparse_conv2d_norm",
    "sparse_linear",
    "sparse_pack",
    "width_conv2d",
    "width_conv2d_norm",
]

_load.load_installed()
_cuda.load()
_triton.register()
