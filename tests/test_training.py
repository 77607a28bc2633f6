"""Whole trainings: each prediction and loss equals the papers' formula, beside fastai's callbacks too."""

import pytest
import torch
import torch.nn.functional as F
from common import BS, EVERY, METHODS, N, classes, cnn, every_method, images, learner, no_hooks, on, trained
from fastai.callback.channelslast import ChannelsLast
from fastai.vision import all as fv
from reference import Oracle, check_losses, close, slow_mix

from mixaug import FMix, MixUpLoss, SaliencyMix


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("clean", "CMixup")])
def test_every_prediction_is_of_the_mix_where_the_method_mixes_and_every_loss_the_formulas(name):
    loss, seen = fv.CrossEntropyLossFlat(), []
    learn = learner(EVERY[name](1), loss=loss, cbs=[Oracle()])
    learn.spy.before_backward = lambda: seen.append(type(learn.loss_func))
    learn.fit(4, 0.05)
    assert learn.oracle.batches == 4 * (3 + 3)
    assert set(seen) == {MixUpLoss}
    assert learn.loss_func is learn.spy.valid_loss is loss
    assert no_hooks(learn.model)
    rows = [row for row in learn.spy.batches if row.mix is not None]
    assert any((row.lam < 0.9).any() for row in rows)
    assert not torch.equal(rows[0].lam, rows[3].lam)
    for row in rows:
        assert torch.equal(row.yb1[0], row.partners[0])
        assert torch.equal(row.y[0], row.y0[0])
        assert name not in ("MixUp", "ManifoldMixup", "OutputMixup") or (row.lam >= 0.5).all()  # folded


def test_the_decay_of_fmix_is_its_masks():
    masks = torch.cat([row.mix.mask for row in trained(FMix(decay=0), images((40, 40))).spy.batches])
    lam = masks.float().mean((1, 2))
    chance = (lam**2 + (1 - lam) ** 2).mean()
    assert (masks == masks.roll(1, 1)).float().mean().item() == pytest.approx(chance.item(), abs=0.02)


def test_saliency_mix_cuts_out_what_stands_out_in_the_partner():
    x = 0.01 * torch.rand(N, 2, 11, 13)
    peak = torch.stack([torch.randint(0, 11, (N,)), torch.randint(0, 13, (N,))], 1)
    x[range(N), :, peak[:, 0], peak[:, 1]] = 1
    for row in trained(SaliencyMix(8), x).spy.batches:
        for i, j in enumerate(row.mix.partner):
            r, c = (row.x0[0][j, 0] == 1).nonzero()[0].tolist()
            assert not row.mix.mask[i, max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].all()
    with pytest.raises(ValueError, match="CutMix"):
        SaliencyMix().draw(torch.rand(2, 1, 2, 2, 2, 2))


def test_every_parameter_gets_a_gradient():
    for method in METHODS.values():
        learn = learner(method())
        before = [p.detach().clone() for p in learn.model.parameters()]
        learn.fit(3, 0.1)
        assert all(not torch.equal(p, q) for p, q in zip(learn.model.parameters(), before, strict=True))


@every_method
def test_a_batch_of_one_trains_unmixed(method):
    learn = trained(method(), images(n=9), classes(n=9), fit=(1, 0.0))
    last = learn.spy.batches[-1]
    assert last.mix is None
    assert last.yb1 is None
    assert last.lam.tolist() == [1]
    assert torch.equal(last.x[0], last.x0[0])
    assert torch.equal(last.loss, F.cross_entropy(learn.model(last.x0[0]), last.y0[0]))


@every_method
@pytest.mark.parametrize(
    ("per_sample", "loss"), [(False, fv.CrossEntropyLossFlat()), (True, lambda pred, y: F.cross_entropy(pred, y))]
)
def test_one_draw_for_the_batch(method, per_sample, loss):
    """As asked for, or because nothing is known of the loss."""
    learn = trained(method(per_sample=per_sample), loss=loss, fit=(2, 0.01))
    check_losses(learn)
    for row in learn.spy.batches:
        assert row.lam.shape == (len(row.y[0]),)
        assert len(row.lam.unique()) == 1
        assert (row.mix.mask == row.mix.mask[:1]).all()
        if row.place == "input":
            close(row.x[0], slow_mix(row.x0[0], row.mix))


CALLBACKS = {
    "GradientAccumulation": lambda: fv.GradientAccumulation(16),
    "GradientClip": fv.GradientClip,
    "MixedPrecision": fv.MixedPrecision,
    "MixedPrecision, bf16": lambda: fv.MixedPrecision(amp_mode="bf16"),
    "ChannelsLast": ChannelsLast,
    "SaveModelCallback": fv.SaveModelCallback,
    "EarlyStoppingCallback": fv.EarlyStoppingCallback,
    "ReduceLROnPlateau": fv.ReduceLROnPlateau,
    "CSVLogger": fv.CSVLogger,
    "ActivationStats": fv.ActivationStats,
    "FetchPredsCallback": fv.FetchPredsCallback,
    "ShowGraphCallback": lambda: [fv.ProgressCallback(), fv.ShowGraphCallback()],
}
FITS = {
    "fit_one_cycle": lambda learn: learn.fit_one_cycle(2, 0.01),
    "fit_flat_cos": lambda learn: learn.fit_flat_cos(2, 0.01),
    "fine_tune": lambda learn: learn.fine_tune(1, 0.01),
    "discriminative": lambda learn: learn.fit(2, slice(1e-4, 1e-2)),
    "frozen": lambda learn: (learn.freeze(), learn.fit(2, 0.01)),
}


def checked(learn, rtol=1.3e-6):
    check_losses(learn, rtol=rtol)
    assert {row.lam.dtype for row in learn.spy.batches} == {torch.float32}
    assert no_hooks(learn.model)


@every_method
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.filterwarnings("ignore:.*CUDA is not available", "ignore:(?s).*shadowing an attribute .modules.")
def test_beside_another_callback(name, method, tmp_path):
    learn = learner(method(1), path=tmp_path)
    learn.fit(2, 0.01, cbs=CALLBACKS[name]())
    assert len(learn.spy.batches) == 6
    checked(learn)


@pytest.mark.parametrize(("name", "method"), [*zip(FITS, [*METHODS.values()] * 2, strict=False)])
def test_with_every_schedule(name, method):
    learn = learner(method(1), splitter=lambda model: [fv.params(model[:2]), fv.params(model[2:])])
    FITS[name](learn)
    assert len(learn.spy.batches) == 6
    checked(learn)


@every_method
def test_under_autocast_on_the_cpu(method):
    autocast = torch.autocast("cpu", torch.bfloat16)
    enter = on("before_batch", lambda learn: autocast.__enter__(), 20)
    leave = on("after_loss", lambda learn: autocast.__exit__(None, None, None), -20)
    learn = trained(method(1), cbs=[enter, leave])
    assert {row.pred.dtype for row in learn.spy.batches} == {torch.bfloat16}
    for row in learn.spy.batches:
        row.pred = row.pred.float()
    checked(learn, rtol=0.01)


@every_method
def test_beside_transforms_of_the_batch_that_change_its_size(method):
    y = classes()
    data = fv.Datasets(range(N), [[fv.TensorImage(torch.rand(N, 3, 9, 9)).__getitem__], [y.__getitem__]])
    tfms = [fv.Normalize.from_stats([0.5] * 3, [0.2] * 3, cuda=False), *fv.aug_transforms(size=6, min_scale=0.7)]
    learn = learner(method(1), model=cnn(channels=3))
    learn.dls = fv.DataLoaders(*(fv.TfmdDL(data, BS, after_batch=tfms, num_workers=0) for _ in range(2)), device="cpu")
    learn.fit(2, 0.01)
    assert {row.x[0].shape[1:] for row in learn.spy.batches} == {(3, 6, 6)}
    assert min(row.x[0].min() for row in learn.spy.batches) < 0
    checked(learn)
