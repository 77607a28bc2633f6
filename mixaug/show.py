"""Pictures: what a mixed batch looks like, and what alpha does."""

import math
from collections.abc import Iterable
from copy import copy
from typing import Any

import pandas as pd
import torch
from fastai.data.core import show_batch as fastai_show_batch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TitledStr
from fastcore.basics import patch
from fastcore.foundation import L
from fastcore.meta import delegates
from torch import Tensor

from .batch import MixedBatch, mix_batch
from .handler import MixHandler
from .lifecycle import foreign_words, mixing_callbacks
from .methods.one_of import OneOf
from .mix import like, map_tensors
from .options import alpha_now, number
from .targets import each


def plot_lam(
    alpha: float | Iterable[float] = (0.1, 0.4, 1.0, 8.0),
    *,
    ctxs: Any = None,  # of matplotlib, which is imported late
    figsize: tuple[float, float] = (9, 3),
) -> Any:
    """Draw what alpha does: the densities of lam from Beta(alpha, alpha) and of max(lam, 1 - lam).

    Args:
        alpha: One alpha or several, > 0.
        ctxs: Two matplotlib axes; None: those of a new figure.
        figsize: Size of a new figure in inches.

    Returns:
        The two axes. Mixing is strongest at 0.5 and weakest at 1.

    >>> drawn, folded = plot_lam([0.1, 0.4, 1])
    >>> [line.get_label() for line in folded.lines]
    ['alpha = 0.1', 'alpha = 0.4', 'alpha = 1']
    """
    from matplotlib import pyplot as plt
    from scipy.stats import beta

    given = alpha if isinstance(alpha, Iterable) else [alpha]
    alphas = [number("alpha", a, lambda a: 0 < a < math.inf, "a finite number > 0") for a in given]
    axes = plt.subplots(1, 2, figsize=figsize, layout="constrained")[1] if ctxs is None else list(ctxs)
    t = torch.linspace(0.001, 0.999, 999).tolist()
    for a in alphas:
        density = beta.pdf(t, a, a)
        axes[0].plot(t, density, label=f"alpha = {a:g}")
        axes[1].plot(t[499:], 2 * density[499:], label=f"alpha = {a:g}")
    for ax, title in zip(axes, ("lam from Beta(alpha, alpha)", "with fold: max(lam, 1 - lam)"), strict=True):
        ax.set(title=title, xlim=(0, 1), ylim=(0, 8), xlabel="lam", ylabel="density")
        ax.legend()
    return axes


@patch
def show_batch(self: MixHandler, dls: Any, max_n: int = 9, *, loss_func: Any = None, **kwargs: Any) -> Any:
    """Show samples of a training batch as this method mixes them, with the mixing coefficients of their labels.

    Of the batch, samples are shown whose coefficients are spread from the strongest mixing to the weakest: most samples
    of a small alpha are hardly mixed. Neither `dls` nor the callback is changed. `prob`, `start` and `stop` do not
    count, and of a schedule the largest alpha. Images of methods that mix hidden layers or the output are shown beside
    their partners, and texts with them.

    Args:
        dls: `DataLoaders`; a training batch of it is shown.
        max_n: Most samples to show.
        loss_func: Loss of the training; None: that of `dls`, else cross-entropy.
        **kwargs: As in ``dls.show_batch``: ctxs, nrows, ncols, figsize.

    Returns:
        The axes, or a frame of rows for tables.
    """
    dl, loss_func = dls.train, loss_func or getattr(dls, "loss_func", CrossEntropyLossFlat())
    batch = dl.one_batch()
    n = dl.n_inp
    original, mixed, record = _mixed(self, batch[:n], batch[n:], loss_func)
    partners = map_tensors(record.mix.partners, original)  # pyright: ignore[reportOptionalMemberAccess]
    at = _spread(record.lam, max_n)
    rows = (map_tensors(lambda t: t[at] if t.ndim else t, nest) for nest in (original, mixed, partners))
    (original, mixed, partners), lam = rows, record.lam[at]
    (x, y, shown), *both = (dl.show_batch(b, max_n=max_n, show=False) for b in (mixed, original, partners))
    if shown is None:  # a table
        rows, others = (table.decode().items[:max_n] for table, *_ in both)
        return _table(rows, others, lam)
    lams = lam.tolist()[: len(shown)]
    if any(not hasattr(part, "show") for part in shown[0][:n]):
        layout = {name: kwargs.pop(name, None) for name in ("nrows", "ncols", "figsize")}
        kwargs.setdefault("ctxs", _axes(len(shown), **layout))
    method: Any = record.method
    rules = *each("inputs", method.inputs, batch[:n]), *record.rules
    items = [
        tuple(_part(lam, i >= n, *part) for i, part in enumerate(zip(rules, *item, strict=True)))
        for lam, *item in zip(lams, shown, both[0][2], both[1][2], strict=True)
    ]
    show: Any = fastai_show_batch
    ctxs = show(x, y, L(items), max_n=max_n, **kwargs)
    for ax, lam in zip(ctxs, lams, strict=False):
        if hasattr(ax, "get_title"):
            words = ax.get_title() or f"{lam:.2f} original + {1 - lam:.2f} partner"  # a mask or points have no words
            ax.set_title(words.replace("$", r"\$"))  # or matplotlib would typeset what is between two as math
    return ctxs


@patch
@delegates(MixHandler.show_batch)  # pyright: ignore[reportAttributeAccessIssue]  (patched above)
def show_mixed(self: Learner, max_n: int = 9, **kwargs: Any) -> Any:
    """Show samples of a training batch as the learner's mixing callback mixes them; see `MixHandler.show_batch`."""
    mixers = mixing_callbacks(self)
    if not mixers:
        but = foreign_words(self.cbs, " of mixaug, but ") or ". Add one with learn.mixup()"
        raise ValueError(f"The learner has no mixing callback{but}")
    return mixers[0].show_batch(self.dls, max_n, loss_func=self.loss_func, **kwargs)


def _mixed(cb: MixHandler, xb: tuple, yb: tuple, loss_func: Any) -> tuple[tuple, tuple, MixedBatch]:
    """Return a batch before mixing, as it is shown after mixing, and what was decided."""
    cb = _without_learner(cb)
    while isinstance(cb, OneOf) and not cb.each:
        cb = cb.methods[cb.rng.choice(len(cb.p), p=[p / sum(cb.p) for p in cb.p])]
    record = mix_batch(cb, xb, yb, loss_func)
    if cb._mixes_input and not cb.stack_x:
        inputs = record.xb
    else:
        inputs = map_tensors(lambda t: _beside(t, record.mix.partners(t)), tuple(xb))  # pyright: ignore[reportOptionalMemberAccess]
    return (*xb, *record.original), (*inputs, *record.for_metrics(record.yb)), record


def _without_learner(cb: MixHandler) -> Any:
    """Return a copy of a method that has no learner, no schedule and its own random generator."""
    cb = copy(cb)
    alpha: Any = cb.alpha
    if callable(alpha):
        alpha = max(alpha_now(alpha(t / 20)) for t in range(21))
    vars(cb).update(_learn=None, _rng=None, alpha=alpha, clean=False)
    if isinstance(cb, OneOf):
        vars(cb)["methods"] = list(map(_without_learner, cb.methods))
    return cb


def _beside(x: Tensor, other: Tensor) -> Tensor:
    """Return images with their partners at their right; anything else as it is."""
    return like(x, torch.cat([x, other], -1)) if x.ndim > 3 else x


def _part(lam: float, is_target: bool, rule: Any, shown: Any, original: Any, other: Any) -> Any:
    """Return what is shown of an input or a target, given what becomes of it."""
    if is_target:
        return _label(lam, rule, shown, original, other)
    if isinstance(original, TitledStr) and rule != "keep":  # a text with its partner's
        texts: Any = original, other
        return TitledStr(" + ".join(text.truncate(75) for text in texts))  # of the 150 words that fastai shows
    return shown if hasattr(shown, "show") else _Signal(shown)


def _label(lam: float, rule: Any, shown: Any, original: Any, other: Any) -> Any:
    """Return the coefficients of two labels in words; a segmentation mask and a label that is kept as they are."""
    if isinstance(shown, Tensor) and shown.ndim > 1:
        return shown
    if rule == "keep":
        return TitledStr(_words(original))
    if callable(rule):
        return TitledStr(f"targets({_words(original)}, {_words(other)})")
    own, others = _words(original), _words(other)
    if own == others or f"{lam:.2f}" == "1.00":
        return TitledStr(own)
    times = "× " if own[:1].isdigit() or others[:1].isdigit() else ""
    parts = f"{lam:.2f} {times}{own}", f"+ {1 - lam:.2f} {times}{others}"
    return TitledStr(("\n" if len("".join(parts)) > 25 else " ").join(parts))


def _spread(lam: Tensor, n: int) -> Tensor:
    """Return the numbers of `n` samples whose coefficients are spread, from the strongest mixing to the weakest."""
    order = (lam - 0.5).abs().argsort(stable=True)
    if len(order) <= n:
        return order
    strength = (lam[order] - 0.5).abs().tolist()
    wanted = torch.linspace(strength[0], strength[-1], n).tolist()
    at: list[int] = []
    for i, value in enumerate(wanted):  # the nearest one behind the last, leaving enough for the rest
        first, last = (at[-1] + 1 if at else 0), len(order) - n + i
        at.append(min(range(first, last + 1), key=lambda k: abs(strength[k] - value)))
    return order[at]


def _words(label: Any) -> str:
    if isinstance(label, Tensor):
        label = label.tolist()
    if isinstance(label, float):
        return f"{label:.4g}"
    return ";".join(map(_words, label)) or "nothing" if isinstance(label, (list, tuple, L)) else str(label)


class _Signal:
    """A tensor (C, L) that fastai cannot draw: a line for each channel."""

    def __init__(self, values: Tensor):
        self.values = values

    def show(self, ctx: Any, **kwargs: Any) -> Any:
        ctx.plot(self.values.reshape(-1, self.values.shape[-1]).T)
        return ctx


def _axes(n: int, nrows: int | None, ncols: int | None, figsize: Any) -> list:
    """Return axes of a new figure for `n` pictures."""
    from matplotlib import pyplot as plt

    nrows = nrows or math.ceil(n / (ncols or math.ceil(math.sqrt(n))))
    ncols = ncols or math.ceil(n / nrows)
    axes = list(plt.subplots(nrows, ncols, figsize=figsize, layout="constrained", squeeze=False)[1].flat)
    for spare in axes[n:]:
        spare.remove()
    return axes[:n]


def _table(original: Any, other: Any, lam: Tensor) -> Any:
    """Return the rows of a table, each above its partner's, with their coefficients."""
    weight = lam[: len(original)].double().round(decimals=2).numpy()
    rows = pd.concat([original.assign(lam=weight), other.assign(lam=1 - weight)], keys=["original", "partner"])
    return rows.swaplevel().sort_index()
