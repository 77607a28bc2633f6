"""Mixes of more than two samples: MixUp(k=3), RICAP, Mosaic."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from common import C, classes, cnn, images, learner, trained
from fastai.metrics import AccumMetric
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import close, slow_average, slow_loss, slow_mix, slow_weights
from torch import nn

from mixaug import RICAP, CutMix, Mix, MixedMetric, MixUp, Mosaic, OneOf, choose, mix_batch, mixed_loss
from mixaug.show import label

RAMP = torch.arange(20.0)


def positions(n, *size):
    """Return images (n, 1 + k, *size) that hold the number of the sample and each coordinate of the pixel."""
    at = torch.meshgrid(*(torch.arange(length, dtype=torch.float32) for length in size), indexing="ij")
    number = torch.arange(n, dtype=torch.float32).view(n, 1, *[1] * len(size)).expand(n, 1, *size)
    return torch.cat([number, torch.stack(at).expand(n, -1, *size)], 1)


# Weights


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("alpha", [0.01, 0.4, 8.0])
def test_weights_are_of_a_dirichlet_distribution(k, alpha):
    method, x = MixUp(alpha, k=k, fold=False, seed=0), torch.zeros(4000, 1)
    lam = method.draw(x).lam
    close(lam.sum(1), torch.ones(len(x)))
    assert lam.mean(0).tolist() == pytest.approx([1 / k] * k, abs=0.03)
    variance = (k - 1) / (k * k * (k * alpha + 1))  # of each, by the formula of the distribution
    assert lam.var(0).tolist() == pytest.approx([variance] * k, rel=0.12)
    folded = MixUp(alpha, k=k, seed=0).draw(x).lam
    close(folded.sort(1).values, lam.sort(1).values)
    assert torch.equal(folded[:, 0], folded.amax(1))


@given(st.integers(2, 5), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_mix_has_the_weights_that_it_is_made_of(k, seed):
    torch.manual_seed(seed)
    weights = torch.rand(6, k, dtype=torch.float64) * (torch.rand(6, k) < 0.8)  # some are 0
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, 1.0)
    weights = weights / weights.sum(1, keepdim=True)
    partners = [torch.randint(0, 6, (6,)) for _ in range(k - 1)]
    mix, x = Mix.of(partners, weights), torch.randn(6, 4, dtype=torch.float64)
    close(mix.lam, weights if k > 2 else weights[:, 0])
    close(mix.blend(x), slow_average(x, mix, weights))
    close(mix.by(mix.lam).blend(x), mix.blend(x))


def test_what_has_no_weight_leaves_no_trace():
    mix = Mix.of([torch.tensor([1, 0]), torch.tensor([1, 1])], torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]]))
    assert mix.blend(torch.tensor([2.0, math.inf]))[0] == 2


# Corners


@pytest.mark.parametrize("size", [(20,), (20, 14), (8, 6, 10)])
@pytest.mark.parametrize("make", [RICAP, Mosaic])
def test_each_corner_is_a_crop_or_the_whole_of_its_sample(make, size):
    x = positions(40, *size)
    mix = make(1.0, seed=3).draw(x)
    got = mix.blend(x)
    close(got, slow_mix(x, mix))
    samples = torch.stack([torch.arange(40), *(part.partner for part in mix.parts)], 1)
    lam = mix.lam if mix.then else torch.stack([mix.lam, 1 - mix.lam], 1)
    assert samples.shape == (40, 2 ** len(size))
    for i in range(40):
        total = 0.0
        for number in samples[i].unique().tolist():
            part = (got[i, 0] == number).nonzero()
            share = lam[i, samples[i] == number].sum().item()
            total += share
            assert len(part) / math.prod(size) == pytest.approx(share, abs=1e-6)
            if not len(part) or (samples[i] == number).sum() > 1:
                continue
            first, last = part[0], part[-1]
            assert (last - first + 1).prod() == len(part)  # a box
            assert ((first == 0) | (last == torch.tensor(size) - 1)).all()  # in a corner
            for axis, length in enumerate(size):
                side = int(last[axis] - first[axis] + 1)
                source = got[i, 1 + axis][tuple(part.T)]
                offset = part[:, axis] - first[axis]
                if make is RICAP:
                    assert (source - offset).unique().numel() == 1  # one crop
                else:
                    assert torch.equal(source, ((offset + 0.5) * length / side).floor())
        assert total == pytest.approx(1, abs=1e-5)


def test_crops_are_from_anywhere():
    x = positions(2000, 20)
    mix = RICAP(8.0, seed=0).draw(x)
    offset = mix.own_index[0][:, 0]  # where the crop of the original begins
    room = 20 - (mix.lam * 20).round()
    assert (offset <= room).all()
    assert (offset / room.clamp(min=1)).mean().item() == pytest.approx(0.5, abs=0.03)


def test_one_corner_for_the_batch_as_in_the_paper():
    for row in trained(RICAP(0.3, per_sample=False), fit=(2, 0.01)).spy.batches:
        assert len(row.lam.unique(dim=0)) == 1
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))


def test_the_original_has_the_largest_corner_if_it_is_folded():
    mix = RICAP(0.3, fold=True, seed=0).draw(torch.zeros(200, 1, 30, 30))
    assert (mix.lam[:, 0] >= 0.25).all()
    assert torch.equal(mix.lam[:, 0], mix.lam.amax(1))


@pytest.mark.parametrize("make", [RICAP, Mosaic, lambda alpha, seed: MixUp(alpha, k=4, seed=seed)])
def test_constant_images_have_the_mean_that_lam_says(make):
    c = torch.rand(16)
    mix = make(1.0, seed=1).draw(torch.zeros(16, 1, 9, 11))
    mean = mix.blend(c.view(-1, 1, 1, 1).expand(16, 1, 9, 11).contiguous()).mean((1, 2, 3))
    samples = torch.stack([c, *(c[part.partner] for part in mix.parts)], 1)
    close(mean, (mix.lam * samples).sum(1))


def test_masks_of_a_coarser_size_follow():
    y, mix = classes(6, 6, n=8), Mosaic(1.0, seed=0).draw(torch.zeros(8, 1, 12, 12))
    coarse = mix.resized((6, 6))
    assert torch.equal(mix.masked(y), slow_mix(y, coarse))
    assert [len(i[0]) for part in coarse.parts for i in (*part.source_index, *part.own_index)] == [6] * 8


@pytest.mark.parametrize("make", [RICAP, Mosaic])
@pytest.mark.parametrize("size", [(6, 6), (4, 3), (2, 2)])
def test_a_coarser_position_has_the_sample_that_it_shows_most_of(make, size):
    mix, number = make(1.0, seed=0).draw(torch.zeros(64, 1, 12, 12)), torch.arange(64)
    fine = mix.masked(number.view(-1, 1, 1).expand(64, 12, 12).contiguous())
    coarse = mix.masked(number.view(-1, 1, 1).expand(64, *size).contiguous())
    rows, columns = (12 // n for n in size)
    samples = zip(number, *(part.partner for part in mix.parts), strict=True)
    distinct = [k for k, four in enumerate(samples) if len({int(n) for n in four}) == 4]
    for cells, shown in zip(fine[distinct], coarse[distinct], strict=True):
        for i, j in itertools.product(*map(range, size)):
            there = cells[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            assert (there == shown[i, j]).sum() == there.flatten().bincount().max()


# Losses and metrics


def test_the_loss_of_k_samples_is_public():
    pred, y, others = torch.randn(4, C), classes(n=4), classes(4, n=2)
    lam = torch.rand(4, 3).softmax(1)
    weight = torch.tensor([1.0, 2.0, 3.0])
    close(mixed_loss(F.cross_entropy, pred, [y], [others], lam), slow_loss(pred, [y], [others], lam))
    black_box = lambda pred, y: F.cross_entropy(pred, y) ** 2  # noqa: E731
    expected = sum(w * black_box(pred, t) for w, t in zip(lam[0], (y, *others), strict=True))
    close(mixed_loss(black_box, pred, [y], [others], lam[:1]), expected)
    values = mixed_loss(nn.CrossEntropyLoss(weight, reduction="none"), pred, [y], [others], lam)
    expected = sum(
        w * F.cross_entropy(pred, t, weight, reduction="none") for w, t in zip(lam.T, (y, *others), strict=True)
    )
    close(values, expected)


@pytest.mark.parametrize("make", [lambda **kw: MixUp(1.0, k=3, **kw), lambda **kw: RICAP(1.0, **kw)])
def test_a_loss_that_is_no_average_gets_one_lam(make):
    black_box = lambda pred, y: F.cross_entropy(pred, y) ** 2  # noqa: E731
    for row in trained(make(), loss=black_box).spy.batches:
        assert len(row.lam.unique(dim=0)) == 1
        targets = row.y0[0], *row.partners[0]
        close(row.loss, sum(w * black_box(row.pred, y) for w, y in zip(row.lam[0], targets, strict=True)))


@pytest.mark.parametrize(
    "method", [lambda: MixUp(8.0, k=3), lambda: RICAP(1.0), lambda: MixUp(8.0, k=3, prob=0.5, seed=0)]
)
def test_metrics_are_weighted_by_all_coefficients(method):
    metrics = [MixedMetric(F.cross_entropy), MixedMetric(AccumMetric(F.cross_entropy, flatten=False, name="whole"))]
    learn = learner(method(), metrics=metrics)
    learn.recorder.train_metrics = True
    learn.fit(1)
    losses, values, weights, n = 0.0, [], [], 0
    for row in learn.spy.batches:
        mixed = row.mix is not None
        lam = row.lam if mixed else torch.eye(3)[[0] * len(row.x[0])]
        targets = [row.y0[0], *(row.partners[0] if mixed else [row.y0[0]] * (lam.shape[1] - 1))]
        losses += row.loss.item() * len(lam)
        weights.append(lam)
        values.append([F.cross_entropy(row.pred, y, reduction="none") for y in targets])
        n += len(lam)
    weights = torch.cat(weights).mean(0)
    parts = torch.stack([torch.cat(part).mean() for part in zip(*values, strict=True)])
    assert learn.recorder.values[0][1] == pytest.approx(losses / n, rel=1e-4)
    assert learn.recorder.values[0][2] == pytest.approx((weights * parts).sum().item(), rel=1e-4)


# For a callback, and for others


def test_a_callback_for_two_samples_fails_and_trains_on_nothing_wrong():
    seen = []
    for row in trained(MixUp(1.0, k=3), fit=(1, 0.01)).spy.batches:
        with pytest.raises((ValueError, RuntimeError)):
            row.lam * F.cross_entropy(row.pred, *row.partners, reduction="none")
        seen.append((row.lam.shape[1:], row.yb1[0].shape[0], len(row.yb1)))
    assert set(seen) == {((3,), 2, 1)}


@pytest.mark.parametrize("method", [MixUp(k=3), RICAP(), Mosaic()])
def test_one_of_chooses_them_for_batches_and_not_for_samples(method):
    with pytest.raises(ValueError, match="leave the rest to OneOf"):
        OneOf(method, CutMix(), per_sample=True)
    kinds = set()
    for row in trained(OneOf(method, CutMix(1.0), seed=0), images(n=64)).spy.batches:
        kinds.add(type(row.chosen))
        close(row.x[0], slow_mix(row.x0[0], row.mix))
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))
    assert kinds == {type(method), CutMix}
    mixes = MixUp(k=3).draw(torch.rand(4, 1)), MixUp().draw(torch.rand(4, 1))
    with pytest.raises(ValueError, match="two samples each"):
        choose(mixes, torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize("k", [1, 2.5, True, "3"])
def test_k_is_checked_at_construction(k):
    with pytest.raises((TypeError, ValueError), match="k must be a whole number >= 2"):
        MixUp(k=k)


def test_a_schedule_says_alpha_of_three_too():
    learn = learner(MixUp(lambda fraction: 1 + 50 * fraction, k=3, fold=False), images(n=512), bs=256)
    learn.fit(2)
    spread = [row.lam.var(0).mean() for row in learn.spy.batches]
    assert spread[0] > 2 * spread[-1]


def test_clean_keeps_the_first_half():
    for make in (lambda: MixUp(1.0, k=3, clean=True), lambda: RICAP(1.0, clean=True)):
        for row in trained(make()).spy.batches:
            n = len(row.x[0]) // 2
            assert torch.equal(row.x[0][:n], row.x0[0][:n])
            close(row.x[0], slow_mix(row.x0[0], row.mix))
            close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))
            assert (row.lam[:n, 0] == 1).all()
            assert (row.lam[n:, 0] < 1).any()


def test_a_stacking_model_gets_all_partners():
    mixed = mix_batch(MixUp(1.0, k=3, stack_x=True), x := images(n=4), classes(n=4), F.cross_entropy)
    own, others, lam = mixed.xb
    assert torch.equal(own, x)
    assert torch.equal(others, torch.stack([x[part.partner] for part in mixed.mix.parts]))
    assert lam.shape == (4, 3)


def test_titles_tell_every_weight():
    words = [
        str(label(w, "loss", "", "cat", "dog", "cow")) for w in ([0.5, 0.3, 0.2], [0.7, 0.3, 0.0], [1.0, 0.0, 0.0])
    ]
    assert words == ["0.50 cat\n+ 0.30 dog\n+ 0.20 cow", "0.70 cat + 0.30 dog", "cat"]
    assert str(label([0.5, 0.3, 0.2], "loss", "", "cat", "dog", "cat")) == "0.70 cat + 0.30 dog"


def test_weights_are_counted_at_each_position():
    mix = RICAP(1.0, seed=0).draw(torch.zeros(5, 1, 6, 7))
    for i in range(5):
        assert mix.lam[i].tolist() == pytest.approx(slow_weights(mix, i), abs=1e-6)


def test_a_network_learns_from_them():
    model = cnn()
    learn = learner(MixUp(0.2, k=3), model=model)
    learn.fit(8, 0.02)
    first, last = learn.spy.batches[0].loss, learn.spy.batches[-1].loss
    assert last < first


def test_a_later_mask_covers_an_earlier_one():
    torch.manual_seed(0)
    for bools in (True, False):
        masks = [torch.rand(6, 4, 5) < 0.6 if bools else torch.rand(6, 4, 5) for _ in range(3)]
        partners = [torch.randperm(6) for _ in masks]
        mix = Mix(partners[0], masks[0], then=Mix(partners[1], masks[1], then=Mix(partners[2], masks[2])))
        x = torch.randn(6, 2, 4, 5)
        close(mix.lam, torch.tensor([slow_weights(mix, i) for i in range(6)]))
        close(mix.blend(x), slow_mix(x, mix))
        constant = torch.randn(6).view(6, 1, 1, 1).expand(6, 1, 4, 5).contiguous()
        close(mix.blend(constant).mean((1, 2, 3)), slow_average(constant[:, 0, 0, 0], mix, mix.lam))


@pytest.mark.parametrize("make", [RICAP, Mosaic, lambda alpha: MixUp(alpha, k=4)])
def test_each_partner_is_drawn_by_itself(make):
    mix = make(1.0).draw(torch.zeros(32, 1, 8, 8))
    drawn = [part.partner for part in mix.parts]
    assert len(drawn) == 3
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    assert not any((partner == torch.arange(32)).any() for partner in drawn)
