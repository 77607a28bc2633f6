"""Tests of the loss on the first mixed batch: what the combination of two losses relies on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback as FastaiCallback
from torch import Tensor

from .batch import MixedBatch
from .nests import map_tensors
from .targets import each


def verify_loss(loss_func: Callable, pred: Any, yb: tuple, mixed: MixedBatch) -> bool:
    """Return whether the loss may be mixed, as it depends on its targets; False if this batch cannot tell.

    Args:
        loss_func: The user's loss.
        pred: The prediction of a mixed batch.
        yb: The targets of the batch.
        mixed: The batch.

    Raises:
        ValueError: If the loss ignores its targets, or is that of another mixing callback.
    """
    owner = getattr(loss_func, "__self__", None)
    if all(callable(rule) or rule == "keep" for rule in mixed.rules):
        return True  # the loss may ignore them
    with torch.no_grad():
        if isinstance(owner, FastaiCallback):
            _refuse_mixed(owner, loss_func, _noisy(pred), yb)
        first = mixed.yb1 if mixed.lam.ndim == 1 else tuple(y1[0] for y1 in mixed.yb1)
        both = zip(yb, first, mixed.rules, strict=True)
        partners = tuple(y if callable(rule) or rule == "keep" else y1.to(y.dtype) for y, y1, rule in both)
        if all(map(torch.equal, yb, partners)):
            return False
        _verify_averaged(loss_func, pred, yb, mixed)
        for p in (pred, _noisy(pred)):
            value, other = loss_func(p, *yb), loss_func(p, *partners)
            if not torch.equal(value, other):
                # One batch may hide what a callback's loss does, if it mixes next to nothing
                return not isinstance(owner, FastaiCallback)
        if not (value.isfinite() & (value != 0)).any():
            return False
    raise ValueError(
        f"Expected a loss that depends on the targets it is given, got {loss_func}, with the same value for the "
        "targets of the samples and for those of their partners. If the model computes its own loss, compute it in the "
        'loss function instead, as in Learner(..., loss_func=lambda out, y: F.cross_entropy(out["logits"], y)); if '
        'targets play no part in this training, say targets="keep"'
    )


def _verify_averaged(loss_func: Callable, pred: Any, yb: tuple, mixed: MixedBatch) -> None:
    """Warn of averaged targets that may be unknown where they are -1; ValueError for those that the loss rounds."""
    method: Any = mixed.method
    said = each("targets", method.targets, mixed.original)
    for at, (y, rule) in enumerate(zip(mixed.original, mixed.rules, strict=True)):
        known = y[y.isfinite()] if y.is_floating_point() else y[:0]
        if rule != "average" or said[at] == rule or not known.numel() or (known != known.round()).any():
            continue
        values, most = known.unique().tolist(), known.max()
        if y.ndim > 1 and values == [-1, 0, 1]:
            method._warn_once(
                'Targets of -1, 0 and 1 are averaged. If -1 marks unknown labels, say targets="loss", which leaves '
                'them as they are; else say targets="average"'
            )
        near = torch.where(y < most, y + 0.25, y)  # rounded as y is

        def same(p: Any, at: int = at, y: Tensor = y, near: Tensor = near) -> bool:
            value, other = (loss_func(p, *yb[:at], t, *yb[at + 1 :]) for t in (y, near))
            return torch.equal(value, other)

        if len(values) > 1 and same(pred) and same(_noisy(pred)):
            raise ValueError(
                f"Expected a loss of the averaged targets, got {loss_func}, which rounds them, as class indices. Give "
                'it integers, which are not averaged, or say targets="loss"'
            )


def _noisy(pred: Any) -> Any:
    """Return another prediction in the same range, since an untrained model may predict the same for all classes."""
    rng = np.random.default_rng(0)

    def change(t: Tensor) -> Tensor:
        factor, zeros = (torch.from_numpy(rng.uniform(0.5, 1, t.shape)).to(t.device, t.dtype) for _ in range(2))
        return torch.where(t == 0, zeros, t * factor) if t.is_floating_point() else t

    return map_tensors(change, pred)


def _refuse_mixed(owner: Any, loss_func: Callable, pred: Any, yb: tuple) -> None:
    """Raise an error if a callback's loss knows more of the samples than it is given, as one that mixes does."""
    turned = map_tensors(lambda t: t.roll(1, 0) if t.ndim and len(t) == len(yb[0]) else t, (pred, *yb))
    value, other = loss_func(pred, *yb), loss_func(*turned)
    if value.ndim == 0 and not torch.allclose(value, other, rtol=100 * torch.finfo(value.dtype).eps):
        raise ValueError(
            f"Expected one mixing callback, got the loss of another one, {type(owner).__module__}."
            f"{type(owner).__qualname__}, whose value changes with the order of the samples. Use learn.remove_cb"
        )
