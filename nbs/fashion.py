"""The trainings behind 05_evidence: small networks on some images of Fashion-MNIST.

    python nbs/fashion.py [experiment ...]
    python nbs/fashion.py --check

The first trains what nbs/runs does not have yet, of the experiments that are named, or of all; the second trains two
stored runs anew. The images come from Debian's package dataset-fashion-mnist, or else torchvision downloads them.
"""

import gzip
import sys
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.layers import AdaptiveAvgPool, ConvLayer, ResBlock
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from mixaug import (
    RICAP,
    CutMix,
    FMix,
    ManifoldMixup,
    MixUp,
    Mosaic,
    OneOf,
    OutputMixup,
    PatchUp,
    ResizeMix,
    SaliencyMix,
    remix,
)
from mixaug.compare import Comparison, compare
from mixaug.compare.learners import class_metrics, noisy

RUNS = Path(__file__).parent / "runs"


@cache
def images(part):
    "Return images (N, 1, 28, 28) in [0, 1] and classes (N,) of a part of the data, train or t10k."
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.exists():
        from torchvision.datasets import FashionMNIST

        folder = Path(FashionMNIST(Path.home() / ".cache" / "fashion-mnist", download=True).raw_folder)

    def read(kind, offset):
        with gzip.open(folder / f"{part}-{kind}-ubyte.gz") as file:
            return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=offset).copy())

    return read("images-idx3", 16).view(-1, 1, 28, 28) / 255, read("labels-idx1", 8).long()


def network():
    "Return a residual network of three stages, which halves the images first."
    layers = [ConvLayer(1, 16, stride=2)]
    for n_in, n_out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [ResBlock(1, n_in, n_out, stride=stride), ResBlock(1, n_out, n_out)]
    return nn.Sequential(*layers, AdaptiveAvgPool(), nn.Flatten(), nn.Linear(64, 10))


class Augment(Callback):
    "Shift each image of a training batch by up to two pixels, and flip half of them."

    order, run_valid = -10, False  # before the mixing

    def before_batch(self):
        (x,) = self.learn.xb
        n, at = len(x), torch.arange(28)
        top, left = (torch.randint(0, 5, (n, 1)) + at for _ in range(2))
        flipped = torch.where(torch.rand(n, 1) < 0.5, left, left.flip(1))
        self.learn.xb = (
            F.pad(x, (2,) * 4)[torch.arange(n)[:, None, None], 0, top[:, :, None], flipped[:, None]][:, None],
        )


def new_learner(seed, n=2000, noise=0.0, augment=False, tail=1, weights=False):
    """Return a learner for n images that the seed draws; 2,000 others are for validation, the same for all.

    With a tail, the seed orders the classes too, and the first has `tail` times as many images as the last; the numbers
    between fall geometrically. With weights, the loss weighs each class by one over its number.
    """
    x, y = images("train")
    rng = torch.Generator().manual_seed(seed)
    at = torch.randperm(len(y), generator=rng)
    counts = torch.tensor(tail) ** (-torch.arange(10) / 9)
    counts = (n * counts / counts.sum()).round().int()[torch.randperm(10, generator=rng)]
    at = at[:n] if tail == 1 else torch.cat([at[y[at] == c][:count] for c, count in enumerate(counts)])
    valid = TensorDataset(*(t[:2000] for t in images("t10k")))
    dls = DataLoaders.from_dsets(TensorDataset(x[at], noisy(y[at], noise, 10, seed)), valid, bs=64, num_workers=0)
    loss = CrossEntropyLossFlat(weight=n / (10 * counts) if weights else None)
    cbs = Augment() if augment else None
    return Learner(dls, network(), loss_func=loss, metrics=class_metrics(), wd=0.01, cbs=cbs)


def attacked(learn, step=0.05):
    "Return the accuracy in percent after one step of the fast gradient sign method."
    x, y = learn.dls.valid_ds.tensors
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(learn.model.eval()(x), y), x)
    with torch.no_grad():
        return 100 * (learn.model(x + step * grad.sign()).argmax(1) == y).float().mean().item()


class Balanced(MixUp):
    "MixUp with partners that are as often of each class."

    def before_fit(self):
        (_, y), data = self.learn.dls.train_ds.tensors, self.learn.dls.train_ds
        self.partners = DataLoader(data, 64, sampler=WeightedRandomSampler(1 / y.bincount()[y], len(y)))
        super().before_fit()


class Remix(MixUp):
    "MixUp whose labels favor rare classes."

    def before_fit(self):
        self.lam_targets = remix(self.learn.dls.train_ds.tensors[1].bincount())
        super().before_fit()


FOUR = {"none": None, "MixUp(.4)": MixUp(0.4), "CutMix(1)": CutMix(1), "OneOf": OneOf(MixUp(0.4), CutMix(1))}
ALL = {
    **FOUR,
    "ManifoldMixup(1)": ManifoldMixup(1),
    "OutputMixup(1)": OutputMixup(1),
    "FMix(1)": FMix(1),
    "ResizeMix(1)": ResizeMix(1),
    "SaliencyMix(1)": SaliencyMix(1),
    "PatchUp(2)": PatchUp(2),
}
MIX, CUT = partial(MixUp, 0.4), partial(CutMix, 1)
VARIANTS = {
    **FOUR,
    "OneOf, per sample": OneOf(MixUp(0.4), CutMix(1), per_sample=True),
    "MixUp(.4, stop=-5)": MIX(stop=-5),
    "MixUp(.4, prob=.5)": MIX(prob=0.5),
    "MixUp(.4, fold=False)": MIX(fold=False),
    "MixUp(.4, per_sample=False)": MIX(per_sample=False),
    "MixUp(10, clean=True)": MixUp(10, clean=True),
    "CutMix(1, stop=-5)": CUT(stop=-5),
    "CutMix(1, prob=.5)": CUT(prob=0.5),
    "CutMix(1, per_sample=False)": CUT(per_sample=False),
    "CutMix(1, clean=True)": CUT(clean=True),
}
ALPHAS = {".1": 0.1, ".4": 0.4, "1": 1, "2": 2, "8": 8}
ALPHA = {f"{cls.__name__}({a})": cls(alpha) for cls in (MixUp, ManifoldMixup) for a, alpha in ALPHAS.items()}
NOISY = {"none": None, "MixUp(.4)": MixUp(0.4), "MixUp(8)": MixUp(8), "CutMix(1)": CutMix(1)}
TAIL = {f"{cls.__name__}(1)": cls(1, fold=False) for cls in (MixUp, Balanced, Remix)}
MORE = {"none": None, "MixUp(.4, k=3)": MIX(k=3), "RICAP(.3)": RICAP(0.3), "Mosaic(.3)": Mosaic(0.3)}
BOXES = {
    "none": None,
    "CutMix(1)": CutMix(1),
    "CutMix(aspect=3)": CutMix(aspect=3),
    "CutMix(inside=True)": CutMix(inside=True),
    "CutMix(sides=(.2, .8), inside=True)": CutMix(sides=(0.2, 0.8), inside=True),
}
EXPERIMENTS = {
    "methods": {"methods": ALL},
    "augmented": {"methods": FOUR, "augment": True},
    "augmented, epochs=80": {"methods": FOUR, "augment": True, "epochs": 80},
    "variants": {"methods": VARIANTS},
    "boxes": {"methods": BOXES},
    "more than two": {"methods": MORE},
    "alpha": {"methods": {"none": None, **ALPHA}},
    "n=500": {"methods": FOUR, "n": 500},
    "n=4000": {"methods": FOUR, "n": 4000},
    "epochs=20": {"methods": FOUR, "epochs": 20},
    "epochs=80": {"methods": FOUR, "epochs": 80},
    "noise=0.2": {"methods": NOISY, "noise": 0.2},
    "noise=0.4": {"methods": NOISY, "noise": 0.4},
    "tail=20": {"methods": FOUR, "tail": 20},
    "tail=20, for rare classes": {"methods": {"none": None, **TAIL}, "tail": 20},
    "tail=20, weights": {"methods": FOUR, "tail": 20, "weights": True},
}


def train(name, runs, jobs=2, seeds=5, methods=None):
    "Return the comparison of an experiment; runs that the file does not have are trained."
    options = {"n": 2000, "noise": 0.0, "augment": False, "epochs": 40, **EXPERIMENTS[name]}
    every, epochs = options.pop("methods"), options.pop("epochs")
    return compare(
        partial(new_learner, **options),
        {label: every[label] for label in methods or every},
        fit=lambda learn: learn.fit_one_cycle(epochs, 8e-3),
        seeds=seeds,
        measures={"accuracy % under attack": attacked},
        runs=runs,
        settings={**options, "epochs": epochs},
        code=False,
        jobs=jobs,
    )


def stored(name):
    "Return the comparison of an experiment from its stored runs."
    return Comparison.read(RUNS / f"{name}.jsonl")


def check():
    "Train two of the stored runs anew; SystemExit if they come out otherwise, by more than rounding errors amplify."
    try:
        images("train")
    except (OSError, RuntimeError) as error:  # offline
        print("There is no Fashion-MNIST:", error)
        sys.exit(77)
    labels, measures = ["none", "CutMix(1)"], ["accuracy %", "ECE %"]
    new, old = train("methods", None, seeds=1, methods=labels), stored("methods")
    for label, measure in product(labels, measures):
        now, before = (result.values(measure, label)[0] for result in (new, old))
        print(f"{label}, {measure}: {now:.2f}, stored: {before:.2f}")
        if abs(now - before) > 2:
            sys.exit("A stored run of nbs/runs comes out otherwise")


if __name__ == "__main__":
    import fashion  # under the name that the processes of runs side by side know

    if sys.argv[1:] == ["--check"]:
        fashion.check()
    else:
        for name in sys.argv[1:] or EXPERIMENTS:
            print(name, fashion.train(name, RUNS / f"{name}.jsonl").report(), sep="\n\n", end="\n\n", flush=True)
