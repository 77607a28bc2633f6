"""Restores the learner when training ends, also after an exception, and when a callback is switched off or moved.

A mixing callback changes two things of a learner while it trains: its loss function, and the hooks of its model.
:meth:`OnOneLearner._restore_learner` undoes both.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from operator import attrgetter
from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Learner
from fastcore.basics import noop
from fastcore.foundation import L

from .torch_private import forward_hooks


class OnOneLearner(Callback):
    """A callback that belongs to one learner at a time, and restores it when switched off, moved or removed."""

    _learn: Any = None
    _run = True
    _checked = False  # by before_fit, for this learner
    _warned: tuple[str, ...] = ()

    def _restore_learner(self) -> None:
        """Undo what training changed in the learner."""

    def _move_to(self, learn: Any) -> None:
        """Attach to another learner, or to none."""
        former, self._checked = self._learn, False
        if former is not None and learn is not former:
            self._restore_learner()
            self._learn = None
            if learn is not None and any(cb is self for cb in former.cbs):
                former.remove_cb(self)
        self._learn = learn

    def _switch(self, run: bool) -> None:
        """Switch mixing on or off."""
        self._run = run
        if not run:
            self._restore_learner()

    @property
    def name(self) -> str:
        """The learner's attribute for this callback: fastai's, but never one that hides a method of `Learner`."""
        name = super().name
        return f"{name}_cb" if hasattr(Learner, name) else name

    def _warn_once(self, message: str) -> None:
        """Warn once a fit."""
        if message not in self._warned:
            self._warned = (*self._warned, message)
            warnings.warn(message, stacklevel=2)

    learn: Any = property(attrgetter("_learn"), lambda self, learn: self._move_to(learn))
    run: Any = property(attrgetter("_run"), lambda self, run: self._switch(run))


class OwnHook:
    """A hook on a model that is removed by :func:`remove_hooks`, whatever interrupted the code that registered it.

    Copies and pickles do nothing, so that a copied model is not mixed, and name nothing of mixaug.

    Args:
        owner: The id of the callback that registers it.
    """

    def __init__(self, owner: int):
        self.owner = owner

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return partial, (noop, None)


def foreign_words(cbs: Iterable[Any], before: str = "") -> str:
    """Return `before` and words about fastai's own mixing callbacks: which they are, how to import ours. "": none."""
    module = sys.modules.get("fastai.callback.mixup")
    kinds = [type(cb) for cb in cbs if module and isinstance(cb, module.MixHandler)]
    if not kinds:
        return ""
    names = ", ".join(dict.fromkeys(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds))
    return (
        f"{before}{names}, which is fastai's own: a star import of fastai after mixaug's hides mixaug's class. Say "
        "`import mixaug as mx` and mx.MixUp, which nothing hides, or import mixaug's classes after fastai's"
    )


def require_one(learn: Learner) -> None:
    """Raise an error if a learner has several mixing callbacks, fastai's among them."""
    mixers = [cb for cb in learn.cbs if any(kind.__name__ == "MixHandler" for kind in type(cb).__mro__)]
    if len(mixers) > 1:
        raise ValueError(
            f"Expected one mixing callback, got {mixers}. Remove the others with learn.remove_cb"
            f"{foreign_words(mixers, ': one is ')}"
        )


def hooks_of(model: Any) -> Iterator[tuple[dict, int, Any]]:
    """Yield the forward hooks of a model, each with its key and the dict that holds it."""
    for m in model.modules():
        for hooks in forward_hooks(m):
            for key, hook in list(hooks.items()):
                yield hooks, key, hook


def remove_hooks(model: Any, owner: int) -> None:
    """Remove the hooks that a callback registered."""
    for hooks, key, hook in hooks_of(model):
        if getattr(hook, "owner", None) == owner:
            del hooks[key]


def own_hooks(learn: Learner) -> Callable[[int, Any], bool]:
    """Return a function that says whether a hook, given its key and itself, belongs to the model, not to a callback."""
    before = vars(learn).get("_hooks_before_fit")

    def is_own(key: int, hook: Any) -> bool:
        return (before is None or key in before) and not isinstance(getattr(hook, "__self__", None), Callback)

    return is_own


def mixing_callbacks(learn: Learner) -> list[Any]:
    """Return the mixing callbacks of a learner."""
    return [cb for cb in learn.cbs if hasattr(type(cb), "_restore_learner")]


def patched(method: Callable) -> Callable:
    """Replace the method of `Learner` of the same name; the function gets the original as its second argument.

    Reloading this module replaces the function again, and does not wrap it twice.
    """
    name = method.__name__
    original = getattr(Learner, name)
    original = vars(original).get("_patched_by_mixaug", original)

    @wraps(original)
    def inner(self: Learner, *args: Any, **kwargs: Any) -> Any:
        return method(self, original, *args, **kwargs)

    vars(inner)["_patched_by_mixaug"] = original
    setattr(Learner, name, inner)
    return method


@patched
def fit(self: Learner, original: Callable, *args: Any, **kwargs: Any) -> None:
    """Restore the learner however the fit ends: after an exception fastai calls no events."""
    # The hooks that belong to the model: others are registered by callbacks in the fit
    vars(self)["_hooks_before_fit"] = {key for _, key, _ in hooks_of(self.model)}
    try:
        original(self, *args, **kwargs)
    finally:
        vars(self).pop("_hooks_before_fit", None)
        for cb in mixing_callbacks(self):
            cb.learn = self  # None after `fit(cbs=cb)` with a callback that the learner has already
            cb._restore_learner()


@patched
def export(self: Learner, original: Callable, *args: Any, **kwargs: Any) -> None:
    """Leave mixing out of the file, so that it opens where mixaug is not installed."""
    cbs = list(self.cbs)
    try:
        with self.removed_cbs(mixing_callbacks(self)):
            original(self, *args, **kwargs)
    finally:
        self.cbs = L(cbs)  # in their order
