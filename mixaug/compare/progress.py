"""One line of progress: what is trained, how far it is, what is left."""

import sys
import time
from typing import Any

from fastcore.imports import IN_NOTEBOOK


class Progress:
    """Shows how far the runs are: a bar in notebooks, one line on terminals, a line for each run in files.

    Args:
        runs: Number of runs to train.
    """

    def __init__(self, runs: int):
        self.runs, self.done, self.begun, self.bar = runs, 0, time.monotonic(), self._new_bar(runs)
        self.terminal = sys.stderr.isatty() and self.bar is None

    def _new_bar(self, runs: int) -> Any:
        if not IN_NOTEBOOK or not runs:
            return None
        from fastprogress.fastprogress import progress_bar

        bar: Any = progress_bar(range(runs * 100), leave=False)
        bar.update(0)  # shows it
        return bar

    def tell(self, name: str, done: float) -> None:
        """Show that the current run is done in part, a fraction in [0, 1]."""
        finished = self.done + done
        left = (time.monotonic() - self.begun) * (self.runs / finished - 1)
        minutes, seconds = divmod(round(left), 60)
        run = f"run {min(self.done + 1, self.runs)} of {self.runs}"
        line = f"{run}, {minutes}:{seconds:02} left: {name}"
        if self.bar is not None:
            self.bar.comment = f"{run}: {name}"  # it adds the times
            self.bar.update(min(int(100 * finished), self.bar.total))
        elif self.terminal:
            print(f"\r{line:<79}", end="", file=sys.stderr, flush=True)
        elif done == 1:
            print(line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Show a line that stays."""
        print(f"{chr(13) + ' ' * 79 + chr(13) if self.terminal else ''}{line}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """End the line on terminals, and remove the bar in notebooks."""
        if self.bar is not None and self.bar.is_active:  # some runs failed, or were interrupted
            self.bar.on_iter_end()
        if self.terminal and self.runs:
            print(file=sys.stderr)
