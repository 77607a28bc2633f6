"""Metrics over mixed batches, counted by hand."""

import copy
import pickle

import pytest
import torch
from common import BS, METHODS, C, N, images, learner, on
from fastai.losses import BCEWithLogitsLossFlat
from fastai.metrics import AccumMetric, F1Score, accuracy, accuracy_multi
from sklearn.metrics import f1_score
from torch import nn

from mixaug import CutMix, MixedMetric, MixUp


def record(learn, *metrics):
    learn.metrics = metrics
    learn.recorder.train_metrics = True
    learn.fit(1, 0.01)
    return learn.recorder.values[0]


def right(pred, y):
    return (pred.argmax(1) == y).float()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_function_is_weighed_sample_by_sample(method):
    y = torch.randint(0, C, (N,))
    learn = learner(method(1, prob=0.7), y=y)
    _, plain, mixed, _, plain_valid, mixed_valid = record(learn, accuracy, MixedMetric(accuracy))
    own = partners = total = 0.0
    for row in learn.spy.batches:
        at = y[row["iter"] * BS : (row["iter"] + 1) * BS]
        at1 = at if row["mix"] is None else at[row["mix"].partner]
        own += right(row["pred"], at).sum()
        total += (row["lam"] * right(row["pred"], at) + (1 - row["lam"]) * right(row["pred"], at1)).sum()
        partners += right(row["pred"], at1).sum()
    assert plain == pytest.approx(own.item() / N)  # plain metrics see the sample's own target
    assert mixed == pytest.approx(total.item() / N)
    assert mixed_valid == plain_valid


def test_any_other_metric_keeps_two_accounts():
    y = torch.randint(0, C, (N,))
    learn = learner(MixUp(1), y=y, model=nn.Sequential(nn.Flatten(), nn.Linear(60, C)))
    mixed = record(learn, MixedMetric(F1Score(average="macro")))[1]
    pred = torch.cat([row["pred"] for row in learn.spy.batches]).argmax(1)
    lam = torch.cat([row["lam"] for row in learn.spy.batches]).mean()
    own = torch.cat([y[row["iter"] * BS : (row["iter"] + 1) * BS] for row in learn.spy.batches])
    partner = torch.cat([row["yb1"][0] for row in learn.spy.batches])
    expected = lam * f1_score(own, pred, average="macro") + (1 - lam) * f1_score(partner, pred, average="macro")
    assert mixed == pytest.approx(expected.item(), abs=1e-6)


def test_plain_metrics_see_whole_labels():
    y = torch.randint(0, 2, (N, C)).float()
    learn = learner(MixUp(8), y=y, loss=BCEWithLogitsLossFlat())
    plain = record(learn, accuracy_multi)[1]
    pred = torch.cat([row["pred"] for row in learn.spy.batches])
    assert plain == pytest.approx(((pred.sigmoid() > 0.5) == y.bool()).float().mean().item())


def test_a_map_counts_as_it_was_cut():
    x, y = images(), torch.randint(0, C, (N, 5, 6))
    learn = learner(CutMix(), x, y, model=nn.Conv2d(2, C, 1), loss=nn.CrossEntropyLoss())
    seen = record(learn, MixedMetric(lambda pred, y: right(pred, y).mean()))[1]
    total = sum(right(row["pred"], row["y"][0]).mean((1, 2)).sum() for row in learn.spy.batches)
    assert seen == pytest.approx(total.item() / N)


def test_the_name_is_the_metrics_own():
    assert MixedMetric(accuracy).name == "accuracy"
    assert MixedMetric(AccumMetric(accuracy)).name == "accuracy"


def test_where_mixing_is_switched_off_it_is_the_plain_metric():
    y = torch.randint(0, C, (N,))
    cb = MixUp(1)
    learn = learner(cb, y=y, cbs=[on("before_epoch", lambda learn: setattr(cb, "run", learn.epoch == 0))])
    learn.metrics = [accuracy, MixedMetric(accuracy)]
    learn.recorder.train_metrics = True
    learn.fit(2, 0.01)
    _, plain, mixed, *_ = learn.recorder.values[1]
    assert plain == mixed


def test_a_copy_is_a_mixed_metric_and_a_pickle_the_plain_one():
    metric = MixedMetric(accuracy)
    assert type(copy.deepcopy(metric)) is MixedMetric
    assert pickle.loads(pickle.dumps(metric)).func is accuracy
