"""The flow of a batch: fastai's documented usage, subclasses written for it, and what the model and the loss get."""

import pytest
import torch
import torch.nn.functional as F
from common import (
    BS,
    EVERY,
    METHODS,
    C,
    N,
    classes,
    cnn,
    every_method,
    images,
    learner,
    loaders,
    no_hooks,
    on,
    replace,
    trained,
)
from fastai.callback.mixup import CutMix as FastaiCutMix
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat, MSELossFlat
from fastai.torch_core import TensorImage
from fastcore.basics import fastuple
from reference import check_losses, close, slow_loss, slow_mix
from torch import nn

from mixaug import (
    CutMix,
    ManifoldMixup,
    Mix,
    MixHandler,
    MixUp,
    OneOf,
    ResizeMix,
    mix_batch,
    sample_partner,
)


def one_batch(mixer, y=None, loss=None, x=None, **kwargs):
    """Return what was seen of a training with one batch."""
    (row,) = trained(mixer, images(n=BS) if x is None else x, y, loss=loss, **kwargs).spy.batches
    return row


def test_the_usage_in_fastais_documentation():
    x, y = images(n=BS), torch.arange(BS) % C
    dls, mixup = loaders(x, y), MixUp(0.5)
    with Learner(dls, nn.Linear(6, 4), loss_func=CrossEntropyLossFlat(), cbs=mixup) as learn:
        learn.epoch, learn.training = 0, True
        learn.dl = dls.train
        b = (TensorImage(x.clone()), y.clone())
        learn._split(b)
        learn("before_train")
        learn("before_batch")
    close(torch.Tensor(mixup.x), slow_mix(x, mixup.mix))
    assert torch.equal(mixup.y, y)
    assert torch.equal(torch.Tensor(b[0]), x)
    assert torch.equal(b[1], y)


class OldStyle(MixHandler):
    """Written as fastai's MixUp."""

    def before_batch(self):
        lam = self.distrib.sample((self.y.size(0),)).squeeze().to(self.x.device)
        self.lam = torch.stack([lam, 1 - lam], 1).max(1)[0]
        self.shuffle = torch.randperm(self.y.size(0))
        self.yb1 = (self.y[self.shuffle],)
        self.learn.xb = (torch.lerp(self.x[self.shuffle], self.x, self.lam.view(-1, 1, 1, 1)),)
        if not self.stack_y:
            self.learn.yb = (torch.lerp(self.yb1[0], self.y, self.lam.view(-1, 1)),)


class OldLoss(OldStyle):
    """Overrides the loss, and an event that fastai's handler has too."""

    calls, ends = 0, 0

    def lf(self, pred, *yb):
        if not self.training:
            return self.old_lf(pred, *yb)
        self.calls += 1
        return 10 * F.cross_entropy(pred, *self.yb1) + 0 * self.old_lf(pred, *yb)

    def after_train(self):
        super().after_train()
        self.ends += 1


class TestSubclassesWrittenForFastai:
    def test_class_indices_get_both_losses_and_floats_are_averaged(self):
        y, loss, mixer = classes(n=BS), CrossEntropyLossFlat(), OldStyle(1)
        row = one_batch(mixer, y, loss)
        close(row.loss, slow_loss(row.pred, [y], [y[mixer.shuffle]], mixer.lam))
        assert mixer.learn.loss_func is loss
        row = one_batch(mixer, y := torch.rand(BS, C), MSELossFlat())
        close(row.loss, F.mse_loss(row.pred, torch.lerp(y[mixer.shuffle], y, mixer.lam[:, None])))

    def test_lf_and_after_train_may_be_overridden(self):
        mixer, seen = OldLoss(), []
        look = on("after_validate", lambda learn: seen.append(mixer.ends))
        learn = trained(mixer, images(n=BS), cbs=[look], fit=(2,))
        learn.remove_cb(mixer)
        assert seen == [1, 2]
        assert (mixer.calls, mixer.ends) == (2, 2)
        for row in learn.spy.batches:
            close(row.loss, 10 * F.cross_entropy(row.pred, *row.yb1))


def test_a_new_method_is_a_draw():
    class Half(MixHandler):
        def draw(self, x):
            return Mix(sample_partner(len(x)), torch.full((len(x),), 0.5))

    row = one_batch(Half())
    close(row.x[0], (row.x0[0] + row.x0[0][row.mix.partner]) / 2)


@every_method
def test_stack_x_gives_the_model_both_samples_and_lam(method):
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = cnn(), []

        def forward(self, x, *more):
            self.seen.append((x, *more))
            return self.net(x)

    model = Stacked()
    row = one_batch(method(stack_x=True), model=model, fit=(1, 0.0))
    x, partners, lam = model.seen[0]
    assert torch.equal(x, row.x0[0])
    assert torch.equal(partners, x[row.mix.partner])
    assert torch.equal(lam, row.lam)
    close(row.pred, model.net(x))
    close(row.loss, slow_loss(row.pred, row.y0, row.partners, lam))
    assert len(model.seen[1]) == 1  # validation


class TestStackY:
    def test_true_combines_losses_of_floats(self):
        row = one_batch(MixUp(stack_y=True), torch.rand(BS, C), MSELossFlat())
        assert torch.equal(row.y[0], row.y0[0])
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam, F.mse_loss))

    def test_false_never_averages_class_indices(self):
        with pytest.raises(TypeError, match='targets="loss"'):
            trained(MixUp(stack_y=False))


@pytest.mark.parametrize("method", EVERY)
def test_targets_that_change_their_kind_after_the_mixing_raise_type_error(method):
    y = torch.rand(BS) if method == "CMixup" else classes(n=BS)
    change = (lambda y: y.long()) if method == "CMixup" else (lambda y: F.one_hot(y, C).float())
    with pytest.raises(TypeError, match=r"mixer\.order = 50"):
        one_batch(EVERY[method](1), y, nn.CrossEntropyLoss(), cbs=[replace(2, yb=lambda learn: (change(learn.y),))])


def late(cb):
    return on("before_epoch", lambda learn: learn.add_cb(cb) if learn.epoch == 1 else None)


class TestErrors:
    @pytest.mark.parametrize("other", [CutMix(), FastaiCutMix(), late(CutMix())])
    def test_two_mixing_callbacks_raise_value_error(self, other):
        with pytest.raises(ValueError, match=r"learn\.remove_cb"):
            trained(MixUp(), cbs=[other], fit=(2,))

    def test_a_callback_that_is_given_twice_raises_value_error_and_stays(self):
        learn = learner(cb := MixUp())
        with pytest.raises(ValueError, match=r"learn\.remove_cb"):
            learn.fit(1, cbs=cb)
        learn.spy.batches.clear()
        learn.fit(1)
        assert all(row.mix is not None for row in learn.spy.batches)

    @pytest.mark.parametrize("x", [images(n=BS).flatten(1), torch.zeros(BS, 2, 0), torch.zeros(BS, 2, 4, 0)])
    @pytest.mark.parametrize("method", [CutMix, ResizeMix])
    def test_cutting_without_positions_raises_value_error(self, method, x):
        for use in (method().draw, lambda x: one_batch(method(), x=x, model=nn.Linear(1, C))):
            with pytest.raises(ValueError, match="MixUp averages"):
                use(x)

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"xb": lambda learn: (range(3), {"a": None})}, "range.*dict"),
            ({"yb": lambda learn: ((learn.y, learn.y),)}, "tuple"),
        ],
    )
    def test_batches_without_tensors_raise_type_error(self, changes, match):
        with pytest.raises(TypeError, match=match):
            trained(MixUp(), cbs=[replace(**changes)])

    def test_properties_are_read_only(self):
        for name in ("stack_y", "distrib"):
            with pytest.raises(AttributeError):
                setattr(learner(MixUp()).mix_up, name, None)


def test_a_nest_of_inputs_of_any_class_is_mixed():
    class Two(fastuple):
        pass

    x = images(n=BS)
    mixed = mix_batch(MixUp(), (Two(x, {"right": x}),), classes(n=BS), F.cross_entropy)
    left, right = mixed.xb[0]
    assert type(mixed.xb[0]) is Two
    close(left, slow_mix(x, mixed.mix))
    assert torch.equal(right["right"], left)


def test_an_empty_input_is_left_alone():
    """fastai's tables without categories have (B, 0) categorical codes."""
    x = torch.zeros(BS, 0, dtype=torch.long), images(n=BS).flatten(1)

    class Second(nn.Sequential):
        def forward(self, codes, x):
            return super().forward(x)

    for method, places in ((MixUp, {"input"}), (ManifoldMixup, {"input", "0"})):
        model = Second(nn.Linear(60, 8), nn.ReLU(), nn.Linear(8, C))
        rows = trained(method(), x, classes(n=BS), model, fit=(8,)).spy.batches
        assert {row.place for row in rows} == places
        row = next(row for row in rows if row.place == "input")
        close(row.x[1], slow_mix(x[1], row.mix))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_called_with_keywords_is_mixed_as_it_asks(reduction):
    seen = []
    again = lambda learn: seen.append(learn.loss_func(learn.pred, *learn.yb, reduction=reduction))  # noqa: E731
    row = one_batch(MixUp(1.0), loss=F.cross_entropy, cbs=[on("after_loss", again, -1)])
    parts = [F.cross_entropy(row.pred, y, reduction="none") for (y,) in (row.y0, row.partners)]
    each = row.lam * parts[0] + (1 - row.lam) * parts[1]
    close(seen[0].detach(), {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction])


def squared(pred, y):
    return F.cross_entropy(pred, y) ** 2


@pytest.mark.parametrize(
    ("order", "loss", "per_sample", "exact"),
    [
        (-1, squared, True, True),  # before the mixing
        (2, nn.CrossEntropyLoss(label_smoothing=0.3), True, True),
        (2, squared, False, True),  # one lam is exact for any loss
        (2, squared, True, False),
    ],
)
def test_a_loss_that_another_callback_puts_in_place_is_combined_exactly_or_raises(order, loss, per_sample, exact):
    learn = learner(MixUp(per_sample=per_sample), cbs=[replace(order, loss_func=lambda learn: loss)])
    if not exact:
        with pytest.raises(ValueError, match="is_average"):
            learn.fit(1)
        return
    learn.fit(1)
    for row in learn.spy.batches:
        if loss is squared:
            lam = row.lam[0]
            close(row.loss, lam * squared(row.pred, *row.y0) + (1 - lam) * squared(row.pred, *row.partners))
        else:
            close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam, loss))
    assert learn.loss_func is loss


@pytest.mark.parametrize("method", [*METHODS.values(), EVERY["OneOf"]])
@pytest.mark.parametrize("targets", ["classes", "floats"])
def test_a_second_pass_of_the_batch_has_the_loss_of_what_it_is(method, targets):
    """SAM and the like: mixed inputs with mixed targets; what is mixed in the model is not mixed again."""
    y, seen = classes() if targets == "classes" else torch.rand(N, C), []

    def again(learn):
        pred = learn.model(*learn.xb)
        seen.append((pred.detach(), learn.loss_func(pred, *learn.yb).item()))

    loss = CrossEntropyLossFlat() if targets == "classes" else nn.MSELoss()
    learn = trained(method(8), y=y, loss=loss, cbs=[on("before_step", again)], fit=(2, 0.01))
    for row, (pred, value) in zip(learn.spy.batches, seen, strict=True):
        if row.place == "input":
            close(pred, row.pred)
        expected = row.loss if row.place == "input" else loss(pred, row.y0[0])
        assert value == pytest.approx(expected.item(), abs=1e-6)


@every_method
@pytest.mark.parametrize(
    ("event", "order"), [("after_batch", 0), ("before_batch", -1), ("before_batch", 2), ("before_epoch", 0)]
)
def test_a_callback_that_is_switched_off_mixes_no_more(method, event, order):
    cb = method(8)
    learn = learner(cb, cbs=[on(event, lambda learn: setattr(cb, "run", False) if learn.epoch else None, order)])
    loss, model = learn.loss_func, learn.model
    learn.fit(3, 0.0)
    for row in learn.spy.batches[-3:]:
        assert torch.equal(row.x[0], row.x0[0])
        close(row.pred, model(row.x0[0]).detach())
        close(row.loss, loss(row.pred, row.y0[0]))
    assert learn.loss_func is loss
    assert no_hooks(model)


@pytest.mark.parametrize(
    "cb", [MixUp(), ManifoldMixup(input_mixup=False), OneOf(ManifoldMixup(input_mixup=False), ManifoldMixup())]
)
def test_a_callback_that_is_added_in_the_middle_of_a_fit_mixes_from_then_on(cb):
    learn = learner(None, cbs=[late(cb)])
    learn.spy.mixer = cb
    learn.fit(3, 0.01)
    assert [row.mix is not None for row in learn.spy.batches] == [False] * 3 + [True] * 6
    check_losses(learn)
    assert no_hooks(learn.model)
