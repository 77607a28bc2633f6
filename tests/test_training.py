"""Whole trainings with every method: every batch's features and loss equal the papers' formula, and nothing is left."""

import pytest
import torch
import torch.nn.functional as F
from common import BS, EVERY, METHODS, C, N, Oracle, Unmixed, cnn, every_method, images, learner, no_hooks, slow_loss
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from mixaug import CutMix, ManifoldMixup, MixUp, MixUpLoss, PatchUp


def slow_features(x, partner, lam):
    return torch.stack([lam[i] * x[i] + (1 - lam[i]) * x[j] for i, j in enumerate(partner.tolist())])


@every_method
@pytest.mark.parametrize("alpha", [1, 0.4])
def test_every_batch_has_the_loss_of_the_formula(method, alpha):
    x, y = images(), torch.randint(0, C, (N,))
    learn = learner(method(alpha), x, y)
    learn.fit(2, 0.01)
    rows = learn.spy.batches
    assert [len(row["lam"]) for row in rows] == [8, 8, 6] * 2
    for row in rows:
        at = slice(row["iter"] * BS, (row["iter"] + 1) * BS)
        torch.testing.assert_close(row["loss"], slow_loss(row, y[at]), check_dtype=False)
        assert torch.equal(row["yb1"][0], y[at][row["mix"].partner])
        assert torch.equal(row["y"][0], y[at])
        assert len(row["lam"].unique()) > 1
    assert not torch.equal(rows[0]["mix"].lam, rows[3]["mix"].lam)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("clean", "CMixup")])
def test_every_prediction_is_of_the_mix_where_the_method_mixes(name):
    mixer = EVERY[name](1)
    learn = learner(mixer, cbs=[Oracle(), Unmixed()])
    learn.fit(4, 0.05)
    assert learn.oracle.batches == 4 * (3 + 3)
    assert any((row["lam"] < 0.9).any() for row in learn.spy.batches)
    assert no_hooks(learn.model)


@pytest.mark.parametrize("hard", [False, True])
def test_patchup_mixes_a_box_of_the_feature_map(hard):
    learn = learner(PatchUp(hard=hard))
    learn.fit(20, 0.0)
    sizes = {None: (5, 6), "0": (5, 6), "2": (3, 4)}
    assert {row["mixed_layer"] for row in learn.spy.batches} == set(sizes)
    for row in learn.spy.batches:
        mask = row["mix"].mask
        assert mask.shape[1:] == sizes[row["mixed_layer"]]
        assert (mask.dtype == torch.bool) == hard
        for m in mask:
            inside = m[m < 1]
            assert hard or len(inside) == 0 or (len(inside.unique()) == 1 and inside[0] >= 0.5)
            box = (m < 1).nonzero()
            assert len(box) == 0 or len(box) == (box.max(0).values - box.min(0).values + 1).prod()
        torch.testing.assert_close(row["lam"], mask.float().mean((1, 2)))


@pytest.mark.parametrize("hard", [False, True])
def test_patchup_has_one_box_for_a_loss_that_is_no_average(hard):
    loss, y = lambda pred, y: F.cross_entropy(pred, y) ** 2, torch.randint(0, C, (N,))
    learn = learner(PatchUp(hard=hard), y=y, loss=loss)
    learn.fit(4, 0.01)
    for row in learn.spy.batches:
        own, mix = y[row["iter"] * BS : (row["iter"] + 1) * BS], row["mix"]
        assert (mix.mask == mix.mask[:1]).all()
        lam = row["lam"][0]
        expected = lam * loss(row["pred"], own) + (1 - lam) * loss(row["pred"], own[mix.partner])
        torch.testing.assert_close(row["loss"], expected, check_dtype=False)


def test_patchup_wants_positions():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, C))
    with pytest.raises(ValueError, match=r"PatchUp wants layers that give \(B, C, \*size\).*\(8, 8\)"):
        learner(PatchUp(), model=model).fit(1)
    learner(PatchUp(modules=[model[0]]), model=model).fit(1)


def test_mixup_averages_the_images():
    x = images()
    learn = learner(MixUp(), x)
    learn.fit(1)
    for row in learn.spy.batches:
        own = x[row["iter"] * BS : (row["iter"] + 1) * BS]
        torch.testing.assert_close(row["x"][0], slow_features(own, row["mix"].partner, row["lam"]))
        assert (row["lam"] >= 0.5).all()


def test_cutmix_pastes_a_box_of_the_partner():
    x = images()
    learn = learner(CutMix(), x)
    learn.fit(1)
    lams = torch.cat([row["lam"] for row in learn.spy.batches])
    assert (lams < 0.5).any()
    for row in learn.spy.batches:
        own = x[row["iter"] * BS : (row["iter"] + 1) * BS]
        for i, j in enumerate(row["mix"].partner.tolist()):
            kept = (row["x"][0][i] == own[i]).all(0)
            pasted = (row["x"][0][i] == own[j]).all(0)
            assert (kept | pasted).all()
            assert row["lam"][i].item() == pytest.approx(kept.float().mean().item())


@pytest.mark.parametrize("input_mixup", [True, False])
def test_manifold_mixup_mixes_the_layer_it_names_and_no_other(input_mixup):
    x, model = images(), cnn()
    learn = learner(ManifoldMixup(input_mixup=input_mixup), x, model=model)
    learn.fit(8, 0.0)  # the weights stay, so that each forward pass can be done again by hand
    for row in learn.spy.batches:
        own = x[row["iter"] * BS : (row["iter"] + 1) * BS]
        cut = 0 if row["mixed_layer"] is None else int(row["mixed_layer"]) + 1
        with torch.no_grad():
            hidden = slow_features(model[:cut](own), row["mix"].partner, row["lam"])
            torch.testing.assert_close(row["pred"], model[cut:](hidden))
    drawn = {row["mixed_layer"] for row in learn.spy.batches}
    assert drawn == ({None, "0", "2"} if input_mixup else {"0", "2"})


def test_output_mixup_averages_the_predictions():
    x, model = images(), cnn()
    learn = learner(METHODS["OutputMixup"](), x, model=model)
    learn.fit(1, 0.0)
    for row in learn.spy.batches:
        own = x[row["iter"] * BS : (row["iter"] + 1) * BS]
        assert torch.equal(row["x"][0], own)
        with torch.no_grad():
            torch.testing.assert_close(row["pred"], slow_features(model(own), row["mix"].partner, row["lam"]))


@every_method
def test_training_leaves_nothing_behind(method):
    x, y, loss = images(), torch.randint(0, C, (N,)), CrossEntropyLossFlat()
    seen, before = [], x.clone()
    learn = learner(method(), x, y, loss=loss)
    learn.spy.after_pred = lambda: seen.append(type(learn.loss_func)) if learn.training else None
    learn.fit(1, 0.01)
    assert set(seen) == {MixUpLoss}
    assert learn.loss_func is learn.spy.valid_loss is loss
    assert no_hooks(learn.model)
    assert torch.equal(x, before)
    learn.model.eval()
    with torch.no_grad():
        pred = learn.model(x)
    torch.testing.assert_close(learn.validate()[0], loss(pred, y).item(), rtol=1e-5, atol=0)
    got, targets = learn.get_preds()
    torch.testing.assert_close(got, pred.softmax(1))
    assert torch.equal(targets, y)


@every_method
def test_training_learns_the_model(method):
    """Gradients are those of the loss: the parameters move as plain SGD on the mixed batch moves them."""
    x, y, model = images(n=BS), torch.randint(0, C, (BS,)), cnn()
    learn = learner(method(), x, y, model=model)
    before = [p.detach().clone() for p in model.parameters()]
    learn.fit(3, 0.1)
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@every_method
def test_a_batch_of_one_trains_unmixed(method):
    x, y = images(n=9), torch.randint(0, C, (9,))
    learn = learner(method(), x, y)
    learn.fit(1, 0.0)
    last = learn.spy.batches[-1]
    assert last["mix"] is None
    assert last["lam"].tolist() == [1]
    assert torch.equal(last["x"][0], x[8:])
    assert torch.equal(last["loss"], F.cross_entropy(learn.model(x[8:]), y[8:]))


@every_method
def test_prob_is_the_share_of_batches_mixed(method):
    learn = learner(method(prob=0.3))
    learn.fit(40, 0.0)
    mixed = [row["mix"] is not None for row in learn.spy.batches]
    assert sum(mixed) / len(mixed) == pytest.approx(0.3, abs=0.1)


@every_method
def test_one_draw_for_the_batch(method):
    x, y = images(), torch.randint(0, C, (N,))
    learn = learner(method(per_sample=False), x, y)
    learn.fit(2, 0.01)
    for row in learn.spy.batches:
        assert row["lam"].shape == (len(row["y"][0]),)
        assert len(row["lam"].unique()) == 1
        own = y[row["iter"] * BS : (row["iter"] + 1) * BS]
        torch.testing.assert_close(row["loss"], slow_loss(row, own), check_dtype=False)


@every_method
@pytest.mark.parametrize("loss", [F.cross_entropy, lambda pred, y: F.cross_entropy(pred, y)])
def test_any_function_is_a_loss(method, loss):
    x, y = images(), torch.randint(0, C, (N,))
    learn = learner(method(), x, y, loss=loss)
    learn.fit(2, 0.01)
    for row in learn.spy.batches:
        own = y[row["iter"] * BS : (row["iter"] + 1) * BS]
        torch.testing.assert_close(row["loss"], slow_loss(row, own), check_dtype=False)
