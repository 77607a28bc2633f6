"""`OneOf`: several methods in one training."""

from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Any

import torch
from torch import Tensor

from .handlers import MixHandler, _flag, _number
from .mixing import Mix, choose


class OneOf(MixHandler):
    """Mix each batch by one of several methods, or each sample by one of several methods that mix the input.

    `OneOf(MixUp(0.8), CutMix(1.0))`. For a batch one method does all that it does alone, with its own arguments; for
    each sample the methods only draw. In a batch `chosen` is the method that mixes it, None where it stays as it is.
    ValueError for arguments that do not fit one another.

    >>> OneOf(MixUp(0.4), CutMix(1.0), p=[0.5, 0.3])  # a fifth of the batches stays as it is
    OneOf(MixUp(alpha=0.4, prob=1.0), CutMix(alpha=1.0, prob=1.0), p=[0.5, 0.3], per_sample=False)
    >>> mix = OneOf(MixUp(0.4), CutMix(1.0), per_sample=True).draw(torch.rand(4, 3, 28, 28))
    >>> mix.mask.shape, mix.mask.dtype
    (torch.Size([4, 28, 28]), torch.float32)
    """

    def __init__(
        self,
        *methods: MixHandler,  # Any number, other `OneOf`s too
        p: Sequence[float] | None = None,  # Their shares of the batches or samples, 1 at most in sum; None: equal ones
        per_sample: bool = False,  # Choose for each sample, not for the batch
        prob: Any = 1.0,  # Share of the batches that are mixed, or a schedule
        start: float | None = None,  # Mix from here on: an epoch (int, -1: the last) or a share of the training (float)
        stop: float | None = None,  # Mix up to here
        clean: bool = False,  # As in `MixHandler`, for `per_sample`, else each method has its own
        stack_y: bool | None = None,  # As in `MixHandler`, for `per_sample`, else each method has its own
        seed: int | None = None,  # Draw from a random stream of its own that starts here, and disturb no other
    ):
        super().__init__(prob=prob, start=start, stop=stop, clean=clean, stack_y=stack_y, seed=seed)
        if not methods or not all(isinstance(m, MixHandler) and type(m) is not MixHandler for m in methods):
            raise TypeError(f"methods came as {methods!r}, mixing callbacks were wanted: OneOf(MixUp(), CutMix())")
        if len(set(map(id, methods))) < len(methods):
            raise ValueError(f"methods came as {methods!r}, each a callback of its own was wanted")
        p = [1 / len(methods)] * len(methods) if p is None else list(p)
        self.p = [_number("p", share, lambda s: 0 <= s <= 1, "shares from 0 to 1") for share in p]
        if len(p) != len(methods) or not 0 < sum(self.p) < 1 + 1e-6:
            raise ValueError(f"p came as {p!r}, {len(methods)} shares of 1 at most in sum were wanted")
        if per_sample and (unfit := [m for m in methods if not _only_draws(m)]):
            raise ValueError(
                f"per_sample=True wants methods that mix the input and leave the rest to OneOf, {unfit} came"
            )
        if not per_sample and (clean or stack_y is not None):
            raise ValueError("clean or stack_y came for a choice by batch, they were wanted for its methods")
        self.methods, self.each = list(methods), _flag("per_sample", per_sample)
        self.order = max(method.order for method in methods)
        self.chosen: Any = None

    def __repr__(self) -> str:
        return f"OneOf({', '.join(map(repr, self.methods))}, p={self.p}, per_sample={self.each})"

    @property
    def learn(self) -> Any:
        return self._learn

    @learn.setter
    def learn(self, learn: Any) -> None:
        MixHandler.learn.fset(self, learn)  # pyright: ignore[reportOptionalCall, reportAttributeAccessIssue]
        for method in self.methods:
            method.learn, method._is_part = learn, learn is not None

    # Choosing

    def draw(self, x: Tensor) -> Mix | None:
        if not self.each:
            (chosen,) = self.rng.choices([*self.methods, None], [*self.p, max(0.0, 1 - sum(self.p))])
            self.chosen = chosen if chosen and chosen.run else None
            return None
        drawn = [method.draw(x) if method.run and method.is_drawn() else None for method in self.methods]
        if (some := next(filter(None, drawn), None)) is None:
            return None
        u, ends = torch.rand(len(x), device=x.device), list(accumulate(self.p))
        if ends[-1] > 1 - 1e-6:
            ends.pop()
        else:
            drawn.append(None)
        mixes = [mix or some.unmixed() for mix in drawn]
        return choose(mixes, sum((u >= end for end in ends), torch.zeros_like(u, dtype=torch.long)))

    # The flow of a batch: the chosen method's own

    def before_fit(self) -> None:
        super().before_fit()
        for method in self.methods:
            method.learn = self.learn  # which it may have left for another
            method.before_fit()
        self.take_stream(self._stream)

    def take_stream(self, stream: Random | None) -> None:
        super().take_stream(stream)
        for method in self.methods:
            method.take_stream(self._stream)

    def mix_targets(self) -> None:
        super().mix_targets()
        if self.one_lam:
            raise ValueError(
                f"per_sample=True wants a loss known to be an average (see is_average), {self.old_lf} came: choose for "
                "each batch (per_sample=False)"
            )

    def before_batch(self) -> None:
        self.chosen = None
        super().before_batch()
        if self.chosen is not None:
            self.chosen.before_batch()
            self.show_chosen()

    def show_chosen(self) -> None:
        """Have the mix of the method that mixes the batch, for whoever asks."""
        self.mix, self.lam, self.yb1 = self.chosen.mix, self.chosen.lam, self.chosen.yb1

    def after_pred(self) -> None:
        if self.chosen is None:
            super().after_pred()
        else:
            self.chosen.after_pred()
            self.show_chosen()

    def after_loss(self) -> None:
        (super() if self.chosen is None else self.chosen).after_loss()

    def after_batch(self) -> None:
        (super() if self.chosen is None else self.chosen).after_batch()

    def restore(self) -> None:
        super().restore()
        for method in self.methods:
            method.restore()


def _only_draws(method: MixHandler) -> bool:
    """Whether a method does nothing but draw a mix of the input."""
    own = method.stack_x or method.clean or method._stack_y is not None or method.seed is not None
    if own or not method.per_sample:
        return False
    if isinstance(method, OneOf):
        return method.each
    return all(getattr(type(method), name) is getattr(MixHandler, name) for name in ("before_batch", "mix_features"))
