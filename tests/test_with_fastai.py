"""Beside fastai's other callbacks and schedules every batch's loss is still the formula's; runs can be repeated."""

import random

import fastai.callback.schedule  # noqa: F401  (patches Learner)
import pytest
import torch
from common import BS, METHODS, C, N, cnn, every_method, images, learner, no_hooks, on, slow_loss
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import FetchPredsCallback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import ActivationStats
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.rnn import rnn_cbs
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import Normalize
from fastai.torch_core import TensorImage, params, set_seed
from fastai.vision.augment import aug_transforms
from torch import nn

CALLBACKS = {
    "GradientAccumulation": lambda: GradientAccumulation(16),
    "GradientClip": GradientClip,
    "MixedPrecision": MixedPrecision,
    "MixedPrecision, bf16": lambda: MixedPrecision(amp_mode="bf16"),
    "ChannelsLast": ChannelsLast,
    "SaveModelCallback": SaveModelCallback,
    "EarlyStoppingCallback": EarlyStoppingCallback,
    "ReduceLROnPlateau": ReduceLROnPlateau,
    "CSVLogger": CSVLogger,
    "ActivationStats": ActivationStats,
    "FetchPredsCallback": FetchPredsCallback,
    "ShowGraphCallback": lambda: [ProgressCallback(), ShowGraphCallback()],
}
FITS = {
    "fit_one_cycle": lambda learn: learn.fit_one_cycle(2, 0.01),
    "fit_flat_cos": lambda learn: learn.fit_flat_cos(2, 0.01),
    "fine_tune": lambda learn: learn.fine_tune(1, 0.01),
    "discriminative": lambda learn: learn.fit(2, slice(1e-4, 1e-2)),
    "frozen": lambda learn: (learn.freeze(), learn.fit(2, 0.01)),
}


def checked(learn, y, rtol=1.3e-6):
    for row in learn.spy.batches:
        own = y[row["iter"] * BS : (row["iter"] + 1) * BS]
        torch.testing.assert_close(row["loss"], slow_loss(row, own), check_dtype=False, rtol=rtol, atol=1e-5)
        assert row["lam"].dtype == torch.float32
    assert no_hooks(learn.model)


@every_method
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.filterwarnings("ignore:.*CUDA is not available", "ignore:(?s).*shadowing an attribute .modules.")
def test_beside_another_callback(name, method, tmp_path):
    y = torch.randint(0, C, (N,))
    learn = learner(method(1), y=y, path=tmp_path)
    learn.fit(2, 0.01, cbs=CALLBACKS[name]())
    assert len(learn.spy.batches) == 6
    checked(learn, y)


@every_method
@pytest.mark.parametrize("name", FITS)
def test_with_every_schedule(name, method):
    y = torch.randint(0, C, (N,))
    learn = learner(method(1), y=y, splitter=lambda model: [params(model[:2]), params(model[2:])])
    FITS[name](learn)
    assert len(learn.spy.batches) == 6
    checked(learn, y)


@every_method
def test_under_autocast_on_the_cpu(method):
    y, autocast = torch.randint(0, C, (N,)), torch.autocast("cpu", torch.bfloat16)
    enter = on("before_batch", lambda learn: autocast.__enter__(), 20)
    leave = on("after_loss", lambda learn: autocast.__exit__(None, None, None), -20)
    learn = learner(method(1), y=y, cbs=[enter, leave])
    learn.fit(1, 0.01)
    assert {row["pred"].dtype for row in learn.spy.batches} == {torch.bfloat16}
    for row in learn.spy.batches:
        row["pred"] = row["pred"].float()
    checked(learn, y, rtol=0.01)


@every_method
@pytest.mark.parametrize("precision", ["to_fp16", "to_bf16"])
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_in_the_precision_of_half(precision, method):
    y = torch.randint(0, C, (N,))
    learn = getattr(learner(method(1), y=y), precision)()
    learn.fit(2, 0.01)
    checked(learn, y)


@every_method
def test_beside_transforms_of_the_batch_that_change_its_size(method):
    y = torch.randint(0, C, (N,))
    data = Datasets(range(N), [[TensorImage(torch.rand(N, 3, 9, 9)).__getitem__], [y.__getitem__]])
    tfms = [Normalize.from_stats([0.5] * 3, [0.2] * 3, cuda=False), *aug_transforms(size=6, min_scale=0.7)]
    learn = learner(method(1), model=cnn(channels=3))
    learn.dls = DataLoaders(*(TfmdDL(data, BS, after_batch=tfms, num_workers=0) for _ in range(2)), device="cpu")
    learn.fit(2, 0.01)
    assert {row["x"][0].shape[1:] for row in learn.spy.batches} == {(3, 6, 6)}
    assert min(row["x"][0].min() for row in learn.spy.batches) < 0
    checked(learn, y)


@pytest.mark.parametrize("method", [METHODS["ManifoldMixup"], METHODS["OutputMixup"]])
def test_beside_the_callbacks_of_text_models(method):
    """The prediction is taken out of a model's outputs; what regularizes the others is added to the mixed loss."""

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(60, 8), nn.Linear(8, C)

        def reset(self):
            pass

        def forward(self, x):
            raw = self.body(x.flatten(1))
            return self.head(raw), raw, raw.relu()

    y, regularized, outs = torch.randint(0, C, (N,)), [], []
    look = on("before_backward", lambda learn: regularized.append(learn.loss_grad.item() - learn.loss.item()))
    cbs = [*rnn_cbs(alpha=2), on("after_loss", lambda learn: outs.append(learn.rnn.out.detach()), 60), look]
    learn = learner(method(1), y=y, model=Text(), cbs=cbs)
    learn.fit(2, 0.01)
    checked(learn, y)
    added = [2 * out.pow(2).mean().item() for out in outs]
    assert len(regularized) == 6
    assert all(any(abs(r - a) < 1e-5 for a in added) for r in regularized)


def trained(mixer, seed=7):
    """The loss of each batch, and what is drawn after the training."""
    set_seed(seed, reproducible=True)
    learn = learner(mixer, images(), torch.randint(0, C, (N,)), torch.nn.Sequential(*cnn(), torch.nn.Dropout(0.2)))
    learn.fit(2, 0.01)
    return [row["loss"].item() for row in learn.spy.batches], (torch.rand(3).tolist(), random.random())


@every_method
def test_a_seed_repeats_a_run(method):
    assert trained(method()) == trained(method())
    assert trained(method()) != trained(method(), seed=8)


@every_method
def test_a_prob_of_zero_is_no_mixing(method):
    assert trained(method(prob=0)) == trained(None)
    assert trained(method(prob=1)) != trained(None)


@every_method
def test_a_seed_of_its_own_disturbs_no_other_randomness(method):
    cb = method(seed=5)
    losses, after = trained(cb)
    assert after == trained(None)[1]
    assert losses != trained(None)[0]
    assert trained(method(seed=5)) == (losses, after)
    assert trained(method(seed=6)) != (losses, after)
    assert trained(cb) != (losses, after)  # where it goes on


@every_method
def test_a_seed_of_its_own_draws_the_same_whatever_else_is_drawn(method):
    mixes = []
    for seed in (1, 2):
        set_seed(seed)
        learn = learner(method(seed=5))
        learn.fit(2)
        mixes.append(
            [(row["mix"].partner.tolist(), row["lam"].tolist(), row.get("mixed_layer")) for row in learn.spy.batches]
        )
    assert mixes[0] == mixes[1]


@every_method
def test_images_may_change_their_size_between_fits(method):
    y = torch.randint(0, C, (N,))
    learn = learner(method(1), y=y)
    for size in ((5, 6), (9, 11)):
        learn.dls = learner(None, images(size), y).dls
        learn.spy.batches.clear()
        learn.fit(1, 0.01)
        assert learn.spy.batches[0]["x"][0].shape[2:] == size
        checked(learn, y)


def test_what_was_drawn_can_be_drawn_again():
    """A replay: a handler that is given the mixes of another training."""
    from mixaug import MixHandler

    class Replay(MixHandler):
        def __init__(self, mixes):
            super().__init__()
            self.mixes = iter(mixes)

        def draw(self, x):
            return next(self.mixes)

    x, y = images(), torch.randint(0, C, (N,))
    state = cnn().state_dict()

    def train(mixer):
        model = cnn()
        model.load_state_dict(state)
        learn = learner(mixer, x, y, model)
        learn.fit(1, 0.01)
        return learn.spy.batches

    first = train(METHODS["CutMix"]())
    again = train(Replay([row["mix"] for row in first]))
    assert [row["loss"].item() for row in first] == [row["loss"].item() for row in again]
