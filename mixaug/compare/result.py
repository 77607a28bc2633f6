"""`Comparison`: the runs of a comparison, and what they say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .cache import Job, to_json
from .measures import is_lower_better
from .plot import plot
from .report import report, table, verdict
from .statistics import Difference, decimals_for, paired_difference


class Comparison:
    """What came out of :func:`compare`.

    The attribute `runs` is a frame with a row for each epoch of each run: method, seed, epoch, each measure, and the
    seconds that an epoch took. Measures of the trained learner are in the row of the last epoch. A seed counts once the
    baseline has finished it.

    Args:
        finished: What was measured, by label and seed.
        methods: Labels, the baseline first.
        baseline: Label of the baseline.
        better: "lower" or "higher" for measures whose names do not tell.
        failed: Errors of methods that failed, by label.
        interrupted: Whether runs are missing, as the comparison was interrupted.
    """

    def __init__(
        self,
        finished: dict[Job, dict[str, Any]],
        methods: list[str],
        baseline: str,
        better: dict[str, str],
        failed: dict[str, str] | None = None,
        interrupted: bool = False,
    ):
        self.baseline, self.failed, self.interrupted = baseline, failed or {}, interrupted
        self._better = better
        counted = {job: run for job, run in finished.items() if (baseline, job[1]) in finished}
        self.methods = [label for label in methods if any(label == method for method, _ in counted)]
        rows = []
        for (label, seed), run in counted.items():
            last = len(run["epochs"]) - 1
            for epoch, values in enumerate(run["epochs"]):
                more = run["measures"] if epoch == last else {}
                row = {"method": label, "seed": seed, "epoch": epoch}
                rows.append({**row, **values, **more, "seconds": run["seconds"]})
        self.runs: Any = pd.DataFrame(rows)
        names = [name for name in self.runs if name not in ("method", "seed", "epoch", "train_loss", "seconds")]
        order = ["method", "seed", "epoch", *(name for name in ["train_loss"] if name in self.runs), *names, "seconds"]
        self.runs = self.runs[order].astype(dict.fromkeys([*names, "seconds"], float))
        self.measures: list[str] = names
        # The first metric; the loss, if there is none
        self.main = next((name for name in names if name != "valid_loss"), names[0])
        self._first = {job: run["first"] for job, run in counted.items()}

    @classmethod
    def read(cls, path: str | Path, baseline: str = "none", better: dict[str, str] | None = None) -> "Comparison":
        """Return the comparison of a file of finished runs, as :func:`compare` keeps them, without training.

        Raises:
            ValueError: If runs of several settings are in the file, or none of the baseline.
        """
        entries = [json.loads(line) for line in Path(path).read_text().splitlines() if line]
        if len({to_json(entry["settings"]) for entry in entries}) > 1:
            raise ValueError(f"path must be a file with runs of the same settings, got several in {path}")
        finished = {(entry["method"], entry["seed"]): entry["run"] for entry in entries}
        if baseline not in (labels := list(dict.fromkeys(label for label, _ in finished))):
            raise ValueError(f"baseline must be one of {labels}, got {baseline!r}")
        methods = [baseline, *(label for label in labels if label != baseline)]
        return cls(finished, methods, baseline, better or {})

    @property
    def last(self) -> Any:
        """The measures at the end of each run, by method and seed."""
        return self.runs.groupby(["method", "seed"], sort=False)[[*self.measures, "seconds"]].last()

    def values(self, measure: str, method: str) -> Any:
        """Return a measure at the end of each run of a method, by seed."""
        if measure not in self.measures:
            raise ValueError(f"measure must be one of {self.measures}, got {measure!r}")
        if method not in self.methods:
            raise ValueError(f"method must be one of {self.methods}, got {method!r}")
        runs = self.runs[self.runs.method == method]
        return runs[runs.epoch == runs.groupby("seed").epoch.transform("max")].set_index("seed")[measure]

    def difference(self, measure: str, method: str, other: str | None = None) -> Difference:
        """Return how much a method changes a measure: mean and 95 % interval, paired by seed.

        The interval is corrected for the number of methods (Bonferroni): all intervals of a measure hold together.

        Args:
            measure: Name of the measure.
            method: Label of the method.
            other: Label of the method to compare to; None: the baseline.
        """
        a, b = (self.values(measure, label) for label in (method, other or self.baseline))
        seeds = a.index.intersection(b.index)
        return paired_difference(a[seeds].tolist(), b[seeds].tolist(), max(1, len(self.methods) - 1))

    def lower_is_better(self, measure: str) -> bool:
        """Return whether lower values of a measure are better."""
        return self._better.get(measure, "lower" if is_lower_better(measure) else "higher") == "lower"

    def decimals(self, measure: str) -> int:
        """Return the number of decimals to show of a measure."""
        values = [self.values(measure, label) for label in self.methods]
        return decimals_for([v.mean() for v in values], [v.std() for v in values])

    def best(self) -> str | None:
        """Return the method with the best mean of those that are significantly better in the first metric, if any."""
        sign = -1 if self.lower_is_better(self.main) else 1
        found = {label: self.difference(self.main, label) for label in self.methods if label != self.baseline}
        better = [label for label, d in found.items() if d.significant and sign * d.mean > 0]
        return max(better, key=lambda label: sign * found[label].mean, default=None)

    def unlike(self) -> list[str]:
        """Return the runs that did not begin as the baseline's of the same seed, in words."""
        names = {"weights": "first weights", "batch": "first batch"}
        found = []
        for (label, seed), first in self._first.items():
            other = self._first[self.baseline, seed]
            what = [names[name] for name in names if first[name] != other[name]]
            if what:
                found.append(f"{label}, seed {seed}: another {' and another '.join(what)}")
        return found

    def table(self, measures: list[str] | None = None) -> pd.DataFrame:
        """Return a row for each method, with measures and their changes, as texts.

        Args:
            measures: Names of measures; None: all, the number of seeds, and the time relative to the baseline's.
        """
        return table(self, measures)

    def verdict(self) -> str:
        """Return what the first metric says, in one line or two."""
        return verdict(self)

    def report(self) -> str:
        """Return the verdict, the table, and what its signs mean."""
        return report(self)

    def plot(self, measures: list[str] | None = None, axes: Any = None) -> Any:
        """Draw a dot plot of each measure, and return the axes."""
        return plot(self, measures or self.measures, axes)

    def __repr__(self) -> str:
        return self.report()

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def as_dict(self) -> dict[str, Any]:
        """Return the differences and the runs, for JSON."""
        changes = {
            label: {m: self.difference(m, label).as_dict() for m in self.measures}
            for label in self.methods
            if label != self.baseline
        }
        means = {label: {m: float(np.mean(self.values(m, label))) for m in self.measures} for label in self.methods}
        return {
            "baseline": self.baseline,
            "best": self.best(),
            "confidence": 0.95,
            "comparisons": len(self.methods) - 1,
            "means": means,
            "changes": changes,
            "failed": self.failed,
            "runs": self.runs.to_dict("records"),
        }
