"""Choices between methods, schedules, and what every method can be told: when, with whom, and beside clean samples."""

import random
from functools import partial

import fastai.callback.schedule  # noqa: F401  (patches Learner)
import pytest
import torch
from common import BS, METHODS, C, N, cnn, every_method, images, learner, no_hooks, on, slow_loss, slow_mix
from fastai.callback.schedule import SchedCos, SchedLin, combine_scheds
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai.torch_core import TensorImage, TensorMultiCategory, set_seed
from torch import nn

from mixaug import (
    CMixup,
    CutMix,
    FMix,
    ManifoldMixup,
    MixUp,
    OneOf,
    OutputMixup,
    PatchUp,
    ResizeMix,
    SaliencyMix,
    closeness,
)


def kinds(learn):
    return [type(row["chosen"]).__name__ for row in learn.spy.batches]


# One of several


def test_each_batch_is_mixed_by_one_method_in_its_share():
    cb = OneOf(MixUp(), CutMix(), ManifoldMixup(), p=[0.5, 0.2, 0.1])
    learn = learner(cb)
    learn.fit(300, 0.0)
    seen = kinds(learn)
    shares = {"MixUp": 0.5, "CutMix": 0.2, "ManifoldMixup": 0.1, "NoneType": 0.2}
    assert {k: seen.count(k) / len(seen) for k in shares} == pytest.approx(shares, abs=0.05)
    for row in learn.spy.batches:
        assert (row["mix"] is None) == (row["chosen"] is None)
    assert no_hooks(learn.model)
    assert type(learn.loss_func) is CrossEntropyLossFlat


@pytest.mark.parametrize("per_sample", [False, True])
def test_some_batches_stay_as_they_are(per_sample):
    x = images()
    learn = learner(OneOf(MixUp(), CutMix(), prob=0.5, per_sample=per_sample), x)
    learn.fit(40, 0.0)
    rows = learn.spy.batches
    assert sum(row["mix"] is None for row in rows) / len(rows) == pytest.approx(0.5, abs=0.12)
    for row in rows:
        own = x[row["iter"] * BS : (row["iter"] + 1) * BS]
        assert (row["mix"] is None) == torch.equal(row["x"][0], own)


@pytest.mark.parametrize("method", [MixUp, OutputMixup])
def test_after_the_batch_targets_are_its_own(method):
    y, seen = torch.rand(N, C), []
    look = on("after_batch", lambda learn: seen.append(learn.y) if learn.training else None, 60)
    learn = learner(OneOf(method()), y=y, loss=nn.CrossEntropyLoss(), cbs=[look])
    learn.fit(1)
    assert torch.equal(torch.cat(seen), y)
    assert not torch.equal(learn.spy.batches[0]["y"][0], y[:BS])


def test_each_sample_is_mixed_by_one_method_in_its_share():
    x, seen = images(), []
    cb = OneOf(MixUp(), CutMix(), p=[0.5, 0.3], per_sample=True)
    learn = learner(cb, x)
    learn.fit(60, 0.0)
    for row in learn.spy.batches:
        own, mix = x[row["iter"] * BS : (row["iter"] + 1) * BS], row["mix"]
        assert not torch.equal(row["x"][0], own)
        for i, mask in enumerate(mix.mask):
            kept, pasted = (row["x"][0][i] == own[i]).all(0), (row["x"][0][i] == own[mix.partner[i]]).all(0)
            seen.append("own" if kept.all() else "cut" if (kept | pasted).all() else "averaged")
            assert seen[-1] != "averaged" or len(mask.unique()) == 1
    shares = {"own": 0.2, "averaged": 0.5, "cut": 0.3}
    # A box may be empty, a share one
    assert {k: seen.count(k) / len(seen) for k in shares} == pytest.approx(shares, abs=0.08)


def test_methods_of_one_kind_stay_of_their_kind():
    for methods, dtype, ndim in (
        ((CutMix(), FMix(), ResizeMix()), torch.bool, 3),
        ((MixUp(), MixUp(8)), torch.float32, 1),
    ):
        learn = learner(OneOf(*methods, per_sample=True))
        learn.fit(1)
        assert {(row["mix"].mask.dtype, row["mix"].mask.ndim) for row in learn.spy.batches} == {(dtype, ndim)}


def test_a_choice_of_choices():
    inner = OneOf(MixUp(), ManifoldMixup(input_mixup=False))
    learn = learner(OneOf(inner, CutMix()))
    learn.fit(20, 0.01)
    assert set(kinds(learn)) == {"OneOf", "CutMix"}
    assert all(row["mix"] is not None for row in learn.spy.batches)
    each = OneOf(OneOf(MixUp(), CutMix(), per_sample=True), FMix(), per_sample=True)
    learn = learner(each)
    learn.fit(2, 0.01)
    assert all(row["mix"].mask.ndim == 3 for row in learn.spy.batches)


def test_methods_keep_their_own_arguments():
    y = torch.rand(N, C)
    never, always = MixUp(prob=0), CutMix(per_sample=False)
    learn = learner(OneOf(never, always), y=y, loss=nn.CrossEntropyLoss())
    learn.fit(10)
    for row in learn.spy.batches:
        assert (row["mix"] is None) == (row["chosen"] is never)
        assert row["mix"] is None or len(row["lam"].unique()) == 1
    cb = OneOf(MixUp(stop=1), CutMix(start=1), per_sample=True)
    learn = learner(cb)
    learn.fit(2)
    assert [row["mix"].mask.dtype for row in learn.spy.batches] == [torch.float32] * 3 + [torch.bool] * 3


def test_a_choice_repeats_with_its_seed():
    def seen(seed):
        learn = learner(OneOf(MixUp(), CutMix(), seed=seed))
        learn.fit(5)
        return kinds(learn), [row["lam"].tolist() for row in learn.spy.batches]

    assert seen(1) == seen(1) == seen(1.0)
    assert seen(1) != seen(2)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: OneOf(), TypeError, "mixing callbacks were wanted"),
        (lambda: OneOf(MixUp, CutMix), TypeError, "mixing callbacks were wanted"),
        (lambda: OneOf([MixUp(), CutMix()]), TypeError, "mixing callbacks were wanted"),
        (lambda: OneOf(*[MixUp()] * 2), ValueError, "of its own"),
        (lambda: OneOf(MixUp(), p=[0.5, 0.5]), ValueError, "1 shares"),
        (lambda: OneOf(MixUp(), CutMix(), p=[0.9, 0.2]), ValueError, "at most in sum"),
        (lambda: OneOf(MixUp(), CutMix(), p=[0, 0]), ValueError, "at most in sum"),
        (lambda: OneOf(MixUp(), CutMix(), p=[1.5, -0.5]), ValueError, "p came as 1.5"),
        (lambda: OneOf(MixUp(), OutputMixup(), per_sample=True), ValueError, "OutputMixup.* came"),
        (lambda: OneOf(MixUp(), CutMix(per_sample=False), per_sample=True), ValueError, "CutMix.* came"),
        (lambda: OneOf(OneOf(MixUp()), per_sample=True), ValueError, "OneOf.* came"),
        (lambda: OneOf(OneOf(MixUp(), per_sample=True, clean=True), per_sample=True), ValueError, "OneOf.* came"),
        (lambda: OneOf(MixUp(seed=1), per_sample=True), ValueError, "MixUp.* came"),
        (lambda: OneOf(MixUp(), clean=True), ValueError, "for its methods"),
        (lambda: OneOf(MixUp(), alpha=1), TypeError, "alpha"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("processes", [0, 2])
def test_the_seed_is_for_all_methods_whatever_else_is_drawn(per_sample, processes, monkeypatch):
    monkeypatch.setattr("mixaug.handlers.num_distrib", lambda: processes)

    def seen(global_seed):
        inner = OneOf(MixUp(), FMix(), per_sample=per_sample)
        learn = learner(OneOf(inner, CutMix(), seed=1, per_sample=per_sample))
        set_seed(global_seed)
        learn.fit(5)
        return [row["lam"].tolist() for row in learn.spy.batches], (torch.rand(1).item(), random.random())

    def unmixed(global_seed):
        learn = learner(None)
        set_seed(global_seed)
        learn.fit(5)
        return torch.rand(1).item(), random.random()

    (lams, after), (again, _) = seen(1), seen(2)
    assert lams == again
    assert after == unmixed(1)


def test_labels_as_many_as_positions_are_ambiguous_to_a_choice_too():
    learn = learner(OneOf(MixUp(), CutMix(), per_sample=True), images((C,)), torch.rand(N, C), loss=nn.MSELoss())
    with pytest.raises(ValueError, match="came with inputs of 3 positions"):
        learn.fit(1)


@pytest.mark.parametrize("hard", [False, True])
def test_patchup_mixes_labels_by_the_share_whatever_the_sizes(hard):
    y = torch.rand(N, 5)
    model = nn.Sequential(nn.Conv1d(2, 4, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(20, 5))
    learn = learner(PatchUp(hard=hard, input_mixup=False), images((20,)), y, model, nn.MSELoss())
    learn.fit(2)
    for row in learn.spy.batches:
        own, lam = y[row["iter"] * BS : (row["iter"] + 1) * BS], row["lam"][:, None]
        assert row["mix"].mask.shape[1:] == (5,)
        torch.testing.assert_close(row["y"][0], lam * own + (1 - lam) * own[row["mix"].partner])


def test_a_choice_for_each_sample_wants_a_loss_that_is_an_average():
    learn = learner(
        OneOf(MixUp(), CutMix(), per_sample=True), loss=lambda pred, y: nn.functional.cross_entropy(pred, y) ** 2
    )
    with pytest.raises(ValueError, match="known to be an average"):
        learn.fit(1)


def test_a_method_that_was_lent_comes_back():
    shared = MixUp()
    first, second = learner(OneOf(shared, CutMix(), p=[1, 0])), learner(OneOf(shared, FMix(), p=[1, 0]))
    for learn in (second, first, second):
        learn.spy.batches.clear()
        learn.fit(1)
        assert kinds(learn) == ["MixUp"] * 3


def test_a_method_that_is_switched_off_is_not_chosen():
    off, on_ = MixUp(), CutMix()
    off.run = False
    learn = learner(OneOf(off, on_))
    learn.fit(5)
    assert set(kinds(learn)) == {"CutMix", "NoneType"}


def test_clean_patchup_with_one_box():
    learn = learner(PatchUp(clean=True, per_sample=False))
    learn.fit(2)
    for row in learn.spy.batches:
        n = len(row["lam"]) // 2
        assert (row["mix"].mask[n:] == row["mix"].mask[n : n + 1]).all()
        assert (row["lam"][:n] == 1).all()


def test_the_decay_of_fmix_is_its_mask():
    learn = learner(FMix(decay=0), images((40, 40)))
    learn.fit(1)
    masks = torch.cat([row["mix"].mask for row in learn.spy.batches])
    lam = masks.float().mean((1, 2))
    chance = (lam**2 + (1 - lam) ** 2).mean()
    assert (masks == masks.roll(1, 1)).float().mean().item() == pytest.approx(chance.item(), abs=0.02)


@pytest.mark.parametrize("cb", [CMixup, partial(MixUp, pair="same")])
def test_pairing_wants_targets(cb):
    learn = learner(cb())
    learn.add_cb(on("before_batch", lambda learn: setattr(learn, "yb", ()), -1))
    with pytest.raises(ValueError, match="pair wants targets"):
        learn.fit(1)


def test_a_pairing_gives_weights_for_the_batch():
    with pytest.raises(ValueError, match=r"weights of shape \(3, 3\), \(8, 8\) was wanted"):
        learner(MixUp(pair=lambda y: torch.ones(3, 3))).fit(1)


def test_learn_mixup_takes_any_mixing_callback():
    learn = learner(None)
    cb = OneOf(MixUp(), CutMix())
    assert learn.mixup(cb).one_of is cb
    with pytest.raises(TypeError, match="alpha came as"):
        learn.mixup(cb, prob=0.5)


def test_a_choice_moves_with_its_methods():
    cb = OneOf(ManifoldMixup(input_mixup=False), CutMix(), p=[1, 0])
    first, second = learner(cb), learner(None)
    first.fit(1)
    second.add_cb(cb)
    assert cb not in first.cbs
    assert all(method.learn is second for method in cb.methods)
    second.fit(1)
    assert cb.chosen is cb.methods[0]
    assert no_hooks(first.model)
    second.remove_cb(cb)
    assert all(method.learn is None for method in cb.methods)


# When


def alphas(learn, mixer):
    seen = []

    def look(learn):
        if learn.training:
            seen.append(mixer.distrib.concentration1.item() if mixer.mix else 0)

    learn.add_cb(on("after_pred", look))
    return seen


@every_method
def test_alpha_follows_its_schedule(method):
    for schedule in (
        SchedCos(0.0, 0.6),
        combine_scheds([0.5, 0.5], [SchedLin(0, 1), SchedLin(1, 0.2)]),
        lambda t: t**2,
    ):
        mixer = method(schedule)
        learn = learner(mixer)
        seen = alphas(learn, mixer)
        learn.fit_one_cycle(4, 0.01)
        assert seen == pytest.approx([schedule(i / 12) for i in range(12)], abs=1e-6)
        assert learn.spy.batches[0]["mix"] is None


def test_prob_follows_its_schedule():
    learn = learner(MixUp(prob=lambda t: float(t >= 0.5)))
    learn.fit(4)
    assert [row["mix"] is not None for row in learn.spy.batches] == [False] * 6 + [True] * 6


@pytest.mark.parametrize("schedule", [lambda t: -1.0, lambda t: 1 / t if t else 2.0 * 10**400, lambda t: "1"])
def test_a_schedule_out_of_range_is_refused_at_construction(schedule):
    with pytest.raises((ValueError, TypeError, OverflowError)):
        MixUp(schedule)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        MixUp(prob=schedule)


def test_a_schedule_that_leaves_its_range_is_an_error_in_the_batch():
    learn = learner(MixUp(lambda t: -1.0 if 0 < t < 1 else 1.0))
    with pytest.raises(ValueError, match=r"alpha came as -1\.0"):
        learn.fit(1)


@every_method
@pytest.mark.parametrize(
    ("when", "mixed"),
    [
        ({"start": 1}, "0111"),
        ({"start": 0.5}, "0011"),
        ({"stop": 3}, "1110"),
        ({"stop": -1}, "1110"),
        ({"start": -3, "stop": -1}, "0110"),
        ({"start": 0.25, "stop": 0.75}, "0110"),
        ({"start": 1, "stop": 0.5}, "0100"),
        ({"stop": 0}, "0000"),
        ({"stop": 1.0}, "1111"),
    ],
)
@pytest.mark.parametrize("how", ["fit", "fit_one_cycle", "fit_flat_cos"])
def test_mixing_starts_and_stops(method, how, when, mixed):
    learn = learner(method(**when))
    getattr(learn, how)(4, 0.01)
    assert "".join(str(int(row["mix"] is not None)) for row in learn.spy.batches[::3]) == mixed
    assert "".join(str(int(row["mix"] is not None)) for row in learn.spy.batches[2::3]) == mixed


def test_a_share_of_the_training_may_be_in_the_middle_of_an_epoch():
    learn = learner(MixUp(start=0.5))
    learn.fit(1)
    assert [row["mix"] is not None for row in learn.spy.batches] == [False, False, True]


def test_each_fit_counts_for_itself():
    learn = learner(MixUp(start=1))
    learn.fine_tune(2, freeze_epochs=2)
    assert [row["mix"] is not None for row in learn.spy.batches[::3]] == [False, True, False, True]


def test_a_resumed_training_goes_on_where_it_was():
    learn = learner(MixUp(start=2, stop=0.75))
    learn.fit(4, start_epoch=1)
    assert [row["mix"] is not None for row in learn.spy.batches[::3]] == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"start": "1"}, TypeError),
        ({"start": True}, TypeError),
        ({"stop": 1.5}, ValueError),
        ({"start": -0.1}, ValueError),
        ({"start": 3, "stop": 3}, ValueError),
        ({"start": -1, "stop": -2}, ValueError),
        ({"start": 0.5, "stop": 0.5}, ValueError),
    ],
)
def test_times_that_cannot_be_are_refused(arguments, error):
    with pytest.raises(error, match=r"start|stop"):
        MixUp(**arguments)


# With whom


@every_method
@pytest.mark.parametrize("pair", ["same", "other"])
def test_partners_by_class(method, pair):
    y = torch.randint(0, C, (N,))
    y[0] = 9 if pair == "same" else y[0]
    learn = learner(method(pair=pair), y=y, model=cnn(10))
    learn.fit(5, 0.01)
    for row in learn.spy.batches:
        (own,), partner = row["y"], row["mix"].partner
        for i, j in enumerate(partner.tolist()):
            assert (own[i] == own[j]) == (pair == "same")
            assert i != j or (own == own[i]).sum() == 1
    assert len({tuple(row["mix"].partner.tolist()) for row in learn.spy.batches}) > 3


def test_a_batch_of_one_class_has_no_other():
    learn = learner(MixUp(pair="other"), y=torch.zeros(N, dtype=torch.int64))
    learn.fit(1)
    for row in learn.spy.batches:
        assert row["mix"].partner.tolist() == list(range(len(row["lam"])))


def test_partners_by_a_function_of_the_targets():
    learn = learner(CutMix(pair=lambda y: torch.ones(len(y), len(y)).tril(-1)))
    learn.fit(3)
    for row in learn.spy.batches:
        assert all(j < i for i, j in enumerate(row["mix"].partner.tolist()) if i)


@pytest.mark.parametrize("y", [torch.rand(N), torch.rand(N, C), torch.randint(0, 2, (N, C))])
def test_classes_are_wanted_to_pair_by_class(y):
    learn = learner(MixUp(pair="same"), y=y, loss=lambda pred, y: pred.sum())
    with pytest.raises(ValueError, match=r"class numbers \(B,\)"):
        learn.fit(1)


@pytest.mark.parametrize("pair", ["some", 3, True, ["same"]])
def test_a_pairing_that_is_none_is_refused(pair):
    with pytest.raises(ValueError, match="pair came as"):
        MixUp(pair=pair)


def test_cmixup_pairs_the_close():
    y = torch.arange(N).float()
    model = lambda: nn.Sequential(nn.Flatten(), nn.Linear(60, 1))  # noqa: E731
    far = {}
    for name, cb in {"MixUp": MixUp(), "wide": CMixup(bandwidth=1), "narrow": CMixup(bandwidth=0.2),
                     "other": MixUp(pair=partial(closeness, bandwidth=0.2))}.items():  # fmt: skip
        learn = learner(cb, y=y, model=model(), loss=MSELossFlat())
        learn.fit(40, 0.0)
        far[name] = torch.cat([(row["mix"].partner - torch.arange(len(row["lam"]))).abs() for row in learn.spy.batches])
    assert far["MixUp"].float().mean() > far["wide"].float().mean() + 0.3
    assert far["wide"].float().mean() > far["narrow"].float().mean() + 0.3
    assert far["other"].float().mean().item() == pytest.approx(far["narrow"].float().mean().item(), abs=0.2)


# Beside clean samples

CLEAN = {
    **METHODS,
    "FMix": FMix,
    "PatchUp": PatchUp,
    "OneOf, each sample": lambda clean: OneOf(MixUp(), CutMix(), per_sample=True, clean=clean),
    "OneOf": lambda clean: OneOf(MixUp(clean=clean), PatchUp(clean=clean, hard=True)),
}


@pytest.mark.parametrize("method", CLEAN.values(), ids=CLEAN)
def test_a_clean_batch_goes_before_the_mixed_one(method):
    """The loss is the mean of the one of the batch and of that of its mix."""
    x, y = images(), torch.randint(0, C, (N,))
    learn = learner(method(clean=True), x, y)
    learn.fit(2, 0.01)
    for row in learn.spy.batches:
        at = slice(row["iter"] * BS, (row["iter"] + 1) * BS)
        own, n, mix = x[at], len(x[at]), row["mix"]
        assert torch.equal(row["x"][0][:n], own)
        assert (row["lam"][:n] == 1).all()
        if method in (MixUp, CutMix):
            torch.testing.assert_close(row["x"][0][n:], slow_mix(torch.cat([own, own]), mix)[n:])
        logp, targets = row["pred"].log_softmax(1), torch.cat([y[at], y[at]])
        clean = -logp[range(n), y[at]].mean()
        mixed = 0
        for i in range(n, 2 * n):
            lam = row["lam"][i]
            mixed -= lam * logp[i, targets[i]] + (1 - lam) * logp[i, targets[mix.partner[i]]]
        torch.testing.assert_close(row["loss"], (clean + mixed / n) / 2, check_dtype=False)
        assert (mix.partner[n:] >= n).all()
    assert any(
        not torch.allclose(row["pred"][:8], row["pred"][8:]) for row in learn.spy.batches if len(row["pred"]) == 16
    )


@pytest.mark.parametrize("clean", [False, True])
def test_types_and_attributes_of_inputs_and_targets_stay(clean):
    x, y = TensorImage(torch.rand(8, 3, 6, 6)), TensorMultiCategory(torch.randint(0, 2, (8, 3)))
    x.img_size = 6
    learn = learner(MixUp(clean=clean), loss=BCEWithLogitsLossFlat())  # which makes floats of the targets
    learn.xb, learn.yb, learn.training = (x,), (y,), True
    learn("before_fit")
    learn.training = True
    learn.mix_up("before_batch")
    assert isinstance(learn.xb[0], TensorImage)
    assert learn.xb[0].img_size == 6
    assert isinstance(learn.yb[0], TensorMultiCategory)
    assert learn.yb[0].is_floating_point()
    assert isinstance(learn.mix_up.yb1[0], TensorMultiCategory)


def test_clean_with_one_share_for_the_batch():
    learn = learner(MixUp(clean=True, per_sample=False))
    learn.fit(1)
    for row in learn.spy.batches:
        n = len(row["lam"]) // 2
        assert (row["lam"][:n] == 1).all()
        assert len(row["lam"][n:].unique()) == 1
        assert row["lam"][n] < 1
        torch.testing.assert_close(row["loss"], slow_loss(row, row["y"][0]), check_dtype=False)


def test_clean_wants_a_loss_that_is_an_average():
    learn = learner(MixUp(clean=True), loss=lambda pred, y: nn.functional.cross_entropy(pred, y) ** 2)
    with pytest.raises(ValueError, match="known to be an average"):
        learn.fit(1)
    with pytest.raises(ValueError, match="stack_x"):
        MixUp(clean=True, stack_x=True)


def test_saliency_mix_cuts_out_what_stands_out_in_the_partner():
    x = 0.01 * torch.rand(N, 2, 11, 13)
    peak = torch.stack([torch.randint(0, 11, (N,)), torch.randint(0, 13, (N,))], 1)
    x[range(N), :, peak[:, 0], peak[:, 1]] = 1
    learn = learner(SaliencyMix(8), x)
    learn.fit(1)
    for row in learn.spy.batches:
        own = peak[row["iter"] * BS : (row["iter"] + 1) * BS]
        for i, j in enumerate(row["mix"].partner):
            r, c = own[j].tolist()
            assert not row["mix"].mask[i, max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].all()
