"""`OneOf`: a choice between methods for each batch, or for each sample."""

import pytest
import torch
from common import C, N, learner, no_hooks, trained
from fastai.losses import CrossEntropyLossFlat
from reference import check_losses
from torch import nn

from mixaug import CMixup, CutMix, FMix, ManifoldMixup, Mix, MixHandler, MixUp, OneOf, OutputMixup, ResizeMix


def kinds(learn):
    return [type(row.chosen).__name__ for row in learn.spy.batches]


class TestForEachBatch:
    def test_methods_are_chosen_with_their_probabilities(self):
        learn = trained(OneOf(MixUp(), CutMix(), ManifoldMixup(), p=[0.5, 0.2, 0.1]), fit=(300, 0.0))
        seen, expected = kinds(learn), {"MixUp": 0.5, "CutMix": 0.2, "ManifoldMixup": 0.1, "NoneType": 0.2}
        assert {k: seen.count(k) / len(seen) for k in expected} == pytest.approx(expected, abs=0.05)
        assert all((row.mix is None) == (row.chosen is None) for row in learn.spy.batches)
        assert no_hooks(learn.model)
        assert type(learn.loss_func) is CrossEntropyLossFlat

    def test_methods_keep_their_own_options(self):
        never, always = MixUp(prob=0), CutMix(per_sample=False)
        learn = trained(OneOf(never, always), y=torch.rand(N, C), loss=nn.CrossEntropyLoss(), fit=(10,))
        for row in learn.spy.batches:
            assert (row.mix is None) == (row.chosen is never)
            assert row.mix is None or len(row.lam.unique()) == 1

    def test_the_setup_of_all_methods_is_checked_before_the_fit(self):
        with pytest.raises(ValueError, match="modules must be"):
            trained(OneOf(ManifoldMixup(modules=[nn.Conv2d(1, 1, 1)]), CutMix(), p=[0, 1]))

    def test_a_method_that_is_switched_off_is_not_chosen(self):
        off = MixUp()
        off.run = False
        assert set(kinds(trained(OneOf(off, CutMix()), fit=(5,)))) == {"CutMix", "NoneType"}

    def test_methods_move_with_the_choice_and_come_back(self):
        shared = ManifoldMixup(input_mixup=False)
        cb = OneOf(shared, CutMix(), p=[1, 0])
        first, second = learner(cb), learner(OneOf(shared, FMix(), p=[1, 0]))
        for learn in (second, first, second):
            learn.spy.batches.clear()
            learn.fit(1)
            assert kinds(learn) == ["ManifoldMixup"] * 3
        third = trained(cb)
        assert cb not in first.cbs
        assert no_hooks(first.model)
        assert [method.learn for method in cb.methods] == [third] * 2
        third.remove_cb(cb)
        assert [method.learn for method in cb.methods] == [None] * 2


class TestForEachSample:
    def test_methods_are_chosen_with_their_probabilities(self):
        seen = []
        for row in trained(OneOf(MixUp(), CutMix(), p=[0.5, 0.3], per_sample=True), fit=(60, 0.0)).spy.batches:
            (x,), (x0,) = row.x, row.x0
            for i, mask in enumerate(row.mix.mask):
                kept, pasted = (x[i] == x0[i]).all(0), (x[i] == x0[row.mix.partner[i]]).all(0)
                seen.append("original" if kept.all() else "cut" if (kept | pasted).all() else "averaged")
                assert seen[-1] != "averaged" or len(mask.unique()) == 1
        expected = {"original": 0.2, "averaged": 0.5, "cut": 0.3}
        # A box may be empty, lam may be 1
        assert {k: seen.count(k) / len(seen) for k in expected} == pytest.approx(expected, abs=0.08)

    @pytest.mark.parametrize(
        ("methods", "dtype", "ndim"),
        [((CutMix(), FMix(), ResizeMix()), torch.bool, 3), ((MixUp(), MixUp(8)), torch.float32, 1),
         ((OneOf(MixUp(), CutMix(), per_sample=True), FMix()), torch.float32, 3)],
    )  # fmt: skip
    def test_masks_of_one_kind_stay_of_their_kind(self, methods, dtype, ndim):
        learn = trained(OneOf(*methods, per_sample=True), fit=(2, 0.01))
        assert {(row.mix.mask.dtype, row.mix.mask.ndim) for row in learn.spy.batches} == {(dtype, ndim)}
        check_losses(learn)

    def test_start_and_stop_of_the_methods_count(self):
        learn = trained(OneOf(MixUp(stop=1), CutMix(start=1), per_sample=True), fit=(2,))
        assert [row.mix.mask.dtype for row in learn.spy.batches] == [torch.float32] * 3 + [torch.bool] * 3


@pytest.mark.parametrize("per_sample", [False, True])
def test_prob_is_the_fraction_of_mixed_batches(per_sample):
    rows = trained(OneOf(MixUp(), CutMix(), prob=0.5, per_sample=per_sample), fit=(40, 0.0)).spy.batches
    assert sum(row.mix is None for row in rows) / len(rows) == pytest.approx(0.5, abs=0.12)
    assert all((row.mix is None) == torch.equal(row.x[0], row.x0[0]) for row in rows)


def test_a_choice_of_choices():
    learn = trained(OneOf(OneOf(MixUp(), ManifoldMixup(input_mixup=False)), CutMix()), fit=(20, 0.01))
    assert set(kinds(learn)) == {"OneOf", "CutMix"}
    assert all(row.mix is not None for row in learn.spy.batches)
    check_losses(learn, rtol=1e-5)


def test_without_a_learner_a_choice_draws():
    x = torch.rand(6, 3, 8, 8)
    drawn = [OneOf(MixUp(), CutMix(), seed=seed).draw(x) for seed in range(20)]
    assert {(type(mix), mix.mask.ndim) for mix in drawn} == {(Mix, 1), (Mix, 3)}
    later = [OneOf(MixUp(start=1), CutMix(), per_sample=True, seed=seed).draw(x) for seed in range(20)]
    assert all(mix.mask.shape == (6, 8, 8) for mix in later)
    assert any(len(mask.unique()) == 1 and 0.5 < mask[0, 0] < 1 for mix in later for mask in mix.mask)  # of MixUp


METHODS, CLEAN = "methods must", "clean and stack_y"
NOT_FOR_EACH_SAMPLE = [OutputMixup(), CutMix(per_sample=False), MixUp(stack_y=True), MixUp(stack_x=True), MixUp(seed=1),
                       OneOf(MixUp()), OneOf(MixUp(), per_sample=True, clean=True)]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "match", "methods", "options"),
    [
        (TypeError, METHODS, [], {}),
        (TypeError, r"methods must.*MixUp\(\)", [MixUp, CutMix], {}),
        (TypeError, METHODS, [[MixUp(), CutMix()]], {}),
        (TypeError, METHODS, [MixHandler()], {}),
        (ValueError, METHODS, [MixUp()] * 2, {}),
        (TypeError, r"p must be 2 probabilities.*0\.5.*prob", [MixUp(), CutMix()], {"p": 0.5}),
        (ValueError, "p must be", [MixUp()], {"p": [0.5, 0.5]}),
        (ValueError, "p must be", [MixUp(), CutMix()], {"p": [0.9, 0.2]}),
        (ValueError, "p must be", [MixUp(), CutMix()], {"p": [0, 0]}),
        (ValueError, "p must be", [MixUp(), CutMix()], {"p": [1.5, -0.5]}),
        (ValueError, CLEAN, [MixUp()], {"clean": True}),
        (ValueError, CLEAN, [MixUp()], {"stack_y": True}),
        (TypeError, "alpha", [MixUp()], {"alpha": 1}),
        *((ValueError, METHODS, [MixUp(), method], {"per_sample": True}) for method in NOT_FOR_EACH_SAMPLE),
    ],
)
def test_invalid_arguments_raise(error, match, methods, options):
    with pytest.raises(error, match=match):
        OneOf(*methods, **options)


@pytest.mark.parametrize("per_sample", [False, True])
def test_pair_and_cmixup_get_their_targets_through_a_choice(per_sample):
    cb = OneOf(OneOf(MixUp(pair="same"), per_sample=per_sample), CutMix(pair="same"), per_sample=per_sample)
    for row in trained(cb, fit=(3, 0.01)).spy.batches:
        assert torch.equal(*row.y0, *row.partners)
        assert not torch.equal(row.mix.partner, torch.arange(len(row.lam)))
    with pytest.raises(TypeError, match="MixUp"):
        trained(OneOf(CMixup(), per_sample=per_sample))
