"""`mixaug compare`: train the same model with and without each mixing method, and report which methods help.

The baseline is training without mixing. All methods of a seed have the same initial weights, batch order and label
noise, so each method is compared to the baseline seed by seed. Finished runs are stored in a file. Another call with
the same settings reuses them instead of training again.
"""

import hashlib
import inspect
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import fastai.callback.schedule  # noqa: F401  (patches Learner)
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import get_image_files
from fastai.layers import ConvLayer
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import AccumMetric
from fastai.torch_core import TensorCategory, TensorImage, default_device, set_seed
from fastcore.basics import chunked
from fastcore.script import anno_parser
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from scipy.stats import t as student
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from .. import __version__
from ..handler import MixHandler
from .measures import ece
from .methods import NAMES

DIGITS_METHODS = "none,mixup:0.4,mixup:8,cutmix:1,manifold_mixup:8,output_mixup:8"
FOLDER_METHODS = "none,mixup,cutmix,manifold_mixup,output_mixup"
METHODS = {name: make for name, make in NAMES.items() if name != "cmixup"}  # which is for continuous targets
TILES = 4  # samples to show for each method


class BadInputError(Exception):
    """An error that the user can fix. Its message is printed without a traceback."""


@dataclass(frozen=True)
class Data:
    """A data set for image classification.

    Args:
        train: Images ``(N, C, H, W)``, uint8 or floats in [0, 1], and class indices ``(N,)``.
        valid: The same for validation.
        classes: Names of the classes.
    """

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    classes: list[str]


@dataclass(frozen=True)
class Run:
    """The result of one training.

    Args:
        accuracy: Validation accuracy after each epoch, in [0, 1].
        loss: Final validation loss; nan if it is not finite.
        ece: Final expected calibration error, in [0, 1]; nan if it is not finite.
        seconds: Median duration of an epoch.
    """

    accuracy: list[float]
    loss: float
    ece: float
    seconds: float


@dataclass(frozen=True)
class Summary:
    """A measure over the seeds of a method.

    Args:
        mean: Mean.
        deviation: Standard deviation.
        change: Mean difference to the baseline, paired by seed.
        half_width: Half width of the interval of `change`, see :func:`paired_interval`.
    """

    mean: float
    deviation: float
    change: float
    half_width: float

    @property
    def significant(self) -> bool:
        """Whether the interval of the change excludes 0."""
        return abs(self.change) > self.half_width


Methods = dict[str, Callable[[], MixHandler] | None]  # from a label to a function that makes the callback
Job = tuple[str, int]  # label and seed of one training
Results = dict[str, dict[int, Run]]  # by label and seed; the baseline, `none`, has every seed
MEASURES: dict[str, tuple[Callable[[Run], float], int]] = {  # and the number of decimals to show
    "accuracy %": (lambda run: 100 * run.accuracy[-1], 1),
    "valid loss": (lambda run: run.loss, 3),
    "ECE %": (lambda run: 100 * run.ece, 1),
}


# Data


def digits() -> Data:
    """Return scikit-learn's 1797 handwritten digits, images of 1 x 8 x 8, with 45 % of each class for validation."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    train, valid = split(y, 0.45)
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return Data((x[train], y[train]), (x[valid], y[valid]), names)


def folder(path: Path, size: int) -> Data:
    """Read images from a folder for each class.

    Args:
        path: A folder with class folders, or with such folders in train/ and valid/. Without train/ and valid/, 20 % of
            each class are for validation.
        size: The center of each image is resized to size x size.

    Returns:
        Images ``(N, 3, size, size)``, uint8.

    Raises:
        BadInputError: If there are no images of at least two classes, or an image cannot be read.
    """
    if not path.is_dir():
        raise BadInputError(f"data must be digits or a folder that exists, got {str(path)!r}")
    roots = [path / "train", path / "valid"]
    roots = roots if all(root.is_dir() for root in roots) else [path]
    folders = [[d for d in sorted(root.iterdir()) if d.is_dir() and d.name[0] != "."] for root in roots]
    files = [[(d.name, file) for d in part for file in sorted(get_image_files(d))] for part in folders]
    found = [Counter(name for name, _ in part) for part in files]
    classes = list(found[0])
    if len(classes) < 2:
        raise BadInputError(f"Expected images in at least two class folders in {roots[0]}, got {classes}")
    if not found[-1] or found[-1].keys() - found[0].keys():
        raise BadInputError(f"Expected images of the classes {classes} in {roots[-1]}, got {list(found[-1])}")
    if len(roots) == 1 and min(found[0].values()) < 2:
        raise BadInputError(f"Expected at least two images of each class in {path}, got {dict(found[0])}")
    y = [torch.tensor([classes.index(name) for name, _ in part]) for part in files]
    x = [torch.stack([read(file, size) for _, file in part]) for part in files]
    if len(roots) == 2:
        return Data((x[0], y[0]), (x[1], y[1]), classes)
    train, valid = split(y[0], 0.2)
    return Data((x[0][train], y[0][train]), (x[0][valid], y[0][valid]), classes)


def read(file: Path, size: int) -> Tensor:
    """Return the center of an image, uint8 ``(3, size, size)``."""
    try:
        with Image.open(file) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size))
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise BadInputError(f"Expected an image, got {file} ({first_line(error)}). Remove or repair it") from None
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def split(y: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split samples into training and validation samples, always in the same way.

    Args:
        y: Class indices ``(N,)``.
        fraction: Fraction of each class for validation, in [0, 1]; at least one sample.

    Returns:
        Indices of the training samples and of the validation samples.
    """
    rng, train, valid = torch.Generator().manual_seed(0), [], []
    for c in y.unique():
        at = torch.where(y == c)[0]
        at = at[torch.randperm(len(at), generator=rng)]
        n = max(1, round(fraction * len(at)))
        train.append(at[n:])
        valid.append(at[:n])
    return torch.cat(train), torch.cat(valid)


def noisy(y: Tensor, fraction: float, n_classes: int, seed: int) -> Tensor:
    """Add label noise.

    Args:
        y: Class indices ``(N,)``.
        fraction: Fraction of the labels to replace by another class, in [0, 1]. All other classes are equally likely.
        n_classes: Number of classes.
        seed: Seed of the random generator.

    Returns:
        Noisy labels ``(N,)``.
    """
    rng = torch.Generator().manual_seed(seed)
    replaced = torch.randperm(len(y), generator=rng)[: round(fraction * len(y))]
    shift = torch.randint(1, n_classes, (len(replaced),), generator=rng)
    return y.index_put((replaced,), (y[replaced] + shift) % n_classes)


def fingerprint(data: Data) -> str:
    """Return a hash of the tensors and the classes, 16 hexadecimal digits."""
    arrays = [t.contiguous().numpy() for t in (*data.train, *data.valid)]
    return digest([repr((data.classes, [(a.dtype, a.shape) for a in arrays])).encode(), *(a.data for a in arrays)])


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return a hash of all parts, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def floats(x: Tensor) -> Tensor:
    """Return images as floats in [0, 1]."""
    return x / 255 if x.dtype == torch.uint8 else x


# Training


class Batches(TfmdDL):
    """A loader that indexes whole tensors once for each batch, without a cost for each sample."""

    def create_batches(self, samps: Iterator[int]) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.dataset.tensors
        for at in chunked(samps, self.bs, self.drop_last):
            yield TensorImage(floats(x[at])), TensorCategory(y[at])


def learner(data: Data, seed: int, noise: float, bs: int, arch: str, pretrained: bool) -> Learner:
    """Return a learner with accuracy and expected calibration error as metrics.

    Args:
        data: Images and labels.
        seed: Seed of the initial weights, the batch order and the label noise.
        noise: Fraction of the training labels to replace by another class, in [0, 1].
        bs: Batch size.
        arch: ``"cnn"``, or the name of a model of torchvision or timm.
        pretrained: Start from downloaded weights.
    """
    set_seed(seed)
    (x, y), n_classes = data.train, len(data.classes)
    train_ds = TensorDataset(x, noisy(y, noise, n_classes, seed))
    train_dl = Batches(train_ds, bs=min(bs, len(y)), shuffle=True, drop_last=True, num_workers=0)
    valid_dl = Batches(TensorDataset(*data.valid), bs=bs, num_workers=0)
    dls = DataLoaders(train_dl, valid_dl, device=default_device())
    # Accuracy in double precision: fastai's is rounded to single precision, and equal differences would not be equal
    accuracy = AccumMetric(lambda pred, target: (pred.argmax(1) == target).sum().item() / len(target), flatten=False)
    calibration = AccumMetric(lambda pred, target: ece(pred.softmax(1), target), flatten=False)
    loss_func, metrics = CrossEntropyLossFlat(), [accuracy, calibration]
    if arch == "cnn":
        return Learner(dls, cnn(x.shape[1], n_classes), loss_func=loss_func, metrics=metrics)
    from fastai.vision.learner import model_meta, vision_learner  # slow to import

    model = {f.__name__: f for f in model_meta}.get(arch, arch)
    options = {"pretrained": pretrained, "n_in": x.shape[1], "n_out": n_classes}
    return vision_learner(dls, model, loss_func=loss_func, metrics=metrics, **options)


def cnn(n_in: int, n_classes: int) -> nn.Module:
    """Return a network for small images ``(B, n_in, H, W)``."""
    body = ConvLayer(n_in, 32), ConvLayer(32, 64, stride=2), ConvLayer(64, 128, stride=2)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, n_classes))


class Clock(Callback):
    """Time the epochs and print the remaining time to stderr, on a terminal in one line, else once for each run."""

    def __init__(self, runs: int):
        self.runs, self.done, self.label, self.start = runs, 0, "", time.monotonic()

    def before_fit(self) -> None:
        self.seconds = []

    def before_epoch(self) -> None:
        self.epoch_start = time.perf_counter()

    def after_epoch(self) -> None:
        self.seconds.append(time.perf_counter() - self.epoch_start)
        if self.opt.frozen_idx:
            return  # the first of the two fits of `fine_tune`
        left = (time.monotonic() - self.start) * (self.runs / (self.done + (self.epoch + 1) / self.n_epoch) - 1)
        minutes, seconds = divmod(round(left), 60)
        line = f"run {self.done + 1} of {self.runs}, {minutes}:{seconds:02} left: {self.label}"
        if sys.stderr.isatty():
            print(f"\r{line:<79}", end="", file=sys.stderr, flush=True)
        elif self.epoch + 1 == self.n_epoch:
            print(line, file=sys.stderr, flush=True)


def train(learn: Learner, clock: Clock, epochs: int, lr: float) -> Run:
    """Train by the one-cycle schedule, or a pretrained model by `fine_tune`, and return the result."""
    learn.add_cb(clock)
    with learn.no_bar(), learn.no_logging():
        (learn.fine_tune if getattr(learn, "pretrained", False) else learn.fit_one_cycle)(epochs, lr)
    _, losses, accuracies, eces = zip(*learn.recorder.values, strict=True)
    loss = losses[-1] if math.isfinite(losses[-1]) else math.nan
    return Run(list(accuracies), loss, eces[-1], float(np.median(clock.seconds)))


# Finished runs


class RunsFile:
    """A file of finished runs, each a line of JSON. Lines are only added, so runs with other settings stay.

    Args:
        path: The file.
        settings: Settings of this call. The runs with equal settings are in the attribute `done`.

    Raises:
        BadInputError: If the file cannot be written, or contains anything else.
    """

    START = b'{"settings": '

    def __init__(self, path: str, settings: dict[str, Any]):
        self.path, self.settings = path, settings
        self.done: dict[Job, Run] = {}
        try:
            with open(path, "a+b") as file:
                file.seek(0)
                lines = file.read().splitlines(keepends=True)
                for at, line in enumerate(lines, 1):
                    if written := line.strip(b"\0\r\n"):  # after a power failure some file systems leave zeros
                        self.read(at, written)
                if lines and not lines[-1].endswith(b"\n"):
                    file.write(b"\n")  # a crash truncated the last line
        except OSError as error:
            raise BadInputError(f"runs must be a file to write, got {path!r} ({error.strerror})") from None

    def read(self, at: int, line: bytes) -> None:
        """Read the run in line number `at`, and skip it if it has other settings or is truncated."""
        try:
            entry = json.loads(line)
            job = entry["method"], entry["seed"]
            fields: Any = {name: math.nan if value is None else value for name, value in entry["run"].items()}
            if entry["settings"] == self.settings:
                self.done[job] = Run(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            start = line.strip()[: len(self.START)]
            if not (isinstance(error, ValueError) and self.START.startswith(start)):
                raise BadInputError(
                    f"Expected finished runs in {self.path!r}, got something else in line {at}. Name another file"
                ) from None

    def add(self, job: Job, run: Run) -> None:
        """Store a finished run."""
        self.done[job] = run
        label, seed = job
        entry = {"settings": self.settings, "method": label, "seed": seed, "run": asdict(run)}
        with open(self.path, "a") as file:
            file.write(to_json(entry) + "\n")


def to_json(value: Any) -> str:
    """Return a value as one line of JSON, with null for nan."""

    def nulls(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: nulls(item) for key, item in value.items()}
        if isinstance(value, list):
            return [nulls(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(nulls(value), allow_nan=False)


# Results


def paired_interval(differences: Sequence[float], comparisons: int = 1) -> tuple[float, float]:
    """Return the mean of paired differences and the half width of its 95 % confidence interval (Student's t).

    Args:
        differences: Differences, one for each pair.
        comparisons: Number of intervals that hold simultaneously with 95 % confidence (Bonferroni), >= 1.

    Returns:
        Mean and half width. The half width is nan if there is a single difference, or if all are equal.

    Raises:
        ValueError: If there is no difference or no comparison.
    """
    d = np.asarray(differences, dtype=float)
    if not d.size:
        raise ValueError("differences must be at least one number, got none")
    if comparisons < 1:
        raise ValueError(f"comparisons must be >= 1, got {comparisons!r}")
    mean = float(d.mean())
    if len(d) == 1 or np.ptp(d) <= 1e-9 * np.abs(d).max():  # equal up to rounding
        return mean, math.nan
    return mean, float(student.isf(0.025 / comparisons, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5)


def summarize(results: Results) -> dict[str, dict[str, Summary]]:
    """Return the summary of each measure of each method, with intervals corrected for the number of methods."""
    none, summaries = results.get("none", {}), {}
    for label, runs in results.items():
        for name, (measure, _) in MEASURES.items():
            values = [measure(run) for run in runs.values()]
            differences = [measure(run) - measure(none[seed]) for seed, run in runs.items()]
            change = paired_interval(differences, max(1, len(results) - 1))
            summaries.setdefault(label, {})[name] = Summary(float(np.mean(values)), deviation(values), *change)
    return summaries


def deviation(values: list[float]) -> float:
    """Return the standard deviation; nan for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def change(summary: Summary, decimals: int) -> str:
    """Return "change ± half width", or the change alone if it has no interval."""
    bounds = "" if math.isnan(summary.half_width) else f" ± {summary.half_width:.{decimals}f}"
    return f"{summary.change:+.{decimals}f}{bounds}"


def spread(values: list[float], decimals: int) -> str:
    """Return "mean ± standard deviation", or the mean alone for a single value."""
    bounds = f" ± {deviation(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{bounds}"


def statement(label: str, seeds: int, summary: dict[str, Summary]) -> str:
    """Return a sentence that compares a method to the baseline, and claims no more than the intervals support."""
    accuracy, ece = summary["accuracy %"], summary["ECE %"]
    points = f"{change(accuracy, 1)} points"
    if seeds == 1:
        words = f"{label}: {points} with one seed, which is no evidence"
    elif math.isnan(accuracy.change):
        words = f"{label}: no result, because some runs have no accuracy"
    elif math.isnan(accuracy.half_width):
        words = f"{label}: {points} with each of {seeds} seeds. Equal differences have no interval"
    elif accuracy.significant:
        better = "better" if accuracy.change > 0 else "worse"
        words = f"{label} is significantly {better} than the baseline: {points} over {seeds} seeds"
    else:
        words = f"{label} is not significantly different from the baseline: {points} over {seeds} seeds"
    if ece.significant:
        higher = "higher" if ece.change > 0 else "lower"
        words += f". Its calibration error is significantly {higher}: {change(ece, 1)} points"
    return words


def statements(results: Results) -> dict[str, str]:
    """Return a sentence for each method except `none`."""
    summaries = summarize(results)
    return {label: statement(label, len(results[label]), summaries[label]) for label in results if label != "none"}


def table(results: Results) -> str:
    """Return a line for each method, with its measures and their changes from the baseline."""
    columns = [column for name in MEASURES for column in (name, "change")]
    rows, summaries = [["method", "seeds", *columns, "time x"]], summarize(results)
    for label, runs in results.items():
        row = [label, str(len(runs))]
        for name, (measure, decimals) in MEASURES.items():
            summary = summaries[label][name]
            shown = f"{change(summary, decimals)}{' *' if summary.significant else ''}"
            row += [spread([measure(run) for run in runs.values()], decimals), "" if label == "none" else shown]
        rows.append([*row, spread([run.seconds / results["none"][seed].seconds for seed, run in runs.items()], 2)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def report(results: Results, noise: float) -> str:
    """Return the table, a sentence for each method, and an explanation.

    Args:
        results: Finished runs.
        noise: Fraction of noisy labels. If it is not 0, the baseline's best epoch is reported too.
    """
    best = spread([100 * max(run.accuracy) for run in results["none"].values()], 1)
    early = f"\nThe baseline at its best epoch, the upper bound of early stopping: accuracy {best} %\n"
    words, n = "".join(f"{line}\n" for line in statements(results).values()), len(results) - 1
    corrected = f", Bonferroni for {n} comparisons" if n > 1 else ""
    return f"""none: the baseline, without mixing. change: difference to none, paired by seed, ± half width of its 95 %
interval (paired t{corrected})

{table(results)}

{words}{early if noise else ""}
Mean ± standard deviation over the seeds. ECE: expected calibration error, 15 bins. time x: time of an epoch with its
validation, relative to the baseline. *: significant, the interval of the change excludes 0. If no method changed
anything, a column would have a * in at most 1 of 20 such tables. The sentences use the same intervals. The seeds differ
in initial weights, batch order and label noise. The split is fixed, so the intervals do not include the variation over
validation images."""


def as_json(settings: dict[str, Any], results: Results) -> str:
    """Return the settings and the runs, measures and sentence of each method as one line of JSON."""
    words, methods = statements(results), {}
    for label, summary in summarize(results).items():
        runs = [{"seed": seed, **asdict(run)} for seed, run in results[label].items()]
        measures = {name: asdict(measure) for name, measure in summary.items()}
        methods[label] = {"runs": runs, **measures, "statement": words.get(label)}
    interval = {"confidence": 0.95, "comparisons": max(0, len(results) - 1)}
    return to_json({"settings": settings, "interval": interval, "methods": methods})


def tiles(data: Data, cb: MixHandler | None) -> list[tuple[Tensor, str]]:
    """Return training images ``(C, H, W)`` after mixing, each with its label.

    If the method mixes a layer or the prediction, each image shows the original beside its partner, both unchanged.
    """
    set_seed(2)
    at = torch.randperm(len(data.train[1]))[:64]
    x, names = floats(data.train[0][at]), [data.classes[c] for c in data.train[1][at]]
    names = [name if len(name) < 17 else f"{name[:15]}…" for name in names]
    if cb is None:
        return list(zip(x[:TILES], names, strict=False))
    mix: Any = cb.draw(x)
    gap = torch.ones_like(x[..., : max(1, x.shape[-1] // 12)])
    images = mix.blend(x) if cb._mixes_input else torch.cat([x, gap, x[mix.partner]], -1)
    labels = zip(names, mix.partner.tolist(), mix.lam.tolist(), strict=True)
    parts = [(f"{lam:.2f} {name}", f"+ {1 - lam:.2f} {names[partner]}") for name, partner, lam in labels]
    lines = ["\n".join(pair) if sum(map(len, pair)) > 24 else " ".join(pair) for pair in parts]
    return list(zip(images, lines, strict=True))[:TILES]


def figure(data: Data, methods: Methods, results: Results) -> Figure:
    """Return a row for each method: its mixed samples, and each measure by seed with mean and standard deviation."""
    n, caption = len(methods), "mean ± standard deviation; gray: each seed; dotted: mean of the baseline"
    fig = Figure(figsize=(17, 1.2 + 1.35 * n), dpi=100, layout="constrained")
    grid = fig.add_gridspec(n, 1 + TILES + len(MEASURES), width_ratios=[1] * (1 + TILES) + [1.5] * len(MEASURES))
    charts: dict[str, Any] = {}
    for row, (label, make) in enumerate(methods.items()):
        cb, runs = make() if make else None, list(results.get(label, {}).values())
        ax = fig.add_subplot(grid[row, 0])
        ax.axis("off")
        ax.text(1, 0.55, label, ha="right", va="bottom", fontsize=12)
        where = "baseline" if cb is None else "input mixed" if cb._mixes_input else "layer mixed:\noriginal | partner"
        ax.text(1, 0.45, where, ha="right", va="top", fontsize=9, color="0.35")
        for column, (image, title) in enumerate(tiles(data, cb), 1):
            ax = fig.add_subplot(grid[row, column])
            ax.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set_title(title, fontsize=9)
            ax.axis("off")
        for column, (name, (measure, _)) in enumerate(MEASURES.items(), 1 + TILES):
            ax = fig.add_subplot(grid[row, column], sharex=charts.get(name))
            charts.setdefault(name, ax)
            values, baseline = [measure(run) for run in runs], [measure(run) for run in results["none"].values()]
            if values:
                ax.plot(values, [-0.35] * len(values), "o", color="0.55", markersize=4, alpha=0.7)
                ax.errorbar(np.mean(values), 0.15, xerr=deviation(values), fmt="o", capsize=5, color="C0")
            ax.axvline(float(np.mean(baseline)), color="0.4", ls=":")
            ax.set(ylim=(-1, 1), yticks=[], title="" if row else name)
            ax.tick_params(labelbottom=row == n - 1)
            ax.grid(axis="x", alpha=0.3)
    fig.supxlabel(caption, x=0.99, ha="right", fontsize=9, color="0.35")
    return fig


# The command


def parse_methods(text: str, alpha: float | None) -> Methods:
    """Return the methods by label, each once, with the baseline `none` in front.

    Args:
        text: Names with or without an alpha, separated by commas: ``"mixup:0.4,cutmix"``.
        alpha: Alpha of the methods named without one; None: each method's default.

    Raises:
        BadInputError: If a name or an alpha is not valid.
    """
    methods: Methods = {"none": None}
    for entry in map(str.strip, text.split(",")):
        name, colon, given = entry.partition(":")
        if entry == "none":
            continue
        if name not in METHODS:
            raise BadInputError(
                f"methods must be all, none, {', '.join(METHODS)}, or as mixup:8 for alpha 8, got {entry!r}"
            )
        make = METHODS[name]
        default = inspect.signature(make).parameters["alpha"].default if alpha is None else alpha
        try:
            value = float(given) if colon else default
            make(value)
            methods[f"{name}:{str(value).removesuffix('.0')}"] = partial(make, value)
        except ValueError as error:
            raise BadInputError(f"{entry}: {error}") from None
    return methods


def number(name: str, text: str, auto: float) -> float:
    """Return the number in `text`, or `auto` for the text "auto"."""
    try:
        return auto if text == "auto" else float(text)
    except ValueError:
        raise BadInputError(f"{name} must be a number or auto, got {text!r}") from None


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def compare(
    methods: str = "auto",  # Comma-separated, with or without alpha: none,mixup:0.2,mixup:1,cutmix; all: all of them
    alpha: str = "auto",  # Alpha of the methods named without one; auto: each method's default
    data: str = "digits",  # Folder with a folder of images for each class, or with train/ and valid/ of such folders
    arch: str = "auto",  # cnn (a small one), or a model of torchvision or timm; auto: cnn for digits, else resnet18
    pretrained: bool = False,  # Start from downloaded weights
    size: int = 128,  # Images in a folder are cropped and resized to size x size, and held in memory
    epochs: int = 25,  # Epochs of each run
    seeds: int = 5,  # Runs of each method
    noise: str = "auto",  # Fraction of the training labels replaced by another class; auto: 0.4 for digits, else 0
    bs: int = 128,  # Batch size
    lr: float = 5e-3,  # Maximum learning rate of the one-cycle schedule
    out: str = "compare.png",  # Picture to write: mixed samples and results
    runs: str = "compare.jsonl",  # File of finished runs, which are not trained again; "": no file
    json: bool = False,  # Print settings, runs and results as JSON instead of the table
) -> int:
    """Train a model without mixing and with each method, print and draw the results.

    Without options: handwritten digits with 40 % label noise, about three minutes on two cores. There is no other
    augmentation. Exit codes: 1: a run failed; 2: bad input; 130: interrupted. After 1 and 130 the finished runs are
    shown, and the same command continues where it stopped.
    """
    demo = data == "digits"
    label_noise = number("noise", noise, auto=0.4 if demo else 0)
    limits = {"epochs": (epochs, 1, 10000), "seeds": (seeds, 1, 1000), "size": (size, 1, 4096), "bs": (bs, 2, 65536)}
    for name, (value, low, high) in {**limits, "lr": (lr, 1e-9, 10), "noise": (label_noise, 0, 1)}.items():
        if not low <= value <= high:
            raise BadInputError(f"{name} must be a number from {low:g} to {high:g}, got {value:g}")
    if Path(out).is_dir() or not Path(out).absolute().parent.is_dir():
        raise BadInputError(f"out must be a file in a folder that exists, got {out!r}")
    if Path(out).resolve() == Path(runs).resolve():
        raise BadInputError(f"out and runs must be two files, got {out!r} for both")
    arch = arch if arch != "auto" else "cnn" if demo else "resnet18"
    if pretrained and arch == "cnn":
        raise BadInputError("arch must be a model of torchvision or timm for pretrained weights, got 'cnn'")
    texts = {"auto": DIGITS_METHODS if demo else FOLDER_METHODS, "all": ",".join(METHODS)}
    chosen = parse_methods(texts.get(methods, methods), None if alpha == "auto" else number("alpha", alpha, 0))
    images = digits() if demo else folder(Path(data), size)
    new_learner = partial(learner, images, noise=label_noise, bs=bs, arch=arch, pretrained=pretrained)
    shape = tuple(images.train[0].shape[1:])
    try:
        learn = new_learner(0)
        with torch.no_grad():
            learn.model.to(learn.dls.device).eval()(learn.dls.one_batch()[0])
    except Exception as error:  # an unknown name, or a network that fails for this size, raises errors of many kinds
        raise BadInputError(f"arch must be a model for images of {shape}, got {arch!r} ({first_line(error)})") from None
    versions = {name: version(name) for name in ("torch", "torchvision", "fastai", "timm") if find_spec(name)}
    versions["mixaug"] = (
        f"{__version__} {digest(file.read_bytes() for file in sorted(Path(__file__).parent.parent.rglob('*.py')))}"
    )
    settings = {
        "epochs": epochs, "noise": label_noise, "bs": bs, "lr": lr, "arch": arch, "pretrained": pretrained,
        "shape": list(shape), "fingerprint": fingerprint(images), "device": default_device().type, **versions,
    }  # fmt: skip
    kept = RunsFile(runs or os.devnull, settings)
    jobs = [(label, seed) for seed in range(seeds) for label in chosen]
    todo = [job for job in jobs if job not in kept.done]
    if len(todo) < len(jobs):
        print(f"mixaug compare: {len(jobs) - len(todo)} of {len(jobs)} runs reused from {runs}", file=sys.stderr)
    if not json:
        noise_line = f", {label_noise:.0%} label noise" if label_noise else ""
        print(f"{data}: {len(images.train[1])} training images of {shape}{noise_line};")
        print(f"{len(images.valid[1])} validation images, {len(images.classes)} classes; {arch}; epochs: {epochs}\n")
    code = run(todo, chosen, new_learner, epochs, lr, kept)
    if code and runs:
        print("mixaug compare: run the same command again to continue", file=sys.stderr)
    results = by_method(kept.done, jobs)
    if json:
        print(as_json({"data": data, **settings}, results))
    elif results:
        print(report(results, label_noise))
    if results:
        figure(images, chosen, results).savefig(out, format="png")
        print("" if json else f"\nwrote {out}\n", end="")
    return code


def run(
    jobs: list[Job], methods: Methods, new_learner: Callable[[int], Learner], epochs: int, lr: float, kept: RunsFile
) -> int:
    """Train each method with each seed, store the results, and return the exit code.

    A method that failed is not trained with other seeds.
    """
    clock, terminal, failed = Clock(len(jobs)), sys.stderr.isatty() and bool(jobs), set()
    for clock.done, (label, seed) in enumerate(jobs):
        clock.label, make = f"{label}, seed {seed}", methods[label]
        if label in failed:
            continue
        try:
            learn = new_learner(seed)
            learn.add_cbs([make()] if make else [])
            kept.add((label, seed), train(learn, clock, epochs, lr))
        except (Exception, KeyboardInterrupt) as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            reason = "interrupted" if interrupted else f"failed, {first_line(error)},"
            line = f"mixaug compare: {reason} in run {clock.done + 1} of {clock.runs} ({clock.label})"
            print(f"{chr(10) * terminal}{line}", file=sys.stderr)
            if interrupted:
                return 130
            failed.add(label)  # it would fail with other seeds too
    print("\n" * terminal, end="", file=sys.stderr)
    return 1 if failed else 0


def by_method(done: dict[Job, Run], jobs: list[Job]) -> Results:
    """Return the finished runs of `jobs` by label and seed, for the seeds that the baseline has finished too."""
    results: Results = {}
    for label, seed in jobs:
        if (label, seed) in done and ("none", seed) in done:
            results.setdefault(label, {})[seed] = done[label, seed]
    return results


def main(argv: list[str]) -> int:
    """Run the command with the arguments `argv`, and return its exit code."""

    def refuse(message: str) -> NoReturn:
        raise BadInputError(message)

    parser = anno_parser(compare, prog="mixaug compare")
    parser.error = refuse  # one line, without the usage
    try:
        options = vars(parser.parse_args(argv))
        return compare(**{name: options[name] for name in inspect.signature(compare).parameters})
    except (BadInputError, OSError) as error:
        print(f"mixaug compare: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInputError) else 1
    except KeyboardInterrupt:
        print("mixaug compare: interrupted", file=sys.stderr)
        return 130
