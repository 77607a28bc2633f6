"""`compare`: trains with and without each method, and returns what came out."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fastai.learner import Learner
from joblib import Parallel, delayed

from .cache import Job, Kept
from .fingerprint import digest, installed, of_learner, told
from .methods import Make, makers
from .progress import Progress
from .result import Comparison
from .training import Training


def compare(
    new_learner: Callable[[int], Learner],
    methods: Any,
    *,
    fit: Callable[[Learner], Any],
    seeds: int | Iterable[int] = 5,
    measures: dict[str, Callable[[Learner], float]] | None = None,
    baseline: str = "none",
    better: dict[str, str] | None = None,
    runs: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    code: bool = True,
    jobs: int = 1,
) -> Comparison:
    """Train a learner with and without each method, and compare them seed by seed.

    Everything is seeded before `new_learner` and again before `fit`, so all methods of a seed start from the same
    weights and see the same batches. This is checked, and the report says where it is not so. A run that fails does not
    stop the others; an interruption ends the comparison with the runs that are finished.

    Args:
        new_learner: Returns a learner for a seed, with data, model, loss and metrics as for a training of your own.
        methods: A dict from labels to callbacks, functions that make one, names (``"mixup:0.4"``) or None; or a list of
            names and callbacks.
        fit: Trains a learner, as ``lambda learn: learn.fit_one_cycle(5, 3e-3)``.
        seeds: Number of seeds, or the seeds. Three or more give intervals.
        measures: Further measures: functions of the trained learner, by name. The validation loss and the learner's
            metrics are always measured, after each epoch.
        baseline: Label of the method to compare to; ``"none"`` trains without a method.
        better: "lower" or "higher" for measures whose names do not tell. Losses and errors are better if lower.
        runs: A file of finished runs, which are not trained again; several processes may write to it. None: no file.
        settings: What else the runs depend on and what nobody can tell of the learner: part of the key of a run.
        code: Whether finished runs count for the same code alone, of functions, mixaug and what it is built on; False:
            for the same settings, methods, model and data, whatever the code.
        jobs: Runs to train side by side, with one thread each.

    Raises:
        TypeError: If `new_learner` is no function, or a method is none.
        ValueError: If arguments are not valid, or the baseline could not be trained.

    >>> import torch
    >>> from fastai.basics import DataLoaders, Learner
    >>> from torch.utils.data import TensorDataset
    >>> def new_learner(seed):
    ...     data = TensorDataset(torch.rand(16, 4), torch.arange(16) % 2)
    ...     dls = DataLoaders.from_dsets(data, data, bs=8, num_workers=0)
    ...     return Learner(dls, torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss())
    >>> result = compare(new_learner, ["mixup:0.4"], fit=lambda learn: learn.fit(1), seeds=3)
    >>> result.difference("valid_loss", "mixup:0.4").seeds
    3
    """
    if isinstance(new_learner, Learner) or not callable(new_learner):
        raise TypeError(f"new_learner must be a function of a seed that returns a learner, got {type(new_learner)}")
    chosen = makers(methods, baseline)
    numbers = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must be a number >= 1 or different seeds, got {seeds!r}")
    if not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs must be a whole number >= 1, got {jobs!r}")
    if bad := {name: way for name, way in (better or {}).items() if way not in ("lower", "higher")}:
        raise ValueError(f'better must be "lower" or "higher" for each measure, got {bad}')
    training = Training(new_learner, fit, measures or {}, 1 if jobs > 1 else None)
    key: dict[str, Any] = {"settings": told(settings or {}), **of_learner(training.learner(0))}
    if code:
        functions = {"new_learner": new_learner, "fit": fit, "measures": measures}
        key |= {name: digest([told(f)]) for name, f in functions.items()} | installed()
    kept = Kept(runs, key, {label: _told(make) for label, make in chosen.items()})
    wanted = [(label, seed) for seed in numbers for label in chosen]
    todo = [job for job in wanted if job not in kept.done]
    progress, failed, interrupted = Progress(len(todo)), {}, False
    if len(todo) < len(wanted):
        progress.say(f"{len(wanted) - len(todo)} of {len(wanted)} runs are reused from {runs}")
    for what, n in kept.others.items():
        progress.say(f"{n} other runs in {runs} are not used: they differ in {what}")

    def pending() -> Iterator[Job]:
        for label, seed in todo:
            kept.read()
            if baseline in failed or 0 < len(chosen) - 1 == len(failed):  # nothing to compare
                return
            if label not in failed and (label, seed) not in kept.done:  # it would fail with other seeds too
                yield label, seed

    try:
        for (label, seed), run, error in _outcomes(training, chosen, pending(), jobs, progress):
            if run is None:
                failed[label] = error
                progress.say(f"failed: {label}, seed {seed}: {error}")
            else:
                try:
                    kept.add((label, seed), run)
                except OSError as error:  # a full disk: the run still counts
                    progress.say(f"{label}, seed {seed} is not kept in {runs}: {error}")
            progress.done += 1
    except KeyboardInterrupt:
        interrupted = True
        progress.say(f"interrupted after {progress.done} of {progress.runs} runs")
    progress.end()
    finished = {job: kept.done[job] for job in wanted if job in kept.done}
    if not any(label == baseline for label, _ in finished):
        if interrupted:
            raise KeyboardInterrupt
        raise ValueError(f"Expected a baseline that can be trained, got {failed.get(baseline)} of {baseline!r}")
    return Comparison(finished, list(chosen), baseline, better or {}, failed, interrupted)


def _told(make: Make) -> str:
    """Return what can be told of a method: of its maker, and of what this makes."""
    try:
        return digest([told(make), told(make())])
    except Exception as error:  # its runs will fail, too, and say so
        return digest([told(make), repr(error)])


def _outcomes(training: Training, chosen: dict, jobs: Iterator[Job], n: int, progress: Progress) -> Iterator[tuple]:
    """Yield each job with its run, or with None and the error."""
    if n == 1:
        for label, seed in jobs:
            yield _try(training, chosen[label], label, seed, partial(progress.tell, f"{label}, seed {seed}"))
        return
    work = (delayed(_try)(training, chosen[label], label, seed) for label, seed in jobs)
    outcomes: Any = Parallel(n_jobs=n, return_as="generator_unordered", pre_dispatch="n_jobs")(work)
    for outcome in outcomes:
        (label, seed), *_ = outcome
        progress.tell(f"{label}, seed {seed}", 1.0)
        yield outcome


def _try(training: Training, make: Any, label: str, seed: int, tell: Any = lambda done: None) -> tuple:
    try:
        return (label, seed), training.run(make, seed, tell), ""
    except Exception as error:
        return (label, seed), None, " ".join(f"{type(error).__name__}: {error}".split())
