"""`MixHandler`: the flow of a batch through a mixing callback."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from fastai.learner import Learner
from fastai.torch_core import rank_distrib
from torch import Tensor
from torch.distributions import Beta

from .batch import MixedBatch, mix_batch
from .lifecycle import OnOneLearner
from .loss import MixUpLoss, mixed_loss
from .mix import Mix, new_rng, sample_lam, sample_partner
from .options import Pairing, Schedule, alpha_now, call_of, flag, moment, number, prob_now, schedule_or, shown
from .pairing import sample_partner_by_targets


class MixHandler(OnOneLearner):
    """Base of all mixing callbacks: mixes the samples of each training batch, both inputs and targets.

    To write your own method, subclass it and implement :meth:`draw`, which returns the pairing and the mask. Everything
    else is inherited. During a batch, `mix` is the draw, `lam` ``(B,)`` the mixing coefficients and `yb1` the partners'
    targets, a tuple: None, ones and None if the batch is left as it is. `lf`, `old_lf`, `stack_y` and `distrib` have
    fastai's names, for subclasses that were written for fastai's own handler.

    How a target is mixed depends on its dtype and shape. Floats are averaged. A dense target of the input's spatial
    size is mixed with the input's mask. Class indices cannot be averaged: there the losses are combined, by a
    :class:`MixUpLoss` that replaces ``learn.loss_func`` while training. A loss that is not known to be an average (see
    `mixaug.loss.is_average`) then gets one lam for the whole batch, with which the combination is exact.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0: close to 0 or 1 for small alpha, close to
            0.5 for large alpha. May be a schedule: a function of the fraction of the fit that is done, as fastai's
            ``SchedCos(0, 0.6)``, where 0 mixes nothing.
        prob: Probability of mixing a batch, or a schedule.
        start: When mixing begins: an epoch (int; -1: the last) or a fraction of the fit (float). `fine_tune`
            runs two fits; epochs and fractions refer to each.
        stop: When mixing ends, likewise.
        per_sample: Draw for each sample; False: one lam and one box for the batch.
        fold: Use max(lam, 1 - lam), so that the original dominates.
        stack_x: Pass ``(x, x[partner], lam)`` to the model, which mixes them; x alone if nothing is mixed.
        stack_y: True: combine the losses of both targets; False: average targets; None: decide by dtype and shape.
        clean: Train on the unmixed batch too, in front of the mixed one (https://arxiv.org/abs/2206.14502).
        pair: Partners of the "same" or an "other" class, or a function of the targets ``(B, ...)`` to weights
            ``(B, B)``; partners are drawn in proportion to them. None: any partner.
        seed: Seed of the callback's random generator, >= 0; later fits go on where it is. None: each fit takes a seed
            from torch's global generator.

    >>> class Stripes(MixHandler):
    ...     def draw(self, x):
    ...         mask = torch.arange(x.shape[-1], device=x.device) % 2 == 0
    ...         return Mix(self.draw_partner(x), mask.expand(len(x), *x.shape[2:]))
    >>> Stripes(prob=0.8).draw(torch.rand(2, 3, 8, 8)).lam
    tensor([0.5000, 0.5000])
    """

    run_valid = False
    _mixes_input = True  # False: a hidden layer or the prediction is mixed
    _needs_average = False  # whether lam always differs between samples, for which the loss must be an average
    _chooses = False  # whether it chooses one of several methods for each batch
    mix: Mix | None = None
    lam: Any = None
    yb1: Any = None
    _mixed: MixedBatch | None = None
    _in_batch = False  # from before_batch until targets and loss are the user's again
    _rng: np.random.Generator | None = None
    _drawn_for: tuple[tuple, Any] = (), None  # how `draw(x)`, whose signature is public, sees targets and loss

    def __init__(
        self,
        alpha: float | Schedule = 0.5,
        *,
        prob: float | Schedule = 1.0,
        start: int | float | None = None,
        stop: int | float | None = None,
        per_sample: bool = True,
        fold: bool = True,
        stack_x: bool = False,
        stack_y: bool | None = None,
        clean: bool = False,
        pair: Literal["same", "other"] | Pairing | None = None,
        seed: int | None = None,
    ):
        self.alpha, self.prob = schedule_or(alpha_now, alpha), schedule_or(prob_now, prob)
        self._check_alpha()
        self.start, self.stop = moment("start", start), moment("stop", stop)
        both = None not in (start, stop) and type(self.start) is type(self.stop)
        if both and (self.start < 0) == (self.stop < 0) and self.start >= self.stop:
            raise ValueError(f"start must be before stop, got start={start!r} and stop={stop!r}")
        if seed is not None:
            number("seed", seed, lambda s: s >= 0 and s.is_integer(), "a whole number >= 0")
            seed = int(seed)
        if clean and stack_x:
            raise ValueError("clean and stack_x cannot both be True")
        if not (pair is None or callable(pair) or pair in ("same", "other")):
            raise ValueError(f"pair must be None, 'same', 'other' or a function of the targets, got {pair!r}")
        self.per_sample, self.fold = flag("per_sample", per_sample), flag("fold", fold)
        self.stack_x, self.clean = flag("stack_x", stack_x), flag("clean", clean)
        self._stack_y = None if stack_y is None else flag("stack_y", stack_y)
        self.pair, self.seed = pair, seed
        self._needs_average = self._needs_average or self.clean

    def __repr__(self) -> str:
        """Return the call that makes this method, with every option that is not the default."""
        return call_of(self, "alpha", {"stack_y": self._stack_y})

    @property
    def name(self) -> str:
        """The learner's attribute for this callback: fastai's, but never one that hides a method of `Learner`."""
        name = super().name
        return f"{name}_cb" if hasattr(Learner, name) else name

    # What a method is

    def draw(self, x: Tensor) -> Mix:
        """Return the mix of a batch with first input `x`, on its device: here, one that averages.

        Tensor subclasses are disabled inside `draw`: operations on a `TensorImage` return plain tensors.
        """
        return Mix(self.draw_partner(x), self.draw_lam(x))

    def draw_partner(self, x: Tensor) -> Tensor:
        """Draw the partner of each sample of `x`, ``(B,)``, on its device."""
        if self.pair is None:
            return sample_partner(len(x), x.device, rng=self.rng)
        return sample_partner_by_targets(self.pair, self._drawn_for[0], len(x), self.rng)

    def draw_lam(self, x: Tensor, device: torch.device | str | None = None) -> Tensor:
        """Draw the mixing coefficient of each sample of `x`, ``(B,)``, on its device or the one that is given."""
        alpha: Any = self._scheduled_alpha() if callable(self.alpha) else self.alpha
        return sample_lam(alpha, len(x), self.fold, device or x.device, rng=self.rng)

    @property
    def rng(self) -> np.random.Generator:
        """The callback's random generator. Several processes draw differently from one seed."""
        if self._rng is None:
            seed = int(new_rng().integers(2**63)) if self.seed is None else self.seed
            self._rng = new_rng(seed, rank_distrib())
        return self._rng

    @property
    def distrib(self) -> Beta:
        """torch's Beta(alpha, alpha), for subclasses written for fastai; mixaug draws from `rng`."""
        alpha = torch.tensor(self._scheduled_alpha() if callable(self.alpha) else self.alpha)
        return Beta(alpha, alpha)

    def _check_alpha(self) -> None:
        if schedule_or(alpha_now, self.alpha) == 0:
            raise ValueError(f"alpha must be a finite number > 0, got {self.alpha!r}. Use prob=0 to disable mixing")

    def _scheduled_alpha(self) -> float:
        schedule: Any = self.alpha
        if self.learn is None:
            raise ValueError(
                f"alpha must be a number where no fit tells the progress, got the schedule {shown(schedule)}. Set a "
                "number first: method.alpha = schedule(0.5)"
            )
        return alpha_now(schedule(self.learn.pct_train))

    def _should_mix(self) -> bool:
        """Return whether this batch is mixed, by the progress of the training and by chance."""
        if self.learn is None:
            return True
        begun = self.start is None or self._reached(self.start)
        if not begun or (self.stop is not None and self._reached(self.stop)):
            return False
        if callable(self.alpha) and self._scheduled_alpha() == 0:
            return False
        prob: Any = prob_now(self.prob(self.learn.pct_train)) if callable(self.prob) else self.prob
        return prob == 1 or (prob > 0 and self.rng.random() < prob)  # do not draw if prob is 0 or 1

    def _reached(self, when: int | float) -> bool:
        if isinstance(when, float):
            return self.learn.pct_train >= when
        return self.learn.epoch >= (when if when >= 0 else self.learn.n_epoch + when)

    # The flow of a batch

    def before_fit(self) -> None:
        """Check the set-up. Without a seed, start from where torch's global generator is."""
        self._checked = True
        self._restore_learner()
        self._check_alpha()
        if self.seed is None:
            self._rng = None
        # fastai's own callbacks have a handler of the same name
        mixers = [cb for cb in self.learn.cbs if any(c.__name__ == MixHandler.__name__ for c in type(cb).__mro__)]
        if len(mixers) > 1:
            raise ValueError(f"Expected one mixing callback, got {mixers}. Remove the others with learn.remove_cb")
        if type(self) is MixHandler:
            raise TypeError("Expected a mixing method, got the base class MixHandler. Use MixUp or another method")

    def before_train(self) -> None:
        """Put a :class:`MixUpLoss` in the place of the user's loss."""
        self._wrap_loss()

    def before_batch(self) -> None:
        """Draw the mix of the batch, and replace its inputs and targets."""
        if not self._checked:  # added in the middle of a fit
            self.before_fit()
        method = self if self._should_mix() else None
        mixed = mix_batch(method, self.learn.xb, self.learn.yb, self.old_lf)
        # Bypass fastai's `__setattr__`, which is slow: it looks up every name in the learner and the model
        yb1 = None if mixed.mix is None else mixed.yb1
        vars(self).update(_mixed=mixed, _in_batch=yb1 is not None, mix=mixed.mix, lam=mixed.lam, yb1=yb1)
        self.learn.xb, self.learn.yb = mixed.xb, mixed.yb

    def after_pred(self) -> None:
        """Have the loss of this batch mixed."""
        self._in_batch = self.yb1 is not None  # set here for subclasses that override before_batch, as fastai's do
        if not isinstance(self.learn.loss_func, MixUpLoss):  # another callback replaced it
            self._wrap_loss()
        elif self.learn.loss_func.mixer is not self:  # another method of a OneOf was chosen before
            self.learn.loss_func.mixer = self
        if self._in_batch and self._mixed is not None:
            self._mixed.check(self.learn.yb, self.old_lf, self.order)

    def lf(self, pred: Any, *yb: Any, **kwargs: Any) -> Tensor:
        """Return the mixed loss for this batch's predictions and the user's loss for any other call."""
        targets, loss_func = self.learn.yb, partial(self.old_lf, **kwargs) if kwargs else self.old_lf
        # A second pass over the mixed inputs, as sharpness-aware callbacks make, has another prediction
        same_targets = len(yb) == len(targets) and all(map(operator.is_, yb, targets))
        second_pass = same_targets and (self._mixes_input or self.stack_x)
        if not (second_pass or pred is getattr(self.learn, "pred", None)):  # missing before the first forward pass
            return loss_func(pred, *yb)
        in_batch, self._in_batch = self._in_batch, False  # a loss that wraps this one gets the user's
        try:
            if self._mixed is not None:
                return self._mixed.loss(pred, *yb, loss_func=loss_func)
            # Of a subclass written for fastai
            return mixed_loss(loss_func, pred, yb, self.yb1, self.lam) if self.stack_y else loss_func(pred, *yb)
        finally:
            self._in_batch = in_batch

    def after_batch(self) -> None:
        """Restore targets and loss."""
        self._reset_batch()

    def after_train(self) -> None:
        """Restore the user's loss."""
        self._restore_learner()

    def after_fit(self) -> None:
        """Restore the user's loss, also if the training was cancelled."""
        self._restore_learner()

    def before_validate(self) -> None:
        """Restore the user's loss, also in the middle of an epoch."""
        self._restore_learner()

    def _reset_batch(self) -> None:
        """Restore the original loss and targets, keeping masks that were cut, so that metrics see them."""
        # Targets that were left to the loss are still the original ones
        if self._in_batch and self._mixed is not None and any(rule != "loss" for rule in self._mixed.rules):
            self.learn.yb = self._mixed.for_metrics(self.learn.yb)
        self._in_batch = False

    def _restore_learner(self) -> None:
        if self.learn is not None:
            self._reset_batch()
            self._mixed = self.yb1 = None  # which hold the last batch
            self.learn.loss_func = self.old_lf

    # The loss

    def _wrap_loss(self) -> None:
        self.learn.loss_func = MixUpLoss(self.old_lf, self)

    @property
    def stack_y(self) -> bool:
        """Whether the losses of both targets are combined for some target of the batch (fastai's name)."""
        if self._stack_y is not None:
            return self._stack_y
        return any(not y.is_floating_point() for y in self.learn.yb)

    @property
    def old_lf(self) -> Callable[..., Tensor]:
        """The user's loss (fastai's name)."""
        loss_func = self.learn.loss_func
        return loss_func.loss_func if isinstance(loss_func, MixUpLoss) else loss_func
