"""Random sequences of what users do to a learner: after every step, nothing may have leaked and every number is right.

`MIXAUG_SEQUENCES=1000 pytest tests/test_stress.py` runs as many sequences; the sequences are the same every time.
"""

import copy
import os
import pickle
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from common import EVERY, C, cnn, no_hooks, on
from fastai.vision import all as fv
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reference import Oracle, Original, from_mixaug
from torch import nn

from mixaug import MixHandler, OneOf

X = torch.rand(20, 1, 5, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, C, (20,), generator=torch.Generator().manual_seed(1))
KEPT = X.clone(), Y.clone()


MODELS = {
    "cnn": lambda: cnn(channels=1),
    "small": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.Tanh(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(16, C)
    ),
}
LOSSES = {"fastai": fv.CrossEntropyLossFlat, "torch": nn.CrossEntropyLoss, "function": lambda: F.cross_entropy}
EVENTS = [
    *("before_fit", "before_epoch", "before_train", "before_batch", "after_pred", "after_loss", "before_backward"),
    *("before_step", "after_step", "after_batch", "after_train", "before_validate", "after_validate", "after_epoch"),
]
CANCELS = [getattr(fv, f"Cancel{name}Exception") for name in ("Batch", "Train", "Valid", "Epoch", "Fit")]
ERRORS = KeyboardInterrupt, torch.OutOfMemoryError, *CANCELS
a = st.sampled_from
METHODS = [name for name in EVERY if name not in ("CMixup", "clean")]  # continuous targets; twice the samples


def titles(learn):
    learn.show_results(max_n=4, shuffle=False)
    return [ax.get_title() for ax in plt.gcf().axes], plt.close("all")


ANSWERS = {
    "validate": lambda learn: learn.validate(),
    "get_preds": lambda learn: learn.get_preds(),
    "predict": lambda learn: learn.predict(3),
    "tta": lambda learn: learn.tta(n=2)[0],
    "summary": lambda learn: [line for line in learn.summary().splitlines() if "Loss" in line],
    "interpret": lambda learn: fv.Interpretation.from_learner(learn).top_losses(),
    "show_results": titles,
}


class Use(RuleBasedStateMachine):
    @initialize(model=a([*MODELS]), method=a(METHODS))
    def start(self, model, method):
        fv.set_seed(0)
        plt.close("all")
        self.folder = tempfile.TemporaryDirectory()
        self.loss, self.kind = fv.CrossEntropyLossFlat(), model
        data = fv.Datasets(
            range(20),
            [[lambda i: fv.TensorImage(X[i])], [lambda i: str(Y[i].item()), fv.Categorize]],
            splits=[range(20), range(20)],
        )
        self.dls = data.dataloaders(bs=8, num_workers=0, device="cpu")
        self.learn = self.learner(MODELS[model](), [EVERY[method](), Oracle(), Original()])
        self.interrupted = False

    def learner(self, model, cbs=()):
        learn = fv.Learner(self.dls, model, self.loss, cbs=cbs, path=Path(self.folder.name))
        learn.remove_cbs(fv.ProgressCallback)
        learn.logger = fv.noop
        return learn

    def twin(self):
        """A learner with the same parameters that has never been mixed."""
        model = MODELS[self.kind]()
        model.load_state_dict(self.learn.model.state_dict())
        return self.learner(model)

    def mixer(self):
        return next(iter(self.learn._grab_cbs(MixHandler)), None)

    # Training

    @rule(how=a(["fit", "fit_one_cycle", "fit_flat_cos", "fine_tune"]))
    def train(self, how):
        before = self.learn.oracle.batches
        getattr(self.learn, how)(1)
        assert self.learn.oracle.batches >= before + 5
        assert self.mixer() is None or self.mixer().mix is not None or isinstance(self.mixer(), OneOf)
        self.interrupted = False

    @rule(event=a(EVENTS), order=a([-80, -1, 2, 80]), error=a(ERRORS), nth=st.integers(0, 3), method=a(METHODS),
          bare=st.booleans())  # fmt: skip
    def interrupt(self, event, order, error, nth, method, bare):
        """`bare`: by a way into fastai's training that knows nothing of mixing."""
        if event == "before_epoch" and not hasattr(self.learn, "log"):
            return  # fastai's recorder fails in an epoch that is cancelled here if it has no log of another fit
        calls, fit = iter(range(100)), fv.Learner.fit.__wrapped__ if bare else fv.Learner.fit

        def stop(learn):
            if next(calls) == nth:
                raise error("stop")

        try:
            fit(self.learn, 2, cbs=[on(event, stop, order)] + ([] if self.mixer() else [EVERY[method]()]))
            self.interrupted = False
        except ERRORS:
            self.interrupted = bare

    @rule()
    def lr_find(self):
        self.learn.lr_find(num_it=10, show_plot=False)
        self.interrupted = False

    # Changes of the learner

    @rule(method=a(["mixup", "cutmix", "manifold_mixup", "output_mixup"]))
    def change_method(self, method):
        getattr(self.learn, method)()
        self.interrupted &= self.mixer() is not None

    @rule()
    def stop_mixing(self):
        self.learn.remove_cbs(self.learn._grab_cbs(MixHandler))
        self.interrupted = False

    @precondition(lambda self: self.mixer() is not None)
    @rule(copied=a([copy.copy, copy.deepcopy, lambda cb: pickle.loads(pickle.dumps(cb))]))
    def replace_by_a_copy(self, copied):
        cb = self.mixer()
        self.learn.remove_cb(cb)
        self.learn.add_cb(copied(cb))
        self.interrupted = False

    @precondition(lambda self: self.mixer() is not None)
    @rule()
    def lend(self):
        """Another learner trains with the callback, which then comes back."""
        cb, other = self.mixer(), self.learner(MODELS[self.kind](), [Oracle(), Original()])
        other.add_cb(cb)
        other.fit(1)
        assert cb.mix is not None or isinstance(cb, OneOf)  # which may leave a batch as it is
        assert no_hooks(other.model)
        self.learn.add_cb(cb)
        self.interrupted = False

    @rule(model=a([*MODELS]))
    def change_model(self, model):
        self.kind, self.learn.model = model, MODELS[model]()
        self.learn.opt = None

    @rule(loss=a([*LOSSES]))
    def change_loss(self, loss):
        self.loss = self.learn.loss_func = LOSSES[loss]()

    # Inference

    @rule(ask=a([*ANSWERS]))
    def infer(self, ask):
        got, expected = (ANSWERS[ask](learn) for learn in (self.learn, self.twin()))
        assert str(got) == str(expected)
        self.interrupted = False

    @rule()
    def export(self):
        self.learn.export("learn.pkl")
        file = self.learn.path / "learn.pkl"
        assert not from_mixaug(file.read_bytes())
        loaded = fv.load_learner(file)
        assert torch.equal(loaded.get_preds(dl=self.dls.valid)[0], self.twin().get_preds()[0])

    @rule()
    def go_on_with_a_copy(self):
        for name in {"dls", "dl", "it"} & set(vars(self.learn)):  # loaders at work cannot be pickled
            delattr(self.learn, name)
        learn = pickle.loads(pickle.dumps(self.learn))
        learn.dls = self.dls
        self.learn, self.loss = learn, learn.loss_func

    @invariant()
    def nothing_leaks(self):
        assert torch.equal(X, KEPT[0])
        assert torch.equal(Y, KEPT[1])
        model = self.learn.model
        training = model.training
        with torch.no_grad():
            pred, expected = model.train(not self.interrupted)(X), self.twin().model(X)
        model.train(training)
        assert torch.equal(pred, expected)
        assert torch.equal(self.learn.loss_func(pred, Y), self.loss(pred, Y))
        if not self.interrupted:
            assert self.learn.loss_func is self.loss
            assert no_hooks(self.learn.model)

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()


Use.TestCase.settings = settings(max_examples=int(os.environ.get("MIXAUG_SEQUENCES", 25)), stateful_step_count=12)
TestUse = pytest.mark.filterwarnings(
    "ignore:load_learner. uses Python's insecure pickle",
    "ignore:__array__ implementation doesn't accept a copy",  # of fastai's tensors, when matplotlib draws them
)(Use.TestCase)
