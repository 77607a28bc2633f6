"""Arguments, fastai's documented usage, subclasses written for fastai, and what the model and the loss are given."""

import inspect
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import BS, EVERY, C, N, cnn, every_method, images, learner, loaders, no_hooks, on
from fastai.callback.core import CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException
from fastai.callback.mixup import CutMix as FastaiCutMix
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai.torch_core import TensorImage
from fastcore.basics import fastuple
from torch import nn
from torch.distributions import Beta

from mixaug import CutMix, ManifoldMixup, Mix, MixHandler, MixUp, MixUpLoss, OneOf, OutputMixup, PatchUp, sample_partner

DEFAULTS = {MixHandler: 0.5, MixUp: 0.4, CutMix: 1.0, ManifoldMixup: 0.4, OutputMixup: 0.4}


@pytest.mark.parametrize("method", DEFAULTS)
def test_the_signature_shows_every_argument(method):
    parameters = inspect.signature(method).parameters
    common = {"prob": 1.0, "per_sample": True, "fold": method is not CutMix, "stack_x": False, "stack_y": None}
    common |= {"start": None, "stop": None, "clean": False, "pair": None, "seed": None}
    own = {"modules": None, "input_mixup": True} if method is ManifoldMixup else {}
    assert {name: p.default for name, p in parameters.items()} == {"alpha": DEFAULTS[method], **common, **own}
    kinds = {name: p.kind for name, p in parameters.items() if name != "alpha"}
    assert parameters["alpha"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}
    assert method().alpha == DEFAULTS[method]
    assert method().fold == common["fold"]


@pytest.mark.parametrize("method", DEFAULTS)
@pytest.mark.parametrize("alpha", [1, 0.3, np.float32(0.5), np.int64(2), Fraction(1, 2)])
def test_numbers_of_any_kind_are_an_alpha(method, alpha):
    distrib = method(alpha).distrib
    assert isinstance(distrib, Beta)
    assert distrib.concentration1.item() == distrib.concentration0.item() == pytest.approx(float(alpha))


@pytest.mark.parametrize("method", DEFAULTS)
@pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf, -math.inf])
def test_an_alpha_out_of_range_is_a_value_error(method, alpha):
    with pytest.raises(ValueError, match=f"alpha came as {alpha}, a finite number above 0"):
        method(alpha)


@pytest.mark.parametrize("method", DEFAULTS)
@pytest.mark.parametrize("alpha", [None, "0.4", [0.4], True, torch.tensor(0.4)])
def test_an_alpha_that_is_no_number_is_a_type_error(method, alpha):
    with pytest.raises(TypeError, match="alpha came as"):
        method(alpha)


@pytest.mark.parametrize(
    ("prob", "error"), [(-0.1, ValueError), (1.1, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_a_prob_that_is_no_share_is_refused(prob, error):
    with pytest.raises(error, match="prob came as"):
        MixUp(prob=prob)


@pytest.mark.parametrize(("seed", "error"), [(0.5, ValueError), ("1", TypeError), (torch.Generator(), TypeError)])
def test_a_seed_that_is_no_whole_number_is_refused(seed, error):
    with pytest.raises(error, match="seed came as"):
        MixUp(seed=seed)


@pytest.mark.parametrize("value", ["False", None, 2, [True]])
@pytest.mark.parametrize(
    ("method", "name"),
    [
        *((MixUp, name) for name in ("per_sample", "fold", "stack_x", "clean", "stack_y")),
        (ManifoldMixup, "input_mixup"),
        (PatchUp, "hard"),
        (lambda per_sample: OneOf(MixUp(), per_sample=per_sample), "per_sample"),
    ],
)
def test_what_is_neither_true_nor_false_is_refused(method, name, value):
    value = 3 if (name, value) == ("stack_y", None) else value  # None leaves it to the type of the targets
    with pytest.raises(TypeError, match=f"{name} came as {re.escape(repr(value))}, True or False was wanted"):
        method(**{name: value})


@pytest.mark.parametrize(
    "modules", [[], (), [nn.ReLU(), "layer1"], [nn.ReLU], nn.ReLU(), nn.Sequential(nn.ReLU()), "abc", 3]
)
def test_modules_that_are_none_are_refused(modules):
    with pytest.raises(ValueError, match="modules came as"):
        ManifoldMixup(modules=modules)


def test_unknown_and_positional_arguments_are_refused():
    with pytest.raises(TypeError):
        MixUp(0.4, 0.5)
    with pytest.raises(TypeError):
        MixUp(0.4, probability=0.5)


def test_the_usage_in_fastais_documentation():
    x = images(n=BS)
    y = torch.arange(BS) % C
    dls = loaders(x, y)
    mixup = MixUp(0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 4))
    with Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=mixup) as learn:
        learn.epoch, learn.training = 0, True
        learn.dl = dls.train
        b = (TensorImage(x.clone()), y.clone())
        learn._split(b)
        learn("before_train")
        learn("before_batch")
    mixed = [lam * x[i] + (1 - lam) * x[j] for i, (lam, j) in enumerate(zip(mixup.lam, mixup.mix.partner, strict=True))]
    torch.testing.assert_close(torch.Tensor(mixup.x), torch.stack(mixed))
    assert torch.equal(mixup.y, y)
    assert torch.equal(torch.Tensor(b[0]), x)
    assert torch.equal(b[1], y)


@every_method
def test_the_tensor_type_survives_before_batch(method):
    """CastToTensor, which comes later, is where fastai drops the type."""
    seen = []
    cast = on("before_batch", lambda learn: setattr(learn, "xb", (TensorImage(learn.xb[0]),)), order=-1)
    look = on("before_batch", lambda learn: seen.append(type(learn.xb[0])) if learn.training else None, order=1)
    learner(method(), cbs=[cast, look]).fit(1)
    assert seen == [TensorImage] * 3


# What subclasses of fastai's own MixHandler do


class OldStyle(MixHandler):
    """As fastai's own MixUp is written."""

    def before_batch(self):
        lam = self.distrib.sample((self.y.size(0),)).squeeze().to(self.x.device)
        self.lam = torch.stack([lam, 1 - lam], 1).max(1)[0]
        self.shuffle = torch.randperm(self.y.size(0))
        self.yb1 = (self.y[self.shuffle],)
        self.learn.xb = (torch.lerp(self.x[self.shuffle], self.x, self.lam.view(-1, 1, 1, 1)),)
        if not self.stack_y:
            self.learn.yb = (torch.lerp(self.yb1[0], self.y, self.lam.view(-1, 1)),)


class OldLoss(OldStyle):
    """With a loss of its own."""

    calls = 0

    def lf(self, pred, *yb):
        if not self.training:
            return self.old_lf(pred, *yb)
        self.calls += 1
        return 10 * F.cross_entropy(pred, *self.yb1) + 0 * self.old_lf(pred, *yb)


def test_a_subclass_written_for_fastai_trains_on_class_numbers():
    x, y, loss = images(n=BS), torch.randint(0, C, (BS,)), CrossEntropyLossFlat()
    mixer = OldStyle(1)
    learn = learner(mixer, x, y, loss=loss)
    learn.fit(1)
    (row,) = learn.spy.batches
    each = [
        lam * F.cross_entropy(p[None], t[None]) + (1 - lam) * F.cross_entropy(p[None], t1[None])
        for lam, p, t, t1 in zip(mixer.lam, row["pred"], y, y[mixer.shuffle], strict=True)
    ]
    torch.testing.assert_close(row["loss"], sum(each) / BS, check_dtype=False)
    assert learn.loss_func is loss


def test_a_subclass_written_for_fastai_averages_floating_point_targets():
    x, y = images(n=BS), torch.rand(BS, C)
    mixer = OldStyle()
    learn = learner(mixer, x, y, loss=MSELossFlat())
    learn.fit(1)
    (row,) = learn.spy.batches
    target = torch.lerp(y[mixer.shuffle], y, mixer.lam[:, None])
    torch.testing.assert_close(row["loss"], F.mse_loss(row["pred"], target), check_dtype=False)


def test_a_subclass_may_bring_its_own_loss():
    x, y = images(n=BS), torch.randint(0, C, (BS,))
    mixer = OldLoss()
    learn = learner(mixer, x, y)
    learn.fit(1)
    (row,) = learn.spy.batches
    torch.testing.assert_close(row["loss"], 10 * F.cross_entropy(row["pred"], y[mixer.shuffle]), check_dtype=False)
    assert mixer.calls == 1


def test_a_new_method_is_a_draw():
    class Half(MixHandler):
        def draw(self, x):
            return Mix(sample_partner(len(x)), torch.full((len(x),), 0.5))

    x = images(n=BS)
    learn = learner(Half(), x)
    learn.fit(1)
    (row,) = learn.spy.batches
    torch.testing.assert_close(row["x"][0], (x + x[row["mix"].partner]) / 2)


# Stacking


class Stacked(nn.Module):
    """A model that mixes by itself, as stack_x=True asks of it."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = cnn(), []

    def forward(self, x, *more):
        self.seen.append((x, *more))
        return self.net(x)


@every_method
def test_stack_x_gives_the_model_both_samples_and_lam(method):
    x, y, model = images(n=BS), torch.randint(0, C, (BS,)), Stacked()
    mixer = method(stack_x=True)
    learn = learner(mixer, x, y, model=model)
    learn.fit(1, 0.0)
    own, partners, lam = model.seen[0]
    (row,) = learn.spy.batches
    assert torch.equal(own, x)
    assert torch.equal(partners, x[row["mix"].partner])
    assert torch.equal(lam, row["lam"])
    torch.testing.assert_close(row["pred"], model.net(x))
    assert len(model.seen[1]) == 1  # validation


def test_stack_y_true_combines_losses_of_floats():
    x, y = images(n=BS), torch.rand(BS, C)
    learn = learner(MixUp(stack_y=True), x, y, loss=MSELossFlat())
    learn.fit(1)
    (row,) = learn.spy.batches
    assert torch.equal(row["y"][0], y)
    lam, y1 = row["lam"], y[row["mix"].partner]
    each = lam * (row["pred"] - y).pow(2).mean(1) + (1 - lam) * (row["pred"] - y1).pow(2).mean(1)
    torch.testing.assert_close(row["loss"], each.mean(), check_dtype=False)


def test_stack_y_none_averages_floats():
    x, y = images(n=BS), torch.rand(BS, C)
    learn = learner(MixUp(), x, y, loss=MSELossFlat())
    learn.fit(1)
    (row,) = learn.spy.batches
    lam, y1 = row["lam"][:, None], y[row["mix"].partner]
    torch.testing.assert_close(row["y"][0], lam * y + (1 - lam) * y1)
    torch.testing.assert_close(row["loss"], F.mse_loss(row["pred"], row["y"][0]), check_dtype=False)


@pytest.mark.parametrize("method", EVERY)
def test_targets_that_change_their_kind_after_the_mixing_are_an_error(method):
    x, y = images(n=BS), torch.randint(0, C, (BS,))
    to_floats = lambda learn: setattr(learn, "yb", (F.one_hot(learn.y, C).float(),))  # noqa: E731
    learn = learner(EVERY[method](1), x, y.float() if method == "CMixup" else y, loss=nn.CrossEntropyLoss())
    if method == "CMixup":
        to_floats = lambda learn: setattr(learn, "yb", (learn.y.long(),))  # noqa: E731
    learn.add_cb(on("before_batch", to_floats, order=2))
    with pytest.raises(TypeError, match=r"torch\.(float32|int64).* came to the loss.*callback of order <"):
        learn.fit(1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_called_with_keywords_is_mixed_as_it_asks(reduction):
    x, y, seen = images(n=BS), torch.randint(0, C, (BS,)), []
    learn = learner(MixUp(1.0), x, y, loss=F.cross_entropy)
    again = lambda learn: seen.append(learn.loss_func(learn.pred, *learn.yb, reduction=reduction))  # noqa: E731
    learn.add_cb(on("after_loss", again, order=-1))
    learn.fit(1)
    (row,) = learn.spy.batches
    parts = [F.cross_entropy(row["pred"], target, reduction="none") for target in (y, y[row["mix"].partner])]
    each = row["lam"] * parts[0] + (1 - row["lam"]) * parts[1]
    torch.testing.assert_close(seen[0].detach(), {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction])


def test_stack_y_false_never_averages_class_numbers():
    with pytest.raises(TypeError, match=r"torch.int64.*stack_y=True"):
        learner(MixUp(stack_y=False)).fit(1)


def test_labels_of_zeros_and_ones_become_the_floats_that_the_loss_wants():
    x, y = images(n=BS), torch.randint(0, 2, (BS, C))
    learn = learner(MixUp(), x, y, loss=BCEWithLogitsLossFlat())
    learn.fit(1)
    (row,) = learn.spy.batches
    lam = row["lam"][:, None]
    torch.testing.assert_close(row["y"][0], lam * y + (1 - lam) * y[row["mix"].partner])


# Setups that cannot work


def test_two_mixing_callbacks_are_refused():
    learn = learner(MixUp())
    learn.add_cb(CutMix())
    with pytest.raises(ValueError, match=r"one mixing callback was wanted.*MixUp.*CutMix.*remove_cb"):
        learn.fit(1)


def test_the_bare_handler_says_that_it_does_nothing():
    with pytest.warns(UserWarning, match="MixHandler mixes nothing by itself"):
        learner(MixHandler()).fit(1)


def test_fastais_own_mixup_beside_ours_is_refused():
    learn = learner(MixUp())
    learn.add_cb(FastaiCutMix())
    with pytest.raises(ValueError, match="one mixing callback was wanted"):
        learn.fit(1)


def test_cutmix_wants_positions():
    with pytest.raises(ValueError, match=r"\(B, C, \*size\).*\(8, 60\) came"):
        learner(CutMix(), images(n=BS).flatten(1), model=nn.Linear(60, C)).fit(1)


def test_repr_tells_what_it_draws():
    assert repr(MixUp(0.3, prob=0.5)) == "MixUp(alpha=0.3, prob=0.5)"


def test_the_loss_is_wrapped_again_when_another_callback_replaces_it():
    x, y = images(n=BS), torch.randint(0, C, (BS,))
    learn = learner(MixUp(), x, y)
    doubled = lambda pred, y, reduction="mean": 2 * F.cross_entropy(pred, y, reduction=reduction)  # noqa: E731
    learn.add_cb(on("before_batch", lambda learn: setattr(learn, "loss_func", doubled)))
    learn.fit(1)
    (row,) = learn.spy.batches
    lam, y1 = row["lam"], y[row["mix"].partner]
    each = lam * F.cross_entropy(row["pred"], y, reduction="none")
    each += (1 - lam) * F.cross_entropy(row["pred"], y1, reduction="none")
    torch.testing.assert_close(row["loss"], 2 * each.mean(), check_dtype=False)
    assert learn.loss_func is doubled


CANCELS = (CancelBatchException, CancelTrainException, CancelEpochException, CancelFitException)


@every_method
@pytest.mark.parametrize("cancel", CANCELS)
@pytest.mark.parametrize("event", ["before_train", "before_batch", "after_pred", "after_loss", "after_batch"])
@pytest.mark.parametrize("order", [-1, 2])
def test_a_training_that_is_cancelled_leaves_nothing_behind(method, cancel, event, order):
    if cancel is CancelBatchException and event in ("before_train", "after_batch"):
        return  # nothing would catch it there

    def stop(learn):
        if learn.training:
            raise cancel

    loss = CrossEntropyLossFlat()
    learn = learner(method(), loss=loss, cbs=[on(event, stop, order)])
    learn.fit(1)
    assert learn.loss_func is loss
    assert no_hooks(learn.model)


def test_a_nest_of_inputs_of_any_class_is_mixed():
    class Two(fastuple):
        pass

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn()

        def forward(self, pair):
            return self.net(pair[0]) + self.net(pair[1]["right"])

    x, y = images(n=BS), torch.randint(0, C, (BS,))
    learn = learner(MixUp(), x, y, model=Net())
    learn.add_cb(on("before_batch", lambda learn: setattr(learn, "xb", (Two(x, {"right": x}),)), -1))
    learn.fit(1)
    ((left, right),) = learn.spy.batches[0]["x"]
    mix = learn.spy.batches[0]["mix"]
    assert torch.equal(left, mix.blend(x))
    assert torch.equal(right["right"], mix.blend(x))


def test_an_empty_input_is_left_alone():
    """fastai's tables without categories have (B, 0) codes."""
    x, codes = images(n=BS).flatten(1), torch.zeros(BS, 0, dtype=torch.long)

    class Net(nn.Linear):
        def forward(self, codes, x):
            return super().forward(x)

    learn = learner(MixUp(), (codes, x), torch.randint(0, C, (BS,)), model=Net(60, C))
    learn.fit(1)
    row = learn.spy.batches[0]
    assert torch.equal(row["x"][1], row["mix"].blend(x))
    model = nn.Sequential(nn.Linear(60, 8), nn.ReLU(), nn.Linear(8, C))
    model.forward = lambda codes, x: nn.Sequential.forward(model, x)
    learn = learner(ManifoldMixup(), (codes, x), torch.randint(0, C, (BS,)), model=model)
    learn.fit(8)
    assert {row["mixed_layer"] for row in learn.spy.batches} == {None, "0"}


def test_inputs_that_are_no_tensors_are_refused():
    learn = learner(MixUp())
    learn.add_cb(on("before_batch", lambda learn: setattr(learn, "xb", (range(3), {"a": None})), -1))
    with pytest.raises(TypeError, match=r"inputs of types \['range', 'dict'\] came"):
        learn.fit(1)


def test_a_nest_of_targets_is_refused():
    learn = learner(MixUp())
    learn.add_cb(on("before_batch", lambda learn: setattr(learn, "yb", ((learn.y, learn.y),)), -1))
    with pytest.raises(TypeError, match="a target of type tuple came"):
        learn.fit(1)


def test_another_call_of_the_loss_does_not_change_the_batches():
    x, y = images(n=BS), torch.randint(0, C, (BS,))
    other, seen = torch.randn(BS, C), []
    call = on("after_pred", lambda learn: seen.append(learn.loss_func(other, y)) if learn.training else None, 5)
    learn = learner(MixUp(), x, y, cbs=[call])
    learn.fit(1)
    (row,) = learn.spy.batches
    assert torch.equal(seen[0], F.cross_entropy(other, y))
    lam, y1 = row["lam"], y[row["mix"].partner]
    each = [F.cross_entropy(row["pred"], t, reduction="none") for t in (y, y1)]
    torch.testing.assert_close(row["loss"], (lam * each[0] + (1 - lam) * each[1]).mean(), check_dtype=False)


def test_an_interrupted_training_leaves_a_harmless_loss_that_the_next_event_removes():
    loss = CrossEntropyLossFlat()
    learn = learner(MixUp(), loss=loss)

    def stop(learn):
        if learn.training:
            raise KeyboardInterrupt

    learn.add_cb(on("after_loss", stop))
    with pytest.raises(KeyboardInterrupt):
        Learner.fit.__wrapped__(learn, 1)  # a way into fastai's training that knows nothing of mixing
    pred, y = torch.randn(4, C), torch.randint(0, C, (4,))
    assert isinstance(learn.loss_func, MixUpLoss)
    assert torch.equal(learn.loss_func(pred, y), loss(pred, y))
    learn.remove_cb(learn.cbs[-1])
    learn.validate()
    assert learn.loss_func is loss


def test_another_alpha_is_drawn_from():
    learn = learner(MixUp(0.4))
    learn.mix_up.alpha = 50
    learn.fit(1)
    assert learn.mix_up.distrib.concentration1.item() == 50
    assert all(0.5 <= lam < 0.75 for row in learn.spy.batches for lam in row["lam"])
    with pytest.raises(ValueError, match="alpha came as 0"):
        learn.mix_up.alpha = 0


@every_method
@pytest.mark.parametrize("targets", ["classes", "numbers"])
def test_a_second_pass_of_the_batch_has_the_loss_of_what_it_is(method, targets):
    """SAM and the like: mixed inputs with mixed targets, and what is mixed in the model not at all."""
    y = torch.randint(0, C, (N,)) if targets == "classes" else torch.rand(N, C)
    seen = []

    def again(learn):
        pred = learn.model(*learn.xb)
        seen.append((pred.detach(), learn.loss_func(pred, *learn.yb).item()))

    cbs = [on("before_step", again)]
    learn = learner(method(8), y=y, loss=CrossEntropyLossFlat() if targets == "classes" else nn.MSELoss(), cbs=cbs)
    learn.fit(2, 0.01)
    for row, (pred, loss) in zip(learn.spy.batches, seen, strict=True):
        own = y[row["iter"] * BS : (row["iter"] + 1) * BS]
        mixed = method in (MixUp, CutMix) or (method is ManifoldMixup and row["mixed_layer"] is None)
        if mixed:
            torch.testing.assert_close(pred, row["pred"])
        expected = row["loss"] if mixed else learn.loss_func(pred, own)
        assert loss == pytest.approx(expected.item(), abs=1e-6)


@every_method
@pytest.mark.parametrize(
    ("event", "order"), [("after_batch", 0), ("before_batch", -1), ("before_batch", 2), ("before_epoch", 0)]
)
def test_a_callback_that_is_switched_off_mixes_no_more(method, event, order):
    cb, x = method(8), images()
    off = on(event, lambda learn: setattr(cb, "run", False) if learn.epoch else None, order)
    learn = learner(cb, x, cbs=[off])
    loss, model = learn.loss_func, learn.model
    learn.fit(3, 0.0)
    for row in learn.spy.batches[-3:]:
        own = x[row["iter"] * BS : (row["iter"] + 1) * BS]
        assert torch.equal(row["x"][0], own)
        torch.testing.assert_close(row["pred"], model(own).detach())
        torch.testing.assert_close(row["loss"], loss(row["pred"], row["y"][0]))
    assert learn.loss_func is loss
    assert no_hooks(model)


def test_one_that_comes_in_the_middle_of_a_fit_is_checked_and_draws_from_its_seed():
    def late(global_seed):
        cb = MixUp(seed=5)
        learn = learner(None, cbs=[on("before_epoch", lambda learn: learn.add_cb(cb) if learn.epoch == 1 else None)])
        lams = []
        learn.add_cb(on("after_pred", lambda learn: lams.append(cb.lam.tolist()) if cb.lam is not None else None))
        torch.manual_seed(global_seed)
        learn.fit(2)
        return lams

    assert late(1) == late(2)
    learn = learner(
        MixUp(), cbs=[on("before_epoch", lambda learn: learn.add_cb(CutMix()) if learn.epoch == 1 else None)]
    )
    with pytest.raises(ValueError, match="one mixing callback was wanted"):
        learn.fit(2)


def test_one_that_is_given_twice_is_refused_and_stays():
    cb = MixUp()
    learn = learner(cb)
    with pytest.raises(ValueError, match="one mixing callback was wanted"):
        learn.fit(1, cbs=cb)
    learn.spy.batches.clear()
    learn.fit(1)
    assert all(row["mix"] is not None for row in learn.spy.batches)


def test_a_model_in_eval_mode_is_said_to_be_so():
    learn = learner(ManifoldMixup(input_mixup=False))
    learn.add_cb(on("before_batch", lambda learn: learn.model.eval()))
    with pytest.raises(RuntimeError, match="the model is in eval mode"):
        learn.fit(1)


def test_a_handler_that_is_set_on_the_callback_itself_is_called():
    cb, called = MixUp(), []
    cb.after_step = lambda: called.append(1)
    learner(cb).fit(1)
    assert len(called) == 3
