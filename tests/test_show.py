"""What is shown is what a training would get, and showing changes nothing."""

import copy
import math
import re

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from common import EVERY, cnn, images, learner, no_hooks
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader
from fastai.losses import CrossEntropyLossFlat
from fastai.tabular.core import Categorify
from fastai.tabular.data import TabularDataLoaders
from fastai.text.core import BaseTokenizer
from fastai.text.data import TextBlock
from fastai.vision.augment import Resize
from fastai.vision.core import PILImageBW, PILMask
from fastai.vision.data import ImageBlock, MaskBlock
from matplotlib import pyplot as plt

from mixaug import CutMix, ManifoldMixup, MixUp, OneOf, plot_lam
from mixaug.show import _mixed

pytestmark = pytest.mark.filterwarnings("ignore:.*", category=DeprecationWarning)


@pytest.fixture(autouse=True)
def figures():
    mpl.use("agg")
    yield
    plt.close("all")


def grey(i):
    return PILImageBW.create((torch.rand(8, 8, generator=torch.Generator().manual_seed(i)) * 255).byte())


targets = {
    "classes": (CategoryBlock, lambda i: "cat" if i % 2 else "dog", r"^0\.\d\d (cat|dog) \+ 0\.\d\d (cat|dog)$"),
    "several": (MultiCategoryBlock, lambda i: ["x"] * (i % 2) + ["yy"], r"^[01]\.\d\d (x;)?yy \+ [01]\.\d\d (x;)?yy$"),
    "numbers": (RegressionBlock, lambda i: i / 4, r"^[01]\.\d\d [\d.]+ \+ [01]\.\d\d [\d.]+$"),
    "maps": (
        lambda: MaskBlock(["a", "b"]),
        lambda i: PILMask.create((torch.rand(8, 8) > 0.5).byte()),
        r"^[01]\.\d\d \+ [01]\.\d\d$",
    ),
}


def data(target):
    block, get_y, title = targets[target]
    blocks = DataBlock((ImageBlock(PILImageBW), block()), get_x=grey, get_y=get_y, item_tfms=Resize(8))
    return blocks.dataloaders(range(40), bs=8, device="cpu", num_workers=0), title


@pytest.mark.parametrize("method", [MixUp, CutMix, ManifoldMixup])
@pytest.mark.parametrize("target", targets)
def test_images_are_shown_with_the_shares_of_their_labels(target, method):
    dls, title = data(target)
    axes = method(8.0).show_batch(dls, max_n=4)
    assert len(axes) == 4
    for ax in axes:
        assert re.match(title, ax.get_title()), ax.get_title()
        assert sum(map(float, re.findall(r"([01]\.\d\d)(?: |$)", ax.get_title()))) == pytest.approx(1, abs=0.011)
        width = ax.images[0].get_array().shape[1]
        assert width == (16 if method is ManifoldMixup else 8)


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_what_is_shown_is_the_mix_of_the_batch(method):
    numbers = method is EVERY["CMixup"]
    x, y = images(n=8), torch.rand(8) if numbers else torch.arange(8)
    own, mixed, cb = _mixed(method(1.0), (x,), (y,), CrossEntropyLossFlat())
    assert torch.equal(own[0], x)
    assert torch.equal(own[1], y)
    if mixed[0].shape == x.shape:
        assert torch.equal(mixed[0], cb.mix.blend(x))
    else:
        assert torch.equal(mixed[0], torch.cat([x, x[cb.mix.partner]], -1))
    assert (cb.lam < 1).any()


def test_maps_are_shown_as_they_are_cut():
    x, y = images(n=8), torch.randint(0, 3, (8, 5, 6))
    _, mixed, cb = _mixed(CutMix(), (x,), (y,), CrossEntropyLossFlat(axis=1))
    assert torch.equal(mixed[1], cb.mix.blend(y))
    assert not torch.equal(mixed[1], y)
    _, mixed, _ = _mixed(MixUp(), (x,), (y,), CrossEntropyLossFlat(axis=1))
    assert torch.equal(mixed[1], y)


def test_a_learner_is_as_it_was():
    dls, _ = data("classes")
    learn = learner(ManifoldMixup(1.0, start=5), model=cnn(2, channels=1))
    learn.dls = dls
    before = {name: copy.copy(vars(learn.manifold_mixup_cb)[name]) for name in ("mix", "lam", "yb1", "_stream", "prob")}
    loss = learn.loss_func
    assert len(learn.show_mixed(max_n=2, nrows=1)) == 2  # before any fit, and whatever the start
    assert {name: vars(learn.manifold_mixup_cb)[name] for name in before} == before
    assert learn.loss_func is loss
    assert learn.manifold_mixup_cb.learn is learn
    assert no_hooks(learn.model)
    assert not hasattr(learn, "xb")
    learn.remove_cb(learn.manifold_mixup_cb)
    with pytest.raises(ValueError, match=r"without mixing came.*learn.mixup"):
        learn.show_mixed()


def test_it_draws_in_the_axes_that_are_given():
    dls, _ = data("classes")
    axes = plt.subplots(1, 3)[1]
    assert list(OneOf(MixUp(), CutMix()).show_batch(dls, max_n=3, ctxs=axes)) == list(axes)
    assert all(ax.images for ax in axes)


def test_signals_are_lines():
    items = [(torch.randn(2, 50), torch.tensor(i % 3)) for i in range(16)]
    dls = DataLoaders.from_dsets(items, items, bs=8, device="cpu")
    axes = CutMix().show_batch(dls, max_n=3, nrows=1, figsize=(9, 2))
    assert len(axes) == 3
    assert axes[0].figure.get_size_inches().tolist() == [9, 2]
    assert len(CutMix().show_batch(dls, max_n=3)[0].figure.axes) == 3  # of two by two
    assert all(len(ax.lines) == 2 and " + " in ax.get_title() for ax in axes)


def test_rows_of_a_table_are_above_their_partners():
    frame = pd.DataFrame({"a": [float(i) for i in range(40)], "b": list("xy") * 20, "y": ["p", "q"] * 20})
    columns = {"cat_names": ["b"], "cont_names": ["a"], "y_names": "y", "procs": [Categorify]}
    dls = TabularDataLoaders.from_df(frame, **columns, bs=8, device="cpu")
    shown = ManifoldMixup().show_batch(dls, max_n=3)
    assert shown.shape == (6, 4)
    assert shown.loc[0, "share"].sum() == pytest.approx(1)
    assert set(shown["y"]) <= {"p", "q"}
    assert shown.loc[(1, "own"), "a"] != shown.loc[(1, "partner"), "a"]


def test_texts_are_shown_with_their_partners():
    frame = pd.DataFrame({"text": [f"w{i} " * 5 for i in range(16)], "y": list("pq") * 8})
    block = TextBlock.from_df("text", tok=BaseTokenizer(), rules=[], min_freq=1)
    blocks = DataBlock((block, CategoryBlock), get_x=ColReader("text"), get_y=ColReader("y"))
    rows = ManifoldMixup(1.0).show_batch(blocks.dataloaders(frame, bs=8, device="cpu"), max_n=3)
    assert len(rows) == 3
    for row in rows:
        own, partner = (set(words.split()) for words in row["text"].split(" + "))
        assert len(own) == len(partner) == 1
        assert own != partner
        assert re.match(r"^[01]\.\d\d [pq] \+ [01]\.\d\d [pq]$", row["text_"])


@pytest.mark.parametrize("alpha", [0.4, (0.3, 1, 8)])
def test_the_densities_of_an_alpha_have_area_one(alpha):
    axes = plot_lam(alpha)
    for ax in axes:
        assert len(ax.lines) == (1 if alpha == 0.4 else 3)
        for line in ax.lines:
            x, y = line.get_data()
            assert 0.85 < ((y[1:] + y[:-1]) / 2 * (x[1] - x[0])).sum() < 1.01  # but for the ends
    assert plot_lam(1, ctxs=axes)[0] is axes[0]


@pytest.mark.parametrize("alpha", [0, -1.0, [0.4, math.nan]])
def test_an_alpha_that_has_no_density_is_not_drawn(alpha):
    with pytest.raises(ValueError, match=r"alpha came as (0|-1\.0|nan), a finite number above 0"):
        plot_lam(alpha)
