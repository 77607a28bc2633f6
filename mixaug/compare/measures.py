"""Measures of a trained learner, and which direction of a measure is better."""

import re

import torch
from torch import Tensor

_LOWER = {"loss", "error", "errors", "ece", "rmse", "mse", "mae", "msle", "rmspe", "perplexity", "brier", "memorized"}


def ece(prob: Tensor, target: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy.

    Args:
        prob: Probabilities ``(N, C)``. Confidence is the largest of a sample.
        target: Class indices ``(N,)``, or ``(N, 1)`` as fastai's tables have them.
        bins: Number of bins of confidence, of equal width.

    Reference: https://arxiv.org/abs/1706.04599
    """
    prob, target = prob.as_subclass(Tensor), target.as_subclass(Tensor).flatten()
    top, guess = prob.max(1)
    gap = top - (guess == target).to(top)
    at = (top * bins).ceil().long().clamp(1, bins) - 1
    return (torch.zeros(bins).to(top).index_add(0, at, gap).abs().sum() / len(top)).item()


def is_lower_better(measure: str) -> bool:
    """Return whether lower values of a measure are better, by its name: losses and errors."""
    return bool(_LOWER & set(re.split(r"[^a-z]+", measure.lower())))
