"""What the graph of autograd tells: which results a tensor was computed from."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor


def functions(ts: Iterable[Tensor]) -> list[Any]:
    """Return the functions of the graph that computed these tensors."""
    return [t.grad_fn for t in ts if t.grad_fn is not None]


def ancestors(ts: Iterable[Tensor]) -> Iterator[Any]:
    """Yield the functions that tensors were computed by, those of leaves too."""
    waiting = functions(ts)
    seen = set(waiting)
    while waiting:
        function = waiting.pop()
        yield function
        new = {f for f, _ in function.next_functions if f is not None} - seen
        seen |= new
        waiting += new


def is_leaf(function: Any) -> bool:
    """Return whether a function of the graph is that of a leaf, as parameters are: other passes share it."""
    return hasattr(function, "variable")


def descends(ts: Iterable[Tensor], some: Collection[Any]) -> bool:
    """Return whether one of the tensors was computed by way of one of some functions."""
    return bool(some) and any(f in some for f in ancestors(ts))


def path_around(ts: Iterable[Tensor], cut: Collection[Any], leaves: Collection[Tensor]) -> list[Any] | None:
    """Return the functions on a path from tensors to leaves that has none of those in `cut`; None if there is none."""
    waiting, ids = functions(ts), set(map(id, leaves))
    behind: dict[Any, Any] = dict.fromkeys(waiting)
    while waiting:
        function = waiting.pop()
        if function in cut:
            continue
        if is_leaf(function) and id(function.variable) in ids:
            path = []
            while function is not None:
                path.append(function)
                function = behind[function]
            return path
        for f, _ in function.next_functions:
            if f is not None and f not in behind:
                behind[f] = function
                waiting.append(f)
    return None
