"""One line for each method on `Learner`."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from fastai.learner import Learner
from fastcore.basics import patch
from fastcore.foundation import L
from fastcore.meta import delegates

from .handlers import CutMix, MixHandler, MixUp
from .manifold import ManifoldMixup, OutputMixup


def _mix_with(learn: Learner, cb: MixHandler) -> Learner:
    """Add `cb` in the place of the mixing callbacks that the learner has."""
    return learn.remove_cbs(learn._grab_cbs(MixHandler)).add_cb(cb)


def _in_order(fit: Callable) -> Callable:
    """Make `Learner.fit` undo what mixing did to the learner however it ends: fastai's events are silent in a crash."""

    @wraps(fit)
    def inner(self: Learner, *args: Any, **kwargs: Any) -> None:
        try:
            fit(self, *args, **kwargs)
        finally:
            for cb in self._grab_cbs(MixHandler):
                cb.learn = self  # which it lost if it was given to `fit` as well
                cb.restore()

    return inner


def _without_mixing(export: Callable) -> Callable:
    """Make `Learner.export` leave mixing out, so that its file opens where mixaug is not installed."""

    @wraps(export)
    def inner(self: Learner, *args: Any, **kwargs: Any) -> None:
        cbs = list(self.cbs)
        with self.removed_cbs(self._grab_cbs(MixHandler)):
            export(self, *args, **kwargs)
        self.cbs = L(cbs)  # in their order

    return inner


Learner.fit = _in_order(Learner.fit)
Learner.export = _without_mixing(Learner.export)  # pyright: ignore[reportAttributeAccessIssue]  (patched by fastai)


@patch
@delegates(MixUp.__init__)
def mixup(self: Learner, alpha: Any = 0.4, **kwargs: Any) -> Learner:
    """Train with `MixUp`, or with the mixing callback given for `alpha`, in the place of other mixing."""
    return _mix_with(self, alpha if isinstance(alpha, MixHandler) and not kwargs else MixUp(alpha, **kwargs))


@patch
@delegates(CutMix.__init__)
def cutmix(self: Learner, alpha: Any = 1.0, **kwargs: Any) -> Learner:
    """Train with `CutMix`, in the place of other mixing."""
    return _mix_with(self, CutMix(alpha, **kwargs))


@patch
@delegates(ManifoldMixup.__init__)
def manifold_mixup(self: Learner, alpha: Any = 0.4, **kwargs: Any) -> Learner:
    """Train with `ManifoldMixup`, in the place of other mixing."""
    return _mix_with(self, ManifoldMixup(alpha, **kwargs))


@patch
@delegates(OutputMixup.__init__)
def output_mixup(self: Learner, alpha: Any = 0.4, **kwargs: Any) -> Learner:
    """Train with `OutputMixup`, in the place of other mixing."""
    return _mix_with(self, OutputMixup(alpha, **kwargs))
