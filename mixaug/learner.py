"""One line for each method on `Learner`."""

from typing import Any

from fastai.learner import Learner
from fastcore.basics import patch
from fastcore.meta import delegates

from .handlers import CutMix, MixHandler, MixUp
from .manifold import ManifoldMixup, OutputMixup


def _mix_with(learn: Learner, cb: MixHandler) -> Learner:
    """Add `cb` in the place of the mixing callbacks that the learner has."""
    return learn.remove_cbs(learn._grab_cbs(MixHandler)).add_cb(cb)


@patch
@delegates(MixUp.__init__)
def mixup(self: Learner, alpha: float = 0.4, **kwargs: Any) -> Learner:
    """Train with `MixUp`, in the place of other mixing."""
    return _mix_with(self, MixUp(alpha, **kwargs))


@patch
@delegates(CutMix.__init__)
def cutmix(self: Learner, alpha: float = 1.0, **kwargs: Any) -> Learner:
    """Train with `CutMix`, in the place of other mixing."""
    return _mix_with(self, CutMix(alpha, **kwargs))


@patch
@delegates(ManifoldMixup.__init__)
def manifold_mixup(self: Learner, alpha: float = 0.4, **kwargs: Any) -> Learner:
    """Train with `ManifoldMixup`, in the place of other mixing."""
    return _mix_with(self, ManifoldMixup(alpha, **kwargs))


@patch
@delegates(OutputMixup.__init__)
def output_mixup(self: Learner, alpha: float = 0.4, **kwargs: Any) -> Learner:
    """Train with `OutputMixup`, in the place of other mixing."""
    return _mix_with(self, OutputMixup(alpha, **kwargs))
