"""Tensors in nests of tuples, lists and mappings."""

from collections.abc import Callable, Mapping, MutableMapping
from copy import copy, deepcopy
from itertools import repeat
from typing import Any

from torch import Tensor


def like(x: Tensor, t: Tensor) -> Tensor:
    """Return `t` with the tensor subclass of `x` and copies of its attributes."""
    if type(x) is not type(t):
        t = super(Tensor, t).as_subclass(type(x))  # torch's own: fastai's copies attributes, and `t` has none
        vars(t).update({name: v if isinstance(v, Tensor) else deepcopy(v) for name, v in vars(x).items()})
    return t


def map_tensors(f: Callable[[Tensor], Any], nest: Any) -> Any:
    """Return a nest of tuples, lists and mappings, of any class, with `f(t)` for each tensor t."""
    if isinstance(nest, Tensor):
        return f(nest)
    kind: Any = type(nest)
    if isinstance(nest, (tuple, list)):
        items = [map_tensors(f, item) for item in nest]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)  # a namedtuple has fields
    if isinstance(nest, MutableMapping):
        result = copy(nest)  # keeps the default function of a defaultdict
        for key, value in nest.items():  # one by one: Hugging Face's outputs refuse `update`
            result[key] = map_tensors(f, value)
        return result
    if isinstance(nest, Mapping):
        return kind({key: map_tensors(f, value) for key, value in nest.items()})
    return nest


def map_with(f: Callable[[Tensor, Tensor | None], Any], nest: Any, other: Any) -> Any:
    """Return a nest with `f(t, o)` for each tensor t and the one at its place in another nest; None: there is none."""
    others = iter(_beside(nest, other)) if other is not None else repeat(None)
    return map_tensors(lambda t: f(t, next(others)), nest)


def _beside(nest: Any, other: Any) -> list[Tensor]:
    """Return the tensors of another nest at the places of the tensors of a nest, in the order of these."""
    if isinstance(nest, Tensor):
        return [other]
    if isinstance(nest, Mapping):
        return [t for key, item in nest.items() for t in _beside(item, other[key])]
    pairs = zip(nest, other, strict=True) if isinstance(nest, (tuple, list)) else ()
    return [t for item, o in pairs for t in _beside(item, o)]


def tensors(nest: Any) -> list[Tensor]:
    """Return the tensors of a nest in their order."""
    if isinstance(nest, Tensor):
        return [nest]
    items = nest.values() if isinstance(nest, Mapping) else nest if isinstance(nest, (tuple, list)) else ()
    return [t for item in items for t in ([item] if isinstance(item, Tensor) else tensors(item))]


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same, or the same memory: fastai casts each batch to plain tensors."""
    if a is b:
        return True
    views = ((t.dtype, t.shape, t.stride(), t.storage_offset()) for t in (a, b))
    return next(views) == next(views) and a.untyped_storage() is b.untyped_storage()


def is_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether tensors have the same values, NaN among them."""
    return same(a, b) or (a.shape == b.shape and bool(((a == b) | (a != a) & (b != b)).all()))
