"""What a method draws for a batch, and when it does: alpha, prob, start and stop."""

from typing import Any

import numpy as np
import torch
from fastai.torch_core import rank_distrib
from torch import Tensor
from torch.distributions import Beta

from .draw import new_rng, sample_lam, sample_partner, send
from .lifecycle import OnOneLearner
from .mix import Mix
from .options import LabelLam, Schedule, alpha_now, moment, prob_now, schedule_or, shown
from .pairing import sample_partner_by_targets
from .sources import Source


def _has_function(rules: Any) -> bool:
    return any(map(callable, rules if isinstance(rules, tuple) else (rules,)))


class Drawing(OnOneLearner):
    """A callback that draws pairings and masks; its alpha and probability may follow the progress of a fit."""

    alpha: Any
    prob: Any
    start: Any
    stop: Any
    fold: bool
    pair: Any
    seed: int | None
    spatial_dims: int | None
    targets: Any
    inputs: Any
    clean: bool
    _mixes_input: bool
    lam_targets: LabelLam | None = None
    _source: Source | None = None  # of partners that are not in the batch
    _took = False  # whether the draw took partners from there
    _rng: np.random.Generator | None = None
    # How `draw(x)`, whose signature is public, sees targets, loss, and what partners are taken from if it is not x
    _drawn_for: tuple[tuple, Any, Tensor | None] = (), None, None

    def _set_times(
        self, alpha: float | Schedule, prob: float | Schedule, start: int | float | None, stop: int | float | None
    ) -> None:
        self.alpha, self.prob = schedule_or(alpha_now, alpha), schedule_or(prob_now, prob)
        self._check_alpha()
        self.start, self.stop = moment("start", start), moment("stop", stop)
        both = None not in (start, stop) and type(self.start) is type(self.stop)
        if both and (self.start < 0) == (self.stop < 0) and self.start >= self.stop:
            raise ValueError(f"start must be before stop, got start={start!r} and stop={stop!r}")

    def draw(self, x: Tensor) -> Mix:
        """Return the mix of a batch with first input `x`, on its device: here, one that averages.

        Tensor subclasses are disabled inside `draw`: operations on a `TensorImage` return plain tensors.
        """
        return Mix(self.draw_partner(x), self.draw_lam(x))

    def spatial_size(self, x: Tensor) -> torch.Size:
        """Return the lengths of the spatial axes of `x`."""
        return x.shape[2:] if self.spatial_dims is None else x.shape[1:][-self.spatial_dims :]

    def draw_partner(self, x: Tensor) -> Tensor:
        """Draw the partner of each sample of `x`, ``(B,)``, on its device."""
        source = self._drawn_for[2]
        if source is not None:
            self._took = True
            order = self.rng.permutation(len(source))  # from the first again, if there are fewer
            return send(torch.from_numpy(np.resize(order, len(x))), x.device)
        if self.pair is None:
            return sample_partner(len(x), x.device, rng=self.rng)
        return sample_partner_by_targets(self.pair, self._drawn_for[0], len(x), self.rng)

    @property
    def partners(self) -> Any:
        """Where partners are taken from: a loader or another iterable, "last", or None: the batch."""
        return self._source and self._source.batches

    @partners.setter
    def partners(self, partners: Any) -> None:
        self._source = None if partners is None else Source(partners)
        if partners is None:
            return
        wanted = {"pair": self.pair is not None,
                  type(self).__name__: type(self).draw_partner is not Drawing.draw_partner or not self._mixes_input,
                  "clean": self.clean, "functions in targets": _has_function(self.targets),
                  "functions in inputs": _has_function(self.inputs)}  # fmt: skip
        if found := [name for name, given in wanted.items() if given]:
            raise ValueError(f"partners from elsewhere cannot go with {', '.join(found)}: these need them in the batch")

    def draw_lam(self, x: Tensor, device: torch.device | str | None = None) -> Tensor:
        """Draw the mixing coefficient of each sample of `x`, ``(B,)``, on its device or the one that is given."""
        return sample_lam(self._alpha_now(), len(x), self.fold, device or x.device, rng=self.rng)

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
        alpha = torch.tensor(self._alpha_now())
        return Beta(alpha, alpha)

    def _alpha_now(self) -> Any:
        return self._scheduled_alpha() if callable(self.alpha) else self.alpha

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

    def _has_time(self) -> bool:
        """Return whether some epoch of the fit lies between start and stop."""
        if (self.start is None and self.stop is None) or getattr(self.learn.opt, "frozen_idx", 0):
            return True  # the frozen epoch of `fine_tune` is short
        n: int = self.learn.n_epoch

        def fraction(when: int | float | None, default: float) -> float:
            if when is None or isinstance(when, float):
                return default if when is None else when
            return (when if when >= 0 else n + when) / n

        return max(0.0, fraction(self.start, 0.0)) < min(1.0, fraction(self.stop, 1.0))

    def _reached(self, when: int | float) -> bool:
        if isinstance(when, float):
            return self.learn.pct_train >= when
        return self.learn.epoch >= (when if when >= 0 else self.learn.n_epoch + when)
