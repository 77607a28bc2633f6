"""Pictures: what a mixed batch looks like, and what alpha does."""

import math
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from itertools import chain, repeat
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
from .mix import weights_of
from .nests import like, map_tensors, map_with
from .options import alpha_now, number
from .sources import Source
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

    Raises:
        ValueError: If the batch has one sample.
    """
    dl, loss_func = dls.train, loss_func or getattr(dls, "loss_func", CrossEntropyLossFlat())
    batch = dl.one_batch()
    n = dl.n_inp
    original, mixed, record = _mixed(self, batch[:n], batch[n:], loss_func)
    weights = weights_of(record.lam).T
    at = spread(weights, max_n)
    method: Any = record.method
    rules = *each("inputs", method.inputs, batch[:n]), *record.rules
    (x, y, shown), *samples = (
        dl.show_batch(map_tensors(lambda t: t[at] if t.ndim else t, nest), max_n=max_n, show=False)
        for nest in (mixed, original, *_partners(record, original, rules))
    )
    if shown is None:  # a table
        return _table([table.decode().items[:max_n] for table, *_ in samples], weights[at])
    rows = weights[at].tolist()[: len(shown)]
    if any(not hasattr(part, "show") for part in shown[0][:n]):
        layout = {name: kwargs.pop(name, None) for name in ("nrows", "ncols", "figsize")}
        kwargs.setdefault("ctxs", _axes(len(shown), **layout))
    items = [
        tuple(_part(row, i >= n, *part) for i, part in enumerate(zip(rules, *item, strict=True)))
        for row, *item in zip(rows, shown, *(sample[2] for sample in samples), strict=True)
    ]
    show: Any = fastai_show_batch
    ctxs = show(x, y, L(items), max_n=max_n, **kwargs)
    for ax, row in zip(ctxs, rows, strict=False):
        if hasattr(ax, "get_title"):
            names = ["original", *["partner"] * (len(row) - 1)]  # a mask or points have no words
            words = ax.get_title() or " + ".join(f"{w:.2f} {name}" for w, name in zip(row, names, strict=True))
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
    if cb._source:  # or its loader could not be copied any more
        cb._source.restart()
    if record.mix is None:
        raise ValueError("Expected a training batch of two samples or more, got one, which has no partner")
    if cb._mixes_input and not cb.stack_x:
        inputs = record.xb
    else:
        inputs = tuple(xb)
        for partners in _partners(record, tuple(xb), [None] * len(xb)):
            inputs = map_with(_beside, inputs, partners)
    return (*xb, *record.original), (*inputs, *record.for_metrics(record.yb)), record


def _partners(record: MixedBatch, batch: tuple, rules: Sequence[Any]) -> list[tuple]:
    """Return inputs, and targets, with each sample's partner in its place, for each partner of a mix.

    Of partners from elsewhere, what is kept may be of another form, or missing: it stays as it is.
    """
    source = record.source

    def of(part: Any) -> tuple:
        given = zip(batch, chain(source or (), repeat(None)), rules, strict=False)
        return tuple(
            nest if source and rule == "keep" else map_with(lambda t, s: part.partners(t, s) if t.ndim else t, nest, s)
            for nest, s, rule in given
        )

    mix: Any = record.mix
    return [of(replace(part, then=None)) for part in mix.parts]


def _without_learner(cb: MixHandler) -> Any:
    """Return a copy of a method that has no learner, no schedule and its own random generator."""
    cb = copy(cb)
    source: Any = cb._source and Source(cb.partners)
    alpha: Any = cb.alpha
    if callable(alpha):
        alpha = max(alpha_now(alpha(t / 20)) for t in range(21))
    vars(cb).update(_learn=None, _rng=None, alpha=alpha, clean=False, _source=source)
    if isinstance(cb, OneOf):
        vars(cb)["methods"] = list(map(_without_learner, cb.methods))
    return cb


def _beside(x: Tensor, other: Any) -> Tensor:
    """Return images with their partners at their right; anything else as it is."""
    return like(x, torch.cat([x, other], -1)) if x.ndim > 3 else x


def _part(weights: Sequence[float], is_target: bool, rule: Any, shown: Any, *samples: Any) -> Any:
    """Return what is shown of an input or a target, given what becomes of it."""
    if is_target:
        return label(weights, rule, shown, *samples)
    if isinstance(samples[0], TitledStr) and rule != "keep":  # a text with its partner's
        texts: Any = samples
        return TitledStr(" + ".join(text.truncate(75) for text in texts))  # of the 150 words that fastai shows
    return shown if hasattr(shown, "show") else _Signal(shown)


def label(weights: Sequence[float], rule: Any, shown: Any, *samples: Any) -> Any:
    """Return the coefficients of labels in words; a segmentation mask and a label that is kept as they are."""
    if isinstance(shown, Tensor) and shown.ndim > 1:
        return shown
    words = list(map(_words, samples))
    if rule in ("keep", "union"):
        return TitledStr(words[0] if rule == "keep" else _words(shown))
    if callable(rule):
        return TitledStr(f"targets({', '.join(words)})")
    total: dict[str, float] = {}
    for word, weight in zip(words, weights, strict=True):
        total[word] = total.get(word, 0.0) + weight
    total = {word: weight for word, weight in total.items() if f"{weight:.2f}" != "0.00"}
    if len(total) == 1:
        return TitledStr(*total)
    times = "× " if any(word[:1].isdigit() for word in total) else ""
    parts = [f"{weight:.2f} {times}{word}" for word, weight in total.items()]
    return TitledStr(("\n+ " if len("".join(parts)) > 23 else " + ").join(parts))


def spread(weights: Tensor, n: int) -> Tensor:
    """Return the numbers of `n` samples whose coefficients are spread, from the strongest mixing to the weakest."""
    largest = weights.amax(1)
    order = largest.argsort(stable=True)
    if len(order) <= n:
        return order
    strength = largest[order].tolist()
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


def _table(samples: list[Any], weights: Tensor) -> Any:
    """Return the rows of a table, each above its partners', with their coefficients."""
    shown = weights[: len(samples[0])].double().round(decimals=2).numpy().T
    rows = pd.concat(
        [rows.assign(lam=weight) for rows, weight in zip(samples, shown, strict=True)],
        keys=["original", *("partner" if len(samples) == 2 else f"partner {k}" for k in range(1, len(samples)))],
    )
    return rows.swaplevel().sort_index()
