"""`MixHandler`: the flow of a batch through a mixing callback."""

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from .batch import MixedBatch, mix_batch
from .drawing import Drawing
from .lifecycle import remove_hooks, require_one
from .loss import MixUpLoss, mixed_loss
from .mix import Mix
from .options import (
    InputRule,
    LabelLam,
    Pairing,
    Rule,
    Schedule,
    call_of,
    flag,
    rules,
    whole,
)
from .passes import PART, Passes, watch
from .verify import verify_loss


class MixHandler(Drawing):
    """Base of all mixing callbacks: mixes the samples of each training batch, both inputs and targets.

    To write your own method, subclass it and implement :meth:`draw`, which returns the pairing and the mask. Everything
    else is inherited. During a batch, `mix` is the draw, `lam` ``(B,)`` the mixing coefficients and `yb1` the partners'
    targets, a tuple: None, ones and None if the batch is left as it is. `lf`, `old_lf`, `stack_y` and `distrib` have
    fastai's names, for subclasses that were written for fastai's own handler.

    What becomes of a target is what `targets` says, else its dtype and shape decide. Floats are averaged. A dense
    target of the input's spatial size, or of this size times or over one whole number, is mixed with the input's mask.
    Class indices cannot be averaged: there the losses are combined, by a :class:`MixUpLoss` that replaces
    ``learn.loss_func`` while training. A loss that is not known to be an average (see
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
        stack_y: fastai's short form of `targets`. True: combine the losses of both targets; False: average targets.
        targets: What becomes of a target, or a tuple with a rule for each: "loss" (left as it is, the losses of both
            targets are combined), "average" (by lam), "mask" (position by position, at its own resolution), "keep" (it
            belongs to the original), a function of the mix and the target that returns the mixed target, or None (by
            dtype and shape).
        inputs: What becomes of an input, or a tuple with a rule for each: "mix" or None, "keep" (left as it is), or a
            function of the mix and the input that returns the mixed input.
        spatial_dims: How many trailing axes are spatial positions, > 0: 2 for videos ``(B, T, C, H, W)``, whose frames
            then have the same box. None: all behind the channels, ``(B, C, *size)``.
        clean: Train on the unmixed batch too, in front of the mixed one (https://arxiv.org/abs/2206.14502).
        pair: Partners of the "same" or an "other" class, or a function of the targets ``(B, ...)`` to weights
            ``(B, B)``; partners are drawn in proportion to them. None: any partner.
        partners: Where partners are taken from: a loader or another iterable of batches, again and again, or the
            "last" batch that it mixed. None: the batch. With ``targets="keep"`` these batches need no targets.
        lam_targets: A function of the mix, the first target and its partners' that returns the coefficients of the
            targets, as `remix` gives one. None: those of the mix.
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
    _of_two = True  # whether each sample has one partner
    _chooses = False  # whether it chooses one of several methods for each batch
    mix: Mix | None = None
    lam: Any = None
    yb1: Any = None
    _cuts = False  # whether it replaces parts of samples, where points may be
    _mixed: MixedBatch | None = None
    _passes: Any = None
    _other_targets: Any = None  # calls of the loss that have others
    _watched: Any = None  # the model
    _verified = False  # whether the loss was, in this fit
    _in_batch = False  # from before_batch until targets and loss are the user's again

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
        targets: Rule | Sequence[Rule] = None,
        inputs: InputRule | Sequence[InputRule] = None,
        spatial_dims: int | None = None,
        clean: bool = False,
        pair: Literal["same", "other"] | Pairing | None = None,
        partners: Iterable | Literal["last"] | None = None,
        lam_targets: LabelLam | None = None,
        seed: int | None = None,
    ):
        self._set_times(alpha, prob, start, stop)
        seed = None if seed is None else whole("seed", seed, 0)
        if clean and stack_x:
            raise ValueError("clean and stack_x cannot both be True")
        if not (pair is None or callable(pair) or pair in ("same", "other")):
            raise ValueError(f"pair must be None, 'same', 'other' or a function of the targets, got {pair!r}")
        self.per_sample, self.fold = flag("per_sample", per_sample), flag("fold", fold)
        self.stack_x, self.clean = flag("stack_x", stack_x), flag("clean", clean)
        self._stack_y = None if stack_y is None else flag("stack_y", stack_y)
        self.pair, self.seed = pair, seed
        self.targets = rules("targets", targets, ("loss", "average", "mask", "union", "keep"))
        if targets is not None and stack_y is not None:
            raise ValueError("targets and stack_y cannot both be given: stack_y is a short form of targets")
        self.inputs = rules("inputs", inputs, ("mix", "keep"))
        if inputs is not None and stack_x:
            raise ValueError("inputs and stack_x cannot both be given: with stack_x the model mixes its inputs")
        if inputs == "keep" or (isinstance(self.inputs, tuple) and set(self.inputs) == {"keep"}):
            raise ValueError(f"inputs must have one that is mixed, got {inputs!r}. Use prob=0 to disable mixing")
        self.spatial_dims = None if spatial_dims is None else whole("spatial_dims", spatial_dims, 1)
        if not (lam_targets is None or callable(lam_targets)):
            raise TypeError(f"lam_targets must be a function (mix, y, y1), got {lam_targets!r}")
        self.partners, self.lam_targets = partners, lam_targets
        self._needs_average = self._needs_average or self.clean or lam_targets is not None

    def __repr__(self) -> str:
        """Return the call that makes this method, with every option that is not the default."""
        return call_of(self, "alpha", {"stack_y": self._stack_y})

    # The flow of a batch

    def before_fit(self) -> None:
        """Check the set-up. Without a seed, start from where torch's global generator is."""
        self._checked, self._verified, self._warned, self._other_targets = True, False, (), set()
        self._restore_learner()
        self._check_alpha()
        if self._source:  # of a fit that was interrupted
            self._source.restart(self.learn.dls.train)
        if not self._has_time():
            n = self.learn.n_epoch
            self._warn_once(f"{self} mixes nothing in this fit of {n} epoch{'s' * (n > 1)}: see start and stop")
        if self.seed is None:
            self._rng = None
        require_one(self.learn)
        if type(self) is MixHandler:
            raise TypeError("Expected a mixing method, got the base class MixHandler. Use MixUp or another method")

    def before_train(self) -> None:
        """Put a :class:`MixUpLoss` in the place of the user's loss."""
        self._wrap_loss()
        watch(self)

    def before_batch(self) -> None:
        """Draw the mix of the batch, and replace its inputs and targets."""
        if not self._checked:  # added in the middle of a fit
            self.before_fit()
        watch(self)
        self._take_loss()
        xb, yb, method = self.learn.xb, self.learn.yb, self if self._should_mix() else None
        mixed = mix_batch(method, xb, yb, self.old_lf)
        # Bypass fastai's `__setattr__`, which is slow: it looks up every name in the learner and the model
        yb1 = None if mixed.mix is None else mixed.yb1
        passes = Passes(self.learn, mixed, self._other_targets)
        vars(self).update(_mixed=mixed, _passes=passes, _in_batch=yb1 is not None)
        vars(self).update(mix=mixed.mix, lam=mixed.lam, yb1=yb1)
        self.learn.xb, self.learn.yb = mixed.xb, mixed.yb

    def after_pred(self) -> None:
        """Have the loss of this batch mixed."""
        self._in_batch = self.yb1 is not None  # set here for subclasses that override before_batch, as fastai's do
        self._take_loss()
        if self._in_batch and self._mixed is not None:
            self._mixed.check(self.learn.yb, self.old_lf)
            self._passes.predicted()

    def lf(self, pred: Any, *yb: Any, **kwargs: Any) -> Tensor:
        """Return the mixed loss for this batch's predictions and targets, and the user's loss for any other call."""
        mixed, loss_func = self._mixed, partial(self.old_lf, **kwargs) if kwargs else self.old_lf
        if mixed is None:
            loss = self._loss_for_fastai(loss_func, pred, yb)
        elif not self._passes.are_targets(yb, kwargs):
            if self._passes.are_part(yb) and self._passes.origin(pred) in ("own", "mixed") and self._is_mixed(pred):
                raise TypeError(PART)
            return loss_func(pred, *yb)
        elif not self._is_mixed(pred):
            return loss_func(pred, *self._passes.unmixed(yb))
        else:
            self._passes.require_all(pred)
            loss = partial(mixed.loss, pred, *self._passes.targets, loss_func=loss_func)
        in_batch, self._in_batch = self._in_batch, False  # a loss that wraps this one gets the user's
        try:
            if mixed is not None and not self._verified:
                self._verified = verify_loss(loss_func, pred, self._passes.targets, mixed)
            value = loss()
        finally:
            self._in_batch = in_batch
        if mixed is not None:
            self._passes.losses.append(value)
        return value

    def _loss_for_fastai(self, loss_func: Callable[..., Tensor], pred: Any, yb: tuple) -> Callable[[], Tensor]:
        """Return the loss of a subclass that was written for fastai, which sets `yb1` and `lam` itself."""
        same = len(yb) == len(self.learn.yb) and all(map(operator.is_, yb, self.learn.yb))
        if self.stack_y and (same or pred is getattr(self.learn, "pred", None)):
            return partial(mixed_loss, loss_func, pred, yb, self.yb1, self.lam)
        return partial(loss_func, pred, *yb)

    def _is_mixed(self, pred: Any) -> bool:
        """Return whether a prediction is of mixed inputs, in whatever pass."""
        return self._passes.is_mixed(pred)

    def before_backward(self) -> None:
        """Raise an error if the loss to train on is not the mixed one."""
        if self.yb1 is not None and self._mixed is not None and "loss" in self._mixed.rules:
            self._passes.require_mixed(self.learn.loss_grad)

    def after_batch(self) -> None:
        """Restore targets and loss."""
        self._reset_batch()
        self._passes = None  # a pass before the next mixing is of another batch

    def after_train(self) -> None:
        """Restore the user's loss."""
        self._restore_learner()

    def after_fit(self) -> None:
        """Restore the user's loss, also if the training was cancelled."""
        self._restore_learner()
        if self._source:  # which may hold workers, or a batch
            self._source.restart()

    def before_validate(self) -> None:
        """Restore the user's loss, also in the middle of an epoch."""
        self._restore_learner()

    def _reset_batch(self) -> None:
        """Restore the original loss and targets."""
        if self._in_batch:
            self._restore_targets()
        self._in_batch = False

    def _restore_targets(self) -> None:
        """Restore the original targets, keeping masks that were cut, so that metrics see them."""
        # Targets that were left to the loss are still the original ones
        if self._mixed is not None and any(rule != "loss" for rule in self._mixed.rules):
            self.learn.yb = self._mixed.for_metrics(self.learn.yb)

    def _restore_learner(self) -> None:
        if self.learn is not None:
            self._reset_batch()
            self._mixed = self.yb1 = self._passes = self._watched = None  # which hold the last batch
            remove_hooks(self.learn.model, id(self))
            self.learn.loss_func = self.old_lf

    # The loss

    def _wrap_loss(self) -> None:
        self.learn.loss_func = MixUpLoss(self.old_lf, self)

    def _take_loss(self) -> None:
        """Have the loss call this method, of a OneOf another one was chosen before; wrap one that was replaced."""
        if not isinstance(self.learn.loss_func, MixUpLoss):
            self._wrap_loss()
        elif self.learn.loss_func.mixer is not self:
            self.learn.loss_func.mixer = self

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
