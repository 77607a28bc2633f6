"""The picture of the command: what each method does to images, above the dot plots."""

from typing import Any, cast

import torch
from fastai.torch_core import set_seed
from matplotlib.figure import Figure
from torch import Tensor

from ..mix import weights_of
from ..show import label, spread
from .methods import Make
from .result import Comparison

TILES = 6  # images of each method


def tiles(x: Tensor, names: list[str], cb: Any) -> list[tuple[Tensor, str]]:
    """Return images ``(C, H, W)`` after mixing, from much to little, each with its label.

    If the method mixes a layer or the prediction, each image shows the original beside its partner, both unchanged.
    """
    set_seed(2)
    names = [name if len(name) < 17 else f"{name[:15]}…" for name in names]
    if cb is None:
        at = torch.randperm(len(x))[:TILES].tolist()
        return [(x[i], names[i]) for i in at]
    mix: Any = cb.draw(x)
    weights = weights_of(mix.lam).T
    gap = torch.ones_like(x[..., : max(1, x.shape[-1] // 12)])
    images = mix.blend(x) if cb._mixes_input else torch.cat([x, gap, x[mix.partner]], -1)
    shown = []
    for i in spread(weights, TILES).tolist():
        words = [names[i], *(names[int(part.partner[i])] for part in mix.parts)]
        shown.append((images[i], str(label(weights[i].tolist(), None, None, *words))))
    return shown


def picture(result: Comparison, methods: dict[str, Make], samples: tuple[Tensor, list[str]] | None) -> Figure:
    """Return the figure: a row of images for each mixing method, and a dot plot for each measure."""
    n, width = len(methods), 16.0
    plots, pictures = 1.2 + 0.5 * n, 1.9 * n if samples else 0.0
    fig = Figure(figsize=(width, plots + pictures), dpi=100, layout="constrained")
    below: Any = fig
    if samples is not None:
        above, below = cast(Any, fig.subfigures(2, 1, height_ratios=[pictures, plots], hspace=0.03))
        axes = above.subplots(n, 1 + TILES, squeeze=False, width_ratios=[1.2] + [1] * TILES)
        for row, (label, make) in zip(axes, methods.items(), strict=True):
            cb = make()
            for ax in row:
                ax.axis("off")
            where = "" if cb is None else "" if cb._mixes_input else "\n(a layer is mixed:\noriginal | partner)"
            row[0].text(1, 0.5, f"{label}{where}", ha="right", va="center", fontsize=13)
            for ax, (image, title) in zip(row[1:], tiles(*samples, cb), strict=False):
                ax.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
                ax.set_title(title.replace("$", r"\$"), fontsize=11)
    result.plot(axes=list(below.subplots(1, len(result.measures), squeeze=False)[0]))
    below.supxlabel("gray: each seed; dotted: the baseline; the arrow points to what is better", fontsize=11)
    return fig
