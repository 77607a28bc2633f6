"""`mixaug compare`: train the same model with and without each mixing method, and tell which of them help.

The model's first weights, the order of the batches and the wrong labels are the same for all methods of a seed. So a
method is compared to plain training seed by seed. Each finished run is kept in a file, from where another call with
the same settings takes it instead of training again.
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

from . import __version__
from .combine import OneOf
from .handlers import CutMix, FMix, MixHandler, MixUp, ResizeMix, SaliencyMix
from .manifold import ManifoldMixup, OutputMixup, PatchUp


def one_of(alpha: float = 1.0) -> OneOf:
    """MixUp or CutMix, for each sample one of them."""
    return OneOf(MixUp(alpha), CutMix(alpha), per_sample=True)


DIGITS_METHODS = "none,mixup:0.4,mixup:8,cutmix:1,manifold_mixup:8,output_mixup:8"
FOLDER_METHODS = "none,mixup,cutmix,manifold_mixup,output_mixup"
METHODS: dict[str, Callable[..., MixHandler]] = {
    "mixup": MixUp,
    "cutmix": CutMix,
    "fmix": FMix,
    "resize_mix": ResizeMix,
    "saliency_mix": SaliencyMix,
    "manifold_mixup": ManifoldMixup,
    "patch_up": PatchUp,
    "output_mixup": OutputMixup,
    "one_of": one_of,
}
TILES = 4  # samples shown of each method


class BadInputError(Exception):
    """What the user can put right; its text is the one line that is shown."""


@dataclass(frozen=True)
class Data:
    """Images (N, C, H, W), uint8 or floats in [0, 1], with class numbers (N,), and the names of the classes."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    classes: list[str]


@dataclass(frozen=True)
class Run:
    """One training: validation accuracy after each epoch, loss and ECE after the last, median seconds of an epoch.

    Loss and ECE are nan where training came to no finite number.
    """

    accuracy: list[float]
    loss: float
    ece: float
    seconds: float


@dataclass(frozen=True)
class Summary:
    """A measure over a method's seeds: mean, standard deviation, and its change from `none` as by `paired_interval`."""

    mean: float
    deviation: float
    change: float
    half_width: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of the change leaves out 0."""
        return abs(self.change) > self.half_width


Methods = dict[str, Callable[[], MixHandler] | None]  # by label, what makes the callback
Job = tuple[str, int]  # label and seed of one training
Results = dict[str, dict[int, Run]]  # by label, then by seed; each seed is one of none's, too
MEASURES: dict[str, tuple[Callable[[Run], float], int]] = {  # with the decimals to show
    "accuracy %": (lambda run: 100 * run.accuracy[-1], 1),
    "valid loss": (lambda run: run.loss, 3),
    "ECE %": (lambda run: 100 * run.ece, 1),
}


# Data


def digits() -> Data:
    """Return scikit-learn's 1797 handwritten digits, 1 x 8 x 8, 45 % of each class for validation."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    train, valid = split(y, 0.45)
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return Data((x[train], y[train]), (x[valid], y[valid]), names)


def folder(path: Path, size: int) -> Data:
    """Read images, 3 x size x size, from class folders in train/ and valid/, or split 80 to 20 class by class."""
    if not path.is_dir():
        raise BadInputError(f"there is no folder {path}")
    roots = [path / "train", path / "valid"]
    roots = roots if all(root.is_dir() for root in roots) else [path]
    folders = [[d for d in sorted(root.iterdir()) if d.is_dir() and d.name[0] != "."] for root in roots]
    files = [[(d.name, file) for d in part for file in sorted(get_image_files(d))] for part in folders]
    found = [Counter(name for name, _ in part) for part in files]
    classes = list(found[0])
    if len(classes) < 2:
        raise BadInputError(f"images in two class folders at least were wanted in {roots[0]}, {classes} came")
    if not found[-1] or found[-1].keys() - found[0].keys():
        raise BadInputError(f"images of the classes {classes} were wanted in {roots[-1]}, {list(found[-1])} came")
    if len(roots) == 1 and min(found[0].values()) < 2:
        raise BadInputError(f"two images of each class at least were wanted in {path}, {dict(found[0])} came")
    y = [torch.tensor([classes.index(name) for name, _ in part]) for part in files]
    x = [torch.stack([read(file, size) for _, file in part]) for part in files]
    if len(roots) == 2:
        return Data((x[0], y[0]), (x[1], y[1]), classes)
    train, valid = split(y[0], 0.2)
    return Data((x[0][train], y[0][train]), (x[0][valid], y[0][valid]), classes)


def read(file: Path, size: int) -> Tensor:
    """Return the middle of an image, uint8 (3, size, size)."""
    try:
        with Image.open(file) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size))
    except Exception as error:  # Pillow's decoders let through whatever they come upon
        raise BadInputError(f"{file} cannot be read as an image ({first_line(error)})") from None
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def split(y: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return where the training and the validation samples are: a fixed random `share` of each class, one at least."""
    rng, train, valid = torch.Generator().manual_seed(0), [], []
    for c in y.unique():
        at = torch.where(y == c)[0]
        at = at[torch.randperm(len(at), generator=rng)]
        n = max(1, round(share * len(at)))
        train.append(at[n:])
        valid.append(at[:n])
    return torch.cat(train), torch.cat(valid)


def noisy(y: Tensor, share: float, n_classes: int, seed: int) -> Tensor:
    """Return labels (N,) of which a random `share` became another class, each other class as likely as the next."""
    rng = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(y), generator=rng)[: round(share * len(y))]
    shift = torch.randint(1, n_classes, (len(wrong),), generator=rng)
    return y.index_put((wrong,), (y[wrong] + shift) % n_classes)


def fingerprint(data: Data) -> str:
    """Return sixteen digits that differ where a tensor or the classes do."""
    arrays = [t.contiguous().numpy() for t in (*data.train, *data.valid)]
    return digest([repr((data.classes, [(a.dtype, a.shape) for a in arrays])).encode(), *(a.data for a in arrays)])


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return sixteen digits that differ where a part does."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def floats(x: Tensor) -> Tensor:
    """Return images as floats in [0, 1]."""
    return x / 255 if x.dtype == torch.uint8 else x


# Training


class Batches(TfmdDL):
    """Batches taken straight out of tensors, which costs nothing for each sample."""

    def create_batches(self, samps: Iterator[int]) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.dataset.tensors
        for at in chunked(samps, self.bs, self.drop_last):
            yield TensorImage(floats(x[at])), TensorCategory(y[at])


def learner(data: Data, seed: int, noise: float, bs: int, arch: str, pretrained: bool) -> Learner:
    """Return a learner whose weights, order of the batches and wrong labels are given by `seed`."""
    set_seed(seed)
    (x, y), n_classes = data.train, len(data.classes)
    train_ds = TensorDataset(x, noisy(y, noise, n_classes, seed))
    train_dl = Batches(train_ds, bs=min(bs, len(y)), shuffle=True, drop_last=True, num_workers=0)
    valid_dl = Batches(TensorDataset(*data.valid), bs=bs, num_workers=0)
    dls = DataLoaders(train_dl, valid_dl, device=default_device())
    # accuracy is counted, as fastai's own is rounded to single precision: equal differences would differ a little
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
    """Return a network for small images (B, n_in, H, W)."""
    body = ConvLayer(n_in, 32), ConvLayer(32, 64, stride=2), ConvLayer(64, 128, stride=2)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, n_classes))


def ece(prob: Tensor, target: Tensor, bins: int = 15) -> float:
    """Return the mean gap of top probability and accuracy in bins of equal width; `prob` (N, C), `target` (N,)."""
    top, guess = prob.max(1)
    gap = top - (guess == target).to(top)
    at = (top * bins).ceil().long().clamp(1, bins) - 1
    return (torch.zeros(bins).to(top).index_add(0, at, gap).abs().sum() / len(top)).item()


class Clock(Callback):
    """Times the epochs and says on stderr what is left: in one line on a terminal, else once a run."""

    def __init__(self, runs: int):
        self.runs, self.done, self.label, self.start = runs, 0, "", time.monotonic()

    def before_fit(self) -> None:
        self.seconds = []

    def before_epoch(self) -> None:
        self.epoch_start = time.perf_counter()

    def after_epoch(self) -> None:
        self.seconds.append(time.perf_counter() - self.epoch_start)
        if self.opt.frozen_idx:
            return  # the first fit of `fine_tune`: the run goes on
        left = (time.monotonic() - self.start) * (self.runs / (self.done + (self.epoch + 1) / self.n_epoch) - 1)
        minutes, seconds = divmod(round(left), 60)
        line = f"run {self.done + 1} of {self.runs}, {minutes}:{seconds:02} left: {self.label}"
        if sys.stderr.isatty():
            print(f"\r{line:<79}", end="", file=sys.stderr, flush=True)
        elif self.epoch + 1 == self.n_epoch:
            print(line, file=sys.stderr, flush=True)


def train(learn: Learner, clock: Clock, epochs: int, lr: float) -> Run:
    """Train, a pretrained model by fastai's `fine_tune`, and return what came of it."""
    learn.add_cb(clock)
    with learn.no_bar(), learn.no_logging():
        (learn.fine_tune if getattr(learn, "pretrained", False) else learn.fit_one_cycle)(epochs, lr)
    _, losses, accuracies, eces = zip(*learn.recorder.values, strict=True)
    loss = losses[-1] if math.isfinite(losses[-1]) else math.nan
    return Run(list(accuracies), loss, eces[-1], float(np.median(clock.seconds)))


# Finished runs


class RunsFile:
    """Finished runs, one line of JSON each; `done` are those with these settings.

    Lines are only ever added, so that runs with other settings stay.
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
                    if written := line.strip(b"\0\r\n"):  # a power cut leaves zeros of a line on some file systems
                        self.read(at, written)
                if lines and not lines[-1].endswith(b"\n"):
                    file.write(b"\n")  # the end of a line that a crash cut off
        except OSError as error:
            raise BadInputError(f"runs cannot be kept in {path!r} ({error.strerror}): name another file") from None

    def read(self, at: int, line: bytes) -> None:
        """Take over the run in line number `at`, unless it has other settings or was cut off."""
        try:
            entry = json.loads(line)
            job = entry["method"], entry["seed"]
            fields: Any = {name: math.nan if value is None else value for name, value in entry["run"].items()}
            if entry["settings"] == self.settings:
                self.done[job] = Run(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            start = line.strip()[: len(self.START)]
            if not (isinstance(error, ValueError) and self.START.startswith(start)):
                message = f"line {at} of {self.path!r} is no run of this command: name another file for the runs"
                raise BadInputError(message) from None

    def add(self, job: Job, run: Run) -> None:
        """Keep a finished run."""
        self.done[job] = run
        label, seed = job
        entry = {"settings": self.settings, "method": label, "seed": seed, "run": asdict(run)}
        with open(self.path, "a") as file:
            file.write(to_json(entry) + "\n")


def to_json(value: Any) -> str:
    """Return one line of JSON, with null for nan."""

    def nulls(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: nulls(item) for key, item in value.items()}
        if isinstance(value, list):
            return [nulls(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(nulls(value), allow_nan=False)


# Results


def paired_interval(differences: Sequence[float], comparisons: int = 1) -> tuple[float, float]:
    """Return the mean of paired differences and half of its 95 % interval (Student's t).

    With `comparisons` the interval is Bonferroni's: all of so many hold together in 95 %. Half of it is nan where the
    differences give none: a single one, or all equal.
    """
    d = np.asarray(differences, dtype=float)
    if not d.size or comparisons < 1:
        raise ValueError(f"a difference and a comparison at least were wanted, {d.size} and {comparisons} came")
    mean = float(d.mean())
    if len(d) == 1 or np.ptp(d) <= 1e-9 * np.abs(d).max():  # but for rounding
        return mean, math.nan
    return mean, float(student.isf(0.025 / comparisons, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5)


def summarize(results: Results) -> dict[str, dict[str, Summary]]:
    """Return what the seeds give by label and measure, all changes of a measure corrected for their number."""
    none, summaries = results.get("none", {}), {}
    for label, runs in results.items():
        for name, (measure, _) in MEASURES.items():
            values = [measure(run) for run in runs.values()]
            differences = [measure(run) - measure(none[seed]) for seed, run in runs.items()]
            change = paired_interval(differences, max(1, len(results) - 1))
            summaries.setdefault(label, {})[name] = Summary(float(np.mean(values)), deviation(values), *change)
    return summaries


def deviation(values: list[float]) -> float:
    """Return the standard deviation, nan of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def change(summary: Summary, decimals: int) -> str:
    """Return "change ± half of its interval", as far as there is one."""
    bounds = "" if math.isnan(summary.half_width) else f" ± {summary.half_width:.{decimals}f}"
    return f"{summary.change:+.{decimals}f}{bounds}"


def spread(values: list[float], decimals: int) -> str:
    """Return "mean ± standard deviation"; the mean alone of a single value."""
    bounds = f" ± {deviation(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{bounds}"


def statement(label: str, seeds: int, summary: dict[str, Summary]) -> str:
    """Return in words how a method compares to `none`: no more than the intervals carry."""
    accuracy, ece = summary["accuracy %"], summary["ECE %"]
    points = f"{change(accuracy, 1)} points"
    if seeds == 1:
        words = f"{label}: {points} with one seed, which carries no claim"
    elif math.isnan(accuracy.change):
        words = f"{label}: no claim, as not every run has a number"
    elif math.isnan(accuracy.half_width):
        words = f"{label}: {points} with each of {seeds} seeds, no claim: equal differences give no interval"
    elif accuracy.excludes_zero:
        words = f"{label} is {'better' if accuracy.change > 0 else 'worse'} than none: {points} over {seeds} seeds"
    else:
        words = f"{label}: no difference to none that {seeds} seeds show: {points}"
    if ece.excludes_zero:
        words += f". Its calibration error is {'higher' if ece.change > 0 else 'lower'}: {change(ece, 1)} points"
    return words


def statements(results: Results) -> dict[str, str]:
    """Return for each method but `none` what can be said of it."""
    summaries = summarize(results)
    return {label: statement(label, len(results[label]), summaries[label]) for label in results if label != "none"}


def table(results: Results) -> str:
    """Return one line for each method, and what its seeds differ by from those of `none`."""
    columns = [column for name in MEASURES for column in (name, "change")]
    rows, summaries = [["method", "seeds", *columns, "time x"]], summarize(results)
    for label, runs in results.items():
        row = [label, str(len(runs))]
        for name, (measure, decimals) in MEASURES.items():
            summary = summaries[label][name]
            shown = f"{change(summary, decimals)}{' *' if summary.excludes_zero else ''}"
            row += [spread([measure(run) for run in runs.values()], decimals), "" if label == "none" else shown]
        rows.append([*row, spread([run.seconds / results["none"][seed].seconds for seed, run in runs.items()], 2)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def report(results: Results, wrong: float) -> str:
    """Return the table, what it says in words, and what its signs mean."""
    best = spread([100 * max(run.accuracy) for run in results["none"].values()], 1)
    early = f"\nnone at its best epoch, the most that early stopping could give: accuracy {best} %\n"
    words, n = "".join(f"{line}\n" for line in statements(results).values()), len(results) - 1
    corrected = f", Bonferroni for {n} comparisons" if n > 1 else ""
    return f"""change: difference to none, seed by seed, ± half of its 95 % interval (paired t{corrected})

{table(results)}

{words}{early if wrong else ""}
Mean ± standard deviation over the seeds. ECE: calibration error, 15 bins. time x: that of an epoch and its validation,
as a multiple of none's. * where the interval of a change leaves out 0: if no method changed anything, chance alone
would put a star into a column of at most 1 in 20 such tables. The sentences rest on the same intervals. The seeds
differ in first weights, order of the batches and wrong labels; the split stays the same, so what other validation
images would change is not in these numbers."""


def as_json(settings: dict[str, Any], results: Results) -> str:
    """Return settings, how intervals are made, and each method's runs, measures and statement, as one line of JSON."""
    words, methods = statements(results), {}
    for label, summary in summarize(results).items():
        runs = [{"seed": seed, **asdict(run)} for seed, run in results[label].items()]
        measures = {name: asdict(measure) for name, measure in summary.items()}
        methods[label] = {"runs": runs, **measures, "statement": words.get(label)}
    interval = {"confidence": 0.95, "comparisons": max(0, len(results) - 1)}
    return to_json({"settings": settings, "interval": interval, "methods": methods})


def tiles(data: Data, cb: MixHandler | None) -> list[tuple[Tensor, str]]:
    """Return training images (C, H, W), mixed by `cb`, each with its shares in words.

    Where the method mixes behind the input, an image is a sample beside its partner: neither is changed.
    """
    set_seed(2)
    at = torch.randperm(len(data.train[1]))[:64]
    x, names = floats(data.train[0][at]), [data.classes[c] for c in data.train[1][at]]
    names = [name if len(name) < 17 else f"{name[:15]}…" for name in names]
    if cb is None:
        return list(zip(x[:TILES], names, strict=False))
    mix: Any = cb.draw(x)
    gap = torch.ones_like(x[..., : max(1, x.shape[-1] // 12)])
    images = torch.cat([x, gap, x[mix.partner]], -1) if is_hidden(cb) else mix.blend(x)
    shares = zip(names, mix.partner.tolist(), mix.lam.tolist(), strict=True)
    words = [(f"{lam:.2f} {own}", f"+ {1 - lam:.2f} {names[partner]}") for own, partner, lam in shares]
    lines = ["\n".join(pair) if sum(map(len, pair)) > 24 else " ".join(pair) for pair in words]
    return list(zip(images, lines, strict=True))[:TILES]


def is_hidden(cb: MixHandler) -> bool:
    """Whether a method mixes behind the input."""
    return type(cb).mix_features is not MixHandler.mix_features


def figure(data: Data, methods: Methods, results: Results) -> Figure:
    """Return one row for each method: its mixed samples, and each measure by seed, with mean and deviation."""
    n, titled = len(methods), "mean ± standard deviation; gray: each seed; dotted: mean of none"
    fig = Figure(figsize=(17, 1.2 + 1.35 * n), dpi=100, layout="constrained")
    grid = fig.add_gridspec(n, 1 + TILES + len(MEASURES), width_ratios=[1] * (1 + TILES) + [1.5] * len(MEASURES))
    charts: dict[str, Any] = {}
    for row, (label, make) in enumerate(methods.items()):
        cb, runs = make() if make else None, list(results.get(label, {}).values())
        ax = fig.add_subplot(grid[row, 0])
        ax.axis("off")
        ax.text(1, 0.55, label, ha="right", va="bottom", fontsize=12)
        where = "" if cb is None else "hidden mixing:\nsample | partner" if is_hidden(cb) else "mixed input"
        ax.text(1, 0.45, where, ha="right", va="top", fontsize=9, color="0.35")
        for column, (image, words) in enumerate(tiles(data, cb), 1):
            ax = fig.add_subplot(grid[row, column])
            ax.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set_title(words, fontsize=9)
            ax.axis("off")
        for column, (name, (measure, _)) in enumerate(MEASURES.items(), 1 + TILES):
            ax = fig.add_subplot(grid[row, column], sharex=charts.get(name))
            charts.setdefault(name, ax)
            values, plain = [measure(run) for run in runs], [measure(run) for run in results["none"].values()]
            if values:
                ax.plot(values, [-0.35] * len(values), "o", color="0.55", markersize=4, alpha=0.7)
                ax.errorbar(np.mean(values), 0.15, xerr=deviation(values), fmt="o", capsize=5, color="C0")
            ax.axvline(float(np.mean(plain)), color="0.4", ls=":")
            ax.set(ylim=(-1, 1), yticks=[], title="" if row else name)
            ax.tick_params(labelbottom=row == n - 1)
            ax.grid(axis="x", alpha=0.3)
    fig.supxlabel(titled, x=0.99, ha="right", fontsize=9, color="0.35")
    return fig


# The command


def parse_methods(text: str, alpha: float | None) -> Methods:
    """Return the methods by label ("mixup:0.4"), each once; `none` comes first, asked for or not."""
    methods: Methods = {"none": None}
    for entry in map(str.strip, text.split(",")):
        name, colon, own = entry.partition(":")
        if entry == "none":
            continue
        if name not in METHODS:
            raise BadInputError(f"unknown method {entry!r}: none, {', '.join(METHODS)} are known (mixup:8: alpha 8)")
        make = METHODS[name]
        default = inspect.signature(make).parameters["alpha"].default if alpha is None else alpha
        try:
            value = float(own) if colon else default
            make(value)
            methods[f"{name}:{str(value).removesuffix('.0')}"] = partial(make, value)
        except ValueError as error:
            raise BadInputError(f"{entry}: {error}") from None
    return methods


def number(name: str, text: str, auto: float) -> float:
    """Return the number in `text`, or what "auto" stands for."""
    try:
        return auto if text == "auto" else float(text)
    except ValueError:
        raise BadInputError(f"{name} came as {text!r}, a number was wanted") from None


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def compare(
    methods: str = "auto",  # Comma-separated, with alphas or without: none,mixup:0.2,mixup:1,cutmix; all: every one
    alpha: str = "auto",  # Alpha of the methods named without one; auto: each method's default
    data: str = "digits",  # Folder with a folder of images for each class, or with train/ and valid/ of such folders
    arch: str = "auto",  # cnn (a small one), or a model of torchvision or timm; auto: cnn for digits, else resnet18
    pretrained: bool = False,  # Start from downloaded weights
    size: int = 128,  # The middle of each image in a folder is scaled to size x size and held in memory
    epochs: int = 25,  # Epochs of each run
    seeds: int = 5,  # Runs of each method
    noise: str = "auto",  # Share of training labels replaced by another class; auto: 0.4 for digits, else 0
    bs: int = 128,  # Batch size
    lr: float = 5e-3,  # Highest learning rate of the one-cycle schedule
    out: str = "compare.png",  # Picture to write: mixed samples and results
    runs: str = "compare.jsonl",  # File of finished runs, which are not trained again; "": none
    json: bool = False,  # Print settings, runs and results as JSON instead of the table
) -> int:
    """Train a model without mixing and with each method, print a table and what it shows, draw samples and results.

    Without options: handwritten digits, 40 % of the training labels wrong, about three minutes on two cores. Images are
    not augmented otherwise. Exit code 1: a run failed; 130: interrupted; 2: bad input. After 1 and 130 the
    finished runs are shown, and the same command goes on where it stopped.
    """
    demo = data == "digits"
    wrong = number("noise", noise, auto=0.4 if demo else 0)
    limits = {"epochs": (epochs, 1, 10000), "seeds": (seeds, 1, 1000), "size": (size, 1, 4096), "bs": (bs, 2, 65536)}
    for name, (value, low, high) in {**limits, "lr": (lr, 1e-9, 10), "noise": (wrong, 0, 1)}.items():
        if not low <= value <= high:
            raise BadInputError(f"{name} came as {value:g}, a number from {low:g} to {high:g} was wanted")
    if Path(out).is_dir() or not Path(out).absolute().parent.is_dir():
        raise BadInputError(f"out came as {out!r}, a file in a folder that exists was wanted")
    if Path(out).resolve() == Path(runs).resolve():
        raise BadInputError(f"out and runs came both as {out!r}, two files were wanted")
    arch = arch if arch != "auto" else "cnn" if demo else "resnet18"
    if pretrained and arch == "cnn":
        raise BadInputError("there are no pretrained weights for cnn: name another arch")
    texts = {"auto": DIGITS_METHODS if demo else FOLDER_METHODS, "all": ",".join(METHODS)}
    chosen = parse_methods(texts.get(methods, methods), None if alpha == "auto" else number("alpha", alpha, 0))
    images = digits() if demo else folder(Path(data), size)
    new_learner = partial(learner, images, noise=wrong, bs=bs, arch=arch, pretrained=pretrained)
    shape = tuple(images.train[0].shape[1:])
    try:
        learn = new_learner(0)
        with torch.no_grad():
            learn.model.to(learn.dls.device).eval()(learn.dls.one_batch()[0])
    except Exception as error:  # anything may be wrong with a name or with an architecture for the size
        raise BadInputError(f"arch {arch!r} cannot be used for images of {shape}: {first_line(error)}") from None
    versions = {name: version(name) for name in ("torch", "torchvision", "fastai", "timm") if find_spec(name)}
    versions["mixaug"] = (
        f"{__version__} {digest(file.read_bytes() for file in sorted(Path(__file__).parent.glob('*.py')))}"
    )
    settings = {
        "epochs": epochs, "noise": wrong, "bs": bs, "lr": lr, "arch": arch, "pretrained": pretrained,
        "shape": list(shape), "fingerprint": fingerprint(images), "device": default_device().type, **versions,
    }  # fmt: skip
    kept = RunsFile(runs or os.devnull, settings)
    jobs = [(label, seed) for seed in range(seeds) for label in chosen]
    todo = [job for job in jobs if job not in kept.done]
    if len(todo) < len(jobs):
        print(f"mixaug compare: {len(jobs) - len(todo)} of {len(jobs)} runs taken from {runs}", file=sys.stderr)
    if not json:
        replaced = f", {wrong:.0%} of the labels replaced by another class, each as likely as the next" if wrong else ""
        print(f"{data}: {len(images.train[1])} training images of {shape}{replaced};")
        print(f"{len(images.valid[1])} validation images, {len(images.classes)} classes; {arch}; epochs: {epochs}\n")
    code = run(todo, chosen, new_learner, epochs, lr, kept)
    if code and runs:
        print("mixaug compare: the same command goes on where this one stopped", file=sys.stderr)
    results = by_method(kept.done, jobs)
    if json:
        print(as_json({"data": data, **settings}, results))
    elif results:
        print(report(results, wrong))
    if results:
        figure(images, chosen, results).savefig(out, format="png")
        print("" if json else f"\nwrote {out}\n", end="")
    return code


def run(
    jobs: list[Job], methods: Methods, new_learner: Callable[[int], Learner], epochs: int, lr: float, kept: RunsFile
) -> int:
    """Train each method and seed of `jobs`, none again that failed, and keep what comes of it; return the exit code."""
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
            failed.add(label)  # with other seeds it would fail, too
    print("\n" * terminal, end="", file=sys.stderr)
    return 1 if failed else 0


def by_method(done: dict[Job, Run], jobs: list[Job]) -> Results:
    """Return the finished ones of `jobs` by label and seed, in their order, as far as `none` has the seed, too."""
    results: Results = {}
    for label, seed in jobs:
        if (label, seed) in done and ("none", seed) in done:
            results.setdefault(label, {})[seed] = done[label, seed]
    return results


def main(argv: list[str]) -> int:
    """Run the command with these arguments and return its exit code."""

    def refuse(message: str) -> NoReturn:
        raise BadInputError(message)

    parser = anno_parser(compare, prog="mixaug compare")
    parser.error = refuse  # one line, instead of the usage in front of it
    try:
        options = vars(parser.parse_args(argv))
        return compare(**{name: options[name] for name in inspect.signature(compare).parameters})
    except (BadInputError, OSError) as error:
        print(f"mixaug compare: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInputError) else 1
    except KeyboardInterrupt:
        print("mixaug compare: interrupted", file=sys.stderr)
        return 130
