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
from .mix import weights_of
from .nests import map_tensors


class MixedMetric(Metric):
    """A metric of training batches: lam times its value for the original target, plus 1 - lam for the partner's.

    For ``learn.recorder.train_metrics = True``: plain metrics compare the prediction for a mixed sample with its
    original target alone. A function (or `AvgMetric`) is weighted sample by sample. Any other metric is accumulated
    for the original targets and for the partners', and the values are weighted by the mean lam. If nothing is
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
        self._begin()

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return noop, (self.original,)

    def __deepcopy__(self, memo: dict) -> "MixedMetric":
        copy = MixedMetric(deepcopy(self.original, memo))
        vars(copy).update(deepcopy(vars(self), memo))
        return copy

    def reset(self) -> None:
        """Begin an epoch."""
        self.original.reset()
        self._begin()

    def _begin(self) -> None:
        self.parts = [self.original, deepcopy(self.original)]  # of the samples of a mix
        self.weights, self.count = [0.0, 0.0], 0

    def accumulate(self, learn: Any) -> None:
        """Count a batch."""
        n, yb = find_bs(learn.yb), learn.yb
        mixer: Any = next(iter(mixing_callbacks(learn)), None)
        weights, targets = torch.ones(1, n), [yb]
        if learn.training and mixer is not None and mixer.run and mixer.yb1 is not None:
            lam, mixed = mixer.lam, mixer._mixed
            yb1 = mixer.yb1 if mixed is None else mixed.partners_for_metrics(yb)
            two = lam.ndim < 2
            weights = weights_of(lam.expand(n) if two else lam)
            targets += [yb1] if two else zip(*yb1, strict=True)
        self.count += n
        if len(targets) > 1 and isinstance(self.original, AvgMetric):
            self.weights[0] += n
            self.original.count += n
            self.original.total += sum(self._of_sample(i, learn.pred, targets, weights[:, i]) for i in range(n))
            return
        while len(self.parts) < len(targets):
            self.parts.append(deepcopy(self.parts[-1]))
            self.weights.append(0.0)
        try:
            for k, part in enumerate(self.parts):
                self.weights[k] += weights[k].sum().item() if k < len(weights) else 0.0
                learn.yb = targets[min(k, len(targets) - 1)]
                part.accumulate(learn)
        finally:
            learn.yb = yb

    def _of_sample(self, i: int, pred: Any, targets: Any, weights: Tensor) -> Any:
        pred, *targets = map_tensors(lambda t: t[i : i + 1] if t.ndim else t, (pred, *map(tuple, targets)))
        return to_detach(sum(w * self.original.func(pred, *yb) for w, yb in zip(weights, targets, strict=True)))

    @property
    def value(self) -> Any:
        """The metric over the batches so far."""
        if self.weights[0] == self.count:
            return self.original.value
        return sum(w / self.count * part.value for w, part in zip(self.weights, self.parts, strict=True))

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.original.name
