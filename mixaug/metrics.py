"""Metrics of mixed training batches."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from fastai.learner import AvgMetric, Metric, mk_metric
from fastai.torch_core import find_bs, to_detach
from fastcore.basics import noop
from torch import Tensor

from .lifecycle import mixing_callbacks
from .mix import map_tensors


class MixedMetric(Metric):
    """A metric of training batches: lam times its value for the original target, plus 1 - lam for the partner's.

    For ``learn.recorder.train_metrics = True``: plain metrics compare the prediction for a mixed sample with its
    original target alone. A function (or `AvgMetric`) is weighted sample by sample. Any other metric is accumulated
    twice, for the original targets and for the partners', and both values are weighted by the mean lam. If nothing is
    mixed, it is the plain metric. A segmentation mask that was cut like the input counts as it was cut. A pickle is the
    plain metric, so that the export of a learner opens where mixaug is not installed.

    Args:
        metric: A function, a fastai `Metric`, or a class of them.

    >>> from fastai.metrics import accuracy
    >>> MixedMetric(accuracy).name  # Learner(..., metrics=MixedMetric(accuracy))
    'accuracy'
    """

    def __init__(self, metric: Callable | Metric):
        self.original: Any = mk_metric(metric)
        self.partners = deepcopy(self.original)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return noop, (self.original,)

    def __deepcopy__(self, memo: dict) -> "MixedMetric":
        copy = MixedMetric(deepcopy(self.original, memo))
        vars(copy).update(deepcopy(vars(self), memo))
        return copy

    def reset(self) -> None:
        """Begin an epoch."""
        self.original.reset()
        self.partners.reset()
        self.lam, self.count = 0.0, 0

    def accumulate(self, learn: Any) -> None:
        """Count a batch."""
        n, yb = find_bs(learn.yb), learn.yb
        mixer: Any = next(iter(mixing_callbacks(learn)), None)
        lam, yb1 = torch.ones(n), yb
        if learn.training and mixer is not None and mixer.run and mixer.yb1 is not None:
            lam, yb1, mixed = mixer.lam.expand(n), mixer.yb1, mixer._mixed
            if mixed is not None:
                yb1 = mixed.partners_for_metrics(yb)
        self.count += n
        if yb1 is not yb and isinstance(self.original, AvgMetric):
            self.lam += n
            self.original.count += n
            self.original.total += sum(self._of_sample(i, learn.pred, yb, yb1, lam[i]) for i in range(n))
            return
        self.lam += lam.sum().item()
        self.original.accumulate(learn)
        try:
            learn.yb = yb1
            self.partners.accumulate(learn)
        finally:
            learn.yb = yb

    def _of_sample(self, i: int, pred: Any, yb: Any, yb1: Any, lam: Tensor) -> Any:
        pred, yb, yb1 = map_tensors(lambda t: t[i : i + 1] if t.ndim else t, (pred, tuple(yb), yb1))
        return to_detach(lam * self.original.func(pred, *yb) + (1 - lam) * self.original.func(pred, *yb1))

    @property
    def value(self) -> Any:
        """The metric over the batches so far."""
        if self.lam == self.count:
            return self.original.value
        lam = self.lam / self.count
        return lam * self.original.value + (1 - lam) * self.partners.value

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.original.name
