"""Cancelled, interrupted, exported, copied: what is left behind, and that inputs and targets never part."""

import copy
import importlib
import pickle
import subprocess
import sys
from itertools import product

import pytest
import torch
from common import BS, EVERY, METHODS, C, N, classes, cnn, every_method, images, learner, no_hooks, on, trained
from fastai.callback import core
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy
from reference import Oracle, close, from_mixaug, in_threads, slow_weighted
from torch import nn

from mixaug import ManifoldMixup, MixedMetric, MixHandler, MixUp, PatchUp, mix_batch


class Failing(nn.Module):
    """Passes its input on until it is told to fail, forward or backward."""

    fails = None

    def forward(self, x):
        if self.training and self.fails == "forward":
            raise RuntimeError("out of memory")
        if self.training and self.fails == "backward":
            x = x.clone()
            x.register_hook(lambda grad: (_ for _ in ()).throw(RuntimeError("out of memory")))
        return x


class FailingLoss(CrossEntropyLossFlat):
    def __call__(self, pred, targ, **kwargs):
        if pred.requires_grad:
            raise RuntimeError("out of memory")
        return super().__call__(pred, targ, **kwargs)


def fragile():
    return nn.Sequential(Failing(), nn.Conv2d(2, 6, 3), nn.ReLU(), Failing(), nn.Conv2d(6, 6, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, C), Failing())  # fmt: skip


def raising(error, when=lambda learn: True):
    def stop(learn):
        if learn.training and when(learn):
            raise error

    return stop


interrupt = raising(KeyboardInterrupt)
EVENTS = "before_train", "before_batch", "after_pred", "after_loss", "after_step", "after_batch", "after_train"
CRASHES = {
    "forward": lambda learn: setattr(learn.model[0], "fails", "forward"),
    "middle": lambda learn: setattr(learn.model[3], "fails", "forward"),
    "backward": lambda learn: setattr(learn.model[-1], "fails", "backward"),
    "loader": lambda learn: setattr(learn.dls.train, "create_batch", lambda items: interrupt(learn)),
    "loss": lambda learn: setattr(learn, "loss_func", FailingLoss()),
    **{
        f"{event}, {order}": lambda learn, cb=(event, interrupt, order): learn.add_cb(on(*cb))
        for event, order in product(EVENTS, (-1, 2))
    },
}
OTHERS = "MixUp", "OutputMixup", "CutMix", "PatchUp", "OneOf"


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("given_to", ["learner", "fit", "learner, unnoticed"])
@pytest.mark.parametrize("name", ["ManifoldMixup", None])  # which has hooks too, and one of the others
def test_a_crash_leaves_nothing_that_could_do_harm(crash, given_to, name):
    x, y, model = images(n=BS), classes(n=BS), fragile()
    name = name or OTHERS[([*CRASHES].index(crash) + len(given_to)) % 5]
    cb = PatchUp(modules=[model[1], model[4]]) if name == "PatchUp" else EVERY[name]()
    learn = learner(None if given_to == "fit" else cb, x, y, model)
    CRASHES[crash](learn)
    loss = learn.loss_func
    fit = Learner.fit.__wrapped__ if given_to == "learner, unnoticed" else Learner.fit
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        fit(learn, 1, cbs=[cb] if given_to == "fit" else [])
    if given_to != "learner, unnoticed":
        assert learn.loss_func is loss
        assert no_hooks(model)
    # Even where fastai calls no event at the end, what is left behaves as the user's loss and model
    model.eval()
    with torch.no_grad():
        pred = model(x)
        assert torch.equal(pred, copy.deepcopy(model)(x))
    assert torch.equal(learn.loss_func(pred, y), loss(pred, y))
    copies = pickle.dumps((model, learn.loss_func))
    assert not from_mixaug(copies)
    twin, twins_loss = pickle.loads(copies)
    with torch.no_grad():
        assert torch.equal(twin(x), pred)
    assert type(twins_loss) is type(loss)
    # and is removed by the next event
    probabilities, _ = learn.get_preds()
    close(probabilities, pred.softmax(1))
    assert learn.loss_func is loss
    assert no_hooks(model)


@pytest.mark.parametrize("cancel", ["Batch", "Train", "Epoch", "Fit"])
@pytest.mark.parametrize("event", ["before_train", "before_batch", "after_pred", "after_loss", "after_batch"])
@pytest.mark.parametrize("order", [-1, 2])
def test_a_cancelled_training_leaves_nothing_behind(cancel, event, order):
    if cancel == "Batch" and event in ("before_train", "after_batch"):
        return  # nothing would catch it there
    loss, error = CrossEntropyLossFlat(), getattr(core, f"Cancel{cancel}Exception")
    method = [*METHODS.values()][(ord(cancel[0]) + len(event) + order) % 4]
    learn = learner(method(), loss=loss, cbs=[on(event, raising(error), order)])
    Learner.fit.__wrapped__(learn, 1)  # events suffice
    assert learn.loss_func is loss
    assert no_hooks(learn.model)


@every_method
def test_a_cancelled_batch_is_forgotten(method):
    """The batch after one that was cancelled before its forward pass is mixed by its draw alone."""
    skip = on("before_batch", raising(core.CancelBatchException, lambda learn: learn.iter == 0), 2)
    # Batches of 8, 8 and 1, the last one unmixed
    learn = trained(method(prob=1), images(n=17), classes(n=17), cbs=[skip, Oracle()], fit=(3, 0.0))
    assert {len(row.lam) for row in learn.spy.batches} == {8, 1}
    assert learn.oracle.batches == 3 * 2 + 3 * 3  # it checked them all, and those of validation


def test_reloading_the_package_wraps_the_learners_methods_once(monkeypatch):
    lifecycle = sys.modules["mixaug.lifecycle"]
    for name in ("fit", "export"):
        monkeypatch.setattr(Learner, name, getattr(Learner, name))  # is put back at the end
    before = dict(vars(lifecycle))
    try:
        for _ in range(2):
            importlib.reload(lifecycle)
        for name in ("fit", "export"):
            original = getattr(Learner, name).__wrapped__.__code__
            assert original.co_filename.endswith("fastai/learner.py")
            assert original.co_name == name
        learn = learner(ManifoldMixup(), cbs=[on("after_loss", interrupt)])
        loss = learn.loss_func
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1)
        assert learn.loss_func is loss
        assert no_hooks(learn.model)
    finally:
        vars(lifecycle).update(before)


EXPORTED = """
import sys, torch, warnings
warnings.simplefilter("ignore")
sys.modules["mixaug"] = None
from fastai.learner import load_learner
learn = load_learner({0!r})
assert type(learn.loss_func).__name__ == "CrossEntropyLossFlat", learn.loss_func
with torch.no_grad():
    torch.save(learn.model.eval()(torch.load({1!r})), {2!r})
"""


@every_method
@pytest.mark.parametrize("interrupted", [False, True])
def test_an_export_opens_where_the_package_is_not_installed(method, interrupted, tmp_path):
    x, y = images(), classes()
    learn = learner(method(), x, y, path=tmp_path)
    data = Datasets(range(N), [[lambda i: x[i]], [lambda i: y[i]]])
    learn.dls = DataLoaders(*(TfmdDL(data, bs=BS, num_workers=0) for _ in range(2)), path=tmp_path, device="cpu")
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1, cbs=on("after_pred", interrupt))
    else:
        learn.fit(1, 0.01)
    learn.remove_cbs([learn.spy, learn.original])
    learn.logger = print
    learn.add_cb(GradientClip())
    before, learn.metrics = list(learn.cbs), [MixedMetric(accuracy)]
    learn.export("learn.pkl")
    assert list(learn.cbs) == before
    assert not from_mixaug((tmp_path / "learn.pkl").read_bytes())
    assert from_mixaug(pickle.dumps(method()))  # which is seen where it is
    assert [type(cb) for cb in learn._grab_cbs(MixHandler)] == [method]
    if (method, interrupted) in ((ManifoldMixup, True), (MixUp, False)):  # a start of Python is slow
        files = [str(tmp_path / name) for name in ("learn.pkl", "x.pt", "out.pt")]
        torch.save(x, files[1])
        subprocess.run([sys.executable, "-c", EXPORTED.format(*files)], check=True, timeout=120)
        with torch.no_grad():
            assert torch.equal(torch.load(files[2]), learn.model.eval()(x))
    learn.fit(1)


@every_method
def test_a_callback_that_moves_to_another_learner_leaves_its_first_in_order(method):
    cb = method()
    first = learner(cb, cbs=[on("after_pred", raising(KeyboardInterrupt, lambda learn: learn.epoch == 0))])
    loss = first.loss_func
    with pytest.raises(KeyboardInterrupt):
        Learner.fit.__wrapped__(first, 1)
    second = trained(cb)
    assert cb.learn is second
    assert cb not in first.cbs
    assert first.loss_func is loss
    assert no_hooks(first.model)
    assert all(row.mix is not None for row in second.spy.batches)


def test_validation_in_the_middle_of_an_epoch_is_no_end():
    def validate(learn):
        if learn.training and learn.iter == 0:
            kept = learn.dl, learn.n_iter
            learn._do_epoch_validate()
            learn.model.train()
            learn.dl, learn.n_iter, learn.training = *kept, True

    learn = trained(ManifoldMixup(input_mixup=False), cbs=[on("after_batch", validate, 80)])
    assert [row.mix is not None for row in learn.spy.batches] == [True] * 3
    assert no_hooks(learn.model)


class Users(nn.Module):
    """A loss of which nothing is known."""

    def forward(self, pred, y):
        return nn.functional.cross_entropy(pred, y)


WEIGHT = torch.tensor([1.0, 2.0, 9.0])
LOSSES = {
    "user's": (Users, classes),
    "class weights": (lambda: nn.CrossEntropyLoss(WEIGHT), classes),
    "label smoothing": (lambda: LabelSmoothingCrossEntropyFlat(weight=WEIGHT), classes),
    "multi-label": (BCEWithLogitsLossFlat, lambda: classes(C, high=2)),
    "continuous": (nn.MSELoss, lambda: torch.rand(N, C)),
    "dense": (lambda: CrossEntropyLossFlat(axis=1), lambda: classes(5, 6)),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", LOSSES)
def test_the_users_loss_is_never_written_to(name, kind, monkeypatch):
    make, targets = LOSSES[kind]
    if name in {
        "dense": ("CMixup", "PatchUp", "PatchUp, hard", "OneOf, each sample"),
        "user's": ("CMixup", "clean", "OneOf, each sample"),
    }.get(kind, ("CMixup",) * (targets is classes)):
        return  # raises, as test_tasks shows
    loss, model = make(), cnn()
    if kind == "dense":
        model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, C, 1))
    parts = [loss, getattr(loss, "func", loss)]
    for cls in {type(part) for part in parts}:

        def guarded(self, attribute, value, set_attribute=cls.__setattr__):
            assert not any(self is part for part in parts), f"{attribute} of the loss was set"
            set_attribute(self, attribute, value)

        monkeypatch.setattr(cls, "__setattr__", guarded)
    state = str(vars(loss))
    trained(EVERY[name](1), y=targets(), model=model, loss=loss, fit=(2, 0.01))
    assert str(vars(loss)) == state


def test_threads_may_share_a_loss():
    loss, right = nn.CrossEntropyLoss(WEIGHT), []

    def work(seed):
        generator, method = torch.Generator().manual_seed(seed), MixUp(seed=seed)
        for _ in range(100):
            x, pred = (torch.rand(4, C, generator=generator) for _ in range(2))
            y = torch.randint(0, C, (4,), generator=generator)
            mixed = mix_batch(method, x, y, loss)
            expected = slow_weighted(pred, y, y[mixed.mix.partner], mixed.lam, WEIGHT)
            right.append(loss.reduction == "mean" and torch.isclose(mixed.loss(pred), expected))

    in_threads(work, 1, 2)
    assert len(right) == 200
    assert all(right)
