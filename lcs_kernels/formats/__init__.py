"""How compressed weights are stored: one file a format, each a frozen dataclass of plain tensors and numbers."""

from .sparse_weight import SparseWeight

__all__ = ["SparseWeight"]
