"""The methods, and small learners in which every batch can be checked by value."""

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from reference import Original, Spy
from torch import nn

from mixaug import (
    RICAP,
    CMixup,
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
)

METHODS = {"MixUp": MixUp, "CutMix": CutMix, "ManifoldMixup": ManifoldMixup, "OutputMixup": OutputMixup}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
# And all others, for the tests of what they have in common
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
    "three": lambda alpha=1: MixUp(alpha, k=3),
    "RICAP": RICAP,
    "Mosaic": Mosaic,
    "clean": lambda alpha=1: CutMix(alpha, clean=True),
}
N, BS, C = 22, 8, 3


def images(size=(5, 6), channels=2, n=N):
    return torch.randn(n, channels, *size)


def classes(*size, high=C, dtype=torch.int64, n=N):
    return torch.randint(0, high, (n, *size)).to(dtype)


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
    """Return a learner with `mixer` (None: without) and a `spy`, which prints nothing."""
    x = images() if x is None else x
    y = torch.randint(0, C, (len(x),)) if y is None else y
    cbs = [cb for cb in (mixer, Spy(mixer), Original(), *cbs) if cb is not None]
    learn = Learner(loaders(x, y, bs), model or cnn(), loss or CrossEntropyLossFlat(), cbs=cbs, **kwargs)
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    return learn


def trained(mixer, x=None, y=None, model=None, loss=None, fit=(1, 0.01), **kwargs):
    """Return a learner after a fit with `fit`, epochs and learning rate; its ``spy.batches`` are what was seen."""
    learn = learner(mixer, x, y, model, loss, **kwargs)
    learn.fit(*fit)
    return learn


def no_hooks(model):
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def on(event, f, order=0):
    """Return a callback that calls `f(learn)` at `event`."""
    cb = Callback(**{event: lambda self: f(self.learn)})
    cb.order = order
    return cb


def replace(order=-1, **values):
    """Return a callback that sets attributes of the learner before each training batch, each a function of it."""

    def put(learn):
        for name, value in values.items() if learn.training else ():
            setattr(learn, name, value(learn))

    return on("before_batch", put, order)
