"""`mix_batch` by itself, and what other callbacks do to a batch between the mixing and the loss."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from common import BS, C, N, classes, cnn, images, learner, on
from reference import check_losses, close
from torch import nn

from mixaug import (
    CMixup,
    CutMix,
    ManifoldMixup,
    MixHandler,
    MixUp,
    MixUpLoss,
    OneOf,
    OutputMixup,
    ResizeMix,
    mix_batch,
)


class TestMixBatch:
    @pytest.mark.parametrize("clean", [False, True])
    @pytest.mark.parametrize("method", [MixUp, CutMix, ResizeMix])
    @pytest.mark.parametrize("per_sample", [False, True])
    def test_a_draw_can_be_used_again(self, method, per_sample, clean):
        x, y, cb = images(n=BS), classes(n=BS), method(clean=clean, per_sample=per_sample)
        first = mix_batch(cb, x, y, F.cross_entropy)
        again = mix_batch(first.method, x, y, F.cross_entropy, mix=first.mix)
        assert torch.equal(first.xb[0], again.xb[0])
        assert torch.equal(first.yb1[0], again.yb1[0])
        assert torch.equal(first.lam, again.lam)
        assert first.one_lam == again.one_lam
        pred = torch.randn(len(first.lam), C)
        assert torch.equal(first.loss(pred), again.loss(pred))
        assert not torch.equal(mix_batch(cb, x, y, F.cross_entropy).xb[0], first.xb[0])

    def test_a_choice_tells_its_method(self):
        cb, x, y = OneOf(MixUp(), CutMix(), p=[0.4, 0.3]), images(n=BS), classes(n=BS)
        seen = [mix_batch(cb, x, y, F.cross_entropy) for _ in range(60)]
        assert {type(mixed.method).__name__ for mixed in seen} == {"MixUp", "CutMix", "NoneType"}
        for mixed in seen:
            assert (mixed.mix is None) == (mixed.method is None) == torch.equal(mixed.xb[0], x)
        with pytest.raises(ValueError, match=r"mixed\.method"):
            mix_batch(cb, x, y, F.cross_entropy, mix=next(mixed.mix for mixed in seen if mixed.mix))

    @pytest.mark.parametrize("method", [MixUp, "mixup", F.cross_entropy])
    def test_a_method_that_is_none_raises_type_error(self, method):
        with pytest.raises(TypeError, match="method must be"):
            mix_batch(method, images(n=BS), classes(n=BS), F.cross_entropy)

    @pytest.mark.parametrize("cb", [MixUp(), CMixup(), MixUp(pair="same")])
    def test_nested_targets_raise_type_error(self, cb):
        with pytest.raises(TypeError, match="each target to be a tensor"):
            mix_batch(cb, images(n=BS), ({"y": classes(n=BS)},), F.cross_entropy)

    def test_the_loss_of_unmixed_batches_is_the_users(self):
        x, y, pred = images(n=1), classes(n=1), torch.randn(1, C)
        mixed = mix_batch(MixUp(), x, y, F.cross_entropy)
        assert mixed.mix is None
        assert torch.equal(mixed.loss(pred), F.cross_entropy(pred, y))

    def test_a_seed_is_for_the_chances_of_all_methods(self):
        x, seen = images(n=BS), []
        for global_seed in (1, 2):
            torch.manual_seed(global_seed)
            cb = OneOf(MixUp(prob=0.5), CutMix(prob=0.5), per_sample=True, seed=1)
            learn = learner(cb, x, classes(n=BS))
            learn.fit(8)
            seen.append([row.mix and row.mix.lam.tolist() for row in learn.spy.batches])
        assert seen[0] == seen[1]
        assert len({str(lam) for lam in seen[0]}) > 2


METHODS = [MixUp, ManifoldMixup, OutputMixup, lambda alpha: OneOf(MixUp(alpha), OutputMixup(alpha))]


class TestOtherCallbacks:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("event", ["before_batch", "after_pred"])
    def test_a_batch_that_is_not_mixed_has_nothing_of_the_one_before(self, method, event):
        """Mixing is switched off for every other batch, and on again in the middle of it."""
        cb, x, y, model = method(8), images(n=3 * BS), torch.rand(3 * BS, C), cnn()
        cb.run, seen = True, []
        switch = {
            "before_batch": [on("before_batch", lambda learn: setattr(cb, "run", learn.iter != 1), -1)],
            "after_pred": [
                on("before_batch", lambda learn: setattr(cb, "run", learn.iter != 1), -1),
                on("after_pred", lambda learn: setattr(cb, "run", True), -1),
            ],
        }[event]
        look = on("after_batch", lambda learn: seen.append(learn.y.clone()) if learn.training else None, 60)
        learn = learner(cb, x, y, model, nn.MSELoss(), cbs=[*switch, look])
        learn.fit(1, 0.0)
        row, own = learn.spy.batches[1], slice(BS, 2 * BS)
        assert torch.equal(row.x[0], x[own])
        close(row.loss, F.mse_loss(model(x[own]), y[own]).detach())
        assert torch.equal(seen[1], y[own])

    @pytest.mark.parametrize("method", METHODS)
    def test_nothing_of_the_last_batch_is_kept(self, method):
        cb = method(1)
        learner(cb, loss=nn.CrossEntropyLoss()).fit(1)
        assert cb._mixed is cb.yb1 is None
        cb.learn = None
        assert len(pickle.dumps(cb)) < 12_000  # the batch has 15 kB

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(("event", "order"), [("before_train", 2), ("before_batch", -1), ("before_batch", 2)])
    def test_a_loss_that_wraps_the_one_at_hand_is_mixed(self, method, event, order):
        def wrap(learn):
            if learn.training and (event == "before_train" or learn.iter == 0):
                inner = learn.loss_func
                learn.loss_func = lambda pred, y: 2 * inner(pred, y)

        cb = method(1)
        for part in (cb, *getattr(cb, "methods", ())):
            part.per_sample = isinstance(part, OneOf)
        learn = learner(cb, loss=nn.CrossEntropyLoss(), cbs=[on(event, wrap, order)])
        learn.fit(1, 0.01)
        check_losses(learn, lambda pred, y: 2 * F.cross_entropy(pred, y))

    def test_a_copy_of_the_loss_in_training_is_a_copy(self):
        def change(learn):
            if learn.training:
                copy.copy(learn.loss_func).reduction = "none"

        loss = nn.CrossEntropyLoss()
        learner(MixUp(), loss=loss, cbs=[on("after_pred", change, 5)]).fit(1)
        assert loss.reduction == "mean"

    def test_a_pass_before_the_backward_pass_is_not_mixed(self):
        x, model, seen = images(n=BS), cnn(), []
        look = on("before_backward", lambda learn: seen.extend([learn.model(x), learn.model(x[:3])]), 5)
        learner(ManifoldMixup(8, input_mixup=False), x, model=model, cbs=[look]).fit(1, 0.0)
        torch.testing.assert_close(seen[0], model(x))
        torch.testing.assert_close(seen[1], model(x[:3]))

    def test_a_black_box_that_comes_after_the_draw_raises_value_error(self):
        replace = on("before_batch", lambda learn: setattr(learn, "loss_func", lambda pred, y: pred.sum()), 2)
        with pytest.raises(ValueError, match=r"is_average.*mixer\.order = 50"):
            learner(MixUp(), cbs=[replace]).fit(1)

    def test_a_target_that_is_lost_after_the_draw_raises_type_error(self):
        lose = on("before_batch", lambda learn: setattr(learn, "yb", learn.yb[:1]), 2)
        loss = lambda pred, *ys: F.cross_entropy(pred, ys[0])  # noqa: E731
        with pytest.raises(TypeError, match=r"mixer\.order = 50"):
            learner(MixUp(), y=(classes(), classes()), loss=loss, cbs=[lose]).fit(1)


def test_without_a_seed_every_fit_follows_torchs():
    learn, lams = learner(MixUp(), images(n=BS)), []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        learn.fit(1)
        lams.append(learn.mix_up.lam)
    assert torch.equal(lams[0], lams[2])
    assert not torch.equal(lams[0], lams[1])


def test_the_base_class_is_not_a_method():
    with pytest.raises(TypeError, match="Use MixUp"):
        learner(MixHandler()).fit(1)


def test_the_loss_is_wrapped_while_training_only():
    seen, loss = [], nn.CrossEntropyLoss()
    look = on("before_batch", lambda learn: seen.append((learn.training, type(learn.loss_func))), -1)
    learner(MixUp(), loss=loss, cbs=[look]).fit(1)
    assert set(seen) == {(True, MixUpLoss), (False, nn.CrossEntropyLoss)}


def test_a_failed_export_keeps_the_order_of_the_callbacks():
    learn = learner(MixUp(), images(n=N))
    before = list(learn.cbs)
    with pytest.raises(Exception):  # noqa: B017, PT011  (a lambda of the test's learner cannot be pickled)
        learn.export()
    assert list(learn.cbs) == before


def test_a_copy_in_another_learner_leaves_the_first_alone():
    first = learner(MixUp())
    cb = first.mix_up
    second = learner(copy.copy(cb))
    assert first.mix_up is cb
    assert second.mix_up is not cb
    second.fit(1)
