"""What mixing costs, beside what memory allows and beside whichever of fastai, torchvision, timm, kornia are installed.

    python tests/bench.py [--rounds 40] [--threads 1] [--device cuda] [--only mixing,loss]

All contenders of a row are timed in the same rounds, each round in another order; medians are shown as multiples of the
first column's, ratios of minima in parentheses. What goes over its goal is marked with "!" and listed at the end. Who
fails has no number.
"""

import argparse
import functools
import itertools
import math
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from fastai.callback.core import TrainEvalCallback
from fastai.callback.mixup import CutMix as FastaiCutMix
from fastai.callback.mixup import MixUp as FastaiMixUp
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Recorder
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorCategory, TensorImage, default_device, defaults
from torch import nn

from mixaug import CutMix, FMix, MixUp, OneOf, ResizeMix, blend, sample_partner

CLASSES = 10
EVENTS = ("before_batch", "after_pred", "after_loss", "before_backward", "after_backward", "before_step", "after_step")
ALPHA = {"MixUp": 0.4, "CutMix": 1.0}
PEERS = [name for name in ("torchvision", "timm", "kornia") if find_spec(name)]
missed: list[str] = []


# Measuring


def timed(f, calls):
    start = time.perf_counter()
    for _ in range(calls):
        f()
    if torch.get_default_device().type == "cuda":  # which goes on by itself
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def measure(contenders, rounds, least=2e-3):
    """Seconds of a call in each round, of as many calls as take some milliseconds."""
    calls = {}
    for name, f in contenders.items():
        try:
            f()
        except Exception as error:
            print(f"{name} fails: {' '.join(str(error).split())[-120:]}", file=sys.stderr)
            continue
        calls[name] = max(1, round(least / timed(f, 3)))
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            times[name].append(timed(contenders[name], calls[name]))
    return times


def row(title, contenders, goals, rounds):
    """One line of a table: the first contender in microseconds, the others as multiples of it.

    `goals`: of what contender a median may be what multiple of which other's.
    """
    times = measure(contenders, rounds)
    median = {name: statistics.median(t) for name, t in times.items()}
    over = {}
    for name, other, factor in goals:
        if {name, other} <= set(median) and median[name] > factor * median[other]:
            over[name] = True
            missed.append(f"{title}: {name} is {median[name] / median[other]:.2f} × {other}, goal {factor:.2f}")
    first, *others = contenders
    cells = [f"{median[first] * 1e6:.0f} µs"]
    for name in others:
        if name not in times:
            cells.append("-")
            continue
        least = min(times[name]) / min(times[first])
        cells.append(f"{median[name] / median[first]:.2f} ({least:.2f}){' !' if name in over else ''}")
    return [title, *cells]


def table(head, rows):
    for line in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(line) + " |", flush=True)
    print(flush=True)


# Learners in the middle of a training


def learner(cb, x, y, model=None, loss=None):
    """A learner at the beginning of a batch (x, y), with no other callback than it needs."""
    items = [(x[0], y[0])] * 2
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), CLASSES))
    learn = Learner(DataLoaders.from_dsets(items, items, bs=2), model, loss or CrossEntropyLossFlat(), cbs=cb)
    learn.remove_cbs([ProgressCallback, Recorder])
    learn.dl = learn.dls.train
    learn.epoch, learn.n_epoch, learn.iter, learn.n_iter, learn.train_iter, learn.pct_train = 0, 1, 0, 100, 0, 0.0
    learn.create_opt()
    for event in ("before_fit", "before_epoch", "before_train"):
        learn(event)
    learn.remove_cbs(TrainEvalCallback)
    learn.model.train()
    learn.training = True
    learn.xb, learn.yb = (x,), (y,)
    return learn


def events(cb, x, y, names=("before_batch",)):
    """A function that takes a callback through events of a batch."""
    learn = learner(cb, x, y)
    learn.pred = torch.randn(len(x), CLASSES)

    def run():
        learn.xb, learn.yb = (x,), (y,)
        for name in names:
            cb(name)
            if name == "after_pred":
                learn.loss_grad = learn.loss_func(learn.pred, *learn.yb)

    return run


def peers(method, x, y):
    """The other libraries' ways, where they are installed."""
    found = {}
    if "torchvision" in PEERS:
        from torchvision.transforms import v2

        kind = {"MixUp": v2.MixUp, "CutMix": v2.CutMix}[method]
        found["torchvision"] = functools.partial(kind(alpha=ALPHA[method], num_classes=CLASSES), x, y)
    if "timm" in PEERS:
        from timm.data import Mixup

        alphas = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, f"{method.lower()}_alpha": ALPHA[method]}
        found["timm elem"] = functools.partial(Mixup(**alphas, mode="elem", num_classes=CLASSES), x.clone(), y)
    if "kornia" in PEERS:
        from kornia.augmentation import RandomCutMixV2, RandomMixUpV2

        kind = {"MixUp": RandomMixUpV2, "CutMix": RandomCutMixV2}[method]
        found["kornia"] = functools.partial(kind(p=1.0, data_keys=["input", "class"]), x, y)
    return found


# The tables


def mixing(rounds):
    """Features and labels of a batch, drawing and pairing included."""
    sizes = [(64, 1, 28, 28), (64, 3, 64, 64), (256, 3, 32, 32), (64, 3, 224, 224)]
    kinds = {
        "": (torch.float32, torch.contiguous_format),
        " channels_last": (torch.float32, torch.channels_last),
        " bfloat16": (torch.bfloat16, torch.contiguous_format),
    }
    for method, (own, fastai, goal) in {
        "MixUp": (MixUp, FastaiMixUp, 0.6),
        "CutMix": (CutMix, FastaiCutMix, 1.5),
    }.items():
        rows = []
        for size, kind in [*((size, "") for size in sizes), (sizes[-1], " channels_last"), (sizes[-1], " bfloat16")]:
            x = torch.rand(size).to(kinds[kind][0]).contiguous(memory_format=kinds[kind][1])
            y, z, out = torch.randint(0, CLASSES, size[:1]), torch.rand_like(x), torch.empty_like(x)
            limit = {"MixUp": functools.partial(torch.add, x, z, out=out), "CutMix": functools.partial(out.copy_, x)}
            contenders = {
                "limit": limit[method],
                "mixaug": events(own(), x, y),
                "fastai": events(fastai(), x.clone(), y),
            }
            contenders |= peers(method, x, y)
            goals = [("mixaug", "fastai", goal)]
            rows.append(row(f"{size}{kind}", contenders, goals, rounds if x.nbytes < 2**23 else rounds // 2))
        table([method, *contenders], rows)


def fixed(rounds):
    """What a batch costs that is hardly any."""
    x, y = TensorImage(torch.rand(64, 1, 8, 8)), TensorCategory(torch.randint(0, CLASSES, (64,)))
    rows = []
    for title, names in (
        ("before_batch", ("before_batch",)),
        ("all events of a batch", (*EVENTS, "after_batch")),
    ):
        contenders = {"fastai": events(FastaiMixUp(), x, y, names), "mixaug": events(MixUp(), x, y, names)}
        rows.append(row(title, contenders, [], rounds))
    table(["MixUp (64, 1, 8, 8), TensorImage", "fastai", "mixaug"], rows)


def one_of(rounds):
    """A method for each sample."""
    rows = []
    for size in ((64, 1, 28, 28), (64, 3, 64, 64), (256, 3, 32, 32), (64, 3, 224, 224)):
        x, y = torch.rand(size), torch.randint(0, CLASSES, size[:1])
        contenders = {"CutMix": events(CutMix(), x, y)}
        contenders["OneOf"] = events(OneOf(MixUp(), CutMix(), per_sample=True), x, y)
        rows.append(row(f"OneOf {size}", contenders, [], rounds // 2))
    table(["OneOf(MixUp(), CutMix(), per_sample=True)", "CutMix", "OneOf"], rows)


def loss(rounds):
    """Forward and backward, class indices."""
    rows = []
    for shape in ((64, CLASSES), (64, 1000), (8, 21, 256, 256)):
        contenders = losses(shape)
        rows.append(row(f"{shape}", contenders, [], rounds if len(shape) == 2 else max(3, rounds // 4)))
    table(["cross-entropy, forward and backward", *contenders], rows)


def losses(shape):
    pred, y = torch.randn(shape, requires_grad=True), torch.randint(0, shape[1], (shape[0], *shape[2:]))
    flat = functools.partial(CrossEntropyLossFlat, axis=1 if len(shape) > 2 else -1)

    def mixed(cb):
        learn = learner(cb, torch.rand(shape[0], 1, 4, 4), y, loss=flat())
        cb("before_batch")
        learn.pred = pred
        cb("after_pred")
        return functools.partial(there_and_back, pred, lambda: learn.loss_func(pred, *learn.yb))

    return {
        "plain": functools.partial(there_and_back, pred, lambda: F.cross_entropy(pred, y)),
        "mixaug": mixed(MixUp()),
        "fastai": mixed(FastaiMixUp()),
        "fastai, not mixed": functools.partial(there_and_back, pred, lambda: flat()(pred, y)),
    }


def there_and_back(x, f, grad=None):
    """Compute `f()` and its gradient for `x`."""
    x.grad = None
    f().backward(grad)


def hidden(rounds):
    """Forward and backward through a mixed layer."""
    rows = []
    for shape in ((64, 32), (64, 512), (64, 64, 14, 14), (64, 64, 28, 28), (64, 64, 56, 56)):
        contenders = layers(shape)
        rows.append(row(f"{shape}", contenders, [], rounds if math.prod(shape) < 2e6 else rounds // 2))
    table(["hidden layer, forward and backward", *contenders], rows)


def layers(shape):
    h, grad, w = torch.randn(shape, requires_grad=True), torch.randn(shape), torch.rand(64)
    partner = sample_partner(64, h.device)
    weight = w.view(64, *[1] * (len(shape) - 1))
    return {
        "lerp(h[partner], h, w)": functools.partial(there_and_back, h, lambda: torch.lerp(h[partner], h, weight), grad),
        "mixaug": functools.partial(there_and_back, h, lambda: blend(h, partner, w), grad),
    }


def cnn():
    first = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def step(rounds):
    """A whole training step, with the optimizer's."""
    x, y = TensorImage(torch.rand(64, 1, 28, 28)), TensorCategory(torch.randint(0, CLASSES, (64,)))
    contenders = {}
    for name, cb in {"not mixed": None, "mixaug": MixUp(), "mixaug CutMix": CutMix(), "fastai": FastaiMixUp()}.items():
        learn = learner(cb, x, y, model=cnn())
        contenders[name] = functools.partial(learn.one_batch, 0, (x, y))
    rows = [
        row("training step", contenders, [("mixaug", "not mixed", 1.02), ("mixaug CutMix", "not mixed", 1.04)], rounds)
    ]
    table(["a small CNN, (64, 1, 28, 28)", *contenders], rows)


def importing(rounds):
    """What importing mixaug adds to fastai."""
    code = "import time, fastai.basics; t = time.perf_counter(); import mixaug; print(time.perf_counter() - t)"
    run = [sys.executable, "-W", "ignore", "-c", code]
    times = [
        float(subprocess.run(run, capture_output=True, text=True, timeout=120).stdout)
        for _ in range(max(2, rounds // 8))
    ]
    milliseconds = statistics.median(times) * 1e3
    if milliseconds > 50:
        missed.append(f"import: {milliseconds:.0f} ms, goal 50")
    table(["import after fastai.basics", "ms (least)"], [["mixaug", f"{milliseconds:.0f} ({min(times) * 1e3:.0f})"]])


def growth(rounds):
    """How cost grows, as multiples of the first."""
    methods = {"MixUp": MixUp, "CutMix": CutMix}
    batches = [(n, 3, 64, 64) for n in (16, 64, 256)]
    sides = [(64, 3, n, n) for n in (32, 64, 128, 256)]
    for title, sizes in (("batch size", batches), ("image size", sides)):
        rows = []
        for name, method in methods.items():
            contenders = {}
            for size in sizes:
                x, y = torch.rand(size), torch.randint(0, CLASSES, size[:1])
                contenders[str(size)] = events(method(), x, y)
            rows.append(row(name, contenders, [], rounds // 2))
        table([title, *map(str, sizes)], rows)
    x, y = torch.rand(64, 3, 64, 64), torch.randint(0, CLASSES, (64,))
    kinds = list(itertools.islice(itertools.cycle((MixUp, CutMix, ResizeMix, FMix)), 8))
    for each in (False, True):
        contenders = {}
        for n in (1, 2, 4, 8):
            contenders[str(n)] = events(OneOf(*(kind() for kind in kinds[:n]), per_sample=each), x, y)
        table(
            [f"methods in OneOf, per_sample={each}", *contenders], [row("(64, 3, 64, 64)", contenders, [], rounds // 2)]
        )


TABLES = {f.__name__: f for f in (mixing, fixed, one_of, loss, hidden, step, importing, growth)}


def main(*args):
    parser = argparse.ArgumentParser(description="Time mixing beside its limit and other libraries.")
    parser.add_argument("--rounds", type=int, default=40, help="rounds in which all contenders of a row are timed")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU")
    parser.add_argument("--only", default=",".join(TABLES), help="tables, by name: " + ", ".join(TABLES))
    options = parser.parse_args(args)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    use_cuda = defaults.use_cuda
    default_device(options.device != "cpu")  # of fastai
    random.seed(0)
    torch.manual_seed(0)
    used = ", ".join(f"{name} {version(name)}" for name in ("torch", "fastai", *PEERS))
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} thread(s)"
    print(f"{platform.machine()}, {where}, Python {platform.python_version()}, {used}\n")
    with warnings.catch_warnings(), torch.device(options.device):
        warnings.simplefilter("ignore")
        for name in options.only.split(","):
            TABLES[name](options.rounds)
    torch.set_num_threads(threads)
    defaults.use_cuda = use_cuda
    print("Goals missed:" if missed else "Every goal is reached.", *missed, sep="\n- " if missed else "")


if __name__ == "__main__":
    main(*sys.argv[1:])
