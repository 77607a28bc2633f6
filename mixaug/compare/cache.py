"""The file of finished runs."""

import json
import math
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

Job = tuple[str, int]  # the label and the seed of a run


def to_json(value: Any) -> str:
    """Return a value as one line of JSON, with null for what is not finite."""

    def nulls(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: nulls(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [nulls(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(nulls(value), allow_nan=False)


class Kept:
    """Finished runs in a file, each a line of JSON. Lines are only added, so that several processes may write.

    Args:
        path: The file; None: runs are kept in memory only.
        settings: What all runs of this comparison have in common.
        methods: What can be told of each method, by label.

    Raises:
        ValueError: If the file is of something else.
    """

    START = '{"settings": '

    def __init__(self, path: str | Path | None, settings: dict[str, Any], methods: dict[str, str]):
        self.path, self.settings, self.methods = path, json.loads(to_json(settings)), methods
        self.done: dict[Job, dict] = {}
        self.others: Counter[str] = Counter()  # runs of these methods with other settings, by what differs
        self.at = self.lines = 0  # how much of the file was read
        if path is not None:
            with open(path, "ab"):  # an error now, not after the first run
                pass
            self.read()

    def read(self) -> None:
        """Read what was added to the file, by this process or by others."""
        if self.path is None:
            return
        with open(self.path, "rb") as file:
            file.seek(self.at)
            added = file.read()
        for line in added.splitlines(keepends=True):
            self.lines += 1
            self.at += len(line)
            if text := line.decode(errors="replace").strip():
                self._read(text)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            label, seed, method, settings = (entry[name] for name in ("method", "seed", "told", "settings"))
            run = dict(entry["run"])
        except (ValueError, TypeError, KeyError, AttributeError):
            if self.lines == 1 and not self.START.startswith(line[: len(self.START)]):
                raise ValueError(f"runs must be a file of finished runs, got something else in {self.path}") from None
            warnings.warn(f"{self.path}, line {self.lines}, is damaged, and skipped", stacklevel=2)
            return
        if settings == self.settings and method == self.methods.get(label):
            self.done[label, seed] = run
        elif label in self.methods:
            names = {*settings, *self.settings}
            other = sorted(name for name in names if settings.get(name) != self.settings.get(name))
            self.others[", ".join(other) or "the method's options"] += 1

    def add(self, job: Job, run: dict) -> None:
        """Store a finished run."""
        label, seed = job
        self.done[job] = run
        if self.path is None:
            return
        entry = {"settings": self.settings, "method": label, "told": self.methods[label], "seed": seed, "run": run}
        with open(self.path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            whole = end == 0 or file.read(1) == b"\n"
        with open(self.path, "ab", buffering=0) as file:  # one write: lines of two processes do not mix
            file.write(("" if whole else "\n").encode() + to_json(entry).encode() + b"\n")
