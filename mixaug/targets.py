"""What becomes of each input and each target: what the user says, else what dtype and shape say."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import repeat
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .draw import send
from .mix import Mix, weights_of
from .nests import is_equal, like, map_with, same, tensors
from .options import LabelLam, number

if TYPE_CHECKING:
    from .handler import MixHandler


def mixed_inputs(xb: tuple, rules: tuple, mix: Mix, source: Sequence[Any] = ()) -> tuple:
    """Return inputs, each mixed by its rule, with partners of the source; none: of the batch."""
    mixed = []
    for x, rule, xs in zip(xb, rules, source or repeat(None), strict=False):
        if callable(rule):
            mixed.append(rule(mix, x))
        elif rule == "keep":
            mixed.append(x)
        else:
            if kinds := unmixable(x):
                raise TypeError(
                    f"Expected tensors, or numbers, in the inputs to mix, got {kinds}. Say which inputs stay as they "
                    'are, as in inputs=("mix", "keep")'
                )
            for t in tensors(x) if rule is None else ():
                if mix.mask.ndim > 1 and mix.covers(t) and _may_be_of_sample(t, mix):
                    raise ValueError(
                        f"Expected inputs for each position or for the sample, got shape {tuple(t.shape)} beside a "
                        f"mask of shape {tuple(mix.mask.shape)}, which may be either. Say a rule for each input, as in "
                        'inputs=("mix", "keep"): "mix" to cut it, "keep", or a function of the mix and the input'
                    )
            mixed.append(map_with(lambda t, s: mix.blend(t, s) if t.ndim else t, x, xs))
    return tuple(mixed)


def unmixable(nest: Any) -> list[str]:
    """Return the classes of what a nest has besides tensors and numbers."""
    if isinstance(nest, (tuple, list, Mapping)):
        items = nest.values() if isinstance(nest, Mapping) else nest
        return list(dict.fromkeys(kind for item in items for kind in unmixable(item)))
    return [] if nest is None or isinstance(nest, (Tensor, Number)) else [type(nest).__name__]


def _may_be_of_sample(x: Tensor, mix: Mix) -> bool:
    """Return whether an input that the mask covers has no channels, and may be a pose, a matrix, a few numbers."""
    size = mix.mask.shape[1:]
    return x.ndim <= 1 + len(size) and (x.shape[1:] != size or len(size) == 1)


def mixed_targets(yb: tuple, rules: tuple, mix: Mix, lam: Tensor, loss_func: Any, source: Sequence[Any] = ()) -> tuple:
    """Return targets, each mixed by its rule, with partners of the source; none: of the batch."""
    mixed: list[Any] = []
    for y, rule, ys in zip(yb, rules, source or repeat(None), strict=False):
        if callable(rule):
            mixed.append(rule(mix, y))
        elif rule in ("loss", "keep"):
            mixed.append(y)
        elif rule == "union":
            mixed.append(_union(y, mix, lam, ys))
        else:
            if _floats(y, loss_func) and not y.is_floating_point():
                y, ys = like(y, y.float()), None if ys is None else ys.float()
            mixed.append(mix.masked(y, ys) if rule == "mask" else mix.by(lam).blend(y, ys))
    return tuple(mixed)


def _union(y: Tensor, mix: Mix, lam: Tensor, source: Tensor | None) -> Tensor:
    """Return the labels that any sample of the mix has, if it has a weight."""
    partners = mix.partners(y, source)
    labels = torch.stack([y, *([partners] if lam.ndim == 1 else partners)])
    there = weights_of(lam).view(*labels.shape[:2], *[1] * (y.ndim - 1)) > 0
    return like(y, torch.where(there, labels, labels.amin(0)).amax(0))


def remix(counts: Sequence[int] | Tensor, kappa: float = 3.0, tau: float = 0.5) -> LabelLam:
    """Return the rule `lam_targets` of Remix for long-tailed classes (Chou et al., 2020).

    The label is that of the rarer class alone if the other one is `kappa` times as frequent or more, and the share of
    the rarer class in the input is more than 1 - `tau`; else it is mixed as the input is.

    Args:
        counts: Number of training samples of each class, > 0. Negative labels, of no class, mix as the input does.
        kappa: How many times as frequent, >= 1.
        tau: In [0, 1]; 0: never.

    Reference: https://arxiv.org/abs/2007.03943

    >>> rule = remix([100, 10])  # MixUp(lam_targets=remix([100, 10]))
    >>> mix = Mix(torch.tensor([1, 0]), torch.tensor([0.4, 0.6]))
    >>> rule(mix, torch.tensor([0, 1]), torch.tensor([1, 0]))
    tensor([0., 1.])
    """
    numbers = torch.as_tensor(counts if isinstance(counts, Tensor) else np.array(counts), dtype=torch.float32)
    if numbers.ndim != 1 or not ((numbers > 0) & numbers.isfinite()).all():
        raise ValueError(f"counts must be a number > 0 of samples for each class, got {counts!r}")
    number("kappa", kappa, lambda k: k >= 1, "a number >= 1")
    number("tau", tau, lambda t: 0 <= t <= 1, "a number from 0 to 1")
    return partial(_remix, numbers, kappa, tau)


def _remix(counts: Tensor, kappa: float, tau: float, mix: Mix, y: Tensor, y1: Tensor) -> Tensor:
    if mix.then or y.is_floating_point() or y.shape[1:] not in ((), (1,)):
        got = f"{y.dtype} of shape {tuple(y.shape)}"
        raise ValueError(f"Expected class indices (B,) and mixes of two samples for remix, got {got}")
    known, n = (y >= 0) & (y1 >= 0), send(counts, y.device)  # a label that the loss ignores has no number
    times = torch.where(known, n[y.clamp(min=0).long()] / n[y1.clamp(min=0).long()], 1.0).view(-1)
    lam = torch.where((times >= kappa) & (mix.lam < tau), 0.0, mix.lam)
    return torch.where((times <= 1 / kappa) & (1 - mix.lam < tau), 1.0, lam)


def is_changed(now: Tensor, y: Tensor, rule: Any) -> bool:
    """Return whether another callback changed a target so that it does not fit the mix."""
    if same(now, y):
        return False
    if now.shape[:1] != y.shape[:1] or (now.is_floating_point() != y.is_floating_point() and rule != "mask"):
        return True
    return rule == "loss" and not is_equal(now, y)  # the partners' targets are not changed with it


def each(name: str, rules: Any, batch: tuple) -> tuple:
    """Return a rule for each tensor of a batch."""
    if not isinstance(rules, tuple):
        return (rules,) * len(batch)
    if len(rules) != len(batch):
        raise ValueError(f"{name} must have a rule for each of {len(batch)} {name}, got {rules!r}")
    return rules


def _floats(y: Tensor, loss_func: Any) -> bool:
    """Return whether the loss gets floats: fastai's regression losses convert integers."""
    return y.is_floating_point() or bool(getattr(loss_func, "floatify", False))


def rule_for(y: Tensor, rule: Any, mix: Mix, method: "MixHandler", loss_func: Any) -> Any:
    """Return what becomes of a target: what the user says, else what its class, dtype and shape say."""
    shape, spatial = tuple(y.shape), mix.mask.ndim - 1
    if rule == "union" and (y.ndim < 2 or (not y.is_floating_point() and (y.ndim > 2 or y.shape[1] == 1))):
        raise ValueError(f'Expected labels (B, K) for targets="union", got shape {shape}. Use "loss" or "average"')
    if callable(rule) or rule in ("loss", "average", "keep", "union"):
        return rule
    cuts, floats = bool(spatial), _floats(y, loss_func)
    if rule == "mask":
        if y.ndim <= spatial:
            raise ValueError(
                f'Expected targets (B, ..., *size) with {spatial} spatial axes for targets="mask", got shape {shape}. '
                'Use targets="average" or "loss"'
            )
        if not cuts:
            return "average" if floats else "loss"
        return _require_bool(y, mix, floats)
    _refuse_coordinates(y, method._cuts or cuts)
    covered = cuts and mix.covers(y)
    if method._stack_y:
        return "loss"
    if covered and _is_ambiguous(y, mix):
        raise ValueError(
            f"Expected targets for each position or for the sample, got shape {shape} beside a mask of shape "
            f'{tuple(mix.mask.shape)}, which may be either. Say which: targets="mask" for a value at each position, '
            f'targets="{"average" if floats else "loss"}" for values of the sample'
        )
    if covered:
        _require_bool(y, mix, floats)
    of_sample = "average" if floats or method._stack_y is False else "loss"
    guessed, size = None, mix.mask.shape[1:]
    of_an_axis = not floats and y.ndim == 2 and spatial > 1 and y.shape[1] > 1 and y.shape[1] in size  # of frames
    if cuts and not covered and (y.ndim > 2 or of_an_axis):
        guessed = "averaged by lam" if floats else "left to the loss, which lam combines"
    elif covered and (now := y.shape[y.ndim - spatial :]) != size:
        # A forecast has other positions than the past; a small matrix of the sample has none
        is_small = floats and y.ndim == 1 + spatial and max(now) <= 8
        guessed = "cut at their own resolution" if spatial == 1 or is_small else None
    if guessed:
        method._warn_once(
            f"Targets of shape {shape} are {guessed}, as inputs are cut by a mask of shape {tuple(mix.mask.shape)}. "
            f'Say targets="{of_sample}", targets="mask" or a function; spatial_dims says how many last axes are '
            "positions"
        )
    return "mask" if covered else of_sample


def _require_bool(y: Tensor, mix: Mix, floats: bool) -> str:
    """Return the rule "mask"; raise an error for class indices that would be averaged."""
    if floats or mix.mask.dtype == torch.bool:
        return "mask"
    raise ValueError(
        f"Expected a bool mask to mix class indices at each position, got targets of shape {tuple(y.shape)} and a mask "
        'that averages position by position. Use OneOf with per_sample=False, or targets="loss"'
    )


def _refuse_coordinates(y: Tensor, cuts: bool) -> None:
    """Raise an error for targets that are coordinates, which cannot be mixed."""
    kinds = {c.__name__ for c in type(y).__mro__}
    if kinds & {"TensorBBox", "BoundingBoxes"}:
        raise TypeError(
            "Expected targets that can be mixed, got bounding boxes: an average of two boxes surrounds nothing. Train "
            "without mixing, or say what becomes of them (targets=...)"
        )
    if cuts and kinds & {"TensorPoint", "KeyPoints"}:
        raise TypeError(
            "Expected targets that can be cut, got points: they may be in the part of an image that is replaced. Use "
            "MixUp, or say what becomes of them (targets=...)"
        )


def _is_ambiguous(y: Tensor, mix: Mix) -> bool:
    """Return whether a target that the mask covers may be of the whole sample: labels, heads, a small matrix."""
    size = mix.mask.shape[1:]
    now, channels = y.shape[y.ndim - len(size) :], y.shape[1 : y.ndim - len(size)]
    if len(size) == 1:
        frames_first = len(channels) == 1 and channels[0] >= now[0] and mix.covers(y.transpose(1, 2))
        return y.ndim == 2 or (now != size and frames_first)
    return now != size and not channels and y.is_floating_point() and max(now) <= 4
