"""The learners that the command trains: for folders of images, for tables, for handwritten digits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.layers import ConvLayer
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import AccumMetric
from fastai.torch_core import default_device
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..batch import mix_batch
from .measures import ece
from .methods import Make


class BadInputError(ValueError):
    """An error that the user can fix. Its message is printed without a traceback."""


@dataclass
class Task:
    """What the command trains.

    Args:
        new_learner: Returns a learner for a seed.
        words: What is trained on, in a line.
        known: What identifies the data, beside the options and what can be told of the learner.
        samples: Returns some training images ``(N, C, H, W)``, floats in [0, 1], and their classes; None: no images.
    """

    new_learner: Callable[[int], Learner]
    words: str
    known: dict[str, Any]
    samples: Callable[[], tuple[Tensor, list[str]]] | None = None


# Accuracy in double precision: fastai's is rounded to single precision, and equal differences would not be equal
def _accuracy(pred: Tensor, target: Tensor) -> float:
    return 100 * (pred.argmax(1) == target.flatten()).sum().item() / len(target)


def _calibration(pred: Tensor, target: Tensor) -> float:
    return 100 * ece(pred.softmax(1), target)


def class_metrics() -> list[AccumMetric]:
    """Return accuracy and expected calibration error, both in percent."""
    named = (("accuracy %", _accuracy), ("ECE %", _calibration))
    metrics = [AccumMetric(func, flatten=False) for _, func in named]
    for metric, (name, _) in zip(metrics, named, strict=True):
        metric.name = name
    return metrics


def split(y: Sequence[Any] | Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split samples into training and validation samples, always in the same way.

    Args:
        y: The class of each sample.
        fraction: Fraction of each class for validation, in [0, 1]; at least one sample.

    Returns:
        Indices of the training samples and of the validation samples.
    """
    codes = torch.from_numpy(pd.factorize(np.asarray(y), sort=True)[0])
    rng, train, valid = torch.Generator().manual_seed(0), [], []
    for c in codes.unique():
        at = torch.where(codes == c)[0]
        at = at[torch.randperm(len(at), generator=rng)]
        n = max(1, round(fraction * len(at)))
        train.append(at[n:])
        valid.append(at[:n])
    return torch.cat(train), torch.cat(valid)


def noisy(y: Tensor, fraction: float, n_classes: int, seed: int) -> Tensor:
    """Add label noise.

    Args:
        y: Class indices ``(N,)``.
        fraction: Fraction of the labels to replace by another class, in [0, 1]. All other classes are equally likely.
        n_classes: Number of classes.
        seed: Seed of the random generator.

    Returns:
        Noisy labels ``(N,)``.
    """
    rng = torch.Generator().manual_seed(seed)
    replaced = torch.randperm(len(y), generator=rng)[: round(fraction * len(y))]
    shift = torch.randint(1, n_classes, (len(replaced),), generator=rng)
    return y.index_put((replaced,), (y[replaced] + shift) % n_classes)


def check_methods(learn: Learner, batch: tuple, methods: dict[str, Make]) -> None:
    """Raise an error for a method that cannot mix a batch of a learner."""
    n = learn.dls.n_inp
    for label, make in methods.items():
        if (method := make()) is None:
            continue
        try:
            mix_batch(method, batch[:n], batch[n:], learn.loss_func)
        except (TypeError, ValueError) as error:
            raise BadInputError(f"methods must be able to mix the data, got {label} ({error})") from None


# Digits


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return scikit-learn's 1797 handwritten digits, images of 1 x 8 x 8, with 45 % of each class for validation."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    train, valid = split(y, 0.45)
    return (x[train], y[train]), (x[valid], y[valid])


def small_cnn(n_in: int, n_classes: int) -> nn.Module:
    """Return a network for small images ``(B, n_in, H, W)``."""
    body = ConvLayer(n_in, 32), ConvLayer(32, 64, stride=2), ConvLayer(64, 128, stride=2)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, n_classes))


def digits_learner(seed: int, noise: float = 0.0, bs: int = 64) -> Learner:
    """Return a learner for the digits: a small network, with accuracy and expected calibration error as metrics.

    Args:
        seed: Seed of the label noise.
        noise: Fraction of the training labels to replace by another class, in [0, 1].
        bs: Batch size.
    """
    (x, y), valid = digits()
    train = TensorDataset(x, noisy(y, noise, 10, seed))
    dls = DataLoaders.from_dsets(train, TensorDataset(*valid), bs=bs, num_workers=0, device=default_device())
    return Learner(dls, small_cnn(1, 10), loss_func=CrossEntropyLossFlat(), metrics=class_metrics())


def digits_task(noise: float, bs: int) -> Task:
    """Return the task that the command has without options."""

    def new_learner(seed: int) -> Learner:
        return digits_learner(seed, noise, bs)

    (x, y), (_, valid) = digits()
    words = f"handwritten digits of {x.shape[2]} x {x.shape[3]}: {len(y)} for training, {len(valid)} for validation"
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

    def samples() -> tuple[Tensor, list[str]]:  # larger, so that they can be recognized
        at = torch.linspace(0, len(x) - 1, 64).long()
        return F.interpolate(x[at], size=(32, 32), mode="bicubic").clamp(0, 1), [names[c] for c in y[at]]

    return Task(new_learner, words, {}, samples)
