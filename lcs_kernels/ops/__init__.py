"""One file per op: its reference, fake, schema, autograd function and public function, top to bottom."""

import pkgutil


def names() -> list[str]:
    """Every op of the engine, by its file's name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
