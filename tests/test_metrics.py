"""Metrics of mixed batches, counted by hand."""

import copy
import pickle

import pytest
import torch
from common import METHODS, C, N, classes, learner, on
from fastai.losses import BCEWithLogitsLossFlat
from fastai.metrics import AccumMetric, F1Score, accuracy, accuracy_multi
from sklearn.metrics import f1_score
from torch import nn

from mixaug import CutMix, MixedMetric, MixUp, OneOf, OutputMixup


def record(learn, *metrics, epochs=1):
    learn.metrics = metrics
    learn.recorder.train_metrics = True
    learn.fit(epochs, 0.01)
    return learn.recorder.values[-1]


def right(pred, y):
    return (pred.argmax(1) == y).float()


MIXERS = {**METHODS, "OneOf": lambda alpha, prob: OneOf(MixUp(alpha), CutMix(alpha), prob=prob)}


@pytest.mark.parametrize("method", MIXERS.values(), ids=MIXERS)
def test_a_function_is_weighted_sample_by_sample(method):
    learn = learner(method(1, prob=0.7))
    _, plain, mixed, _, plain_valid, mixed_valid = record(learn, accuracy, MixedMetric(accuracy))
    original = total = 0.0
    for row in learn.spy.batches:
        of_original, of_partner = right(row.pred, *row.y0), right(row.pred, *row.partners)
        original += of_original.sum()
        total += (row.lam * of_original + (1 - row.lam) * of_partner).sum()
    assert plain == pytest.approx(original.item() / N)  # plain metrics see the original target
    assert mixed == pytest.approx(total.item() / N)
    assert mixed_valid == plain_valid


def test_a_number_in_the_prediction_is_that_of_each_sample():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)), self.bias.sum()

    loss = lambda pred, y: nn.functional.cross_entropy(pred[0] * pred[1], y)  # noqa: E731
    metric = MixedMetric(lambda pred, y: right(pred[0] * pred[1], y).mean())
    learn = learner(MixUp(1), model=Scaled(60, C), loss=loss)
    _, mixed, *_ = record(learn, metric)
    total = 0.0
    for row in learn.spy.batches:
        pred = row.pred[0] * row.pred[1]
        total += (row.lam * right(pred, *row.y0) + (1 - row.lam) * right(pred, *row.partners)).sum()
    assert mixed == pytest.approx(total.item() / N)


def test_any_other_metric_keeps_two_accounts():
    learn = learner(MixUp(1), model=nn.Sequential(nn.Flatten(), nn.Linear(60, C)))
    _, mixed, plain, *_ = record(learn, MixedMetric(F1Score(average="macro")), accuracy)
    rows = learn.spy.batches
    pred, lam = torch.cat([row.pred for row in rows]).argmax(1), torch.cat([row.lam for row in rows]).mean()
    original, partner = (f1_score(torch.cat(y), pred, average="macro")
                    for y in ([row.y0[0] for row in rows], [row.yb1[0] for row in rows]))  # fmt: skip
    assert mixed == pytest.approx((lam * original + (1 - lam) * partner).item(), abs=1e-6)
    assert plain == pytest.approx(sum(right(row.pred, *row.y0).sum().item() for row in rows) / N)  # of the next metric


@pytest.mark.parametrize("mixer", [MixUp(8), OutputMixup(8), OneOf(MixUp(8)), OneOf(OutputMixup(8))])
def test_plain_metrics_see_original_labels(mixer):
    y = classes(C, high=2).float()
    learn = learner(mixer, y=y, loss=BCEWithLogitsLossFlat())
    plain = record(learn, accuracy_multi)[1]
    pred = torch.cat([row.pred for row in learn.spy.batches])
    assert plain == pytest.approx(((pred.sigmoid() > 0.5) == y.bool()).float().mean().item())


def test_a_segmentation_mask_counts_as_it_was_cut():
    learn = learner(CutMix(), y=classes(5, 6), model=nn.Conv2d(2, C, 1), loss=nn.CrossEntropyLoss())
    of_positions = lambda pred, y: right(pred, y).mean()  # noqa: E731
    plain, mixed = record(learn, of_positions, MixedMetric(of_positions))[1:3]
    total = sum(right(row.pred, row.y[0]).mean((1, 2)).sum() for row in learn.spy.batches)
    assert plain == pytest.approx(mixed) == pytest.approx(total.item() / N)


def test_where_mixing_is_switched_off_it_is_the_plain_metric():
    cb = MixUp(1)
    learn = learner(cb, cbs=[on("before_epoch", lambda learn: setattr(cb, "run", learn.epoch == 0))])
    _, plain, mixed, *_ = record(learn, accuracy, MixedMetric(accuracy), epochs=2)
    assert plain == mixed


def test_the_name_is_the_metrics_and_a_pickle_the_plain_metric():
    assert MixedMetric(accuracy).name == MixedMetric(AccumMetric(accuracy)).name == "accuracy"
    metric = MixedMetric(accuracy)
    assert type(copy.deepcopy(metric)) is MixedMetric
    assert pickle.loads(pickle.dumps(metric)).func is accuracy
