"""One run: a learner is made, trained with a method, and measured."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import fastai.callback.schedule  # noqa: F401  (patches Learner)
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner
from fastai.torch_core import set_seed

from ..nests import tensors
from .fingerprint import of_tensors
from .methods import Make


class Watch(Callback):
    """Times the epochs, takes down the first batch, and tells how far the training is."""

    order = -95  # before all that changes a batch

    def __init__(self, tell: Callable[[float], None]):
        self.tell, self.batch = tell, ""

    def before_fit(self) -> None:
        self.seconds = []

    def before_epoch(self) -> None:
        self.begun = time.perf_counter()

    def before_batch(self) -> None:
        learn: Any = self.learn
        if self.training and not self.batch:
            self.batch = of_tensors(tensors((tuple(learn.xb), tuple(learn.yb))))

    def after_epoch(self) -> None:
        learn: Any = self.learn
        self.seconds.append(time.perf_counter() - self.begun)
        if not learn.opt.frozen_idx:  # the first of the two fits of `fine_tune` is short
            self.tell((self.epoch + 1) / self.n_epoch)


@dataclass
class Training:
    """What all runs of a comparison have in common.

    Args:
        new_learner: Returns a learner for a seed.
        fit: Trains a learner.
        measures: Further measures of a trained learner, by name.
        threads: Threads of each run on the CPU; None: as they are.
    """

    new_learner: Callable[[int], Learner]
    fit: Callable[[Learner], Any]
    measures: dict[str, Callable[[Learner], float]] = field(default_factory=dict)
    threads: int | None = None

    def learner(self, seed: int) -> Learner:
        """Return the learner of a seed, with all random generators at their start."""
        set_seed(seed)
        return self.new_learner(seed)

    def run(self, make: Make, seed: int, tell: Callable[[float], None] = lambda done: None) -> dict[str, Any]:
        """Train with a method, and return what was measured: after each epoch, at the end, and where it began."""
        if self.threads:
            torch.set_num_threads(self.threads)
        learn, made, watch = self.learner(seed), make(), Watch(tell)
        learn.add_cbs([watch, *(made if isinstance(made, (list, tuple)) else [made] if made else [])])
        learn.remove_cbs(ProgressCallback)  # `compare` shows how far all runs are
        weights = of_tensors(learn.model.state_dict().values())
        set_seed(seed)
        with learn.no_logging():
            self.fit(learn)
            recorder: Any = learn.recorder
            if not getattr(recorder, "iters", None):
                raise ValueError("fit must train the learner, as lambda learn: learn.fit_one_cycle(5), got no epoch")
            names = list(recorder.metric_names)[1 : 1 + len(recorder.values[-1])]
            epochs = [dict(zip(names, map(_number, values), strict=True)) for values in recorder.values]
            set_seed(seed)
            final = {name: _number(measure(learn)) for name, measure in self.measures.items()}
        return {
            "epochs": epochs,
            "measures": final,
            "seconds": float(np.median(watch.seconds)),
            "first": {"weights": weights, "batch": watch.batch},
        }


def _number(value: Any) -> float:
    value = float(value)
    return value if math.isfinite(value) else math.nan
