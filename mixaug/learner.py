"""One method on `Learner` for each of the common methods: `learn.mixup()`."""

from typing import Any

from fastai.learner import Learner
from fastcore.basics import patch
from fastcore.meta import delegates
from typing_extensions import Unpack

from .handler import MixHandler
from .lifecycle import mixing_callbacks
from .methods.average import MixUp
from .methods.cut import CutMix
from .methods.hidden import ManifoldMixup
from .methods.output import OutputMixup
from .options import MixOptions, Schedule


def _mix_with(learn: Learner, cb: MixHandler) -> Learner:
    """Add `cb` in the place of the learner's mixing callbacks."""
    return learn.remove_cbs(mixing_callbacks(learn)).add_cb(cb)


@patch
@delegates(MixUp.__init__)
def mixup(self: Learner, alpha: float | Schedule | MixHandler = 0.4, **kwargs: Unpack[MixOptions]) -> Learner:
    """Train with :class:`MixUp`, or with a mixing callback given as `alpha`, instead of other mixing."""
    return _mix_with(self, alpha if isinstance(alpha, MixHandler) and not kwargs else MixUp(alpha, **kwargs))  # pyright: ignore[reportArgumentType]


@patch
@delegates(CutMix.__init__)
def cutmix(self: Learner, alpha: float | Schedule = 1.0, **kwargs: Unpack[MixOptions]) -> Learner:
    """Train with :class:`CutMix`, instead of other mixing."""
    return _mix_with(self, CutMix(alpha, **kwargs))


@patch
@delegates(ManifoldMixup.__init__)
def manifold_mixup(self: Learner, alpha: float | Schedule = 0.4, **kwargs: Any) -> Learner:
    """Train with :class:`ManifoldMixup`, instead of other mixing."""
    return _mix_with(self, ManifoldMixup(alpha, **kwargs))


@patch
@delegates(OutputMixup.__init__)
def output_mixup(self: Learner, alpha: float | Schedule = 0.4, **kwargs: Unpack[MixOptions]) -> Learner:
    """Train with :class:`OutputMixup`, instead of other mixing."""
    return _mix_with(self, OutputMixup(alpha, **kwargs))
