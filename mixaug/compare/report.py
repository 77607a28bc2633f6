"""The words of a comparison: the verdict, the table, and how to read it."""

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from .result import Comparison


def spread(values: pd.Series, decimals: int) -> str:
    """Return "mean ± standard deviation", or the mean alone for a single value."""
    bounds = f" ± {values.std():.{decimals}f}" if len(values) > 1 else ""
    return f"{values.mean():.{decimals}f}{bounds}"


def table(result: "Comparison", measures: list[str] | None = None) -> pd.DataFrame:
    """Return a row for each method; see :meth:`Comparison.table`."""
    rows: dict[str, dict[str, str]] = {label: {} for label in result.methods}
    seconds: Any = result.last["seconds"]
    for label, row in rows.items():
        if measures is None:
            row["seeds"] = str(len(result.values(result.main, label)))
        for measure in result.measures if measures is None else measures:
            decimals = result.decimals(measure)
            row[measure] = spread(result.values(measure, label), decimals)
            d = result.difference(measure, label)
            row[f"change of {measure}"] = "" if label == result.baseline else f"{d:.{decimals}f}"
        if measures is None:
            own, base = seconds[label], seconds[result.baseline]
            row["time x"] = spread(own / base[own.index], 2)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def verdict(result: "Comparison") -> str:
    """Return what the first metric says, in one line or two."""
    name, seeds = result.main, len(result.values(result.main, result.baseline))
    others = [label for label in result.methods if label != result.baseline]
    if not others:
        return f"{result.baseline}: {name} {spread(result.values(name, result.baseline), result.decimals(name))}"
    if seeds < 3:
        largest = max(others, key=lambda label: abs(result.difference(name, label).mean))
        shown = f"{result.difference(name, largest):.{result.decimals(name)}f}"
        some = f"{seeds} seed{'s' * (seeds > 1)}"
        return f"{some} can show no difference: use more seeds (largest: {largest}, {name} {shown})"
    sign = -1 if result.lower_is_better(name) else 1
    best, lines = result.best(), []
    if best is not None:
        mean = f"{result.values(name, best).mean():.{result.decimals(name)}f}"
        shown = f"{result.difference(name, best):.{result.decimals(name)}f}".removesuffix(" *")
        lines.append(f"Best: {best}, {name} {mean}, {shown} over {result.baseline} ({seeds} seeds)")
    else:
        lines.append(f"No method is better than {result.baseline}: no gain in {name} that {seeds} seeds show")
    differences = {label: result.difference(name, label) for label in others}
    if worse := [label for label, d in differences.items() if d.significant and sign * d.mean < 0]:
        lines.append(f"Worse than {result.baseline}: {', '.join(worse)}")
    return "\n".join(lines)


def report(result: "Comparison") -> str:
    """Return the verdict, the table, and a line of how to read it."""
    lines = [verdict(result), *(f"Failed: {label} ({error})" for label, error in result.failed.items())]
    if result.interrupted:
        lines.append("Interrupted: these are the finished runs")
    if unlike := result.unlike():
        lines.append(f"Not paired: {'; '.join(unlike[:3])}{' ...' * (len(unlike) > 3)}. Seed all that is random")
    shown = table(result).reset_index()
    heads = ["change" if name.startswith("change of ") else name for name in shown.columns]
    cells = [heads, *shown.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    n = len(result.methods) - 1
    corrected = f", corrected for {n} methods" if n > 1 else ""
    reading = (
        f"Mean ± standard deviation; change: difference to {result.baseline}, paired by seed, ± half width of its 95 % "
        f"interval{corrected}; *: without 0."
    )
    return "\n".join([*lines, "", *rows, "", reading])
