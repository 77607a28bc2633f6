"""The loss of a mixed batch: the user's own, for the batch's targets and for their partners', weighed by lam."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import isfunction
from typing import Any

import torch
import torch.nn.functional as F
from fastai.layers import NoneReduce
from fastai.losses import BaseLoss, DiceLoss, FocalLoss, LabelSmoothingCrossEntropy
from fastcore.basics import noop
from torch import Tensor, nn

from .mixing import untyped

# Losses that are an average, or a sum, of their unreduced values. What is not listed may be anything.
_AVERAGES = {
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.CrossEntropyLoss,
    nn.HuberLoss,
    nn.KLDivLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.NLLLoss,
    nn.SmoothL1Loss,
    DiceLoss,
    FocalLoss,
    LabelSmoothingCrossEntropy,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.cross_entropy,
    F.huber_loss,
    F.l1_loss,
    F.mse_loss,
    F.nll_loss,
    F.smooth_l1_loss,
}
# Of these the average is divided by the sum of the weights of the targets' classes
_BY_CLASS = {nn.CrossEntropyLoss, nn.NLLLoss, LabelSmoothingCrossEntropy, F.cross_entropy, F.nll_loss}
# and of these by that of weights of another kind, if they are given any
_BY_WEIGHT = {F.huber_loss, F.l1_loss, F.mse_loss, F.smooth_l1_loss}
# With these, or a `forward` of its own, a loss module may compute anything, whatever its class
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class MixUpLoss:
    """The user's loss in every respect, but while `instead` is set: then that is called in its place.

    Attributes are read from and written to the user's loss. A copy or a pickle of it is the user's loss alone, so that
    a wrapper which an interrupted training left behind does no harm.
    """

    __slots__ = ("instead", "loss_func")

    def __init__(
        self,
        loss_func: Callable,  # The user's loss
    ):
        self.loss_func, self.instead = loss_func, None

    def __call__(self, pred: Any, *yb: Any, **kwargs: Any) -> Tensor:
        return (self.instead or self.loss_func)(pred, *yb, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "loss_func"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self.loss_func, name, value)

    def __repr__(self) -> str:
        return f"MixUpLoss({self.loss_func!r})"

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return noop, (self.loss_func,)  # noop: a function that is found where mixaug is not installed


def mixed_loss(loss_func: Callable, pred: Any, yb: Sequence[Any], yb1: Sequence[Any], lam: Tensor) -> Tensor:
    """Return lam · L(pred, yb) + (1 - lam) · L(pred, yb1), reduced as the loss L reduces.

    A single `lam` weighs the two values of L, whatever L is. A `lam` of shape (B,) weighs L's unreduced values sample
    by sample, for which L must be the kind of average that `mixaug.loss.is_average` knows. Where that average divides
    by the weights of the targets' classes and leaves an `ignore_index` out (cross-entropy), the weights are mixed like
    the losses. ValueError where the unreduced values cannot be told apart by sample.

    >>> pred, y, y1 = torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([1])
    >>> mixed_loss(torch.nn.functional.cross_entropy, pred, [y], [y1], torch.tensor([0.75]))
    tensor(0.6269)
    """
    if _all_own(lam):
        return loss_func(pred, *yb)
    lam = lam.to(torch.promote_types(lam.dtype, torch.float32))  # half precision ends before a map's positions do
    if lam.numel() == 1:
        lam = lam.view(())
        return lam * loss_func(pred, *yb) + (1 - lam) * loss_func(pred, *yb1)
    if (axis := _class_axis(loss_func, pred, yb, lam)) is not None:
        return _cross_entropy(loss_func, pred, yb[0], yb1[0], lam, axis)
    own, partners = _unreduced(loss_func, pred, yb), _unreduced(loss_func, pred, yb1)
    if own.shape != partners.shape or own.numel() == 0 or own.numel() % len(lam):
        raise ValueError(
            f"{loss_func} with reduction='none' gave values of shapes {tuple(own.shape)} and {tuple(partners.shape)}, "
            f"as many for each of {len(lam)} samples were wanted: use per_sample=False"
        )

    smooth = _smoothing(loss_func, pred, yb)
    with untyped():
        values, reduction = _weigh(own, partners, lam), _option(loss_func, "reduction", "mean")
        if reduction == "none":
            return values.view_as(own)
        if reduction == "sum":
            return values.sum()
        if _kind(loss_func) not in _BY_CLASS or yb[0].is_floating_point():
            return values.mean()
        weight = _weigh(_class_weights(loss_func, yb[0]), _class_weights(loss_func, yb1[0]), lam).sum()
        if smooth is None:
            return values.sum() / weight
        return smooth.mean() + (values.sum() - smooth.sum()) / weight


def _weigh(own: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
    # Only the order of the samples is safe: flat losses reorder the positions inside a sample
    lam = lam[:, None]
    return lam * own.reshape(len(lam), -1) + (1 - lam) * partners.reshape(len(lam), -1)


def is_average(loss_func: Callable) -> bool:
    """Whether the loss is known to be an average that `mixed_loss` can take apart, as most of torch's and fastai's are.

    Any other may be anything (Dice and focal added up, an average over the foreground): there one lam for the batch,
    which is exact for every loss, has to do.
    """
    inner, kind = _inner(loss_func), _kind(loss_func)
    return (
        (inner is loss_func or isinstance(loss_func, partial) or type(loss_func).__module__ == BaseLoss.__module__)
        and kind in _AVERAGES
        and not (kind in _BY_WEIGHT and _option(loss_func, "weight") is not None)
        and _option(loss_func, "reduction", "mean") in ("mean", "sum", "none")
        and not any(getattr(inner, name, None) for name in _HOOKS)
        and (torch.compiler.is_compiling() or "forward" not in getattr(inner, "__dict__", {}))  # no compiler sees it
    )


def _all_own(lam: Tensor) -> bool:
    """Whether every sample keeps all of itself, if that can be told without waiting for a device."""
    return lam.device.type == "cpu" and not torch.compiler.is_compiling() and (not lam.numel() or lam.min().item() == 1)


def _class_axis(loss_func: Any, pred: Any, yb: Sequence[Any], lam: Tensor) -> int | None:
    """Where the classes are in `pred`, if the loss is but the cross-entropy, reduced, of that and of class numbers."""
    if (
        _kind(loss_func) not in (nn.CrossEntropyLoss, F.cross_entropy)
        or not is_average(loss_func)
        or _option(loss_func, "reduction", "mean") == "none"
        or _option(loss_func, "label_smoothing", 0.0)
        or len(yb) != 1
        or yb[0].dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        or len(lam) != len(pred)
        or pred.ndim < 2
    ):
        return None
    axis, weight = 1, _option(loss_func, "weight")
    if isinstance(loss_func, BaseLoss):
        flat: Any = loss_func
        # Elsewhere fastai refuses the targets, or pairs them with the predictions of other positions
        if not (flat.axis == -1 or (flat.axis == 1 and 2 < pred.ndim < 5)):
            return None
        if flat.floatify or not (flat.flatten and flat.is_2d):
            return None
        axis = flat.axis % pred.ndim
    fits = yb[0].shape == pred.shape[:axis] + pred.shape[axis + 1 :]
    return axis if fits and (weight is None or len(weight) == pred.shape[axis]) else None


def _cross_entropy(loss_func: Callable, pred: Tensor, y: Tensor, y1: Tensor, lam: Tensor, axis: int) -> Tensor:
    """What `mixed_loss` comes to for a cross-entropy, by one softmax, which is most of the work, for both targets."""
    with untyped():
        both = torch.stack([y, y1], axis).long()
        ignored = both == _option(loss_func, "ignore_index", -100)
        both.masked_fill_(ignored, 0)
        share = torch.stack([lam, 1 - lam], 1).view(-1, *[1] * (axis - 1), 2, *[1] * (pred.ndim - axis - 1))
        weight, classes = share.masked_fill(ignored, 0), _option(loss_func, "weight")
        if classes is not None:
            weight = weight * classes[both]
        total = 1 if _option(loss_func, "reduction", "mean") == "sum" else weight.sum()
        values = F.log_softmax(pred, axis).gather(axis, both).masked_fill(ignored, 0)  # or inf · 0 would not be 0
        return (values * weight.div_(-total)).sum()


def _unreduced(loss_func: Callable, pred: Any, yb: Sequence[Any]) -> Tensor:
    with NoneReduce(loss_func) as unreduced:
        return unreduced(pred, *yb)


def _inner(loss_func: Any) -> Any:
    """The loss that does the work inside fastai's flattening or a partial of a function."""
    flattens = isinstance(loss_func, BaseLoss)
    return loss_func.func if flattens or (isinstance(loss_func, partial) and isfunction(loss_func.func)) else loss_func


def _kind(loss_func: Any) -> Any:
    """The function or the class that the loss is of."""
    inner = _inner(loss_func)
    return inner if isfunction(inner) else type(inner)


def _option(loss_func: Callable, name: str, default: Any = None) -> Any:
    """The value of a loss's option, which a module has as an attribute and a partial as a keyword."""
    return getattr(loss_func, "keywords", {}).get(name, getattr(_inner(loss_func), name, default))


def _class_weights(loss_func: Callable, y: Tensor) -> Tensor:
    """What each target counts for: its class's weight, 0 where it is ignored."""
    y = y.long()
    counted = y != _option(loss_func, "ignore_index", -100)
    weight = _option(loss_func, "weight")
    return counted.float() if weight is None else weight[torch.where(counted, y, 0)] * counted


def _smoothing(loss_func: Callable, pred: Any, yb: Sequence[Any]) -> Tensor | None:
    """The part of fastai's label smoothing that has no target, so that class weights and `ignore_index` pass it by."""
    inner: Any = _inner(loss_func)
    if _kind(loss_func) is not LabelSmoothingCrossEntropy:
        return None
    eps, inner.eps = inner.eps, 1
    try:
        return eps * _unreduced(loss_func, pred, yb)
    finally:
        inner.eps = eps
