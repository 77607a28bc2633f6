"""What is shown is what a training would get, and showing changes nothing."""

import math
import re
from functools import partial

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from common import EVERY, classes, cnn, images, learner, no_hooks
from fastai.callback import mixup as fm
from fastai.tabular import all as ft
from fastai.text import all as fx
from fastai.vision import all as fv
from matplotlib import pyplot as plt
from reference import slow_mix

from mixaug import CutMix, ManifoldMixup, MixUp, OneOf, plot_lam
from mixaug.show import _mixed, label, spread

pytestmark = pytest.mark.filterwarnings("ignore:.*", category=DeprecationWarning)


@pytest.fixture(autouse=True)
def figures():
    mpl.use("agg")
    yield
    plt.close("all")


def grey(i):
    return fv.PILImageBW.create((torch.rand(8, 8, generator=torch.Generator().manual_seed(i)) * 255).byte())


NUMBER = r"[01]\.\d\d"
TARGETS = {
    "classes": (fv.CategoryBlock, lambda i: "cat" if i % 2 else "dog", " (cat|dog)"),
    "multi-label": (fv.MultiCategoryBlock, lambda i: ["x"] * (i % 2) + ["yy"], " (x;)?yy"),
    "continuous": (fv.RegressionBlock, lambda i: i / 4, r" [\d.]+"),
    "points": (lambda: fv.PointBlock, lambda i: torch.tensor([[1.0, i % 7], [3, 4]]), ""),
    "masks": (partial(fv.MaskBlock, ["a", "b"]), lambda i: fv.PILMask.create((torch.rand(8, 8) > 0.5).byte()), ""),
}


def data(target):
    block, get_y, label = TARGETS[target]
    blocks = fv.DataBlock((fv.ImageBlock(fv.PILImageBW), block()), get_x=grey, get_y=get_y, item_tfms=fv.Resize(8))
    title = rf"^(?:({NUMBER})(?: ×)?{label} \+ ({NUMBER})(?: ×)?{label}|{label[1:]})$"
    return blocks.dataloaders(range(40), bs=8, device="cpu", num_workers=0), title


@pytest.mark.parametrize("method", [CutMix, ManifoldMixup])
@pytest.mark.parametrize("target", ["classes", "multi-label", "continuous"])
def test_images_are_shown_with_the_coefficients_of_their_labels(target, method):
    dls, title = data(target)
    axes = list(plt.subplots(1, 4)[1])
    assert list(method(8.0).show_batch(dls, max_n=4, ctxs=axes)) == axes
    for ax in axes:
        found = re.match(title, ax.get_title())
        if "+" in found[0]:  # two labels
            assert sum(map(float, re.findall(rf"(?:^|\+ )({NUMBER})", found[0]))) == pytest.approx(1, abs=0.011)
            assert method is CutMix or float(found[1]) >= 0.5  # folded
        assert ax.images[0].get_array().shape[1] == (16 if method is ManifoldMixup else 8)


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_what_is_shown_is_the_mix_of_the_batch(method):
    x, y = images(n=8), torch.rand(8) if method is EVERY["CMixup"] else torch.arange(8)
    original, mixed, record = _mixed(method(1.0), (x,), (y,), fv.CrossEntropyLossFlat())
    assert torch.equal(original[0], x)
    assert torch.equal(original[1], y)
    if mixed[0].shape == x.shape:
        torch.testing.assert_close(mixed[0], slow_mix(x, record.mix))
    else:
        assert torch.equal(mixed[0], torch.cat([x, x[record.mix.partner]], -1))
    assert (record.lam < 1).any()


def test_samples_are_shown_from_the_strongest_mixing_to_the_weakest():
    lam = torch.tensor([0.99, 0.98, 0.97, 0.5, 0.1, 0.96, 1.0, 0.7])
    weights = torch.stack([lam, 1 - lam], 1)
    assert lam[spread(weights, 4)].tolist() == pytest.approx([0.5, 0.7, 0.1, 1.0])  # |lam - 0.5|: 0, 0.2, 0.4, 0.5
    assert sorted(spread(weights, 8).tolist()) == sorted(spread(weights, 20).tolist()) == list(range(8))
    assert spread(torch.tensor([[0.7, 0.3]] * 8), 3).tolist() == [0, 1, 2]
    dls, title = data("continuous")
    titles = [ax.get_title() for ax in MixUp(0.4).show_batch(dls, max_n=4)]
    strengths = [float(re.match(title, text)[1]) for text in titles if "+" in text]
    assert strengths == sorted(strengths)


def test_equal_labels_are_one_and_numbers_are_multiplied():
    assert str(label([0.997, 0.003], "loss", "", "cat", "dog")) == "cat"
    shown = [
        label([0.75, 0.25], "loss", "", own, other)
        for own, other in (("cat", "cat"), ("cat", "dog"), (7, 3), ("3d", "b"))
    ]
    assert list(map(str, shown)) == ["cat", "0.75 cat + 0.25 dog", "0.75 × 7 + 0.25 × 3", "0.75 × 3d + 0.25 × b"]


def test_points_and_masks_have_their_coefficients_in_words():
    for target in ("masks", "points"):
        for ax in MixUp(8.0).show_batch(data(target)[0], max_n=3):
            assert re.match(rf"^{NUMBER} original \+ {NUMBER} partner$", ax.get_title())


def test_a_label_that_is_kept_is_shown_alone():
    axes = MixUp(8.0, targets="keep").show_batch(data("classes")[0], max_n=4)
    assert {ax.get_title() for ax in axes} <= {"cat", "dog"}


def test_a_label_of_a_function_is_shown_as_its_call():
    axes = MixUp(8.0, targets=lambda mix, y: y).show_batch(data("classes")[0], max_n=4)
    assert all(re.match(r"targets\((cat|dog), (cat|dog)\)$", ax.get_title()) for ax in axes)


def test_segmentation_masks_are_shown_as_they_are_cut():
    x, y = images(n=8), classes(5, 6, n=8)
    _, mixed, record = _mixed(CutMix(), (x,), (y,), fv.CrossEntropyLossFlat(axis=1))
    assert torch.equal(mixed[1], slow_mix(y, record.mix))
    assert not torch.equal(mixed[1], y)
    _, mixed, _ = _mixed(MixUp(), (x,), (y,), fv.CrossEntropyLossFlat(axis=1))
    assert torch.equal(mixed[1], y)


def test_neither_prob_nor_a_schedule_decides_what_is_shown():
    x, y = images(n=8), torch.arange(8)
    for cb in (MixUp(prob=0), MixUp(lambda t: 8 * t * (1 - t)), OneOf(MixUp(start=3), p=[0.5])):
        _, mixed, record = _mixed(cb, (x,), (y,), fv.CrossEntropyLossFlat())
        assert (record.lam < 1).any()
        assert not torch.equal(mixed[0], x)


def test_a_learner_is_as_it_was():
    dls, _ = data("classes")
    cb = ManifoldMixup(1.0, start=5, seed=3)
    learn = learner(cb, model=cnn(2, channels=1))
    learn.dls, loss = dls, learn.loss_func
    twin = ManifoldMixup(seed=3)
    assert cb.rng.random() == twin.rng.random()
    before = dict(vars(cb))
    assert len(learn.show_mixed(max_n=2, nrows=1)) == 2  # before any fit, and whatever the start
    assert vars(cb) == before
    assert cb.rng.random() == twin.rng.random()
    assert learn.loss_func is loss
    assert cb.learn is learn
    assert no_hooks(learn.model)
    assert not hasattr(learn, "xb")
    learn.remove_cb(cb)
    with pytest.raises(ValueError, match=r"learn\.mixup"):
        learn.show_mixed()


@pytest.mark.parametrize("kind", [fm.MixUp, fm.CutMix])
def test_a_callback_of_fastai_is_named(kind):
    learn = learner(None, cbs=[kind()])
    with pytest.raises(ValueError, match=rf"fastai\.callback\.mixup\.{kind.__name__}, .*import mixaug as mx"):
        learn.show_mixed()


def test_a_dollar_in_a_class_name_is_a_dollar():
    block = fv.DataBlock(
        (fv.ImageBlock(fv.PILImageBW), fv.CategoryBlock),
        get_x=grey,
        get_y=lambda i: ["$a__b", "$c__d"][i % 2],
        item_tfms=fv.Resize(8),
    )
    axes = ManifoldMixup(1.0).show_batch(block.dataloaders(range(40), bs=8, device="cpu", num_workers=0), max_n=4)
    for ax in axes:
        drawn, is_math = ax.title._preprocess_math(ax.get_title())
        assert re.match(rf"^{NUMBER} \$[ac]__[bd] \+ {NUMBER} \$[ac]__[bd]$|^\$[ac]__[bd]$", drawn)
        assert not is_math
    axes[0].figure.draw_without_rendering()


def test_signals_are_lines():
    items = [(torch.randn(2, 50), torch.tensor(i % 3)) for i in range(16)]
    dls = fv.DataLoaders.from_dsets(items, items, bs=8, device="cpu")
    axes = CutMix().show_batch(dls, max_n=3, nrows=1, figsize=(9, 2))
    assert len(axes) == 3
    assert axes[0].figure.get_size_inches().tolist() == [9, 2]
    assert len(CutMix().show_batch(dls, max_n=3)[0].figure.axes) == 3  # of two by two
    assert all(len(ax.lines) == 2 and re.match(r"\d$|.* \+ ", ax.get_title()) for ax in axes)


def test_rows_of_a_table_are_above_their_partners():
    frame = pd.DataFrame({"a": [float(i) for i in range(40)], "b": list("xy") * 20, "y": ["p", "q"] * 20})
    columns = {"cat_names": ["b"], "cont_names": ["a"], "y_names": "y", "procs": [ft.Categorify]}
    dls = ft.TabularDataLoaders.from_df(frame, **columns, bs=8, device="cpu")
    shown = ManifoldMixup().show_batch(dls, max_n=3)
    assert shown.shape == (6, 4)
    assert shown.loc[0, "lam"].sum() == pytest.approx(1)
    assert (shown["lam"].xs("original", level=1) >= 0.5).all()  # folded
    assert set(shown["y"]) <= {"p", "q"}
    assert shown.loc[(1, "original"), "a"] != shown.loc[(1, "partner"), "a"]


def test_one_sample_has_no_partner_to_show():
    items = [(fv.TensorImage(torch.rand(3, 8, 8)), n) for n in range(2)]
    dls = fv.DataLoaders.from_dsets(items, items, bs=1, num_workers=0)
    with pytest.raises(ValueError, match="batch of two samples or more, got one"):
        MixUp().show_batch(dls)


def test_texts_are_shown_with_their_partners():
    frame = pd.DataFrame({"text": [f"w{i} " * 5 for i in range(16)], "y": list("pq") * 8})
    block = fx.TextBlock.from_df("text", tok=fx.BaseTokenizer(), rules=[], min_freq=1)
    blocks = fv.DataBlock((block, fv.CategoryBlock), get_x=fv.ColReader("text"), get_y=fv.ColReader("y"))
    rows = ManifoldMixup(1.0).show_batch(blocks.dataloaders(frame, bs=8, device="cpu"), max_n=3)
    assert len(rows) == 3
    for row in rows:
        original, partner = (set(words.split()) for words in row["text"].split(" + "))
        assert len(original) == len(partner) == 1
        assert original != partner
        assert re.match(r"^[01]\.\d\d [pq] \+ [01]\.\d\d [pq]$|^[pq]$", row["text_"])


def test_the_densities_of_an_alpha_have_area_one():
    for alpha, lines in ((0.4, 1), ((0.3, 1, 8), 3)):
        axes = plot_lam(alpha)
        for ax in axes:
            assert len(ax.lines) == lines
            for x, y in (line.get_data() for line in ax.lines):
                assert 0.85 < ((y[1:] + y[:-1]) / 2 * (x[1] - x[0])).sum() < 1.01  # except for the ends
    assert plot_lam(1, ctxs=axes)[0] is axes[0]
    for alpha in (0, -1.0, [0.4, math.nan]):
        with pytest.raises(ValueError, match="alpha must be"):
            plot_lam(alpha)
