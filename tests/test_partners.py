"""Partners that are not in the batch, labels whose coefficients are not the input's, and the union of labels."""

import copy
import itertools
import pickle
import warnings

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from common import BS, C, N, classes, cnn, images, learner, trained
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat
from fastai.torch_core import TensorImage, set_seed
from reference import close, slow_average, slow_loss, slow_mix
from torch import nn

from mixaug import (
    RICAP,
    CMixup,
    CutMix,
    ManifoldMixup,
    Mix,
    MixedMetric,
    MixHandler,
    MixUp,
    Mosaic,
    OneOf,
    OutputMixup,
    PatchUp,
    SaliencyMix,
    choose,
    mix_batch,
    mixed_loss,
    remix,
)

FEWER, AS_MANY, MORE = 3, BS, 13


def batches(*sizes):
    """Return batches of other images and classes, of these sizes."""
    return [(images(n=n) + 10, classes(n=n)) for n in sizes]


def seen(method, **kwargs):
    """Return a trained learner's batches, and the batch of partners of each."""
    learn = trained(method, fit=(2, 0.01), **kwargs)
    return learn.spy.batches


def sources_of(given, n):
    return itertools.islice(itertools.cycle(given), n)


@pytest.mark.parametrize("sizes", [(FEWER,), (AS_MANY,), (MORE,), (FEWER, MORE), (1,)])
@pytest.mark.parametrize(
    "make", [MixUp, CutMix, lambda alpha, **kw: MixUp(alpha, k=3, **kw)], ids=["MixUp", "CutMix", "k"]
)
def test_inputs_and_losses_are_of_the_loaders_partners_again_and_again(make, sizes):
    given = batches(*sizes)
    kept = [(x.clone(), y.clone()) for x, y in given]
    rows = seen(make(1.0, partners=given))
    assert len(rows) == 6  # two epochs of 8, 8 and 6 samples
    for row, (x, y) in zip(rows, sources_of(given, len(rows)), strict=True):
        close(row.x[0], slow_mix(row.x0[0], row.mix, x))
        partners = [y[part.partner] for part in row.mix.parts]
        close(row.loss, slow_loss(row.pred, row.y0, [torch.stack(partners) if row.mix.then else partners[0]], row.lam))
        for part in row.mix.parts:  # as evenly as possible
            counts = part.partner.bincount(minlength=len(x))
            assert counts.max() - counts.min() <= 1
    assert all(torch.equal(a, b) for both in zip(given, kept, strict=True) for a, b in zip(*both, strict=True))


def test_the_last_batch_of_a_loader_may_be_smaller_and_a_single_sample_is_mixed():
    given = batches(2, 5)
    x, y = images(n=1), classes(n=1)
    mixed = mix_batch(MixUp(8.0, partners=given), x, y, F.cross_entropy)
    close(mixed.xb[0], slow_mix(x, mixed.mix, given[0][0]))
    assert mixed.lam.item() < 1


def test_the_partner_is_taken_from_the_batch_before():
    rows = seen(CutMix(1.0, partners="last"))
    for i, row in enumerate(rows):
        x, y = (row.x0[0], row.y0[0]) if i == 0 else (rows[i - 1].x0[0], rows[i - 1].y0[0])
        close(row.x[0], slow_mix(row.x0[0], row.mix, x))
        close(row.loss, slow_loss(row.pred, row.y0, [y[row.mix.partner]], row.lam))


def test_a_batch_of_another_size_is_no_source_of_partners():
    method = MixUp(1.0, partners="last")
    for size in ((5, 6), (7, 8), (7, 8)):
        x = images(size, n=4)
        mixed = mix_batch(method, x, classes(n=4), F.cross_entropy)
        expected = slow_mix(x, mixed.mix) if mixed.source is None else slow_mix(x, mixed.mix, mixed.source[0])
        close(mixed.xb[0], expected)
    assert mixed.source is not None


def test_noise_without_targets_keeps_the_labels():
    noise = [images(n=BS)]
    rows = seen(MixUp(8.0, partners=noise, targets="keep"))
    for row in rows:
        close(row.x[0], slow_mix(row.x0[0], row.mix, noise[0]))
        close(row.loss, F.cross_entropy(row.pred, row.y0[0]))
    with pytest.raises(ValueError, match=r'Expected batches of partners like.*targets="keep"'):
        learner(MixUp(partners=noise)).fit(1)


def test_averaged_and_dense_targets_are_of_the_partners_too():
    x, y, xs, ys = images(n=4), torch.rand(4, C), images(n=5), torch.rand(5, C)
    mixed = mix_batch(MixUp(8.0, partners=[(xs, ys)]), x, y, nn.MSELoss())
    close(mixed.yb[0], slow_mix(y, mixed.mix, ys))
    y, ys = classes(5, 6, n=4), classes(5, 6, n=5)
    mixed = mix_batch(CutMix(1.0, partners=[(xs, ys)]), x, y, F.cross_entropy)
    assert mixed.rules == ("mask",)
    assert torch.equal(mixed.yb[0], slow_mix(y, mixed.mix, ys))
    mixed = mix_batch(MixUp(8.0, partners=[(xs, classes(n=5))], stack_x=True), x, classes(n=4), F.cross_entropy)
    assert torch.equal(mixed.xb[1], xs[mixed.mix.partner])


def test_the_box_is_where_the_other_loaders_sample_stands_out():
    xs = torch.zeros(4, 1, 40, 40)
    xs[:, :, 29:31, 8:10] = 1
    for lam in (0.8, 0.9):
        method = SaliencyMix(1.0, partners=[(xs, classes(n=4))])
        method.draw_lam = lambda x, device=None, lam=lam: torch.full((len(x),), lam)
        mixed = mix_batch(method, torch.zeros(4, 1, 40, 40), classes(n=4), F.cross_entropy)
        assert not mixed.mix.mask[:, 29, 8].any()


def test_one_of_several_methods_may_take_partners_from_elsewhere():
    given, places = batches(MORE), set()
    for row in seen(OneOf(MixUp(1.0, partners=given), CutMix(1.0), seed=1), x=images(n=64)):
        source = given[0] if isinstance(row.chosen, MixUp) else (row.x0[0], row.y0[0])
        close(row.x[0], slow_mix(row.x0[0], row.mix, source[0]))
        close(row.loss, slow_loss(row.pred, row.y0, [source[1][row.mix.partner]], row.lam))
        places.add(type(row.chosen))
    assert places == {MixUp, CutMix}


def fastai_loader():
    return DataLoader(list(zip(torch.rand(N, 2, 5, 6), classes(), strict=True)), bs=5, shuffle=True, num_workers=0)


def torch_loader():
    data = torch.utils.data.TensorDataset(torch.rand(N, 2, 5, 6), torch.arange(N) % C)
    return torch.utils.data.DataLoader(data, batch_size=5, shuffle=True, num_workers=1)


@pytest.mark.parametrize("loader", [fastai_loader, torch_loader])
def test_loaders_and_their_workers_are_reproducible(loader):
    x, y, runs = images(), classes(), []
    for _ in range(2):
        set_seed(3)
        method = MixUp(1.0, partners=loader(), seed=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork beside threads
            runs.append([row.x[0] for row in trained(method, x, y, fit=(1, 0.01), model=cnn()).spy.batches])
    assert all(map(torch.equal, *runs))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of fastai's images
def test_a_fit_begins_at_the_first_batch_and_pictures_take_none():
    given = batches(BS, BS)
    method = MixUp(8.0, partners=given)
    learn = learner(method)
    learn.fit(1)
    items = [(TensorImage(x), y) for x, y in zip(torch.rand(N, 3, 8, 8), classes(), strict=True)]
    dls = DataLoaders.from_dsets(items, items, bs=BS, num_workers=0)
    picture = MixUp(8.0, partners=list(dls.train))
    assert len(picture.show_batch(dls, max_n=4)) == 4
    assert picture._source.iterator is None
    learn.spy.batches.clear()
    learn.fit(1)
    (first, *_) = learn.spy.batches
    close(first.x[0], slow_mix(first.x0[0], first.mix, given[0][0]))


def test_metrics_see_the_partners_of_the_other_loader():
    given = batches(BS)
    learn = learner(MixUp(8.0, partners=given), metrics=MixedMetric(lambda pred, y: F.cross_entropy(pred, y)))
    learn.recorder.train_metrics = True
    learn.fit(1)
    rows = learn.spy.batches
    expected = sum(row.loss * len(row.x[0]) for row in rows) / N
    assert learn.recorder.values[0][1] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: MixUp(partners="first"), TypeError, 'partners must be a loader.*"last"'),
        (lambda: MixUp(partners=3), TypeError, "partners must be a loader"),
        (lambda: MixUp(partners=torch.rand(3)), TypeError, "partners must be a loader"),
        (lambda: MixUp(partners=DataLoaders(fastai_loader(), fastai_loader())), TypeError, "Use dls.train"),
        (lambda: MixUp(partners=[], pair="same"), ValueError, "cannot go with pair"),
        (lambda: MixUp(partners=[], clean=True), ValueError, "cannot go with clean"),
        (lambda: MixUp(partners=[], targets=lambda mix, y: y), ValueError, "functions in targets"),
        (lambda: MixUp(partners=[], inputs=(None, lambda mix, x: x)), ValueError, "functions in inputs"),
        (lambda: ManifoldMixup(partners=[]), ValueError, "ManifoldMixup: these need them in the batch"),
        (lambda: OutputMixup(partners=[]), ValueError, "OutputMixup: these"),
        (lambda: PatchUp(partners=[]), ValueError, "PatchUp: these"),
        (lambda: CMixup(partners=[]), ValueError, "CMixup: these"),
        (lambda: OneOf(MixUp(partners=[]), per_sample=True), ValueError, "leave the rest to OneOf"),
        (lambda: MixUp(lam_targets=0.5), TypeError, "lam_targets must be a function"),
        (lambda: remix([1, 0]), ValueError, "counts must be a number > 0"),
        (lambda: remix([1, 2], kappa=0.5), ValueError, "kappa must be a number >= 1"),
        (lambda: remix([1, 2], tau=2), ValueError, "tau must be a number from 0 to 1"),
    ],
)
def test_what_cannot_be_is_an_error_at_once(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("given", [[], (b for b in batches(BS))], ids=["empty", "a generator"])
def test_partners_that_end_are_an_error(given):
    with pytest.raises(ValueError, match=r"partners must have batches again and again.*generator ends"):
        learner(MixUp(partners=given)).fit(1)


@pytest.mark.parametrize(
    "wrong", [(images((4, 6), n=BS), classes(n=BS)), (images(n=BS), classes(2, n=BS)), (images(n=BS),) * 3]
)
def test_partners_of_another_form_are_an_error(wrong):
    with pytest.raises(ValueError, match="Expected batches of partners like those to mix"):
        learner(MixUp(partners=[wrong])).fit(1)


def test_a_mix_of_partners_from_elsewhere_is_not_used_again():
    method = MixUp(partners=batches(4))
    x, y = images(n=4), classes(n=4)
    mixed = mix_batch(method, x, y, F.cross_entropy)
    with pytest.raises(ValueError, match="mix must be None"):
        mix_batch(method, x, y, F.cross_entropy, mix=mixed.mix)


def test_what_is_kept_may_be_of_another_form_in_the_partners():
    x, tokens, y, note = torch.rand(4, 3), torch.rand(4, 7), classes(n=4), torch.rand(4, 2)
    given = torch.rand(9, 3), torch.rand(9, 5), classes(n=9), {"ignored": ["a"]}
    method = MixUp(8.0, partners=[given], inputs=(None, "keep"), targets=(None, "keep"))
    mixed = mix_batch(method, (x, tokens), (y, note), lambda pred, y, note: F.cross_entropy(pred, y))
    close(mixed.xb[0], slow_mix(x, mixed.mix, given[0]))
    assert torch.equal(mixed.xb[1], tokens)
    assert torch.equal(mixed.yb1[0], given[2][mixed.mix.partner])
    assert torch.equal(mixed.yb1[1], note)
    last = MixUp(8.0, partners="last", inputs=("keep", None))
    mix_batch(last, (tokens, x), y, F.cross_entropy)
    mixed = mix_batch(last, (tokens[:, :2], x + 10), y, F.cross_entropy)
    close(mixed.xb[1], slow_mix(x + 10, mixed.mix, x))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("labels", [(), (classes(2, n=20),)])
def test_labels_of_noise_are_not_read(k, labels):
    x, y, noise = images(n=4), classes(n=4), images(n=20)
    mixed = mix_batch(MixUp(8.0, k=k, partners=[(noise, *labels)], targets="keep"), x, y, F.cross_entropy)
    close(mixed.xb[0], slow_mix(x, mixed.mix, noise))
    assert torch.equal(mixed.yb1[0], y if k == 2 else torch.stack([y] * 2))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of fastai's images
def test_noise_is_shown_with_the_labels_of_the_originals():
    items = [(TensorImage(x), y) for x, y in zip(torch.rand(N, 3, 8, 8), classes(), strict=True)]
    dls = DataLoaders.from_dsets(items, items, bs=BS, num_workers=0)
    axes = MixUp(8.0, partners=[torch.rand(50, 3, 8, 8)], targets="keep").show_batch(dls, max_n=4)
    assert all(ax.get_title() for ax in axes)


class Items(list):
    def __iter__(self):  # a generator, as of fastai's Datasets, which cannot be copied
        yield from super().__iter__()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of fastai's images
def test_a_loader_can_be_copied_after_a_fit_and_after_a_picture():
    items = Items((TensorImage(x), y) for x, y in zip(torch.rand(N, 3, 8, 8), classes(), strict=True))
    dls = DataLoaders.from_dsets(items, items, bs=BS, num_workers=0)
    method = MixUp(8.0, partners=dls.train)
    for use in (
        lambda: method.show_batch(dls),
        lambda: Learner(dls, cnn(channels=3), F.cross_entropy, cbs=method).fit(1),
    ):
        use()
        copy.deepcopy(method)
        pickle.dumps(dls.train)


def test_a_loader_with_one_iterator_is_not_both_trained_on_and_taken_from():
    data = torch.utils.data.TensorDataset(torch.rand(N, 2, 5, 6), torch.arange(N) % C)
    kept, other = (
        torch.utils.data.DataLoader(data, batch_size=5, num_workers=1, persistent_workers=True) for _ in range(2)
    )
    learn = Learner(DataLoaders(kept, kept), cnn(), F.cross_entropy, cbs=MixUp(partners=kept))
    with pytest.raises(ValueError, match=r"partners must be another loader.*persistent_workers"):
        learn.fit(1)
    Learner(DataLoaders(other, other), cnn(), F.cross_entropy, cbs=MixUp(partners=kept)).fit(1)


def test_an_empty_batch_of_partners_is_an_error():
    with pytest.raises(ValueError, match="Expected batches of partners like those to mix"):
        mix_batch(MixUp(partners=batches(0)), images(n=4), classes(n=4), F.cross_entropy)


@pytest.mark.parametrize("n", [3, 8, 20])
def test_the_memory_format_is_that_of_the_batch(n):
    x, source = (images(n=m).to(memory_format=torch.channels_last) for m in (8, n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed = mix_batch(MixUp(8.0, partners=[(source, classes(n=n))]), x, classes(n=8), F.cross_entropy)
    close(mixed.xb[0], slow_mix(x, mixed.mix, source))
    assert mixed.xb[0].is_contiguous(memory_format=torch.channels_last)


# Coefficients of the labels


def slow_remix(lam, y, y1, counts, kappa, tau):
    for_i = counts[y] / counts[y1]
    if for_i >= kappa and lam < tau:
        return 0.0
    if for_i <= 1 / kappa and 1 - lam < tau:
        return 1.0
    return lam


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.9])
def test_remix_is_the_papers_rule(tau):
    counts = [100, 30, 5]
    rows = seen(MixUp(1.0, fold=False, lam_targets=remix(counts, 3, tau)), x=images(n=64), y=classes(n=64))
    changed = 0
    for row in rows:
        both = zip(row.mix.lam.tolist(), row.y0[0].tolist(), row.partners[0].tolist(), strict=True)
        expected = torch.tensor([slow_remix(*sample, counts, 3, tau) for sample in both])
        close(row.lam, expected)
        close(row.x[0], slow_mix(row.x0[0], row.mix))  # by the coefficient of the input
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, expected))
        changed += (row.lam != row.mix.lam).sum()
    assert bool(changed) == (tau > 0)


@pytest.mark.parametrize("counts", [list, torch.tensor, pd.Series, lambda n: pd.Series(n).to_numpy()])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("column", [(), (1,)])
def test_remix_knows_labels_of_any_integer_dtype_and_ignores_negative_ones(counts, dtype, column):
    numbers, partner = [100, 100, 100, 1], torch.tensor([1, 2, 3, 0])
    rule = pickle.loads(pickle.dumps(remix(counts(numbers), 3, 0.5)))
    for y in ([1, 3, 2, 1], [0, 1, 2, 3], [-100, 3, -1, 1]):
        y = torch.tensor(y if dtype.is_signed else [max(label, 0) for label in y])
        lam = torch.tensor([0.6, 0.6, 0.3, 0.6])
        expected = [
            slow_remix(*sample, numbers, 3, 0.5) if min(sample[1:]) >= 0 else sample[0]
            for sample in zip(lam.tolist(), y.tolist(), y[partner].tolist(), strict=True)
        ]
        given = y.to(dtype).view(-1, *column)
        close(rule(Mix(partner, lam), given, given[partner]), torch.tensor(expected))


def test_averaged_labels_have_the_coefficient_of_the_targets():
    x, y = images(n=6), torch.rand(6, C)
    for method in (
        MixUp(8.0, lam_targets=lambda mix, y, y1: mix.lam.sqrt()),
        CutMix(lam_targets=lambda mix, y, y1: mix.lam**2),
    ):
        mixed = mix_batch(method, x, y, nn.MSELoss())
        lam = mixed.mix.lam.sqrt() if type(method) is MixUp else mixed.mix.lam**2
        close(mixed.yb[0], slow_average(y, mixed.mix, torch.stack([lam, 1 - lam], 1)))
        close(mixed.xb[0], slow_mix(x, mixed.mix))


def test_the_coefficient_may_be_the_visible_foreground():
    x, y = images(n=6), classes(5, 6, high=2, n=6)

    def visible(mix, y, y1):
        own, other = ((t > 0) & part for t, part in ((y, mix.mask), (y1, ~mix.mask)))
        return own.flatten(1).sum(1) / (own | other).flatten(1).sum(1).clamp(min=1)

    mixed = mix_batch(CutMix(lam_targets=visible, targets="loss"), x, y, F.cross_entropy)
    for i, j in enumerate(mixed.mix.partner.tolist()):
        own, other = (y[i] * mixed.mix.mask[i]).sum(), (y[j] * ~mixed.mix.mask[i]).sum()
        assert mixed.lam[i].item() == pytest.approx((own / (own + other).clamp(min=1)).item())


@pytest.mark.parametrize("method", [ManifoldMixup, OutputMixup, PatchUp])
def test_methods_inside_of_the_model_combine_losses_by_it_too(method):
    for row in seen(method(1.0, lam_targets=lambda mix, y, y1: mix.lam**2)):
        close(row.lam, row.mix.lam**2)
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.mix.lam**2))


def test_one_lam_for_the_batch_may_have_other_coefficients_of_labels():
    for row in seen(MixUp(1.0, per_sample=False, fold=False, lam_targets=remix([100, 30, 5]))):
        assert len(row.mix.lam.unique()) == 1
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))


@pytest.mark.parametrize(
    ("rule", "loss", "match"),
    [
        (lambda mix, y, y1: mix.lam[:2], None, r"Expected coefficients \(8,\) from lam_targets"),
        (lambda mix, y, y1: 0.5, None, r"Expected coefficients \(8,\) from lam_targets"),
        (lambda mix, y, y1: mix.lam + 1, None, "Expected coefficients from 0 to 1"),
        (lambda mix, y, y1: mix.lam > 0.6, None, "Expected coefficients of floats"),
        (lambda mix, y, y1: mix.lam, lambda pred, y: F.cross_entropy(pred, y) ** 2, "Expected a loss that is known"),
    ],
)
def test_bad_coefficients_are_an_error(rule, loss, match):
    with pytest.raises(ValueError, match=match):
        learner(MixUp(lam_targets=rule), loss=loss).fit(1)


def test_coefficients_of_more_than_two_have_sum_1():
    x, y = images(n=6), classes(n=6)
    with pytest.raises(ValueError, match=r"Expected coefficients with sum 1.*got a sum of 1\.\d"):
        mix_batch(MixUp(8.0, k=3, lam_targets=lambda mix, y, y1: mix.lam.sqrt()), x, y, F.cross_entropy)
    mixed = mix_batch(RICAP(lam_targets=lambda mix, y, y1: (3 * mix.lam).softmax(1)), x, y, F.cross_entropy)
    close(mixed.lam, (3 * mixed.mix.lam).softmax(1))


def test_remix_needs_class_indices_and_two_samples():
    for method, y in (
        (MixUp(lam_targets=remix([1, 2, 3])), torch.rand(N, C)),
        (MixUp(k=3, lam_targets=remix([1, 2, 3])), None),
    ):
        loss = BCEWithLogitsLossFlat() if y is not None else None
        with pytest.raises(ValueError, match=r"Expected class indices.*mixes of two samples for remix"):
            learner(method, y=y, loss=loss).fit(1)


# The union of labels


@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("k", [2, 3])
def test_a_mix_has_the_labels_of_all_its_samples(kind, k):
    x, y = images(n=6), classes(5, high=2, n=6).to(kind)
    mixed = mix_batch(MixUp(8.0, k=k, targets="union"), x, y, nn.BCEWithLogitsLoss())
    for i in range(6):
        samples = [y[i], *(y[part.partner[i]] for part in mixed.mix.parts)]
        assert mixed.yb[0][i].tolist() == [max(values) for values in zip(*(s.tolist() for s in samples), strict=True)]
    assert mixed.yb[0].dtype == kind


def test_a_sample_that_is_not_mixed_has_its_own_labels():
    y = torch.tensor([[1, 0], [0, 1]])
    mix = Mix(torch.tensor([1, 0]), torch.tensor([1.0, 0.6]))
    mixed = mix_batch(MixUp(targets="union"), torch.rand(2, 3), y, nn.BCEWithLogitsLoss(), mix=mix)
    assert mixed.yb[0].tolist() == [[1, 0], [1, 1]]


def test_a_union_is_the_largest_value_if_it_is_negative_too():
    y = torch.tensor([[-1.0, -1.0, 0.0], [-1.0, 1.0, -1.0]])
    mix = Mix(torch.tensor([1, 0]), torch.tensor([0.6, 1.0]))
    mixed = mix_batch(MixUp(targets="union"), torch.rand(2, 3), y, nn.MSELoss(), mix=mix)
    assert mixed.yb[0].tolist() == [[-1, 1, 0], [-1, 1, -1]]


def test_class_indices_have_no_union():
    with pytest.raises(ValueError, match=r'Expected labels \(B, K\) for targets="union"'):
        learner(MixUp(targets="union")).fit(1)


# Found by using it


def test_nests_are_matched_by_key():
    xb = {"a": torch.zeros(4, 3), "b": torch.ones(4, 3)}
    other = {"b": torch.full((4, 3), 20.0), "a": torch.full((4, 3), 10.0)}
    mixed = mix_batch(MixUp(partners=[(other, classes(n=4))]), (xb,), classes(n=4), F.cross_entropy)
    lam = mixed.lam[:, None]
    close(mixed.xb[0]["a"], (1 - lam) * 10 + 0 * xb["a"])
    close(mixed.xb[0]["b"], lam + (1 - lam) * 20 + 0 * xb["b"])
    with pytest.raises(ValueError, match="Expected batches of partners like those to mix"):
        mix_batch(MixUp(partners=[({"a": other["a"]}, classes(n=4))]), (xb,), classes(n=4), F.cross_entropy)


def test_a_sample_of_which_nothing_is_left_leaves_no_label():
    number = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 6, 6).contiguous()
    for make in (RICAP, Mosaic, CutMix):
        for seed in range(20):
            mixed = mix_batch(make(0.2, targets="union", seed=seed), number, torch.eye(8), nn.BCEWithLogitsLoss())
            for image, labels in zip(mixed.xb[0], mixed.yb[0], strict=True):
                assert labels.nonzero().flatten().tolist() == image.unique().tolist()


@pytest.mark.parametrize("y", [torch.arange(4)[:, None], torch.zeros(4, 8, 8, dtype=torch.long)])
def test_indices_with_axes_have_no_union_either(y):
    with pytest.raises(ValueError, match=r"Expected labels \(B, K\)"):
        mix_batch(MixUp(targets="union"), images((8, 8), n=4), y, F.cross_entropy)


def test_a_batch_of_one_sample_has_the_loss_of_one_among_many():
    loss, pred = nn.CrossEntropyLoss(torch.tensor([1.0, 10.0])), torch.tensor([[1.0, -1.0]])
    y, y1, lam = torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5])
    twice = mixed_loss(loss, pred.repeat(2, 1), [y.repeat(2)], [y1.repeat(2)], lam.repeat(2))
    close(mixed_loss(loss, pred, [y], [y1], lam), twice)
    unknown = torch.tensor([-100])
    assert mixed_loss(F.cross_entropy, pred, [y], [unknown], lam).isfinite()


def test_one_of_has_no_partners_of_its_own():
    method, given = MixUp(), batches(4)
    for one_of in (OneOf(method, CutMix()), OneOf(method, CutMix(), per_sample=True)):
        with pytest.raises(ValueError, match="partners must be given to the methods"):
            one_of.partners = given
    method.partners = given
    with pytest.raises(ValueError, match="leave the rest to OneOf"):
        mix_batch(one_of, images(n=4), classes(n=4), F.cross_entropy)
    method.partners = None
    mix_batch(one_of, images(n=4), classes(n=4), F.cross_entropy)


def test_coefficients_of_targets_that_no_target_has_are_an_error():
    for method in (CutMix(lam_targets=lambda mix, y, y1: mix.lam), MixUp(lam_targets=lambda *_: 1, targets="keep")):
        with pytest.raises(ValueError, match="Expected targets that are mixed by a coefficient for lam_targets"):
            mix_batch(method, images(n=4), classes(5, 6, n=4), F.cross_entropy)


def test_a_draw_that_ignores_where_partners_come_from_is_an_error():
    class Own(MixHandler):
        def draw(self, x):
            return Mix(torch.arange(len(x)).flip(0), self.draw_lam(x))

    with pytest.raises(ValueError, match=r"takes partners from self\.draw_partner"):
        mix_batch(Own(partners=batches(20)), images(n=4), classes(n=4), F.cross_entropy)
    mix_batch(Own(), images(n=4), classes(n=4), F.cross_entropy)


def test_a_moved_original_is_not_chosen_for_some_samples():
    mix = RICAP(1.0).draw(torch.rand(4, 1, 10))
    with pytest.raises(ValueError, match="the original stays in its place"):
        choose([mix, mix], torch.zeros(4, dtype=torch.long))


def test_the_repr_has_no_data():
    assert repr(MixUp(partners=batches(8))) == "MixUp(0.4, partners=<list>)"
    assert repr(MixUp(partners=[torch.zeros(2)])) == "MixUp(0.4, partners=<list>)"
    rule = remix([100, 10], tau=0.2)
    assert repr(MixUp(lam_targets=rule)) == "MixUp(0.4, lam_targets=partial(_remix, <Tensor>, 3.0, 0.2))"
    assert repr(MixUp(partners="last")) == "MixUp(0.4, partners='last')"


def test_a_fit_leaves_no_iterator_behind():
    method = MixUp(partners=batches(BS))
    learner(method).fit(1)
    assert method._source.iterator is None
