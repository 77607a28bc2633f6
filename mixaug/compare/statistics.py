"""The statistics of a comparison: differences by pairs, with intervals that hold for all of them together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_1samp


class Difference(NamedTuple):
    """A mean difference, paired by seed, with its 95 % confidence interval.

    Args:
        mean: Mean of the differences.
        low: Lower end of the interval; nan if there are fewer than three seeds, or if all differences are equal.
        high: Upper end, likewise.
        seeds: Number of pairs.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name, for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "seeds": self.seeds}

    def __format__(self, spec: str) -> str:
        """Return "mean ± half width" with a * if it is significant, as in ``f"{d:.1f}"``; the mean alone if there is no
        interval.
        """
        half = (self.high - self.low) / 2
        bounds = "" if np.isnan(half) else f" ± {half:{spec}}{' *' if self.significant else ''}"
        return f"{self.mean:+{spec}}{bounds}"

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired_difference(a: Sequence[float], b: Sequence[float], comparisons: int = 1) -> Difference:
    """Return the mean of a - b with its interval (Student's t).

    Args:
        a: Values, one for each seed.
        b: Values of the same seeds.
        comparisons: Number of intervals that hold together with 95 % confidence (Bonferroni), >= 1.
    """
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    mean = float(d.mean())
    # Two seeds give intervals 13 times as wide as their spread; equal differences, up to rounding, give none
    if len(d) < 3 or np.isnan(mean) or np.ptp(d) <= 1e-9 * np.abs(d).max():
        return Difference(mean, np.nan, np.nan, len(d))
    low, high = ttest_1samp(d, 0).confidence_interval(1 - 0.05 / comparisons)
    return Difference(mean, float(low), float(high), len(d))


def decimals_for(means: Sequence[float], deviations: Sequence[float] = ()) -> int:
    """Return the number of decimals that shows three digits of the largest mean, and one of most deviations."""

    def first_digit(values: Sequence[float]) -> float:
        found = np.abs([v for v in values if np.isfinite(v) and v])
        return -np.floor(np.log10(np.median(found))) if len(found) else 0

    largest = max((abs(m) for m in means if np.isfinite(m)), default=0)
    return int(np.clip(max(first_digit([largest]) + 2, first_digit(deviations)), 0, 6))
