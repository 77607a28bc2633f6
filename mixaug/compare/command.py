"""The command `mixaug compare`: a thin client of :func:`mixaug.compare.compare`."""

import argparse
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
from fastai.torch_core import default_device, to_device
from matplotlib.backend_bases import FigureCanvasBase

from .cache import to_json
from .images import picture
from .learners import BadInputError, Task, check_methods, digits_task
from .methods import NAMES, Make, named
from .run import compare

DEFAULTS = {
    "digits": ("none,mixup:0.4,mixup:8,cutmix:1,manifold_mixup:8,output_mixup:8", "none,mixup,cutmix,manifold_mixup,"
               "output_mixup"),  # where --alpha is given
    "folder": ("none,mixup,cutmix,manifold_mixup,output_mixup",) * 2,
    "table": ("none,manifold_mixup,output_mixup",) * 2,
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInputError(message)  # one line, without the usage


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = _Parser(
        prog="mixaug compare",
        description="Train with and without each mixing method, with several seeds, and report which methods help.",
        epilog="auto: chosen by the data. Exit codes: 0: done; 1: a run failed; 2: bad input; 130: interrupted. "
        "After 1 and 130 the finished runs are shown, and the same command continues where it stopped.",
    )
    data = result.add_argument_group("data", "without options: handwritten digits with 40 % label noise")
    data.add_argument("--data", metavar="DIR", help="a folder of images for each class, or train/ and valid/ of these")
    data.add_argument("--csv", metavar="FILE", help="a table")
    data.add_argument("--target", metavar="COLUMN", help="the column of the table to predict")
    data.add_argument("--size", type=int, default=128, help="images are resized to SIZE x SIZE (default: 128)")
    augment = "augment as fastai does (default: yes)"
    data.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True, help=augment)
    data.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    noise = "fraction of the training labels to replace by another class (default: 0.4 for digits, else 0)"
    data.add_argument("--noise", type=float, help=noise)
    what = result.add_argument_group("methods", f"none, {', '.join(NAMES)}; with an alpha: mixup:8")
    auto = "several; all: each that suits the data; auto: the usual ones for the data (default: auto)"
    what.add_argument("--methods", nargs="+", default=["auto"], help=auto)
    what.add_argument("--alpha", type=float, help="alpha of the methods without one (default: each method's)")
    training = result.add_argument_group("training")
    arch = "cnn (a small one), or a model of torchvision or timm (auto: cnn for digits, else resnet18)"
    training.add_argument("--arch", default="auto", help=arch)
    training.add_argument("--pretrained", action="store_true", help="start from downloaded weights")
    training.add_argument("--epochs", type=int, default=25, help="epochs of each run (default: 25)")
    training.add_argument("--seeds", type=int, default=5, help="runs of each method (default: 5)")
    training.add_argument("--bs", type=int, default=64, help="batch size (default: 64)")
    training.add_argument("--lr", type=float, default=5e-3, help="maximum of the one-cycle schedule (default: 0.005)")
    jobs = "runs side by side, one thread each (default: the number of cores for digits and tables, else 1)"
    training.add_argument("--jobs", type=int, help=jobs)
    output = result.add_argument_group("output")
    out = "picture to write: .png, .pdf, .svg (default: compare.png)"
    output.add_argument("--out", default="compare.png", help=out)
    runs = 'file of finished runs, which are not trained again; "": none (default: compare.jsonl)'
    output.add_argument("--runs", default="compare.jsonl", help=runs)
    output.add_argument("--json", action="store_true", help="print settings, runs and differences as JSON")
    return result


def check(options: Any) -> None:
    """Raise an error for options that cannot be used."""
    limits = {"epochs": (1, 10000), "seeds": (1, 1000), "size": (8, 4096), "bs": (2, 65536), "lr": (1e-9, 10),
              "alpha": (1e-9, 1e9), "noise": (0, 1), "jobs": (1, 1000)}  # fmt: skip
    for name, (low, high) in limits.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise BadInputError(f"{name} must be a number from {low:g} to {high:g}, got {value:g}")
    if options.data and options.csv:
        raise BadInputError("data and csv cannot both be given")
    if options.csv and not options.target:
        raise BadInputError("target must be given for a table, as --target COLUMN")
    if options.csv and options.noise is not None:
        raise BadInputError(f"noise must be of images, not of a table, got {options.noise:g}")
    if not options.data and options.arch not in ("auto", "cnn"):
        raise BadInputError(f"arch must be auto for digits and tables, got {options.arch!r}")
    if options.pretrained and (not options.data or options.arch == "cnn"):
        raise BadInputError("pretrained must be of a model of torchvision or timm, for a folder of images")
    out, runs = Path(options.out), options.runs
    kinds = FigureCanvasBase.get_supported_filetypes()
    if out.suffix[1:] not in kinds:
        raise BadInputError(f"out must end with {', '.join('.' + kind for kind in sorted(kinds))}, got {options.out!r}")
    for name, path in {"out": out, **({"runs": Path(runs)} if runs else {})}.items():
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise BadInputError(f"{name} must be a file in a folder that exists, got {str(path)!r}")
    if runs and out.resolve() == Path(runs).resolve():
        raise BadInputError(f"runs must be another file than out, got {runs!r}")


def task_of(options: Any) -> tuple[str, Task]:
    """Return the kind of the data and what to train."""
    if options.csv:
        from .tables import table_task  # fastai's tables and models are slow to import

        return "table", table_task(Path(options.csv), options.target, options.bs)
    noise = options.noise if options.noise is not None else 0.0 if options.data else 0.4
    if not options.data:
        return "digits", digits_task(noise, options.bs)
    from .folders import folder_task

    training = options.arch, options.bs, noise, options.pretrained, options.augment, options.skip_bad
    return "folder", folder_task(Path(options.data), options.size, *training)


def methods_of(options: Any, kind: str) -> dict[str, Make]:
    """Return the methods by label, the baseline `none` first."""
    auto = DEFAULTS[kind][options.alpha is not None]
    every = ",".join(name for name in NAMES if name != "cmixup")  # which is for continuous targets
    texts = {"auto": auto, "all": auto if kind == "table" else every}
    given = " ".join(options.methods).replace(",", " ").split() or [""]
    names = texts[given[0]].split(",") if given[0] in texts else given
    try:
        return dict(named(text, options.alpha) for text in ("none", *names))
    except ValueError as error:
        raise BadInputError(str(error)) from None


def try_out(task: Task, methods: dict[str, Make], options: Any) -> None:
    """Raise an error if fastai cannot read the table, or the model or a method does not take the data."""
    try:
        learn = task.new_learner(0)
        batch: Any = to_device(learn.dls.one_batch(), learn.dls.device)  # tables come from the CPU
        with torch.no_grad():
            learn.model.to(learn.dls.device).eval()(*batch[: learn.dls.n_inp])
    except Exception as error:  # an unknown name, or a network that fails for this size, raises errors of many kinds
        why = f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        if options.csv:
            raise BadInputError(f"csv must be a table that can be trained on, got {options.csv!r} {why}") from None
        try:
            timm = f"timm {version('timm')}"
        except ModuleNotFoundError:
            timm = "timm (not installed: pip install timm)"
        raise BadInputError(
            f"arch must be a model for these data, of torchvision {version('torchvision')} or {timm}, got "
            f"{options.arch!r} {why}"
        ) from None
    check_methods(learn, batch, methods)


def run(options: Any) -> int:
    """Compare, print and draw; return the exit code."""
    check(options)
    kind, task = task_of(options)
    methods = methods_of(options, kind)
    if kind != "digits":
        try_out(task, methods, options)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    auto = 1 if kind == "folder" or default_device().type != "cpu" else min(cores, options.seeds * len(methods))
    epochs, lr, fine_tune = options.epochs, options.lr, options.pretrained
    trained = "size", "augment", "noise", "arch", "pretrained", "epochs", "bs", "lr"
    settings = {**task.known, **{name: getattr(options, name) for name in trained}}

    def fit(learn: Any) -> None:
        (learn.fine_tune if fine_tune else learn.fit_one_cycle)(epochs, lr)

    if not options.json:
        minutes = ", about three minutes on two cores" if vars(options) == vars(parser().parse_args([])) else ""
        print(f"{task.words}; {len(methods)} methods, {options.seeds} seeds, {epochs} epochs{minutes}\n", flush=True)
    result = compare(
        task.new_learner, methods, fit=fit, seeds=options.seeds, runs=options.runs or None,
        settings=settings, jobs=options.jobs or auto,
    )  # fmt: skip
    code = 130 if result.interrupted else 1 if result.failed else 0
    if code and options.runs:
        print("mixaug compare: the same command goes on with what is missing", file=sys.stderr)
    print(to_json({"options": vars(options), **result.as_dict()}) if options.json else result.report(), flush=True)
    shown = {label: methods[label] for label in result.methods}
    picture(result, shown, task.samples() if task.samples else None).savefig(options.out)
    if not options.json:
        print(f"\nwrote {options.out}" + f"; runs are in {options.runs}" * bool(options.runs))
    return code


def main(argv: list[str]) -> int:
    """Run the command with the arguments `argv`, and return its exit code."""
    warnings.filterwarnings("default", module="mixaug")
    try:
        return run(parser().parse_args(argv))
    except KeyboardInterrupt:
        print("mixaug compare: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"mixaug compare: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
