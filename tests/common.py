"""Small learners whose every batch can be checked by value."""

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from mixaug import (
    CMixup,
    CutMix,
    FMix,
    ManifoldMixup,
    MixHandler,
    MixUp,
    OneOf,
    OutputMixup,
    PatchUp,
    ResizeMix,
    SaliencyMix,
)

METHODS = {"MixUp": MixUp, "CutMix": CutMix, "ManifoldMixup": ManifoldMixup, "OutputMixup": OutputMixup}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
# and what takes their place in the tests of what is alike for all
EVERY = {
    **METHODS,
    "FMix": FMix,
    "SaliencyMix": SaliencyMix,
    "ResizeMix": ResizeMix,
    "CMixup": CMixup,
    "PatchUp": PatchUp,
    "PatchUp, hard": lambda alpha=1: PatchUp(alpha, hard=True),
    "OneOf": lambda alpha=1: OneOf(MixUp(alpha), CutMix(alpha), ManifoldMixup(alpha), OutputMixup(alpha)),
    "OneOf, each sample": lambda alpha=1: OneOf(MixUp(alpha), ResizeMix(alpha), p=[0.5, 0.4], per_sample=True),
    "clean": lambda alpha=1: CutMix(alpha, clean=True),
}
N, BS, C = 22, 8, 3


class Spy(Callback):
    """Keeps what the last callback sees of each training batch, and the loss function in validation."""

    order = 70

    def __init__(self, mixer=None):
        self.mixer, self.batches = mixer, []

    def before_batch(self):
        if self.training:
            self.batches.append({"x": self.learn.xb, "iter": self.iter})
            self.look()

    def look(self):
        row = self.batches[-1]
        row["y"] = self.learn.yb
        if self.mixer is not None:
            names = ("mix", "lam", "yb1", "one_lam", "mixed_layer", "chosen")
            row.update((name, getattr(self.mixer, name)) for name in names if name in vars(self.mixer))

    def after_pred(self):
        if self.training:
            self.look()  # again, as PatchUp's shares are those of the layer

    def after_loss(self):
        if self.training:
            self.batches[-1].update(pred=self.learn.pred.detach().clone(), loss=self.learn.loss.detach().clone())
        else:
            self.valid_loss = self.learn.loss_func


def images(size=(5, 6), channels=2, n=N):
    return torch.randn(n, channels, *size)


def loaders(x, y, bs=BS):
    """Loaders of (x, y) in order, so that batch i is known: x[i * bs : (i + 1) * bs]; x, y may be tuples of tensors."""
    xs, ys = (t if isinstance(t, tuple) else (t,) for t in (x, y))
    items = list(zip(*xs, *ys, strict=True))
    dls = DataLoaders(*(DataLoader(items, bs=bs, num_workers=0) for _ in range(2)), device="cpu")
    dls.n_inp = len(xs)
    return dls


def cnn(n_out=C, channels=2):
    conv = [nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()]
    return nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, n_out))


def learner(mixer, x=None, y=None, model=None, loss=None, bs=BS, cbs=(), **kwargs):
    """A learner with `mixer` (None: without) and a `spy`, which prints nothing."""
    x = images() if x is None else x
    y = torch.randint(0, C, (len(x),)) if y is None else y
    cbs = [cb for cb in (mixer, Spy(mixer), *cbs) if cb is not None]
    learn = Learner(loaders(x, y, bs), model or cnn(), loss or CrossEntropyLossFlat(), cbs=cbs, **kwargs)
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    return learn


def no_hooks(model):
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def on(event, f, order=0):
    """A callback that calls `f(learn)` at `event`."""
    cb = Callback(**{event: lambda self: f(self.learn)})
    cb.order = order
    return cb


def slow_mix(t, mix):
    """The mix of a tensor (B, ...), a sample at a time."""
    size, out = mix.mask.shape[1:], []
    covered = t.shape[1:][max(0, t.ndim - 1 - len(size)) :] == size or not size
    for i, j in enumerate(mix.partner.tolist()):
        keep, other = mix.mask[i], t[j]
        if not covered:
            keep = keep.float().mean()
        elif mix.places:
            for axis, place in enumerate(mix.places, -len(size)):
                other = other.index_select(axis, place[i])
        out.append(torch.where(keep, t[i], other) if keep.dtype == torch.bool else keep * t[i] + (1 - keep) * other)
    return torch.stack(out)


def place_of(mixer):
    """Where the batch at hand is mixed: "input", "output", or the name of a layer."""
    mixer = getattr(mixer, "chosen", None) or mixer
    if isinstance(mixer, ManifoldMixup):
        return mixer.mixed_layer or "input"
    return "output" if isinstance(mixer, OutputMixup) else "input"


def slow_loss(row, y):
    """Cross-entropy of a mixed batch, a sample at a time."""
    total = 0.0
    for i, logp in enumerate(row["pred"].log_softmax(1)):
        lam, j = row["lam"][i], row["mix"].partner[i]
        total -= lam * logp[y[i]] + (1 - lam) * logp[y[j]]
    return total / len(y)


class Oracle(Callback):
    """Computes each prediction anew, a layer and a sample at a time, and its loss by the formula."""

    order = 70
    batches = 0

    def before_batch(self):
        self.yb_own = self.learn.yb

    def after_pred(self):
        place, h = place_of(next(iter(self.learn._grab_cbs(MixHandler)), None)), self.inputs
        with torch.no_grad():
            h = self.mixed(h) if place == "input" else h
            for name, layer in self.model.named_children():
                h = layer.forward(h)
                h = self.mixed(h) if name == place else h
            h = self.mixed(h) if place == "output" else h
        torch.testing.assert_close(self.pred.detach(), h)

    def mix_now(self):
        mixer = next(iter(self.learn._grab_cbs(MixHandler)), None)
        return mixer.mix if self.training and mixer is not None else None

    def mixed(self, h):
        return h if self.mix_now() is None else slow_mix(h, self.mix_now())

    def after_loss(self):
        if not self.yb_own:
            return
        mix, y = self.mix_now(), self.yb_own[0]
        y1, lam = (y, torch.ones(len(y))) if mix is None else (y[mix.partner], mix.lam)
        logp = self.pred.detach().log_softmax(1)
        each = [-lam[i] * logp[i, y[i]] - (1 - lam[i]) * logp[i, y1[i]] for i in range(len(y))]
        torch.testing.assert_close(self.learn.loss.detach().mean().as_subclass(torch.Tensor), sum(each) / len(each))
        self.batches += 1


class Unmixed(Callback):
    """Keeps the inputs as they came, for the oracle."""

    order = -70

    def before_batch(self):
        self.learn.oracle.inputs = self.learn.xb[0].as_subclass(torch.Tensor).clone()
