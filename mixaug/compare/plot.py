"""The picture of a comparison: a dot plot for each measure."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import Comparison


def plot(result: "Comparison", measures: list[str], axes: Any = None) -> Any:
    """Draw a dot plot of each measure: methods sorted, each seed in gray, the mean with its value.

    Args:
        result: The comparison.
        measures: Names of the measures.
        axes: One matplotlib axes for each measure; None: those of a new figure.

    Returns:
        The axes.
    """
    from matplotlib import pyplot as plt  # imported late

    if axes is None:
        size = 4.2 * len(measures), 1.1 + 0.42 * len(result.methods)
        axes = plt.subplots(1, len(measures), figsize=size, layout="constrained", squeeze=False)[1][0]
    for ax, measure in zip(axes, measures, strict=True):
        lower, decimals = result.lower_is_better(measure), result.decimals(measure)
        values = {label: result.values(measure, label) for label in result.methods}
        order = sorted(result.methods, key=lambda label: values[label].mean() * (-1 if lower else 1))
        ax.axvline(values[result.baseline].mean(), color="0.5", ls=":", lw=1)
        for y, label in enumerate(order):
            mean = values[label].mean()
            star = label != result.baseline and result.difference(measure, label).significant
            ax.plot(values[label], [y] * len(values[label]), "o", color="0.7", ms=5, zorder=1)
            ax.plot(mean, y, "o", color="C0" if label != result.baseline else "0.3", ms=9, zorder=2)
            ax.annotate(f"{mean:.{decimals}f}{' *' if star else ''}", (mean, y), (0, 7), textcoords="offset points",
                        ha="center", fontsize=11)  # fmt: skip
        ax.set_yticks(range(len(order)), [label.replace("$", r"\$") for label in order], fontsize=12)
        ax.set_ylim(-0.6, len(order) - 0.3)
        ax.margins(x=0.12)
        name = measure.replace("$", r"\$")
        ax.set_title(f"← {name}" if lower else f"{name} →", fontsize=13)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", alpha=0.3)
    return axes
