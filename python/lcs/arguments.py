"""A call's arguments: copies, what tells calls apart that may run differently, and whether results are alike."""

from __future__ import annotations

from dataclasses import is_dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_SWITCHES = (type(None), bool, int, str, bytes, Enum, torch.dtype, torch.device)  # which a forward may branch on


def signature(args: tuple, kwargs: dict) -> tuple:
    """The shapes of all tensors in a call's arguments, hashable, and which of several are one; of what a forward may
    branch on without a trace of it type and value, of anything else its type."""
    shapes = _shape_of(args) if not kwargs else (_shape_of(args), _shape_of(kwargs))
    if not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
        return shapes
    tensors = [id(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return shapes if len(set(tensors)) == len(tensors) else (shapes, tuple(map(tensors.index, tensors)))


def _shape_of(value):
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_shape_of, value))
    if isinstance(value, dict):
        return tuple((key, _shape_of(item)) for key, item in value.items())
    return (type(value), value) if isinstance(value, _SWITCHES) else type(value)


def channels_last(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A call's arguments with all images' channels last."""

    def last(value):
        if isinstance(value, Tensor) and value.dim() == 4:
            return value.contiguous(memory_format=torch.channels_last)
        return value

    if not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
        return (last(args[0]),), kwargs
    return pytree.tree_map(last, (args, kwargs))


def copied(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A call's arguments for a run that nobody has asked for, which may change them in place; one that is given twice
    still is one."""
    made = {}
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and id(leaf) not in made:
            made[id(leaf)] = leaf.detach().clone()
    return pytree.tree_map(lambda leaf: made.get(id(leaf), leaf), (args, kwargs))


def telling(args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """A call's arguments with random numbers for floats that could hide what a step does to them, as all are alike or
    some are not finite; None where there are none. Of a number other than 0 they lie next to it, towards 0."""
    made = {}
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and id(leaf) not in made and _hides(leaf):
            drawn = torch.rand(leaf.shape, generator=torch.Generator().manual_seed(0)).to(leaf.device)
            first = leaf.detach().flatten()[0].float()
            near = torch.isfinite(first) & (first != 0)
            made[id(leaf)] = torch.empty_like(leaf).copy_(torch.where(near, first * (1 - drawn / 8), 2 * drawn - 1))
    return pytree.tree_map(lambda leaf: made.get(id(leaf), leaf), (args, kwargs)) if made else None


def _hides(x: Tensor) -> bool:
    if not x.is_floating_point() or x.numel() < 2 or x.layout is not torch.strided or x.is_meta:
        return False
    low, high = x.detach().float().aminmax()
    return not bool(low < high) or not bool(torch.isfinite(low) & torch.isfinite(high))


def same(a, b) -> bool:
    """Whether two outputs of a model are the same bits, NaNs included; of what is neither a tensor nor a container or a
    dataclass of them, whether it is equal."""
    (xs, shape), (ys, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return shape == other and all(map(_same_leaf, xs, ys))


def _same_leaf(x, y) -> bool:
    if x is y or type(x) is not type(y):
        return x is y
    if isinstance(x, Tensor):
        alike = x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.isnan(), y.isnan())
        return alike and torch.equal(x.nan_to_num(), y.nan_to_num())
    return same(vars(x), vars(y)) if is_dataclass(x) else x == y or (x != x and y != y)
