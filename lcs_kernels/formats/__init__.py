"""How compressed weights are stored: one file a format, each a frozen dataclass of plain tensors and numbers.

Also what `lcs_kernels.packed_network` runs: a `Network` of steps, each a `Convolution`, `MaxPool`, `Mean` or `Dense`.
"""

from .nested_weight import NestedWeight
from .network import Convolution, Dense, MaxPool, Mean, Network
from .sparse_weight import SparseWeight
from .width_weight import WidthWeight

__all__ = [
    "Convolution",
    "Dense",
    "MaxPool",
    "Mean",
    "NestedWeight",
    "Network",
    "SparseWeight",
    "WidthWeight",
]
