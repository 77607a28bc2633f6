"""The loss of a mixed batch: the user's loss for both targets, combined by lam."""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from inspect import isfunction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fastai.losses import BaseLoss, DiceLoss, FocalLoss, LabelSmoothingCrossEntropy
from fastcore.basics import noop
from torch import Tensor, nn

from .mix import weights_of
from .torch_private import no_subclass

_CROSS_ENTROPY = {nn.CrossEntropyLoss, F.cross_entropy}
# These divide the average by the sum of the class weights of the targets
_BY_CLASS = {*_CROSS_ENTROPY, nn.NLLLoss, F.nll_loss, LabelSmoothingCrossEntropy}
# These divide it by the sum of another weight, if they are given one
_BY_WEIGHT = {F.huber_loss, F.l1_loss, F.mse_loss, F.smooth_l1_loss}
# Losses that are an average, or a sum, of their unreduced values. Any other loss is treated as a black box.
_AVERAGES = {
    *_BY_CLASS,
    *_BY_WEIGHT,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.HuberLoss,
    nn.KLDivLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.SmoothL1Loss,
    DiceLoss,
    FocalLoss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
}

_OPTIONS = "reduction", "weight", "ignore_index", "label_smoothing", "eps"
_FORMER = "size_average", "reduce"  # torch's former options, which override `reduction`


class MixUpLoss:
    """Behaves like the user's loss, except during a mixed batch: then it calls the callback's `lf`.

    Attributes are read from and written to the user's loss. A copy or a pickle is the user's loss alone, so that a
    wrapper which an interrupted training left behind does no harm.

    Args:
        loss_func: The user's loss.
        mixer: The mixing callback; None: the wrapper is the user's loss.
    """

    __slots__ = ("loss_func", "mixer")

    def __init__(
        self, loss_func: Callable[..., Tensor], mixer: Any = None
    ):  # a MixHandler; importing it here would be circular
        self.loss_func, self.mixer = loss_func, mixer

    def __call__(self, pred: Any, *yb: Any, **kwargs: Any) -> Tensor:
        mixer = self.mixer
        return (self.loss_func if mixer is None or not mixer._in_batch else mixer.lf)(pred, *yb, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "loss_func"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self.loss_func, name, value)

    def __repr__(self) -> str:
        return f"MixUpLoss({self.loss_func!r})"

    def __copy__(self) -> Any:
        return copy(self.loss_func)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return noop, (self.loss_func,)  # noop: a function that is found where mixaug is not installed


def mixed_loss(
    loss_func: Callable[..., Tensor], pred: Any, yb: Sequence[Any], yb1: Sequence[Any], lam: Tensor
) -> Tensor:
    """Return lam · L(pred, yb) + (1 - lam) · L(pred, yb1), reduced as the loss L reduces.

    Cross-entropy divides by the class weights of its targets and leaves `ignore_index` out; these weights are
    combined like the losses.

    Args:
        loss_func: The loss L. It is never changed: unreduced values come from a copy.
        pred: Prediction.
        yb: Targets of the samples.
        yb1: Targets of their partners, each with k - 1 partners ``(k - 1, B, ...)`` for a mix of k > 2 samples.
        lam: Mixing coefficients. One combines the two values of any loss; ``(B,)`` combine the unreduced values sample
            by sample, for a loss that `mixaug.loss.is_average` knows. Likewise ``(1, k)`` and ``(B, k)``.

    Raises:
        ValueError: If there is a lam for each sample and the loss is not known to be an average, or its unreduced
            values do not belong to one sample each.

    >>> pred, y, y1 = torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([1])
    >>> mixed_loss(torch.nn.functional.cross_entropy, pred, [y], [y1], torch.tensor([0.75]))
    tensor(0.6269)
    """
    lam = lam.to(torch.promote_types(lam.dtype, torch.float32))  # half precision cannot count the pixels of a mask
    two = lam.ndim < 2
    weights = weights_of(lam.view(-1) if two else lam)  # (k, B)
    if lam.is_cpu and not torch.compiler.is_compiling() and bool((weights[0] == 1).all()):
        return loss_func(pred, *yb)
    given = [yb, *([yb1] if two else zip(*yb1, strict=True))]
    one_sample = yb and yb[0].ndim and len(yb[0]) == 1 and examine(loss_func).average
    if weights.shape[1] == 1 and not one_sample:
        values = [loss_func(pred, *y) for y in reversed(given)]  # what a loss logs of its last call is the original's
        return torch.stack([w * value for w, value in zip(weights.flatten(), reversed(values), strict=True)]).sum(0)
    kind, options, average = examine(loss_func)
    reduction = options.get("reduction", "mean")
    if not average:
        raise ValueError(
            "Expected a loss that is known to be an average (see mixaug.loss.is_average) for a lam of each sample, "
            f"got {loss_func}. Give one lam for the batch (lam[:1]), as methods with per_sample=False do"
        )
    k, n, flat = *weights.shape, isinstance(loss_func, BaseLoss)
    by_class = kind in _BY_CLASS and not yb[0].is_floating_point()
    plain = not options.get("label_smoothing") and (not flat or (loss_func.flatten and loss_func.is_2d))
    with no_subclass():
        if by_class and plain and kind in _CROSS_ENTROPY:
            # All targets share the softmax; the rest of the loss is computed for each
            kept = {name: options[name] for name in ("weight", "ignore_index") if name in options}
            values_of, axis = partial(F.nll_loss, reduction="none", **kept), min(1, pred.ndim - 1)
            if flat:
                copied: Any = copy(loss_func)
                copied.func, values_of, axis = values_of, copied, copied.axis
            pred = F.log_softmax(pred, axis)
        else:
            values_of = _copy_with(loss_func, reduction="none")
        values = [values_of(pred, *y) for y in reversed(given)][::-1]
        original, shapes = values[0], [tuple(value.shape) for value in values]
        if len(set(shapes)) > 1 or original.numel() == 0 or original.numel() % n:
            raise ValueError(
                f"Expected as many values of {loss_func} with reduction='none' for each of {n} samples, got shapes "
                f"{' and '.join(map(str, shapes))}. Use per_sample=False"
            )
        counts: Any = ()
        weighted = by_class and reduction == "mean"  # by the class weights of the targets, 0 where they are ignored
        if weighted:
            y = torch.stack([targets[0] for targets in given]).long()
            counts, weight = y != options.get("ignore_index", -100), options.get("weight")
            counts = counts if weight is None else weight[y.masked_fill(~counts, 0)] * counts
        # Flat losses reorder the positions in a sample, never the samples
        rows = [row.reshape(n, -1) for row in (*values, *counts)]
        rows = weights[..., None] * torch.stack(rows).view(-1, k, n, original.numel() // n)
        if reduction == "none":
            return rows[0].sum(0).view_as(original)
        total, *count = rows.flatten(1).sum(1)
        if reduction == "sum":
            return total
        if not weighted:
            return total / original.numel()
        if kind is not LabelSmoothingCrossEntropy:
            return total / count[0]
        # The part of fastai's label smoothing that has no target is a plain mean: it knows no class weights
        uniform = options["eps"] * _copy_with(loss_func, reduction="none", eps=1)(pred, *yb)
        return uniform.mean() + (total - uniform.sum()) / count[0]


def is_average(loss_func: Callable[..., Tensor]) -> bool:
    """Return whether the loss is known to be an average of its unreduced values, as most of torch's and fastai's are.

    Any other loss (Dice and focal loss added up, an average over the foreground) is treated as a black box: one lam for
    the batch is exact for it too.
    """
    return examine(loss_func).average


class Examined(NamedTuple):
    """The function or class of a loss, its options, and whether it is known to be an average."""

    kind: Any
    options: dict[str, Any]
    average: bool


def examine(loss_func: Any) -> Examined:
    """Return what is known of a loss."""
    inner, options, known = loss_func, {}, True
    if isinstance(loss_func, BaseLoss):  # fastai's flattening of another loss
        inner, known = loss_func.func, type(loss_func).__module__ == BaseLoss.__module__
    elif type(loss_func) is partial and isfunction(loss_func.func) and not loss_func.args:
        inner, options = loss_func.func, loss_func.keywords
    kind, state = inner if isfunction(inner) else type(inner), getattr(inner, "__dict__", {})
    options = {**{name: getattr(inner, name) for name in _OPTIONS if hasattr(inner, name)}, **options}
    if any(options.get(name) is not None for name in _FORMER):  # None: not given
        size_average, reduce = (options.get(name) in (None, True) for name in _FORMER)
        options["reduction"] = ("mean" if size_average else "sum") if reduce else "none"
    if (
        not torch.compiler.is_compiling()
    ):  # with hooks or another forward it may compute anything; compilers see neither
        known = known and not any(name == "forward" or ("hooks" in name and value) for name, value in state.items())
    known = known and kind in _AVERAGES and options.get("reduction", "mean") in ("mean", "sum", "none")
    return Examined(kind, options, known and not (kind in _BY_WEIGHT and options.get("weight") is not None))


def _copy_with(loss_func: Any, **options: Any) -> Callable[..., Tensor]:
    """Return a copy of a loss with other options."""
    if isfunction(loss_func) or isinstance(loss_func, partial):
        former: Any = {name: None for name in _FORMER if name in getattr(loss_func, "keywords", ())}
        return partial(loss_func, **former, **options)
    result = copy(loss_func)
    if isinstance(result, BaseLoss):
        result.func = _copy_with(result.func, **options)
    else:
        for name, value in options.items():
            setattr(result, name, value)
    return result
