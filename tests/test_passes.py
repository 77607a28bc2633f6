"""Several passes, several losses, and other callbacks in one batch: exact, or an error that says what to do."""

import copy
import warnings
from contextlib import suppress
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from common import BS, C, N, classes, cnn, every_method, images, learner, no_hooks, on, trained
from fastai.callback.core import Callback
from fastai.torch_core import to_detach
from reference import close, slow_loss
from torch import nn

from mixaug import (
    CutMix,
    ManifoldMixup,
    MixUp,
    OneOf,
    OutputMixup,
    PatchUp,
    mixed_loss,
)


def hidden(alpha=8, **options):
    return ManifoldMixup(alpha, input_mixup=False, **options)


METHODS = {"MixUp": MixUp, "CutMix": CutMix, "OutputMixup": OutputMixup, "hidden": hidden,
           "OneOf": lambda alpha=8: OneOf(MixUp(alpha), hidden(alpha), OutputMixup(alpha))}  # fmt: skip
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Kept(Callback):
    """Keeps the batch as another callback sees it, before (order < 0) or after the mixing."""

    def __init__(self, order):
        self.order = order

    def before_batch(self):
        self.inputs, self.targets = self.learn.xb, self.learn.yb


def mean_loss(loss, pred, row):
    """Return the loss of a prediction of the mixed batch, by the formula."""
    if row.y0[0].is_floating_point():
        lam = row.lam.view(-1, *[1] * (row.y0[0].ndim - 1))
        return loss(pred, lam * row.y0[0] + (1 - lam) * row.partners[0])
    return slow_loss(pred, row.y0, row.partners, row.lam, loss)


@methods
@pytest.mark.parametrize("event", ["after_loss", "before_step"])
@pytest.mark.parametrize("held", [-1, 60, None])
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("twin", [False, True])
def test_a_second_pass_over_the_batch_has_the_loss_of_what_it_is(method, event, held, continuous, twin):
    """As sharpness-aware steps make it: targets read before the mixing, after it, or when they are used."""
    kept, seen = Kept(held or 60), []

    def again(learn):
        if learn.training:
            model = copy.deepcopy(learn.model) if twin else learn.model
            pred = model(*learn.xb)
            yb = learn.yb if held is None else kept.targets
            seen.append((learn.loss_func(pred, *yb).detach(), pred.detach()))

    y, loss = (torch.rand(N, C), nn.MSELoss()) if continuous else (classes(), nn.CrossEntropyLoss())
    learn = trained(method(8), y=y, loss=loss, cbs=[kept, on(event, again, 60)], fit=(2, 0.01))
    for row, (value, pred) in zip(learn.spy.batches, seen, strict=True):
        close(value, mean_loss(loss, pred, row) if row.place == "input" else loss(pred, *row.y0))


@methods
@pytest.mark.parametrize("twin", [False, True])
def test_a_pass_over_the_unmixed_inputs_has_the_unmixed_loss(method, twin):
    """A consistency loss, or RegMixup by hand: inputs that a callback kept before they were mixed."""
    kept, seen = Kept(-1), []

    def both(learn):
        if learn.training:
            clean = (copy.deepcopy(learn.model) if twin else learn.model)(*kept.inputs)
            values = [learn.loss_func(p, *learn.yb) for p in (clean, learn.pred, clean)][:2]
            seen.append([to_detach(t) for t in (clean, *values)])

    loss = nn.CrossEntropyLoss()
    learn = trained(method(8), loss=loss, cbs=[kept, on("after_loss", both, 60)], fit=(2, 0.01))
    for row, (clean, value, again) in zip(learn.spy.batches, seen, strict=True):
        close(value, loss(clean, *row.y0))
        close(again, row.loss)


# Passes over anything else: each of these is a prediction of clean inputs `x`, or of the mixed ones `learn.x`
FURTHER = {
    "a clone": lambda learn, x, peer: learn.model(x.clone()),
    "with noise": lambda learn, x, peer: learn.model(x + 0.1),
    "flipped": lambda learn, x, peer: learn.model(x.flip(-1)),
    "by parts of the model": lambda learn, x, peer: learn.model[3:](learn.model[:3](x)),
    "by another model": lambda learn, x, peer: peer(x),
    "half of a pass over both": lambda learn, x, peer: learn.model(torch.cat([learn.x, x]))[len(x) :],
    "without gradients": lambda learn, x, peer: learn.model(x).detach() * 2,
}


@methods
@pytest.mark.parametrize("further", FURTHER.values(), ids=FURTHER)
def test_a_further_prediction_of_the_unmixed_inputs_has_the_unmixed_loss_or_raises(method, further):
    kept, seen, peer = Kept(-1), [], nn.Sequential(nn.Flatten(), nn.Linear(60, C))

    def add(learn):
        if learn.training:
            pred = further(learn, kept.inputs[0], peer)
            seen.append((learn.loss_func(pred, *learn.yb).detach(), pred.detach()))

    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, C))
    learn = learner(method(8), model=model, cbs=[kept, on("after_loss", add, 60)])
    name = next(name for name in FURTHER if FURTHER[name] is further)
    untraceable = "by parts of the model", "by another model", "without gradients"
    if name in untraceable or (method in (MixUp, CutMix) and name != "a clone"):
        with pytest.raises(RuntimeError, match=r"may be either. Say which: mixer\.old_lf\(pred, \*yb\)"):
            learn.fit(2)
        return
    if method is METHODS["OneOf"]:  # it may choose MixUp
        with suppress(RuntimeError):
            learn.fit(2)
    else:
        learn.fit(2)
    for row, (value, pred) in zip(learn.spy.batches, seen, strict=False):
        close(value, F.cross_entropy(pred, *row.y0))


@methods
@pytest.mark.parametrize("clean_first", [False, True])
def test_losses_of_two_further_passes_are_each_of_their_own(method, clean_first):
    kept, seen = Kept(-1), []

    def both(learn):
        if learn.training:
            passes = [lambda: learn.model(*learn.xb), lambda: learn.model(*kept.inputs)]
            preds = [run() for run in (passes[::-1] if clean_first else passes)]
            mixed, clean = preds[::-1] if clean_first else preds
            seen.append([t.detach() for p in (mixed, clean) for t in (learn.loss_func(p, *learn.yb), p)])

    learn = trained(method(8), cbs=[kept, on("after_loss", both, 60)], fit=(2, 0.01))
    for row, (value, mixed, plain, clean) in zip(learn.spy.batches, seen, strict=True):
        input_is_mixed = row.place == "input"
        close(
            value,
            slow_loss(mixed, row.y0, row.partners, row.lam) if input_is_mixed else F.cross_entropy(mixed, *row.y0),
        )
        close(plain, F.cross_entropy(clean, *row.y0))


def test_what_the_error_says_of_an_unknown_prediction_is_right():
    peer, kept, seen = nn.Sequential(nn.Flatten(), nn.Linear(60, C)), Kept(-1), []

    def add(learn):
        if learn.training:
            mixer, mixed, clean = learn.mix_up, peer(*learn.xb), peer(*kept.inputs)
            both = mixed_loss(mixer.old_lf, mixed, learn.yb, mixer.yb1, mixer.lam), mixer.old_lf(clean, *learn.yb)
            seen.append([t.detach() for t in (*both, mixed, clean)])

    learn = trained(MixUp(8), images(n=BS), cbs=[kept, on("after_pred", add, 60)])
    (row,) = learn.spy.batches
    ((both, plain, mixed, clean),) = seen
    close(both, slow_loss(mixed, row.y0, row.partners, row.lam))
    close(plain, F.cross_entropy(clean, *row.y0))


def test_an_unmixed_pass_beside_a_batch_with_its_clean_half():
    kept, seen = Kept(-1), []

    def add(learn):
        if learn.training:
            pred = learn.model(*kept.inputs)
            seen.append((learn.loss_func(pred, *kept.targets).detach(), pred.detach(), *kept.targets))

    trained(MixUp(8, clean=True), cbs=[kept, on("after_loss", add, 60)])
    for value, pred, y in seen:
        close(value, F.cross_entropy(pred, y))


@methods
@pytest.mark.parametrize("rows", [slice(4), torch.tensor([1, 3, 0])])
@pytest.mark.parametrize("all_targets", [False, True])
def test_some_rows_of_a_mixed_prediction_raise_type_error(method, rows, all_targets):
    """Hard examples, say: their partners are others."""

    def add(learn):
        if learn.training:
            learn.loss_func(learn.pred[rows], learn.y if all_targets else learn.y[rows])

    with pytest.raises(TypeError, match=r"whole batch, learn\.yb"):
        trained(method(8), cbs=[on("after_loss", add, 60)])


@methods
def test_a_loss_of_other_data_is_the_users(method):
    """Another batch, of another size: unlabeled data, a replay buffer."""
    x, y, seen = images(n=3), classes(n=3), []

    def add(learn):
        if learn.training:
            pred = learn.model(x)
            seen.append((learn.loss_func(pred, y).detach(), F.cross_entropy(pred, y).detach()))

    trained(method(8), cbs=[on("after_loss", add, 60)])
    for value, plain in seen:
        close(value, plain)


@methods
@pytest.mark.parametrize("event", [("before_batch", 60), ("after_pred", -5)])
def test_a_second_pass_before_the_prediction_is_known(method, event):
    seen = []

    def add(learn):
        if learn.training:
            pred = learn.model(*learn.xb)
            seen.append((learn.loss_func(pred, *learn.yb).detach(), pred.detach()))

    mixer = OneOf(MixUp(8), MixUp(4), MixUp(2)) if method is METHODS["OneOf"] else method(8)
    if method is METHODS["hidden"]:  # which would be mixed instead
        with pytest.raises(RuntimeError, match=r"mixer\.order = 50|runs of"):
            trained(mixer, cbs=[on(event[0], add, event[1])])
        return
    learn = trained(mixer, model=nn.Sequential(nn.Flatten(), nn.Linear(60, C)) if method is OutputMixup else None,
                    cbs=[on(event[0], add, event[1])], fit=(3, 0.01))  # fmt: skip
    for row, (value, pred) in zip(learn.spy.batches, seen, strict=True):
        mixed = slow_loss(pred, row.y0, row.partners, row.lam)
        close(value, mixed if row.place == "input" else F.cross_entropy(pred, *row.y0))


@methods
def test_a_validation_in_the_middle_of_an_epoch_leaves_second_passes_exact(method):
    seen = []

    def add(learn):
        if learn.training:
            pred = learn.model(*learn.xb)
            seen.append((learn.loss_func(pred, *learn.yb).detach(), pred.detach()))

    def validate(learn):
        if learn.training and learn.iter == 0:
            learn("before_validate")
            learn.training = True
            learn.model.train()

    cbs = [on("after_loss", add, 60), on("after_batch", validate, 60)]
    learn = trained(method(8), cbs=cbs, fit=(2, 0.01))
    for row, (value, pred) in zip(learn.spy.batches, seen, strict=True):
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))
        mixed = slow_loss(pred, row.y0, row.partners, row.lam)
        close(value, mixed if row.place == "input" else F.cross_entropy(pred, *row.y0))


class Gauss(nn.Module):
    """Returns a distribution, no tensors."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(60, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.head(self.body(x.flatten(1)).tanh())
        return torch.distributions.Normal(h[:, :1], h[:, 1:].exp())


@pytest.mark.parametrize("make", [MixUp, lambda: OneOf(MixUp()), hidden])
def test_a_prediction_that_is_no_nest_of_tensors_has_the_mixed_loss(make):
    loss, model = lambda pred, y: -pred.log_prob(y).mean(), Gauss()
    mixer = make() if make is not hidden else hidden(modules=[model.body], verify=False)
    for row in trained(mixer, y=torch.randn(N, 1), model=model, loss=loss).spy.batches:
        lam = row.lam[:, None]
        close(row.loss, loss(row.pred, lam * row.y0[0] + (1 - lam) * row.partners[0]))


def test_a_second_prediction_that_is_no_nest_of_tensors_is_told_by_the_pass():
    seen, loss = [], lambda pred, y: -pred.log_prob(y).mean()

    def add(learn):
        if learn.training:
            pred = learn.model(*learn.xb)
            seen.append((learn.loss_func(pred, *learn.yb), loss(pred, *learn.yb)))

    trained(MixUp(8), y=torch.randn(N, 1), model=Gauss(), loss=loss, cbs=[on("after_loss", add, 60)])
    for value, expected in seen:
        close(value, expected)


@pytest.mark.parametrize("method", [MixUp, CutMix, OutputMixup, hidden])
def test_one_column_of_the_targets_raises_type_error(method):
    def add(learn):
        if learn.training:
            learn.loss_func(learn.pred[:, :1], learn.y[:, :1])

    with pytest.raises(TypeError, match=r"whole batch, learn\.yb"):
        trained(method(8, targets="loss"), y=torch.rand(N, C), loss=nn.MSELoss(), cbs=[on("after_loss", add, 60)])


def test_a_graph_that_another_callback_made_before_survives_the_test_of_layers():
    kept = {}
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, C))
    before = on("before_batch", lambda learn: kept.update(pred=learn.model(*learn.xb)) if learn.training else None, -5)

    def add(learn):
        if learn.training:
            learn.loss_grad = learn.loss_grad + kept["pred"].square().mean()

    model.eval()[1].momentum = 0.0
    trained(hidden(), model=model, cbs=[before, on("after_loss", add, 60)])


def test_a_scripted_model_is_mixed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(60, C)))
    for row in trained(MixUp(8), model=model).spy.batches:
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.main, self.aux = nn.Sequential(nn.Flatten(), nn.Linear(60, 8)), nn.Linear(8, C), nn.Linear(8, C)

    def forward(self, x):
        h = self.body(x).relu()
        return self.main(h), self.aux(h)


@methods
@pytest.mark.parametrize("second", [False, True])
def test_an_auxiliary_loss_on_a_part_of_the_prediction_is_mixed(method, second):
    """Also once another pass was made, and of what was computed from the part."""
    parts, seen = {}, []

    def add(learn):
        if learn.training:
            if second:
                learn.model(*learn.xb)
            value = learn.loss_func(parts["aux"] * 2, *learn.yb)
            learn.loss_grad = learn.loss_grad + 0.3 * value
            seen.append((value.detach(), parts["aux"].detach()))

    class Take(Callback):
        order = 60

        def after_pred(self):
            parts["aux"], self.learn.pred = self.pred[1], self.pred[0]

    cbs, model = [Take(), on("after_loss", add, 61)], TwoHeads()
    learn = trained(method(8), model=model, cbs=cbs, fit=(2, 0.01))
    for row, (value, aux) in zip(learn.spy.batches, seen, strict=True):
        close(value, slow_loss(2 * aux, row.y0, row.partners, row.lam))


@methods
def test_a_loss_on_features_is_mixed_behind_the_mixed_layer_and_unmixed_in_front_of_it(method):
    """Deep supervision by hooks. What is in front of a mixed hidden layer, or of the prediction, is not mixed."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, C), nn.Tanh(), nn.Linear(C, C), nn.Tanh(), nn.Linear(C, C))
    features, seen = {}, []
    for name in ("1", "4"):
        model[int(name)].register_forward_hook(lambda m, args, out, name=name: features.update({name: out}))

    def add(learn):
        if learn.training:
            losses = {name: learn.loss_func(features[name], *learn.yb).detach() for name in features}
            seen.append((losses, {name: t.detach() for name, t in features.items()}))

    learn = trained(method(8), model=model, cbs=[on("after_loss", add, 60)], fit=(4, 0.01))
    for row, (losses, kept) in zip(learn.spy.batches, seen, strict=True):
        for name, value in losses.items():
            mixed = row.place == "input" or (row.place != "output" and int(row.place) < int(name))
            expected = slow_loss(kept[name], row.y0, row.partners, row.lam)
            close(value, expected if mixed else F.cross_entropy(kept[name], *row.y0))


@methods
def test_a_body_without_gradients(method):
    model = cnn()
    for p in model[:4].parameters():
        p.requires_grad_(False)
    seen = []

    def again(learn):
        if learn.training:
            pred = learn.model(*learn.xb)
            seen.append((learn.loss_func(pred, *learn.yb).detach(), pred.detach()))

    learn = trained(method(8), model=model, cbs=[on("after_loss", again, 60)], fit=(2, 0.01))
    for row, (value, pred) in zip(learn.spy.batches, seen, strict=True):
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))
        mixed = slow_loss(pred, row.y0, row.partners, row.lam)
        close(value, mixed if row.place == "input" else F.cross_entropy(pred, *row.y0))


def test_a_second_pass_over_inputs_that_another_callback_changed():
    change = on("before_batch", lambda learn: setattr(learn, "xb", (learn.x * 2,)), 5)
    seen = []
    again = on("before_backward", lambda learn: seen.append(learn.loss_func(learn.model(*learn.xb), *learn.yb)), 60)
    for row, value in zip(trained(MixUp(8), cbs=[change, again]).spy.batches, seen, strict=True):
        close(value.detach(), row.loss)


@methods
def test_a_prediction_that_another_callback_detached_is_the_mixed_one(method):
    """As it is where gradients of the prediction are computed first, for large batches."""
    detach = on("after_pred", lambda learn: setattr(learn, "pred", (2 * learn.pred.detach()).requires_grad_()), 60)
    learn = learner(method(8), cbs=[detach])
    learn.spy.order = 70
    learn.fit(1)
    for row in learn.spy.batches:
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))


def test_a_second_pass_with_targets_that_another_callback_copied():
    copied, seen = on("before_batch", lambda learn: setattr(learn, "yb", (learn.y.clone(),)), 5), []
    again = on("before_backward", lambda learn: seen.append(learn.loss_func(learn.model(*learn.xb), *learn.yb)), 60)
    for row, value in zip(trained(MixUp(8), cbs=[copied, again]).spy.batches, seen, strict=True):
        close(value.detach(), row.loss)


def test_a_loss_on_features_without_gradients_raises_runtime_error():
    """Nothing tells whether they are behind the mixed layer. A second pass has other ones."""
    model, features = cnn(), {}
    for p in model[:4].parameters():
        p.requires_grad_(False)
    model[4].register_forward_pre_hook(lambda m, args: features.update(h=args[0]))
    aux = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, C))
    add = on("after_loss", lambda learn: learn.loss_func(aux(features["h"]), *learn.yb) if learn.training else None, 60)
    with pytest.raises(RuntimeError, match=r"may be either.*mixer\.old_lf"):
        trained(hidden(), model=model, cbs=[add])


@every_method
def test_another_loss_of_other_targets_is_the_users(method):
    seen, pseudo = [], classes(n=BS)
    call = on(
        "after_loss", lambda learn: seen.append(learn.loss_func(learn.pred, pseudo)) if learn.training else None, 60
    )
    (row,) = trained(method(8), images(n=BS), cbs=[call]).spy.batches
    close(seen[0].detach(), F.cross_entropy(row.pred, pseudo))


def test_a_copy_of_the_targets_is_told_by_its_values():
    kept, seen = Kept(-1), []
    call = on("after_loss", lambda learn: seen.append(learn.loss_func(learn.pred, kept.targets[0].clone())), 60)
    (row,) = trained(MixUp(8), images(n=BS), cbs=[kept, call]).spy.batches
    close(seen[0].detach(), row.loss)


@methods
def test_other_targets_that_happen_to_be_equal_are_told_by_what_they_were_before(method):
    """Pseudo-labels, of which those of a trained model are those of the batch now and then."""
    seen = []

    def add(learn):
        if learn.training:
            pseudo = learn.y.clone() if learn.iter else (learn.y + 1) % C
            seen.append((learn.loss_func(learn.pred, pseudo).detach(), pseudo))

    learn = trained(method(8), cbs=[on("after_loss", add, 60)], fit=(3, 0.01))
    for row, (value, pseudo) in zip(learn.spy.batches, seen, strict=True):
        close(value, F.cross_entropy(row.pred, pseudo))


def test_targets_by_keyword_raise_type_error():
    class Named(nn.CrossEntropyLoss):
        def forward(self, pred, target):
            return F.cross_entropy(pred, target)

    call = on("after_loss", lambda learn: learn.loss_func(learn.pred, target=learn.yb[0]), 60)
    with pytest.raises(TypeError, match="by position"):
        trained(MixUp(per_sample=False), loss=Named(), cbs=[call])


# Other callbacks that change what was mixed


@methods
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda learn: {"yb": ((learn.yb[0] + 1) % C,)}, TypeError),
        (lambda learn: {"yb": (learn.yb[0][:4],), "xb": (learn.xb[0][:4],)}, (TypeError, ValueError)),
        (lambda learn: {"xb": (learn.xb[0][:4],)}, (TypeError, ValueError)),
    ],
)
def test_what_does_not_fit_the_mix_any_more_raises_an_error_that_names_the_order(method, change, error):
    def put(learn):
        for name, value in change(learn).items() if learn.training else ():
            setattr(learn, name, value)

    learn = learner(method(8), cbs=[on("before_batch", put, 5)])
    with pytest.raises(error, match="order"):
        learn.fit(1)
    assert no_hooks(learn.model)


@pytest.mark.parametrize("method", [MixUp, CutMix, OutputMixup, hidden, PatchUp])
def test_the_order_that_the_error_names_helps(method):
    def put(learn):
        if learn.training:
            learn.yb = ((learn.yb[0] + 1) % C,)

    cb = method(8)
    cb.order = 50
    learn = learner(cb, cbs=[on("before_batch", put, 5)])
    learn.spy.order, learn.original.order = 60, 49
    learn.fit(1)
    for row in learn.spy.batches:
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))


def test_equal_targets_of_another_dtype_are_no_change():
    put = on("before_batch", lambda learn: setattr(learn, "yb", (learn.yb[0].to(torch.int32).long().clone(),)), 5)
    for row in trained(MixUp(8), cbs=[put]).spy.batches:
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))


@methods
@pytest.mark.parametrize(
    ("event", "put", "match"),
    [
        ("after_pred", lambda learn: setattr(learn, "loss_func", nn.CrossEntropyLoss()), "nothing called"),
        ("after_loss", lambda learn: setattr(learn, "loss_grad", F.cross_entropy(learn.pred, *learn.yb)), "replaced"),
    ],
)
def test_a_loss_in_the_place_of_the_mixed_one_raises_runtime_error(method, event, put, match):
    learn = learner(method(8), cbs=[on(event, lambda learn: put(learn) if learn.training else None, 60)])
    with pytest.raises(RuntimeError, match=f"{match}.*order"):
        learn.fit(1)


@methods
def test_losses_that_are_made_of_the_mixed_one_are_trained_on(method):
    def add(learn):
        if learn.training:
            learn.loss_grad = (learn.loss_grad / 2 + learn.pred.square().mean()) * 3

    trained(method(8), cbs=[on("after_loss", add, 60)])


# Losses that ignore their targets


class Own(nn.Module):
    """Computes its own loss, of labels in its input."""

    def __init__(self, zero=False):
        super().__init__()
        self.body, self.head = nn.Linear(60, 8), nn.Linear(8, C)
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x, labels):
        logits = self.head(self.body(x.flatten(1)).relu())
        return {"logits": logits, "loss": F.cross_entropy(logits, labels)}


IGNORE = lambda out, y: out["loss"]  # noqa: E731
USE = lambda out, y: F.cross_entropy(out["logits"], y)  # noqa: E731


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("method", [hidden, OutputMixup, partial(MixUp, inputs=("mix", "keep"))])
def test_a_model_that_computes_its_own_loss_raises_value_error(method, zero):
    y, cb = classes(), method(1, per_sample=False)
    with pytest.raises(ValueError, match=r'targets it is given.*loss_func=lambda out, y.*targets="keep"'):
        trained(cb, (images(), y), y, Own(zero), IGNORE)
    trained(cb, (images(), y), y, Own(zero), USE)
    cb.targets = "keep"
    trained(cb, (images(), y), y, Own(zero), IGNORE)


LOSSES = {
    "logits that are all zero": (nn.CrossEntropyLoss(), classes(), nn.Linear(60, C)),
    "probabilities of a half": (
        nn.BCELoss(),
        classes(C, high=2).float(),
        nn.Sequential(nn.Linear(60, C), nn.Sigmoid()),
    ),
    "one class": (nn.CrossEntropyLoss(), torch.zeros(N, dtype=torch.int64), nn.Linear(60, C)),
    "unknown labels": (nn.CrossEntropyLoss(ignore_index=0, reduction="sum"), classes() * 0, nn.Linear(60, C)),
    "saturated": (lambda pred, y: (F.cross_entropy(pred, y) - 99).clamp(min=0), classes(), nn.Linear(60, C)),
    "a black box": (lambda pred, y: F.cross_entropy(pred, y) ** 2, classes(), nn.Linear(60, C)),
}


@every_method
@pytest.mark.parametrize(("loss", "y", "head"), LOSSES.values(), ids=LOSSES)
def test_losses_that_use_their_targets_raise_nothing(method, loss, y, head):
    linear = head if isinstance(head, nn.Linear) else head[0]
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(), head)
    for row in trained(method(8), y=y, model=model, loss=loss).spy.batches:
        assert row.loss.isfinite()


def test_the_loss_is_tested_once_a_fit_and_its_state_is_the_originals():
    class Counting(nn.Module):
        calls = 0

        def forward(self, pred, y):
            self.calls, self.last = self.calls + 1, y
            return F.cross_entropy(pred, y)

    loss = Counting()
    look = on("after_loss", lambda learn: torch.testing.assert_close(loss.last, learn.y), 60)
    learn = learner(MixUp(per_sample=False), images(n=3 * BS), loss=loss, cbs=[look])
    learn.fit(1)
    assert loss.calls == 2 + 2 * 3 + 3  # the test, both targets of each batch, validation


# Another library's mixing callback


class Theirs(Callback):
    """As other libraries mix: it puts its own method in the place of the loss."""

    order = 0

    def before_train(self):
        self.old, self.learn.loss_func = self.learn.loss_func, self.loss

    def after_train(self):
        self.learn.loss_func = self.old

    def before_batch(self):
        if self.training:
            self.shuffle, self.lam = torch.randperm(len(self.y)), 0.7
            self.learn.xb = (self.lam * self.x + (1 - self.lam) * self.x[self.shuffle],)
            self.yb1 = self.y[self.shuffle]

    def loss(self, pred, y):
        return self.lam * F.cross_entropy(pred, y) + (1 - self.lam) * F.cross_entropy(pred, self.yb1)


class Scaled(Theirs):
    """No mixing callback: its method computes a loss of what it is given."""

    def before_batch(self):
        pass

    def loss(self, pred, y):
        return 2 * F.cross_entropy(pred, y)


@methods
@pytest.mark.parametrize("order", [-1, 5])
def test_the_mixing_callback_of_another_library_is_found_by_what_its_loss_does(method, order):
    theirs, harmless = Theirs(), Scaled()
    theirs.order = harmless.order = order
    mixer = method(8)
    for part in (mixer, *getattr(mixer, "methods", ())):
        part.per_sample = isinstance(part, OneOf)
    with pytest.raises(ValueError, match=r"test_passes\.Theirs.*remove_cb"):
        trained(mixer, cbs=[theirs])
    for row in trained(mixer, cbs=[harmless]).spy.batches:
        lam = row.lam[0]
        close(
            row.loss,
            2 * (lam * F.cross_entropy(row.pred, *row.y0) + (1 - lam) * F.cross_entropy(row.pred, *row.partners)),
        )


def test_another_mixing_callback_is_found_even_if_it_mixes_nothing_at_first():
    class Late(Theirs):
        def before_batch(self):
            super().before_batch()
            self.lam = 1.0 if self.iter == 0 else 0.7

    with pytest.raises(ValueError, match="Late"):
        trained(MixUp(per_sample=False), cbs=[Late()])


def test_a_partial_of_the_loss_is_examined_like_the_loss():
    learn = trained(MixUp(8), loss=partial(F.cross_entropy, label_smoothing=0.2))
    for row in learn.spy.batches:
        loss = partial(F.cross_entropy, label_smoothing=0.2)
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam, loss))
    assert isinstance(learn.loss_func, partial)
