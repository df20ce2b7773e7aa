"""Packages that only training needs: imported where used, and named with their extra where missing."""

import importlib
from types import ModuleType


def require(name: str) -> ModuleType:
    """The module `name`. Raises ImportError naming the extra to install where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.partition(".")[0]):
            raise
        package = name.partition(".")[0]
        raise ImportError(f'this needs {package}, which is not installed: pip install "lcs-kernels[train]"') from error
