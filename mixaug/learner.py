"""Methods on `Learner`: `learn.mix_with(method)`, and short forms for the common methods, as `learn.mixup(0.4)`."""

from typing import Any

from fastai.learner import Learner
from fastcore.basics import patch
from fastcore.meta import delegates
from typing_extensions import Unpack

from .handler import MixHandler
from .lifecycle import foreign_words, mixing_callbacks
from .methods.average import MixUp
from .methods.cut import CutMix
from .methods.hidden import ManifoldMixup
from .methods.output import OutputMixup
from .options import MixOptions, Schedule


def _mix_with(learn: Learner, method: MixHandler) -> Learner:
    if foreign := foreign_words(learn.cbs):
        raise ValueError(f"Expected a learner without other mixing, got {foreign}. Remove it with learn.remove_cb")
    return learn.remove_cbs(mixing_callbacks(learn)).add_cb(method)


@patch
def mix_with(self: Learner, method: MixHandler) -> Learner:
    """Train with a mixing method instead of other mixing, and return the learner.

    ``learn.mixup(0.4)`` is short for ``learn.mix_with(MixUp(0.4))``. As in fastai, ``learn.mix_up`` is the callback.

    Args:
        method: A mixing callback, as ``FMix()``.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(method, MixHandler):
        foreign = foreign_words([method])
        call = f". Call it: {method.__name__}()" if isinstance(method, type) else ""
        raise TypeError(
            f"method must be a mixing callback of mixaug, as MixUp(0.4), got {foreign or repr(method)}{call}"
        )
    return _mix_with(self, method)


@patch
@delegates(MixUp.__init__)
def mixup(self: Learner, alpha: float | Schedule = 0.4, **kwargs: Unpack[MixOptions]) -> Learner:
    """Train with :class:`MixUp`, instead of other mixing; ``learn.mix_up`` is the callback then."""
    return _mix_with(self, MixUp(alpha, **kwargs))


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
