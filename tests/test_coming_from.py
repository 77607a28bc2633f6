"""What nbs/coming_from.md says to users of other libraries: each call gives the distribution of what they come from.

Another library's call and ours mix a thousand batches of constant images, so that the mask can be read off them. Then
the two-sample Kolmogorov-Smirnov test compares each statistic of a batch. Partners are left out:
the libraries differ there.
"""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import fastai.callback.mixup as fastai_mixup
import numpy as np
import pytest
import torch
from fastai.losses import CrossEntropyLossFlat
from scipy import stats
from torch import nn

import mixaug
from mixaug import box_mask

PAGE = (Path(__file__).parent.parent / "nbs/coming_from.md").read_text()
N, BS, SIZE = 1000, 4, (24, 32)
X = torch.arange(1.0, BS + 1).view(BS, 1, 1, 1).expand(BS, 1, *SIZE)
LEVEL = 1e-6  # so low that no test fails by chance


class Stage(SimpleNamespace):
    """As much of a learner as a mixing callback needs before a batch."""

    training, cbs, loss_func, model = True, (), CrossEntropyLossFlat(), nn.Identity()
    x, y = property(lambda self: self.xb[0]), property(lambda self: self.yb[0])


def called(cb):
    """Return the mixed images (N, BS, *SIZE) and the coefficients (N, BS) of a callback's batches."""
    cb.learn, xs, lams = Stage(), [], []
    if not isinstance(cb, mixaug.MixHandler):
        cb.stack_y = True  # which fastai's sets before a fit
    for _ in range(N):
        cb.learn.xb, cb.learn.yb = (X.clone(),), (torch.arange(BS),)
        cb.before_batch()
        xs.append(cb.x[:, 0])
        lams.append(cb.lam.expand(BS))
    return torch.stack(xs), torch.stack(lams)


def transformed(transform):
    """Return the same of a function of a batch that mixes one-hot labels."""
    done = [transform(X.clone(), torch.arange(BS)) for _ in range(N)]
    return torch.stack([x[:, 0] for x, _ in done]), torch.stack([y.diagonal() for _, y in done])


def timm(**kwargs):
    return transformed(pytest.importorskip("timm.data").Mixup(num_classes=BS, label_smoothing=0, **kwargs))


def torchvision(alpha, *names):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    return v2.RandomChoice([getattr(v2, name)(alpha=alpha, num_classes=BS) for name in names])


def statistics(x, lam):
    """Return for each batch: its first sample's lam, whether it is unmixed or cut, has one lam; and its box."""
    other = x[:, 0] != X[0, 0]
    cut = other.any(-1).any(-1) & (x[:, 0].flatten(1).amin(1) == 1)
    found = {"lam": lam[:, 0], "unmixed": ~other.any(-1).any(-1), "cut": cut, "one": (lam == lam[:, :1]).all(1)}
    for axis, along in {"row": other[cut].any(2), "column": other[cut].any(1)}.items():
        found[f"first {axis}"] = along.int().argmax(1)
        found[f"last {axis}"] = along.shape[1] - 1 - along.flip(1).int().argmax(1)
    return {name: values.double().numpy() for name, values in found.items()}


def differing(theirs, ours):
    """Return the statistics whose two samples differ significantly, with their p-values."""
    pairs = {name: (a, ours[name]) for name, a in theirs.items() if len(a) and len(ours[name])}
    found = {name: stats.ks_2samp(a, b, method="asymp").pvalue for name, (a, b) in pairs.items()}
    return {name: p for name, p in found.items() if p < LEVEL}


# The page's calls, beside the other library's
MIXUP, CUTMIX = "MixUp({}, per_sample=False, fold=False)", "CutMix(1., per_sample=False)"
ELEM = "OneOf(MixUp(.2, fold=False), CutMix(1.), p=[.6 * .7, .6 * .3], per_sample=True)"
BOTH = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "prob": 0.6, "switch_prob": 0.3}
TIMM_BOTH = f"OneOf({MIXUP.format('.2')}, {CUTMIX}, p=[.7, .3], prob=.6)"
ROWS = {
    "fastai MixUp": (lambda: called(fastai_mixup.MixUp(0.4)), "MixUp(.4)"),
    "fastai CutMix": (lambda: called(fastai_mixup.CutMix(1.0)), CUTMIX),
    "torchvision MixUp": (lambda: transformed(torchvision(0.2, "MixUp")), MIXUP.format(".2")),
    "torchvision CutMix": (lambda: transformed(torchvision(1.0, "CutMix")), CUTMIX),
    "torchvision": (lambda: transformed(torchvision(1.0, "MixUp", "CutMix")), f"OneOf({MIXUP.format('1.')}, {CUTMIX})"),
    "timm mixup": (lambda: timm(mixup_alpha=0.2, prob=0.6), "MixUp(.2, per_sample=False, fold=False, prob=.6)"),
    "timm cutmix": (lambda: timm(mixup_alpha=0, cutmix_alpha=1.0, prob=0.6), "CutMix(1., per_sample=False, prob=.6)"),
    "timm minmax": (
        lambda: timm(mixup_alpha=0, cutmix_alpha=1.0, cutmix_minmax=(0.2, 0.8)),
        "CutMix(sides=(.2, .8), inside=True, per_sample=False)",
    ),
    "timm both": (lambda: timm(**BOTH), TIMM_BOTH),
    "timm elem": (lambda: timm(**BOTH, mode="elem"), ELEM),
}


@pytest.fixture
def paired_with_others(monkeypatch, request):
    """Fastai's partners as a cycle: its shuffle pairs samples with themselves, which hides the mask."""
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n).roll(1))
    if "minmax" in request.node.name:  # timm rounds these sides down, which matters less in larger images
        monkeypatch.setitem(globals(), "X", X[..., :1, :1].expand(BS, 1, 96, 128))


@pytest.mark.parametrize("row", ROWS)
def test_the_call_gives_the_other_librarys_distribution(row, paired_with_others):
    theirs, call = ROWS[row]
    assert f"| `{call}` |" in PAGE
    assert differing(statistics(*theirs()), statistics(*called(eval(call, vars(mixaug))))) == {}


WRONG = [
    ("fastai MixUp", "MixUp(.8)", {"lam"}),
    ("fastai CutMix", "CutMix(1.)", {"one"}),
    ("torchvision CutMix", "ResizeMix(1., per_sample=False)", {"lam", "first row", "last column"}),
    ("timm minmax", "CutMix(sides=(.2, .8), per_sample=False)", {"last row"}),
    ("timm minmax", "CutMix(sides=(.2, .6), inside=True, per_sample=False)", {"lam"}),
    ("timm mixup", "MixUp(.2, per_sample=False, fold=False, prob=.4)", {"unmixed"}),
    ("timm both", TIMM_BOTH.replace("p=[.7, .3]", "p=[.3, .7]"), {"cut"}),
]


@pytest.mark.parametrize(("row", "wrong", "seen"), WRONG)
def test_the_comparison_sees_a_wrong_call(row, wrong, seen, paired_with_others):
    assert seen <= set(differing(statistics(*ROWS[row][0]()), statistics(*called(eval(wrong, vars(mixaug))))))


def numbers(*values):
    """Return a function that returns one value after the other."""
    given = iter(values)
    return lambda *_, **__: next(given)


def fastai_box(lam):
    cb = fastai_mixup.CutMix()
    cb.learn = SimpleNamespace(x=X)
    return cb.rand_bbox(SIZE[1], SIZE[0], torch.tensor([lam]))


def torchvision_box(lam):
    (cutmix,) = torchvision(1.0, "CutMix").transforms
    cutmix._dist = SimpleNamespace(sample=lambda shape: lam)
    return cutmix.make_params([X])["box"]


def timm_box(lam):
    y1, y2, x1, x2 = pytest.importorskip("timm.data.mixup").rand_bbox(X.shape, lam)
    return x1, y1, x2, y2


def our_box(lam, y, x):
    inside = ~box_mask(torch.tensor([lam]), SIZE, torch.tensor([[y / SIZE[0]], [x / SIZE[1]]]))[0]
    edges = [along.nonzero()[:, 0].tolist() or [0, -1] for along in (inside.any(0), inside.any(1))]
    return *(at[0] for at in edges), *(at[-1] + 1 for at in edges)


@pytest.mark.parametrize("box", [fastai_box, torchvision_box, timm_box])
def test_a_box_of_even_sides_is_the_same_and_any_other_within_a_pixel(box, monkeypatch):
    even, apart = [1 - (k / 4) ** 2 for k in range(1, 5)], set()  # sides of 6 x 8, 12 x 16, ... pixels
    for lam, y, x in product(even + np.linspace(0.02, 0.98, 49).tolist(), (0, 5, 12, 23), (0, 7, 16, 31)):
        monkeypatch.setattr(torch, "randint", numbers(torch.tensor([x]), torch.tensor([y])))
        monkeypatch.setattr(np.random, "randint", numbers(y, x))
        theirs, ours = tuple(map(int, box(lam))), our_box(lam, y, x)
        assert lam not in even or theirs == ours
        if 0 not in (theirs[2] - theirs[0], theirs[3] - theirs[1]):  # theirs has no side of less than two pixels
            apart |= {abs(a - b) for a, b in zip(theirs, ours, strict=True)}
    assert apart == {0, 1}
