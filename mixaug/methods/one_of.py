"""`OneOf`: several methods in one training."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch import mix_batch
from ..draw import send
from ..handler import MixHandler
from ..mix import Mix
from ..options import InputRule, Rule, Schedule, flag, number, shown
from ..passes import watch


def choose(mixes: Sequence[Mix], choice: Tensor) -> Mix:
    """Return the mix in which sample i is mixed as in ``mixes[choice[i]]``.

    If bool and float masks meet, bool masks become averages by 0 and 1.

    Args:
        mixes: Mixes of the same batch.
        choice: Indices ``(B,)`` into `mixes`.

    >>> partner = torch.tensor([1, 0])
    >>> mixes = Mix(partner, torch.tensor([0.9, 0.8])), Mix(partner, torch.tensor([0.6, 0.5]))
    >>> choose(mixes, torch.tensor([1, 0])).mask
    tensor([0.6000, 0.8000])
    """
    if any(mix.then or mix.own_index for mix in mixes):
        raise ValueError("mixes must be of two samples each, of which the original stays in its place, got another")
    ndim = max(mix.mask.ndim for mix in mixes)
    masks = [mix.mask.view(len(choice), *[1] * (ndim - mix.mask.ndim), *mix.mask.shape[1:]) for mix in mixes]
    size = torch.broadcast_shapes(*(mask.shape for mask in masks))[1:] if any(mix.source_index for mix in mixes) else ()
    same_place = [torch.arange(n, device=choice.device).expand(len(choice), n) for n in size]
    index = [(*same_place[: len(size) - len(mix.source_index)], *mix.source_index) for mix in mixes]
    fields = [(mix.partner, mask, *i) for mix, mask, i in zip(mixes, masks, index, strict=True)]
    chosen = [choice == k for k in range(len(mixes))]

    def pick(field: Sequence[Tensor]) -> Tensor:
        shape = [-1, *[1] * (field[0].ndim - 1)]
        return reduce(lambda t, k: torch.where(chosen[k].view(shape), field[k], t), range(1, len(field)), field[0])

    partner, mask, *source_index = map(pick, zip(*fields, strict=True))
    return Mix(partner, mask, tuple(source_index))


class OneOf(MixHandler):
    """Mix each batch by one of several methods, or each sample by one of several methods that mix the input.

    With ``per_sample=False``, one method handles the whole batch, with its options; `chosen` is this method, None if
    the batch is left as it is. With ``per_sample=True``, the methods only draw, and other options must be defaults.

    Args:
        *methods: Any number of methods; they may be `OneOf` too.
        p: Probability of each method, with a sum of 1 at most; the rest is left as it is. None: all equal.
        per_sample: Choose for each sample; False: for the batch.
        prob: Probability of mixing a batch, or a schedule.
        start: When mixing begins: an epoch (int; -1: the last) or a fraction of the fit (float).
        stop: When mixing ends, likewise.
        clean: As in :class:`MixHandler`, with ``per_sample=True``; otherwise an option of each method.
        stack_y: As in :class:`MixHandler`, with ``per_sample=True``; otherwise an option of each method.
        targets: Likewise.
        inputs: Likewise.
        seed: Seed of the random generator of all methods, >= 0. None: each fit takes one from torch's global generator.

    Raises:
        TypeError: If an argument is not a mixing callback.
        ValueError: If options do not fit each other, or ``per_sample=True`` and the loss is not known to be an average.

    >>> OneOf(MixUp(0.4), CutMix(1.0), p=[0.5, 0.3])  # a fifth of the batches is left as it is
    OneOf(MixUp(0.4), CutMix(1.0), p=[0.5, 0.3])
    >>> mix = OneOf(MixUp(0.4), CutMix(1.0), per_sample=True).draw(torch.rand(4, 3, 28, 28))
    >>> mix.mask.shape, mix.mask.dtype
    (torch.Size([4, 28, 28]), torch.float32)
    """

    chosen: MixHandler | None = None

    def __init__(
        self,
        *methods: MixHandler,
        p: Sequence[float] | None = None,
        per_sample: bool = False,
        prob: float | Schedule = 1.0,
        start: int | float | None = None,
        stop: int | float | None = None,
        clean: bool = False,
        stack_y: bool | None = None,
        targets: Rule | Sequence[Rule] = None,
        inputs: InputRule | Sequence[InputRule] = None,
        seed: int | None = None,
    ):
        of_parts: dict[str, Any] = {"clean": clean, "stack_y": stack_y, "targets": targets, "inputs": inputs}
        super().__init__(prob=prob, start=start, stop=stop, seed=seed, **of_parts)
        if not methods or not all(isinstance(m, MixHandler) and type(m) is not MixHandler for m in methods):
            raise TypeError(f"methods must be mixing callbacks, as in OneOf(MixUp(), CutMix()), got {methods!r}")
        if len(set(map(id, methods))) < len(methods):
            raise ValueError(f"methods must be different objects, got {methods!r}")
        equal = [1 / len(methods)] * len(methods)
        if p is not None and not isinstance(p, (Sequence, np.ndarray)):
            raise TypeError(
                f"p must be {len(methods)} probabilities, one for each method, got {p!r}. Use prob to mix fewer batches"
            )
        self.p = equal if p is None else [number("p", v, lambda v: 0 <= v <= 1, "probabilities") for v in p]
        if len(self.p) != len(methods) or not 0 < sum(self.p) < 1 + 1e-6:
            raise ValueError(f"p must be {len(methods)} probabilities with a sum of 1 at most, got {p!r}")
        if not per_sample and (clean or not (stack_y is targets is inputs is None)):
            raise ValueError(
                f"{' and '.join(of_parts)} must be options of the methods, not of OneOf, unless per_sample is True"
            )
        self.methods, self.each = list(methods), flag("per_sample", per_sample)
        if self.each:
            self._require_draws()
        self._needs_average, self._chooses = self.each, not self.each
        self.order = max(method.order for method in methods)

    def __repr__(self) -> str:
        """Return the call that makes this method, with every option that is not the default."""
        options = {"p": self.p, "per_sample": self.each, "prob": self.prob, "start": self.start, "stop": self.stop,
                   "clean": self.clean, "stack_y": self._stack_y, "targets": self.targets, "inputs": self.inputs,
                   "seed": self.seed}  # fmt: skip
        defaults = {**dict.fromkeys(options), "p": [1 / len(self.p)] * len(self.p), "per_sample": False, "prob": 1.0,
                    "clean": False}  # fmt: skip
        given = [f"{name}={shown(v)}" for name, v in options.items() if v != defaults[name]]
        return f"OneOf({', '.join([*map(repr, self.methods), *given])})"

    @property
    def partners(self) -> None:
        """None: partners from elsewhere are those of each method."""

    @partners.setter
    def partners(self, partners: Any) -> None:
        if partners is not None:
            raise ValueError("partners must be given to the methods, not to OneOf")

    def _require_draws(self) -> None:
        if unfit := [m for m in self.methods if not _only_draws(m)]:
            raise ValueError(f"methods must mix the input and leave the rest to OneOf for per_sample=True, got {unfit}")

    # Choosing

    def spatial_size(self, x: Tensor) -> torch.Size:
        """Return the lengths of the spatial axes of `x`, of the method that has most."""
        return max((method.spatial_size(x) for method in self.methods), key=len)

    def draw(self, x: Tensor) -> Mix | None:
        """Return the mix of a batch with first input `x`, by one of the methods or by several; None: as it is."""
        if self._chooses:
            method = self._pick()
            return None if method is None else self._draw_by(method, x)
        self._require_draws()
        methods = map(self._lend_rng, self.methods)
        drawn = [self._draw_by(m, x) if m.run and m._should_mix() else None for m in methods]
        some = next(filter(None, drawn), None)
        if some is None:
            return None
        choice = self._choices(len(x))
        mixes = [mix or some.unmixed() for mix in (drawn if sum(self.p) > 1 - 1e-6 else [*drawn, None])]
        return choose(mixes, send(torch.from_numpy(choice), x.device))

    def _draw_by(self, method: MixHandler, x: Tensor) -> Mix | None:
        """Draw by one of the methods, for the targets that this one draws for."""
        method._drawn_for = self._drawn_for
        try:
            return method.draw(x)
        finally:
            method._drawn_for = (), None, None

    def _pick(self) -> MixHandler | None:
        """Choose a method for a batch; None leaves it as it is."""
        method = [*self.methods, None][self._choices(1)[0]]
        return self._lend_rng(method) if method is not None and method.run else None

    def _choices(self, n: int) -> np.ndarray:
        """Draw `n` indices of methods; the index after the last leaves a batch or a sample as it is."""
        rest = 1 - sum(self.p)
        p = np.array([*self.p, rest if rest > 1e-6 else 0])
        return self.rng.choice(len(p), n, p=p / p.sum())

    def _lend_rng(self, method: MixHandler) -> MixHandler:
        """Have a method draw from the random generator of this one, unless it has a seed."""
        method._other_targets = self._other_targets  # by whichever method they were seen
        if method.seed is None:
            method._rng = self.rng
        return method

    # The flow of a batch: the chosen method's

    def _move_to(self, learn: Any) -> None:
        super()._move_to(learn)
        for method in self.methods:
            method.learn = learn

    def before_fit(self) -> None:
        """Check the set-up of all methods."""
        super().before_fit()
        for method in self.methods:
            method.learn = self.learn  # which it may have left for another
            method.before_fit()

    def before_batch(self) -> None:
        """Choose a method, and have it mix the batch."""
        self.chosen = None
        if not self._chooses:
            super().before_batch()
            return
        if not self._checked:  # added in the middle of a fit
            self.before_fit()
        watch(self)
        self.chosen = self._pick() if self._should_mix() else None
        if self.chosen is None:
            self._take_loss()
            self._mixed = mixed = mix_batch(None, self.learn.xb, self.learn.yb, self.old_lf)
            self.mix, self.lam, self.yb1, self._in_batch, self._passes = None, mixed.lam, None, False, None
        else:
            self.chosen._watched = self._watched  # by this one
            self.chosen.before_batch()
            self._copy_chosen()

    def _copy_chosen(self) -> None:
        """Copy the mix of the chosen method, for metrics and other callbacks."""
        chosen: Any = self.chosen
        self._mixed, self._passes = chosen._mixed, chosen._passes
        self.mix, self.lam, self.yb1 = chosen.mix, chosen.lam, chosen.yb1

    def after_pred(self) -> None:
        """Do what the chosen method does."""
        if self.chosen is None:
            super().after_pred()
        else:
            self.chosen.after_pred()
            self._copy_chosen()

    def after_loss(self) -> None:
        """Do what the chosen method does."""
        if self.chosen is not None:
            self.chosen("after_loss")  # which not every method has

    def before_backward(self) -> None:
        """Do what the chosen method does."""
        (super() if self.chosen is None else self.chosen).before_backward()

    def after_backward(self) -> None:
        """Do what the chosen method does."""
        if self.chosen is not None:
            self.chosen("after_backward")

    def after_batch(self) -> None:
        """Do what the chosen method does."""
        (super() if self.chosen is None else self.chosen).after_batch()
        self._passes = None

    def _restore_learner(self) -> None:
        self.chosen = None
        super()._restore_learner()
        for method in self.methods:
            method._restore_learner()


def _only_draws(method: MixHandler) -> bool:
    """Return whether a method does nothing but draw a mix of the input."""
    if (
        method.stack_x
        or method.clean
        or not (method.partners is method.lam_targets is None)
        or not (method._stack_y is method.targets is method.inputs is None)
        or method.seed is not None
        or not method.per_sample
    ):
        return False
    if isinstance(method, OneOf):
        return method.each
    return method._of_two and method._mixes_input and type(method).before_batch is MixHandler.before_batch
