"""Pictures: what a mixed batch looks like, with the shares of each label, and what an alpha means."""

import math
import random
from collections.abc import Iterable
from copy import deepcopy
from types import SimpleNamespace
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

from .combine import OneOf
from .handlers import MixHandler, _number
from .masks import SymmetricBeta
from .mixing import like, map_tensors, tensors, untyped


def plot_lam(
    alpha: Any = (0.1, 0.4, 1.0, 8.0),  # One alpha or several
    *,
    ctxs: Any = None,  # Two axes; None: those of a new figure
    figsize: tuple[float, float] = (9, 3),  # Inches
) -> Any:
    """Draw what an alpha means: the densities of t from Beta(alpha, alpha) and of the share max(t, 1 - t).

    Returns the two axes. Shares of one half are the strongest mix, those near 1 hardly any.

    >>> drawn, kept = plot_lam([0.1, 0.4, 1])
    >>> [line.get_label() for line in kept.lines]
    ['alpha = 0.1', 'alpha = 0.4', 'alpha = 1']
    """
    from matplotlib import pyplot as plt
    from scipy.stats import beta

    given = alpha if isinstance(alpha, Iterable) else [alpha]
    alphas = [_number("alpha", a, lambda a: 0 < a < math.inf, "a finite number above 0") for a in given]
    axes = plt.subplots(1, 2, figsize=figsize, layout="constrained")[1] if ctxs is None else list(ctxs)
    t = torch.linspace(0.001, 0.999, 999).tolist()
    for a in alphas:
        density = beta.pdf(t, a, a)
        axes[0].plot(t, density, label=f"alpha = {a:g}")
        axes[1].plot(t[499:], 2 * density[499:], label=f"alpha = {a:g}")
    for ax, title in zip(axes, ("t from Beta(alpha, alpha)", "the sample's own share: max(t, 1 - t)"), strict=True):
        ax.set(title=title, xlim=(0, 1), ylim=(0, 8), xlabel="share", ylabel="density")
        ax.legend()
    return axes


@patch
def show_batch(
    self: MixHandler,
    dls: Any,  # `DataLoaders`, of which a training batch is shown
    max_n: int = 9,  # Most samples to show
    *,
    loss_func: Any = None,  # The loss to be used with it; None: that of `dls`, else cross-entropy
    **kwargs: Any,  # As in `dls.show_batch`: ctxs, nrows, ncols, figsize
) -> Any:
    """Show samples of a training batch as this method mixes them, with the shares of their labels, as `dls` shows them.

    Neither `dls` nor the callback is changed; `prob`, `start` and `stop` play no part. Images that are mixed behind the
    input are shown beside their partners, and texts with them. Returns the axes, or a frame of rows for tables.
    """
    dl, loss_func = dls.train, loss_func or getattr(dls, "loss_func", CrossEntropyLossFlat())
    batch = dl.one_batch()
    n = dl.n_inp
    own, mixed, method = _mixed(self, batch[:n], batch[n:], loss_func)
    partners = map_tensors(method.mix.partners, own)
    (x, y, shown), *both = (dl._pre_show_batch(b, max_n) for b in (mixed, own, partners))
    if shown is None:  # a table
        rows, others = (table.decode().items[:max_n] for table, *_ in both)
        return _table(rows, others, method.lam)
    share = method.lam.tolist()[: len(shown)]
    if any(not hasattr(part, "show") for part in shown[0][:n]):
        layout = {name: kwargs.pop(name, None) for name in ("nrows", "ncols", "figsize")}
        kwargs.setdefault("ctxs", _axes(len(shown), **layout))
    items = [
        (*(_part(*xs) for xs in parts[:n]), *(_label(lam, *ys) for ys in parts[n:]))
        for lam, *item in zip(share, shown, both[0][2], both[1][2], strict=True)
        for parts in [list(zip(*item, strict=True))]
    ]
    show: Any = fastai_show_batch
    ctxs = show(x, y, L(items), max_n=max_n, **kwargs)
    for ax, lam in zip(ctxs, share, strict=False):
        if hasattr(ax, "get_title") and not ax.get_title():  # under a map, which has no words
            ax.set_title(f"{lam:.2f} + {1 - lam:.2f}")
    return ctxs


@patch
@delegates(MixHandler.show_batch)  # pyright: ignore[reportAttributeAccessIssue]  (patched above)
def show_mixed(self: Learner, max_n: int = 9, **kwargs: Any) -> Any:
    """Show samples of a training batch as the learner's mixing callback mixes them; see `MixHandler.show_batch`."""
    mixers: Any = self._grab_cbs(MixHandler)
    if not mixers:
        raise ValueError("a learner without mixing came, one with a mixing callback was wanted: learn.mixup()")
    return mixers[0].show_batch(self.dls, max_n, loss_func=self.loss_func, **kwargs)


def _mixed(cb: MixHandler, xb: tuple, yb: tuple, loss_func: Any) -> tuple[tuple, tuple, MixHandler]:
    """A batch before and after mixing, and the method that mixed it: a copy, with a stage in the place of a learner."""
    stage = SimpleNamespace(xb=xb, yb=yb, loss_func=loss_func, pct_train=1.0, epoch=0, n_epoch=1, training=True)
    keep = [cb.learn, *(vars(cb).get("modules") or ())]
    while isinstance(cb, OneOf) and not cb.each:
        (cb,) = random.choices(cb.methods, cb.p)
    cb = deepcopy(cb, {id(o): None if o is keep[0] else o for o in keep})
    cb.learn, cb.clean = stage, False
    for method in (cb, *vars(cb).get("methods", ())):
        method._stream = None
        if callable(method.alpha):
            method.distrib = SymmetricBeta(torch.tensor(method.alpha(1.0)))
    with untyped():
        cb.mix = cb.draw(tensors(xb)[0])
        cb.mix_targets()
        if not cb.stack_x and type(cb).mix_features is MixHandler.mix_features:
            cb.mix_features()
        else:
            stage.xb = map_tensors(lambda t: _beside(t, cb.mix.partners(t)), xb)
    shown = (y if cb.cuts(y) else own for y, own in zip(stage.yb, cb._own, strict=True))
    return (*xb, *cb._own), (*stage.xb, *shown), cb


def _beside(x: Tensor, other: Tensor) -> Tensor:
    """Images with their partners at their right; anything else as it is."""
    return like(x, torch.cat([x, other], -1)) if x.ndim > 3 else x


def _label(lam: float, shown: Any, own: Any, other: Any) -> Any:
    """The shares of two labels in words; a map as it is."""
    if isinstance(shown, Tensor) and shown.ndim > 1:
        return shown
    parts = f"{lam:.2f} {_words(own)}", f"+ {1 - lam:.2f} {_words(other)}"
    return TitledStr(("\n" if len("".join(parts)) > 25 else " ").join(parts))


def _words(label: Any) -> str:
    if isinstance(label, Tensor):
        label = label.tolist()
    if isinstance(label, float):
        return f"{label:.4g}"
    return ";".join(map(_words, label)) or "nothing" if isinstance(label, (list, tuple, L)) else str(label)


def _part(shown: Any, own: Any, other: Any) -> Any:
    """What is shown of an input: a text with its partner's, a signal as lines, anything else as it is."""
    if isinstance(own, TitledStr):
        texts: Any = own, other
        return TitledStr(" + ".join(text.truncate(75) for text in texts))  # of the 150 words that fastai shows
    return shown if hasattr(shown, "show") else _Signal(shown)


class _Signal:
    """Tensors of which fastai knows no picture, (C, L): a line for each channel."""

    def __init__(self, values: Tensor):
        self.values = values

    def show(self, ctx: Any, **kwargs: Any) -> Any:
        ctx.plot(self.values.reshape(-1, self.values.shape[-1]).T)
        return ctx


def _axes(n: int, nrows: int | None, ncols: int | None, figsize: Any) -> list:
    """Axes of a new figure, for `n` pictures."""
    from matplotlib import pyplot as plt

    nrows = nrows or math.ceil(n / (ncols or math.ceil(math.sqrt(n))))
    ncols = ncols or math.ceil(n / nrows)
    axes = list(plt.subplots(nrows, ncols, figsize=figsize, layout="constrained", squeeze=False)[1].flat)
    for spare in axes[n:]:
        spare.remove()
    return axes[:n]


def _table(own: Any, other: Any, lam: Tensor) -> Any:
    """The rows of a table, each above its partner's, with their shares."""
    share = lam[: len(own)].double().round(decimals=2).numpy()
    rows = pd.concat([own.assign(share=share), other.assign(share=1 - share)], keys=["own", "partner"])
    return rows.swaplevel().sort_index()
