"""Metrics over mixed training batches."""

from copy import deepcopy
from typing import Any

import torch
from fastai.learner import AvgMetric, Metric, mk_metric
from fastai.torch_core import find_bs, to_detach
from fastcore.basics import noop
from torch import Tensor

from .handlers import MixHandler
from .mixing import map_tensors


class MixedMetric(Metric):
    """A metric that counts `lam` of its value for a sample's own target and the rest of that for the partner's.

    For `Recorder(train_metrics=True)`: plain metrics compare the prediction of a mixed sample to its own target alone.
    A function (or `AvgMetric`) is weighed sample by sample; any other metric keeps one account of the own targets and
    one of the partners', which are weighed by the mean `lam`. Where nothing is mixed it is the plain metric. A target
    that is a map cut along with the input counts as it was cut. A pickle of it is the plain metric, so that what a
    learner exports opens where mixaug is not installed.

    >>> from fastai.metrics import accuracy
    >>> MixedMetric(accuracy).name  # Learner(..., metrics=MixedMetric(accuracy))
    'accuracy'
    """

    def __init__(
        self,
        metric: Any,  # A function, a fastai `Metric` or a class of them
    ):
        self.own: Any = mk_metric(metric)
        self.partners = deepcopy(self.own)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return noop, (self.own,)

    def __deepcopy__(self, memo: dict) -> "MixedMetric":
        copy = MixedMetric(deepcopy(self.own, memo))
        vars(copy).update(deepcopy(vars(self), memo))
        return copy

    def reset(self) -> None:
        self.own.reset()
        self.partners.reset()
        self.lam, self.count = 0.0, 0

    def accumulate(self, learn: Any) -> None:
        n, yb = find_bs(learn.yb), learn.yb
        mixer: Any = next(iter(learn._grab_cbs(MixHandler)), None)
        lam, yb1 = torch.ones(n), yb
        if learn.training and mixer is not None and mixer.run and mixer.yb1 is not None:
            lam = mixer.lam.expand(n)
            yb1 = tuple(y if mixer.cuts(y) else y1 for y, y1 in zip(yb, mixer.yb1, strict=True))
        self.count += n
        if yb1 is not yb and isinstance(self.own, AvgMetric):
            self.lam += n
            self.own.count += n
            self.own.total += sum(self._of_sample(i, learn.pred, yb, yb1, lam[i]) for i in range(n))
            return
        self.lam += lam.sum().item()
        self.own.accumulate(learn)
        try:
            learn.yb = yb1
            self.partners.accumulate(learn)
        finally:
            learn.yb = yb

    def _of_sample(self, i: int, pred: Any, yb: Any, yb1: Any, lam: Tensor) -> Any:
        pred, yb, yb1 = map_tensors(lambda t: t[i : i + 1], (pred, tuple(yb), yb1))
        return to_detach(lam * self.own.func(pred, *yb) + (1 - lam) * self.own.func(pred, *yb1))

    @property
    def value(self) -> Any:
        if self.lam == self.count:
            return self.own.value
        lam = self.lam / self.count
        return lam * self.own.value + (1 - lam) * self.partners.value

    @property
    def name(self) -> str:
        return self.own.name
