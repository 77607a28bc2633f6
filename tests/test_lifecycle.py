"""Interrupted, exported, copied, compiled: what is left behind, and that features and labels never part."""

import copy
import pickle
import subprocess
import sys
import threading

import cloudpickle
import fastai.callback.schedule  # noqa: F401  (patches Learner)
import pytest
import torch
from common import BS, METHODS, C, N, Oracle, Unmixed, cnn, every_method, images, learner, no_hooks, on
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from torch import nn
from torch.utils.checkpoint import checkpoint

from mixaug import ManifoldMixup, MixedMetric, MixHandler, MixUp, MixUpLoss, PatchUp


class Failing(nn.Module):
    """Hands on its input until it is told to fail, forward or backward."""

    fails = None

    def forward(self, x):
        if self.training and self.fails == "forward":
            raise RuntimeError("out of memory")
        if self.training and self.fails == "backward":
            x = x.clone()
            x.register_hook(lambda grad: (_ for _ in ()).throw(RuntimeError("out of memory")))
        return x


def out_of_memory(learn):
    if learn.training:
        raise RuntimeError("out of memory")


def interrupt(learn):
    if learn.training:
        raise KeyboardInterrupt


CRASHES = {
    "forward": lambda learn: setattr(learn.model[0], "fails", "forward"),
    "middle": lambda learn: setattr(learn.model[3], "fails", "forward"),
    "backward": lambda learn: setattr(learn.model[-1], "fails", "backward"),
    **{
        f"{event}, {order}": lambda learn, event=event, order=order: learn.add_cb(on(event, interrupt, order))
        for event in (
            "before_train",
            "before_batch",
            "after_pred",
            "after_loss",
            "after_step",
            "after_batch",
            "after_train",
        )
        for order in (-1, 2)
    },
    "loader": lambda learn: setattr(learn.dls.train, "create_batch", lambda items: out_of_memory(learn)),
    "loss": lambda learn: setattr(learn, "loss_func", FailingLoss()),
}


class FailingLoss(CrossEntropyLossFlat):
    def __call__(self, pred, targ, **kwargs):
        if pred.requires_grad:
            raise RuntimeError("out of memory")
        return super().__call__(pred, targ, **kwargs)


def fragile():
    return nn.Sequential(Failing(), nn.Conv2d(2, 6, 3), nn.ReLU(), Failing(), nn.Conv2d(6, 6, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, C), Failing())  # fmt: skip


@every_method
@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("given_to", ["learner", "fit", "learner, unnoticed"])
def test_a_crash_leaves_nothing_that_could_do_harm(method, crash, given_to):
    x, y = images(n=BS), torch.randint(0, C, (BS,))
    model, cb = fragile(), method()
    learn = learner(None if given_to == "fit" else cb, x, y, model=model)
    CRASHES[crash](learn)
    loss = learn.loss_func
    fit = Learner.fit.__wrapped__ if given_to == "learner, unnoticed" else Learner.fit
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        fit(learn, 1, cbs=[cb] if given_to == "fit" else [])
    if given_to != "learner, unnoticed":
        assert learn.loss_func is loss
        assert no_hooks(model)
    # What is left, even where fastai tells nobody of the end, answers as the user's own loss and model
    model.eval()
    with torch.no_grad():
        pred = model(x)
        assert torch.equal(pred, copy.deepcopy(model)(x))
    assert torch.equal(learn.loss_func(pred, y), loss(pred, y))
    copies = pickle.dumps((model, learn.loss_func))
    assert b"mixaug" not in copies
    twin, twins_loss = pickle.loads(copies)
    with torch.no_grad():
        assert torch.equal(twin(x), pred)
    assert type(twins_loss) is type(loss)
    # and is gone with the callback or at the next event
    probabilities, _ = learn.get_preds()
    torch.testing.assert_close(probabilities, pred.softmax(1))
    assert learn.loss_func is loss
    assert no_hooks(model)


@every_method
def test_the_next_fit_works_after_a_crash(method):
    learn = learner(method())
    stop = on("after_loss", interrupt, 2)
    learn.add_cb(stop)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    learn.remove_cb(stop)
    learn.spy.batches.clear()
    learn.fit(2, 0.01)
    assert len(learn.spy.batches) == 6
    assert all(row["mix"] is not None for row in learn.spy.batches)


@every_method
def test_a_cancelled_batch_is_forgotten(method):
    """The batch after one that was cancelled between its draw and its forward pass is mixed by its own draw alone."""
    from fastai.callback.core import CancelBatchException

    def skip(learn):
        if learn.training and learn.iter == 0:
            raise CancelBatchException

    x, y = images(n=17), torch.randint(0, C, (17,))  # batches of 8, 8 and 1, the last one unmixed
    learn = learner(method(prob=1), x, y, cbs=[on("before_batch", skip, 2), Oracle(), Unmixed()])
    learn.fit(3, 0.0)
    assert {len(row["lam"]) for row in learn.spy.batches} == {8, 1}
    assert learn.oracle.batches == 3 * 2 + 3 * 3  # the oracle checked them all, and those of validation


@every_method
def test_fit_lr_find_and_fit_again(method):
    learn = learner(method())
    learn.fit(1, 0.01)
    learn.lr_find(num_it=5, show_plot=False)
    learn.fit_one_cycle(1, 0.01)
    learn.validate()
    assert type(learn.loss_func) is CrossEntropyLossFlat
    assert no_hooks(learn.model)


# Copies and exports


EXPORTED = """
import sys, torch, warnings
warnings.simplefilter("ignore")
sys.modules["mixaug"] = None
sys.path.insert(0, {tests!r})
from fastai.learner import load_learner
learn = load_learner({file!r})
assert type(learn.loss_func).__name__ == "CrossEntropyLossFlat", learn.loss_func
with torch.no_grad():
    torch.save(learn.model.eval()(torch.load({x!r})), {out!r})
"""


@every_method
@pytest.mark.parametrize("interrupted", [False, True])
def test_an_export_opens_where_the_package_is_not_installed(method, interrupted, tmp_path):
    x, y = images(), torch.randint(0, C, (N,))
    learn = learner(method(), x, y)
    data = Datasets(range(N), [[lambda i: x[i]], [lambda i: y[i]]])
    learn.dls = DataLoaders(*(TfmdDL(data, bs=BS, num_workers=0) for _ in range(2)), path=tmp_path, device="cpu")
    learn.path = tmp_path
    if interrupted:
        stop = on("after_pred", interrupt)
        learn.add_cb(stop)
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1)
        learn.remove_cb(stop)
    else:
        learn.fit(1, 0.01)
    learn.remove_cb(learn.spy)
    learn.logger = print
    learn.add_cb(GradientClip())
    before, learn.metrics = list(learn.cbs), [MixedMetric(accuracy)]
    learn.export("learn.pkl")
    assert list(learn.cbs) == before
    assert b"mixaug" not in (tmp_path / "learn.pkl").read_bytes()
    assert [type(cb) for cb in learn._grab_cbs(MixHandler)] == [method]
    torch.save(x, tmp_path / "x.pt")
    names = {"file": tmp_path / "learn.pkl", "x": tmp_path / "x.pt", "out": tmp_path / "out.pt", "tests": "."}
    code = EXPORTED.format(**{k: str(v) for k, v in names.items()})
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt"), learn.model.eval()(x))
    learn.fit(1)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda o: pickle.loads(pickle.dumps(o)),
    "cloudpickle": lambda o: pickle.loads(cloudpickle.dumps(o)),
}


@every_method
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_callback_trains(method, copied):
    cb = copied(method(0.7, prob=0.9))
    assert (cb.alpha, cb.prob) == (0.7, 0.9)
    learn = learner(cb)
    learn.fit(2)
    assert any(row["mix"] is not None for row in learn.spy.batches)


@every_method
def test_a_copy_of_a_learner_trains_its_own_model(method):
    learn = learner(method())
    learn.fit(1, 0.01)
    learn.logger, learn.lock = print, None  # a lock has no copy
    twin = copy.deepcopy(learn)
    twin.lock = learn.lock = threading.Lock()
    before = copy.deepcopy(learn.model.state_dict())
    twin.logger = lambda row: None
    twin.fit(1, 0.1)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    assert not torch.equal(twin.model[0].weight, learn.model[0].weight)
    (cb,) = twin._grab_cbs(MixHandler)
    assert cb.learn is twin
    assert cb.mix is not None


@every_method
def test_a_callback_moves_to_the_learner_it_is_added_to(method):
    cb = method()
    first = learner(cb)
    first.fit(1)
    second = learner(cb)
    assert cb.learn is second
    assert cb not in first.cbs
    second.fit(1)
    assert all(row["mix"] is not None for row in second.spy.batches)
    first.spy.mixer = None
    first.spy.batches.clear()
    first.fit(1)
    loader = first.dls.train
    assert all(torch.equal(row["x"][0], b[0]) for row, b in zip(first.spy.batches, loader, strict=True))


@every_method
def test_the_model_may_be_replaced_between_fits(method):
    learn = learner(method())
    learn.fit(1)
    learn.model = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.ReLU(), nn.Linear(8, C))
    learn.create_opt()
    learn.fit(4, 0.01)
    assert all(row["mix"] is not None for row in learn.spy.batches)
    if method is ManifoldMixup:
        assert {row["mixed_layer"] for row in learn.spy.batches[-12:]} == {None, "1"}


@every_method
def test_a_new_learner_after_a_crash_trains_as_if_nothing_had_been(method):
    x, y, model = images(), torch.randint(0, C, (N,)), fragile()
    learn = learner(method(), x, y, model)
    model[3].fails = "forward"
    with pytest.raises(RuntimeError):
        learn.fit(1)
    model[3].fails = None
    twin = copy.deepcopy(model)
    results = []
    for m in (model, twin):
        plain = learner(None, x, y, m)
        plain.fit(2, 0.01)
        results.append([row["loss"].item() for row in plain.spy.batches])
    assert results[0] == results[1]


@every_method
def test_a_callback_leaves_a_learner_in_order_for_another(method):
    cb, model = method(), fragile()
    learn = learner(cb, model=model)
    loss = learn.loss_func
    learn.add_cb(on("after_pred", interrupt))
    with pytest.raises(KeyboardInterrupt):
        Learner.fit.__wrapped__(learn, 1)
    learner(cb).fit(1)
    assert learn.loss_func is loss
    assert no_hooks(model)


# Layers that run in other ways


class Checkpointed(nn.Module):
    """Throws the activations of its middle away and computes them again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(60, 16), nn.Linear(16, C), reentrant
        self.middle = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())

    def forward(self, x):
        x = self.first(x.flatten(1))
        if self.reentrant is None or not self.training:
            return self.last(self.middle(x))
        return self.last(checkpoint(self.middle, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_mixes_again_in_the_backward_pass(reentrant):
    results = []
    state, x, y = Checkpointed(None).state_dict(), images(), torch.randint(0, C, (N,))
    for how in (None, reentrant):
        model = Checkpointed(how)
        model.load_state_dict(state)
        set_seed(1)
        learn = learner(ManifoldMixup(8, modules=[model.middle[0], model.middle[2]], input_mixup=False), x, y, model)
        learn.fit(2, 0.1)
        results.append(model.state_dict())
    assert all(torch.allclose(v, results[1][k], atol=1e-7) for k, v in results[0].items())


def test_a_layer_that_sees_slices_of_the_batch_is_an_error():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(60, 8), nn.Linear(8, C)

        def forward(self, x):
            return self.head(torch.cat([self.body(part) for part in x.flatten(1).chunk(2)]))

    with pytest.raises(ValueError, match=r"8 samples in front were wanted.* shapes \[\(4, 8\)\]"):
        learner(ManifoldMixup(input_mixup=False), images(n=BS), model=Sliced()).fit(1)


def test_validation_in_the_middle_of_an_epoch_is_no_end():
    def validate(learn):
        if learn.training and learn.iter == 0:
            kept = learn.dl, learn.n_iter
            learn._do_epoch_validate()
            learn.model.train()
            learn.dl, learn.n_iter, learn.training = *kept, True

    learn = learner(ManifoldMixup(input_mixup=False), cbs=[on("after_batch", validate, 80)])
    learn.fit(1)
    assert len(learn.spy.batches) == 3
    assert all(row["mix"] is not None for row in learn.spy.batches)
    assert no_hooks(learn.model)


def test_a_callback_that_is_added_in_the_middle_of_a_fit_mixes_from_then_on():
    cb = ManifoldMixup(input_mixup=False)
    add = on("before_epoch", lambda learn: learn.add_cb(cb) if learn.epoch == 1 else None)
    learn = learner(None, cbs=[add])
    learn.fit(3, 0.01)
    assert cb.mix is not None
    assert cb.mixed_layer in ("0", "2")
    assert no_hooks(learn.model)


def test_a_copy_of_the_model_made_while_training_is_not_mixed():
    x, teachers = images(n=BS), []

    def look(learn):
        if learn.training:
            teacher = copy.deepcopy(learn.model)
            teachers.append((teacher(x), learn.pred.detach()))

    model = cnn()
    learn = learner(ManifoldMixup(8, input_mixup=False), x, model=model, cbs=[on("after_pred", look, -1)])
    learn.fit(1, 0.0)
    ((teacher, pred),) = teachers
    torch.testing.assert_close(teacher, model(x))
    assert not torch.allclose(teacher, pred)


def test_a_scripted_model_is_an_error():
    with pytest.warns(FutureWarning):
        model = torch.jit.script(cnn())
    with pytest.raises((ValueError, RuntimeError), match=r"may be mixed"):
        learner(ManifoldMixup(input_mixup=False), model=model).fit(1)


# torch.compile


def compiled(how, backend, graphs):
    def count(module, inputs):
        graphs.append(module)
        return module if backend == "eager" else torch._dynamo.lookup_backend(backend)(module, inputs)

    model = cnn()
    if how == "in place":
        model.compile(backend=count)
        return model
    if how == "its layers":
        for layer in (model[0], model[2]):
            layer.compile(backend=count)
        return model
    if how == "its forward":
        model.forward = torch.compile(model.forward, backend=count)
        return model
    return torch.compile(model, backend=count) if how else model


def losses(method, how=None, backend="eager", before=None, prob=1.0):
    """The loss of every batch, and the graphs that were compiled for them."""
    torch.compiler.reset()
    set_seed(3)
    graphs, x, y = [], images(n=24), torch.randint(0, C, (24,))
    model = compiled(how, backend, graphs)
    learn = learner(None, x, y, model=model)
    if before == "validate":
        learn.validate()
    if before == "fit":
        learn.fit(1, 0.0)
    learn.spy.batches.clear()
    learn.opt = None
    learn.add_cb(method(prob=prob))
    set_seed(5)
    learn.fit(4, 0.01)
    return [row["loss"].item() for row in learn.spy.batches], len(graphs)


@pytest.mark.parametrize("method", [*METHODS.values(), PatchUp], ids=[*METHODS, "PatchUp"])
@pytest.mark.parametrize("how", ["wrapped", "in place", "its layers", "its forward"])
@pytest.mark.parametrize("before", [None, "validate", "fit"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at inputs
def test_a_compiled_model_trains_as_it_does_without(method, how, before):
    expected, _ = losses(method, before=before)
    got, graphs = losses(method, how, before=before)
    assert got == pytest.approx(expected, abs=1e-6)
    # At most: with and without mixing, in validation, and twice what was before
    assert graphs <= (10 if how == "its layers" else 5)


def test_a_compiled_model_trains_as_it_does_without_through_autograd_and_unmixed_batches():
    for prob in (1.0, 0.5):
        expected, _ = losses(ManifoldMixup, prob=prob)
        got, graphs = losses(ManifoldMixup, "wrapped", "aot_eager", prob=prob)
        assert got == pytest.approx(expected, abs=1e-6)
        assert graphs <= 3


def test_a_compiled_model_answers_unmixed_after_training():
    torch.compiler.reset()
    x, graphs = images(n=24), []
    model = compiled("wrapped", "eager", graphs)
    learn = learner(ManifoldMixup(8), x, model=model)
    learn.fit(2, 0.01)
    assert {row["mixed_layer"] for row in learn.spy.batches} <= {None, "0", "2"}  # not those of the wrapper
    got, _ = learn.get_preds()
    torch.testing.assert_close(got, model._orig_mod.eval()(x).softmax(1).detach())
    assert no_hooks(model)


def test_the_wrapper_is_used_while_training_only():
    learn = learner(MixUp())
    seen = []
    learn.add_cb(on("before_batch", lambda learn: seen.append((learn.training, type(learn.loss_func)))))
    learn.fit(1)
    assert set(seen) == {(True, MixUpLoss), (False, CrossEntropyLossFlat)}
