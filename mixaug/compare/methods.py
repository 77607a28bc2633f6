"""The methods of a comparison: labels, and functions that make their callbacks."""

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from fastai.callback.core import Callback

from ..handler import MixHandler
from ..methods.average import CMixup, MixUp
from ..methods.cut import CutMix
from ..methods.cut_variants import RICAP, FMix, Mosaic, ResizeMix, SaliencyMix
from ..methods.hidden import ManifoldMixup
from ..methods.one_of import OneOf
from ..methods.output import OutputMixup
from ..methods.patch_up import PatchUp

Make = Callable[[], Any]  # returns a callback, several, or None


def one_of(alpha: float = 1.0) -> OneOf:
    """Return MixUp or CutMix, chosen for each sample."""
    return OneOf(MixUp(alpha), CutMix(alpha), per_sample=True)


NAMES: dict[str, Callable[..., MixHandler]] = {
    "mixup": MixUp,
    "cutmix": CutMix,
    "fmix": FMix,
    "resize_mix": ResizeMix,
    "saliency_mix": SaliencyMix,
    "ricap": RICAP,
    "mosaic": Mosaic,
    "cmixup": CMixup,
    "manifold_mixup": ManifoldMixup,
    "patch_up": PatchUp,
    "output_mixup": OutputMixup,
    "one_of": one_of,
}


def nothing() -> None:
    """Make no callback: the baseline."""


def named(text: str, alpha: float | None = None) -> tuple[str, Make]:
    """Return label and maker of a method by its name.

    Args:
        text: A name, with an alpha or without: ``"mixup:0.4"``, ``"cutmix"``.
        alpha: Alpha of a name without one; None: the method's default.

    Raises:
        ValueError: If the name or the alpha is not valid.
    """
    name, colon, given = text.strip().partition(":")
    if text.strip() == "none":
        return "none", nothing
    if name not in NAMES:
        raise ValueError(f"methods must be none, {', '.join(NAMES)}, or as mixup:8 for alpha 8, got {text!r}")
    make = NAMES[name]
    default = inspect.signature(make).parameters["alpha"].default if alpha is None else alpha
    try:
        value = float(given) if colon else float(default)
        make(value)
    except ValueError as error:
        raise ValueError(f"methods must have an alpha that is a number > 0, got {text!r} ({error})") from None
    return f"{name}:{value:.15g}", partial(make, value)


def _maker(value: Any) -> Make:
    """Return a function that makes a fresh callback."""
    if value is None:
        return nothing
    if isinstance(value, str):
        return named(value)[1]
    several = value if isinstance(value, (list, tuple)) else [value]
    if several and all(isinstance(cb, Callback) for cb in several):
        return partial(copy.deepcopy, value)
    if callable(value):
        return value
    raise TypeError(f"methods must be names, callbacks, functions that make one, or None, got {value!r}")


def _label(method: Any) -> str:
    """Return the call that makes a method, the same in each process."""
    return re.sub(r" at 0x\w+", "", repr(method))


def makers(methods: Any, baseline: str) -> dict[str, Make]:
    """Return the methods by label, the baseline first.

    Args:
        methods: A dict from labels to callbacks, functions that make one, names or None; or a list of names and
            callbacks.
        baseline: Label of the baseline; ``"none"`` is added where it is missing.

    Raises:
        TypeError: If a method is none.
        ValueError: If there is no such baseline, or two methods of a list have the same label.
    """
    if isinstance(methods, (str, Callback)):
        methods = [methods]
    if isinstance(methods, Mapping):
        found = {str(label): _maker(value) for label, value in methods.items()}
    elif isinstance(methods, Iterable):
        pairs = [named(m) if isinstance(m, str) else ("none" if m is None else _label(m), _maker(m)) for m in methods]
        found = dict(pairs)
        if len(found) < len(pairs):
            labels = [label for label, _ in pairs]
            raise ValueError(f"methods must have different labels, got {labels}. Give a dict from labels to methods")
    else:
        raise TypeError(f"methods must be a dict or a list, got {methods!r}")
    if baseline not in found and baseline != "none":
        raise ValueError(f"baseline must be one of the methods {list(found)}, got {baseline!r}")
    return {baseline: found.get(baseline, nothing), **found}
