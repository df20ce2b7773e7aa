"""Choosing modules of a model by name, glob or type."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

Pattern = str | type[nn.Module]
Patterns = Pattern | Sequence[Pattern]


def select(model: nn.Module, patterns: Patterns, argument: str) -> list[tuple[Pattern, set[nn.Module]]]:
    """For each pattern the modules it covers: those it matches, and all inside them.

    A pattern is a qualified name ("layer1.0.conv1"), a glob over qualified names ("layer1.*"; * also spans dots), or a
    module type (subclasses too). A module registered under several names is matched by each of them.

    Raises:
        ValueError: a pattern matches nothing. `argument` is its name in the message.
        TypeError: a pattern is neither a string nor a module type.
    """
    return [(pattern, _covered(model, pattern, argument)) for pattern in as_list(patterns)]


def as_list(patterns: Patterns) -> list[Pattern]:
    return [patterns] if isinstance(patterns, (str, type)) else list(patterns)


def _covered(model: nn.Module, pattern: Pattern, argument: str) -> set[nn.Module]:
    if not isinstance(pattern, str) and not (isinstance(pattern, type) and issubclass(pattern, nn.Module)):
        raise TypeError(f"{argument}: a pattern is a name, a glob or a module type, got {pattern!r}")
    named = list(model.named_modules(remove_duplicate=False))
    found = {inner for name, module in named if _matches(pattern, name, module) for inner in module.modules()}
    if not found:
        raise ValueError(
            f"{argument}: {_text(pattern)} matches no module of {type(model).__name__}{_near(pattern, named)}"
        )
    return found


def _matches(pattern: Pattern, name: str, module: nn.Module) -> bool:
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    return name == pattern or fnmatchcase(name, pattern)


def _text(pattern: Pattern) -> str:
    return repr(pattern) if isinstance(pattern, str) else pattern.__name__


def _near(pattern: Pattern, named: list[tuple[str, nn.Module]]) -> str:
    near = difflib.get_close_matches(pattern, [name for name, _ in named]) if isinstance(pattern, str) else []
    return f"; near it: {', '.join(near)}" if near else ""
