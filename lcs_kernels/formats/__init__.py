"""How compressed weights are stored: one file a format, each a frozen dataclass of plain tensors and numbers."""

from .nested_weight import NestedWeight
from .sparse_weight import SparseWeight
from .width_weight import WidthWeight

__all__ = ["NestedWeight", "SparseWeight", "WidthWeight"]
