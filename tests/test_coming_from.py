"""What the README says to users of other libraries: each call gives the distribution of what they come from.

A peer and our call mix a thousand batches of images, each of one value, so that what was done can be read off them.
Then the two-sample Kolmogorov-Smirnov test compares each statistic of a batch. Partners are no part of it: there the
libraries differ, and a test each holds what the README says of them.
"""

from pathlib import Path
from types import SimpleNamespace

import fastai.callback.mixup as fastai_mixup
import numpy as np
import pytest
import torch
from common import learner
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropy
from scipy import stats
from torch import nn

import mixaug
from mixaug import ManifoldMixup, OutputMixup, box_mask, mixed_loss

README = (Path(__file__).parent.parent / "README.md").read_text()
N, BS, SIZE = 1000, 4, (24, 32)
X = torch.arange(1.0, BS + 1).view(BS, 1, 1, 1).expand(BS, 1, *SIZE)
LEVEL = 1e-6  # of the tests: of a hundred such none fails by chance


class Stage(SimpleNamespace):
    """As much of a learner as a mixing callback needs before a batch."""

    training, loss_func = True, CrossEntropyLossFlat()
    x, y = property(lambda self: self.xb[0]), property(lambda self: self.yb[0])


def called(cb):
    """The mixed images (N, BS, *SIZE) and the shares (N, BS) of a callback's batches."""
    cb.learn, xs, lams = Stage(), [], []
    cb.stack_y = True
    for _ in range(N):
        cb.learn.xb, cb.learn.yb = (X.clone(),), (torch.arange(BS),)
        cb.before_batch()
        xs.append(cb.x[:, 0])
        lams.append(cb.lam.expand(BS))
    return torch.stack(xs), torch.stack(lams)


def transformed(transform):
    """The same of a function of a batch that mixes one-hot labels."""
    done = [transform(X.clone(), torch.arange(BS)) for _ in range(N)]
    return torch.stack([x[:, 0] for x, _ in done]), torch.stack([y.diagonal() for _, y in done])


def timm(**kwargs):
    return pytest.importorskip("timm.data").Mixup(num_classes=BS, label_smoothing=0, **kwargs)


def torchvision(name, alpha):
    return getattr(pytest.importorskip("torchvision.transforms.v2"), name)(alpha=alpha, num_classes=BS)


def torchvision_choice(alpha):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    return v2.RandomChoice([torchvision("MixUp", alpha), torchvision("CutMix", alpha)])


def statistics(x, lam):
    """Of each batch: its first sample's share and whether it is unmixed, cut; whether all have one share; its box."""
    other = x[:, 0] != X[0, 0]
    cut = other.any(-1).any(-1) & (x[:, 0].flatten(1).amin(1) == 1)
    found = {"lam": lam[:, 0], "unmixed": ~other.any(-1).any(-1), "cut": cut, "one": (lam == lam[:, :1]).all(1)}
    for axis, along in {"row": other[cut].any(2), "column": other[cut].any(1)}.items():
        found[f"first {axis}"] = along.int().argmax(1)
        found[f"last {axis}"] = along.shape[1] - 1 - along.flip(1).int().argmax(1)
    return {name: values.double().numpy() for name, values in found.items()}


def differing(peer, ours):
    """The statistics of which the two samples tell that they differ, with their probabilities."""
    pairs = {name: (a, ours[name]) for name, a in peer.items() if len(a) and len(ours[name])}
    found = {name: stats.ks_2samp(a, b, method="asymp").pvalue for name, (a, b) in pairs.items()}
    return {name: p for name, p in found.items() if p < LEVEL}


# The README's calls; the peers' numbers are theirs
ROWS = {
    "fastai MixUp": (lambda: called(fastai_mixup.MixUp(0.4)), "MixUp(.4)"),
    "fastai CutMix": (lambda: called(fastai_mixup.CutMix(1.0)), "CutMix(1., per_sample=False)"),
    "torchvision MixUp": (lambda: transformed(torchvision("MixUp", 0.2)), "MixUp(.2, per_sample=False, fold=False)"),
    "torchvision CutMix": (lambda: transformed(torchvision("CutMix", 1.0)), "CutMix(1., per_sample=False)"),
    "torchvision RandomChoice": (
        lambda: transformed(torchvision_choice(1.0)),
        "OneOf(MixUp(1., per_sample=False, fold=False), CutMix(1., per_sample=False))",
    ),
    "timm mixup": (
        lambda: transformed(timm(mixup_alpha=0.2, prob=0.6)),
        "MixUp(.2, per_sample=False, fold=False, prob=.6)",
    ),
    "timm cutmix": (
        lambda: transformed(timm(mixup_alpha=0, cutmix_alpha=1.0, prob=0.6)),
        "CutMix(1., per_sample=False, prob=.6)",
    ),
    "timm both": (
        lambda: transformed(timm(mixup_alpha=0.2, cutmix_alpha=1.0, prob=0.6, switch_prob=0.3)),
        "OneOf(MixUp(.2, per_sample=False, fold=False), CutMix(1., per_sample=False), p=[.7, .3], prob=.6)",
    ),
    "timm elem": (
        lambda: transformed(timm(mixup_alpha=0.2, cutmix_alpha=1.0, prob=0.6, switch_prob=0.3, mode="elem")),
        "OneOf(MixUp(.2, fold=False), CutMix(1.), p=[.6 * .7, .6 * .3], per_sample=True)",
    ),
}


def test_the_readme_says_the_same():
    section = README.split("## Coming from")[1].split("\n## ")[0]
    for _, call in ROWS.values():
        assert f"| `{call}` |" in section


@pytest.fixture
def no_own_partner(monkeypatch):
    """Fastai's partners as a cycle: its shuffle leaves samples with themselves, of which nothing can be seen."""
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n).roll(1))


@pytest.mark.parametrize("row", ROWS)
def test_the_call_gives_the_peers_distribution(row, no_own_partner):
    peer, call = ROWS[row]
    assert differing(statistics(*peer()), statistics(*called(eval(call, vars(mixaug))))) == {}


@pytest.mark.parametrize(
    ("row", "wrong", "seen"),
    [
        ("fastai MixUp", "MixUp(.8)", {"lam"}),
        ("fastai MixUp", "MixUp(.4, fold=False)", {"lam"}),
        ("fastai MixUp", "MixUp(.4, per_sample=False)", {"one"}),
        ("fastai CutMix", "CutMix(1.)", {"one"}),
        ("fastai CutMix", "CutMix(.2, per_sample=False)", {"lam"}),
        ("torchvision MixUp", "MixUp(.2, per_sample=False)", {"lam"}),
        ("torchvision CutMix", "CutMix(1., per_sample=False, fold=True)", {"lam", "first row"}),
        ("torchvision CutMix", "ResizeMix(1., per_sample=False)", {"lam", "first row", "last column"}),
        ("timm mixup", "MixUp(.2, per_sample=False, fold=False, prob=.4)", {"unmixed"}),
        ("timm both", ROWS["timm both"][1].replace("p=[.7, .3]", "p=[.3, .7]"), {"cut"}),
        ("timm elem", ROWS["timm elem"][1].replace("MixUp(.2, fold=False)", "MixUp(.2)"), {"lam"}),
    ],
)
def test_the_comparison_sees_a_wrong_call(row, wrong, seen, no_own_partner):
    found = differing(statistics(*ROWS[row][0]()), statistics(*called(eval(wrong, vars(mixaug)))))
    assert seen <= set(found)


# The boxes, given the same share and centre


def fastai_box(lam, y, x, monkeypatch):
    given = iter([torch.tensor([x]), torch.tensor([y])])
    monkeypatch.setattr(torch, "randint", lambda *_: next(given))
    cb = fastai_mixup.CutMix()
    cb.learn = type("Stage", (), {"x": X})
    x1, y1, x2, y2 = map(int, cb.rand_bbox(SIZE[1], SIZE[0], torch.tensor([lam])))
    return y1, y2, x1, x2


def torchvision_box(lam, y, x, monkeypatch):
    given = iter([torch.tensor([x]), torch.tensor([y])])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(given))
    cutmix = torchvision("CutMix", 1.0)
    cutmix._dist = type("Given", (), {"sample": lambda self, shape: lam})()
    x1, y1, x2, y2 = cutmix.make_params([X])["box"]
    return y1, y2, x1, x2


def timm_box(lam, y, x, monkeypatch):
    box = pytest.importorskip("timm.data.mixup").rand_bbox
    given = iter([y, x])
    monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(given))
    return tuple(map(int, box(X.shape, lam)))


def our_box(lam, y, x):
    centre = torch.tensor([[y / SIZE[0]], [x / SIZE[1]]])
    inside = ~box_mask(torch.tensor([lam]), SIZE, centre)[0]
    edges = []
    for along in (inside.any(1), inside.any(0)):
        at = along.nonzero()[:, 0].tolist() or [0, -1]
        edges += [at[0], at[-1] + 1]
    return tuple(edges)


PLACES = [(0, 0), (5, 7), (12, 16), (23, 31)]


@pytest.mark.parametrize("box", [fastai_box, torchvision_box, timm_box])
def test_a_box_of_even_sides_is_the_peers_to_the_pixel(box, monkeypatch):
    for k in range(1, 5):  # sides of 6 x 8, 12 x 16, ... pixels
        for y, x in PLACES:
            lam = 1 - (k / 4) ** 2
            assert box(lam, y, x, monkeypatch) == our_box(lam, y, x), (k, y, x)


@pytest.mark.parametrize("box", [fastai_box, torchvision_box, timm_box])
def test_an_edge_of_any_box_is_within_a_pixel_of_the_peers(box, monkeypatch):
    apart = set()
    for lam in np.linspace(0.02, 0.98, 49).tolist():
        for y, x in PLACES:
            theirs, ours = box(lam, y, x, monkeypatch), our_box(lam, y, x)
            if 0 not in (theirs[1] - theirs[0], theirs[3] - theirs[2]):  # a side that is less than two pixels is none
                apart |= {abs(a - b) for a, b in zip(theirs, ours, strict=True)}
    assert apart == {0, 1}


# Partners


def test_fastais_samples_may_be_their_own_partners_and_ours_may_not():
    for cb, own in ((fastai_mixup.MixUp(8.0), 1 / BS), (mixaug.MixUp(8.0), 0)):
        unmixed = statistics(*called(cb))["unmixed"]
        assert abs(unmixed.mean() - own) <= 4 * (own * (1 - own) / N) ** 0.5


def test_torchvisions_partner_is_the_one_before_timms_the_one_opposite():
    y = torch.eye(BS)
    seen = [torchvision("MixUp", 8.0)(X, torch.arange(BS))[1], timm(mixup_alpha=8.0)(X.clone(), torch.arange(BS))[1]]
    partners = [(target - y * target.diagonal()).argmax(1).tolist() for target in seen]
    assert partners == [[3, 0, 1, 2], [3, 2, 1, 0]]


# Labels, and what cannot be installed beside it


def test_timms_smoothing_is_that_of_the_loss():
    timm_loss = pytest.importorskip("timm.loss").SoftTargetCrossEntropy()
    mixup = pytest.importorskip("timm.data").Mixup(mixup_alpha=0.4, label_smoothing=0.1, num_classes=7)
    y, pred = torch.tensor([0, 3, 6, 2]), torch.randn(BS, 7)
    _, target = mixup(X.clone(), y)
    lam = ((target[0, 0] - 0.1 / 7) / 0.9).clamp(0, 1)
    for loss in (nn.CrossEntropyLoss(label_smoothing=0.1), LabelSmoothingCrossEntropy(0.1)):
        mixed = mixed_loss(loss, pred, [y], [y.flip(0)], lam.expand(BS))
        torch.testing.assert_close(mixed, timm_loss(pred, target))


def folded(alpha):
    """The distribution function of max(t, 1 - t) for t from Beta(alpha, alpha)."""
    return lambda lam: 2 * stats.beta.cdf(lam, alpha, alpha) - 1


@pytest.mark.parametrize("method", [ManifoldMixup, OutputMixup])
def test_manifold_mixups_shares_are_folded_draws_for_each_sample(method):
    cb = method(0.4)
    lam = torch.cat([cb.draw(X).lam for _ in range(N)]).numpy()
    assert stats.kstest(lam, folded(0.4)).pvalue > LEVEL
    assert stats.kstest(lam, folded(0.6)).pvalue < LEVEL


@pytest.mark.parametrize("input_mixup", [True, False])
def test_manifold_mixup_chooses_the_layers_given_and_the_input_equally_often(input_mixup):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    cb = ManifoldMixup(0.4, modules=[model[1], model[4]], input_mixup=input_mixup)
    learn = learner(cb, torch.randn(600, 2), torch.zeros(600, dtype=torch.long), model, bs=2)
    learn.fit(1, 1e-9)
    layers = [row["mixed_layer"] for row in learn.spy.batches]
    assert set(layers) == ({"1", "4", None} if input_mixup else {"1", "4"})
    assert stats.chisquare([layers.count(layer) for layer in set(layers)]).pvalue > LEVEL
