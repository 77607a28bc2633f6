"""Arguments, and the options of every method: how often, when, with whom, and beside clean samples."""

import inspect
import math
from contextlib import nullcontext
from fractions import Fraction
from functools import partial

import fastai.callback.schedule
import numpy as np
import pytest
import torch
from common import METHODS, C, N, cnn, every_method, images, learner, on, replace, trained
from fastai.callback.schedule import SchedCos, SchedLin, combine_scheds
from fastai.losses import BCEWithLogitsLossFlat
from fastai.torch_core import TensorImage, TensorMultiCategory, params
from reference import check_losses, close, slow_mix
from torch import nn
from torch.nn.functional import cross_entropy

from mixaug import (
    CMixup,
    CutMix,
    FMix,
    ManifoldMixup,
    MixHandler,
    MixUp,
    OneOf,
    OutputMixup,
    PatchUp,
    ResizeMix,
    mix_batch,
    target_similarity,
)


def mixed(learn):
    """Return for each batch whether it was mixed."""
    return [row.mix is not None for row in learn.spy.batches]


DEFAULTS = {MixHandler: 0.5, MixUp: 0.4, CutMix: 1.0, ManifoldMixup: 0.4, OutputMixup: 0.4, FMix: 1.0, PatchUp: 2.0}
MORE = {
    ManifoldMixup: {"modules": None, "input_mixup": True, "verify": True},
    PatchUp: {"hard": False, "modules": None, "input_mixup": True, "verify": True},
    FMix: {"decay": 3.0},
    MixUp: {"k": 2},
    CutMix: {"aspect": 1.0, "sides": None, "inside": False},
}


class TestArguments:
    @pytest.mark.parametrize("method", DEFAULTS)
    def test_signature_and_docstring_show_every_option(self, method):
        parameters = inspect.signature(method).parameters
        options = {"prob": 1.0, "per_sample": True, "fold": method not in (CutMix, FMix), "stack_x": False}
        options |= dict.fromkeys(["stack_y", "targets", "inputs", "spatial_dims", "start", "stop", "pair", "partners",
                                  "lam_targets", "seed"]) | {"clean": False}  # fmt: skip
        expected = {"alpha": DEFAULTS[method], **options, **MORE.get(method, {})}
        assert {name: p.default for name, p in parameters.items()} == expected
        kinds = {name: p.kind for name, p in parameters.items()}
        assert kinds.pop("alpha") is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}
        assert (method().alpha, method().fold) == (expected["alpha"], expected["fold"])
        assert all(f"    {name}: " in method.__doc__ for name in expected)

    @pytest.mark.parametrize("alpha", [1, 0.3, np.float32(0.5), np.int64(2), Fraction(1, 2)])
    def test_any_real_number_is_an_alpha(self, alpha):
        distrib = MixUp(alpha).distrib
        assert distrib.concentration1.item() == distrib.concentration0.item() == pytest.approx(float(alpha))

    @pytest.mark.parametrize(
        ("method", "name", "values", "error"),
        [
            (MixUp, "alpha", [0, -1, math.nan, math.inf, -math.inf, lambda t: -1.0, lambda t: 1 / (1 - t + 1e-320)],
             ValueError),
            (MixUp, "alpha", [None, "0.4", [0.4], True, torch.tensor(0.4), lambda t: "1", MixUp()], TypeError),
            (MixUp, "prob", [-0.1, 1.1, math.nan, lambda t: 2 * t], ValueError),
            (MixUp, "prob", ["1", None, lambda t: "1"], TypeError),
            (MixUp, "seed", [0.5, -1, math.inf], ValueError),
            (MixUp, "seed", ["1", torch.Generator(), True], TypeError),
            (MixUp, "start", ["1", True], TypeError),
            (MixUp, "start", [-0.1, 1.5], ValueError),
            (MixUp, "stop", [1.5], ValueError),
            (MixUp, "pair", ["some", 3, True, ["same"]], ValueError),
            (CMixup, "bandwidth", [0, -1.0, math.inf], ValueError),
            (FMix, "decay", [-1, math.nan], ValueError),
            (ManifoldMixup, "modules", [[], (), [nn.ReLU(), "layer1"], [nn.ReLU], nn.ReLU(), "abc", 3], ValueError),
            (MixUp, "stack_y", ["False", 2, [True]], TypeError),
            *((MixUp, name, ["False", None, 2], TypeError) for name in ("per_sample", "fold", "stack_x", "clean")),
            (ManifoldMixup, "input_mixup", ["False", None], TypeError),
            (PatchUp, "hard", ["False", None], TypeError),
            (partial(OneOf, MixUp()), "per_sample", ["False", None], TypeError),
        ],
    )  # fmt: skip
    def test_invalid_argument_raises(self, method, name, values, error):
        for value in values:
            with pytest.raises(error, match=f"{name} must be"):
                method(**{name: value})

    @pytest.mark.parametrize(
        ("error", "match", "mistake"),
        [
            (TypeError, r"alpha must be.*MixUp\(\)", lambda: MixUp(MixUp)),
            (TypeError, r"alpha must be.*MixUp\(\)", lambda: learner(None).mixup(MixUp)),
            (ValueError, "alpha must be.*prob=0", lambda: MixUp(0)),
            (ValueError, "alpha must be", lambda: MixUp(SchedCos(0, 0.1)).draw(torch.rand(4, 2))),
            (TypeError, "argument", lambda: MixUp(0.4, 0.5)),
            (TypeError, "probability", lambda: MixUp(0.4, probability=0.5)),
            (ValueError, "clean and stack_x", lambda: MixUp(clean=True, stack_x=True)),
            (ValueError, "start must be", lambda: MixUp(start=3, stop=3)),
            (ValueError, "start must be", lambda: MixUp(start=-1, stop=-2)),
            (ValueError, "start must be", lambda: MixUp(start=0.5, stop=0.5)),
            (TypeError, "MixUp", lambda: trained(MixHandler())),
            (TypeError, "Mix tensors", lambda: CutMix().draw(pytest.importorskip("PIL.Image").new("RGB", (8, 8)))),
        ],
    )
    def test_natural_mistake_names_the_remedy(self, error, match, mistake):
        with pytest.raises(error, match=match):
            mistake()

    @pytest.mark.parametrize(
        ("method", "text"),
        [
            (MixUp(0.3, prob=0.5), "MixUp(0.3, prob=0.5)"),
            (MixUp(1), "MixUp(1.0)"),
            (MixUp(stack_y=False, fold=False, pair="same"), "MixUp(0.4, fold=False, stack_y=False, pair='same')"),
            (CutMix(per_sample=False, stop=-2, seed=3), "CutMix(1.0, stop=-2, per_sample=False, seed=3)"),
            (CMixup(bandwidth=0.5, clean=True), "CMixup(2.0, bandwidth=0.5, clean=True)"),
            (ManifoldMixup(input_mixup=False), "ManifoldMixup(0.4, input_mixup=False)"),
            (MixUp(SchedCos(0, 0.6)), "MixUp(SchedCos(0, 0.6))"),
            (MixUp(prob=SchedLin(0, 1), pair=target_similarity),
             "MixUp(0.4, prob=SchedLin(0, 1), pair=target_similarity)"),
            (OneOf(MixUp(), CutMix(), p=[0.5, 0.3], start=1),
             "OneOf(MixUp(0.4), CutMix(1.0), p=[0.5, 0.3], start=1)"),
            (OneOf(MixUp(), per_sample=True, stack_y=True), "OneOf(MixUp(0.4), per_sample=True, stack_y=True)"),
        ],
    )  # fmt: skip
    def test_repr_is_the_call(self, method, text):
        assert repr(method) == text
        names = {c.__name__: c for c in (*METHODS.values(), CMixup, OneOf)}
        names |= {"SchedCos": SchedCos, "SchedLin": SchedLin, "target_similarity": target_similarity}
        assert repr(eval(text, names)) == text

    def test_dir_shows_what_users_call(self):
        base = set(dir(fastai.callback.core.Callback()))
        options = {*inspect.signature(MixUp).parameters}
        attributes = {"mix", "lam", "yb1", "rng", "draw", "draw_partner", "draw_lam", "spatial_size"}
        fastais = {"distrib", "lf", "old_lf", "stack_y", "show_batch", "learn"}
        events = {"before_fit", "before_train", "before_batch", "after_pred", "after_batch", "after_train", "after_fit",
                  "before_validate", "before_backward", "run_valid"}  # fmt: skip
        public = {name for name in dir(MixUp()) if not name.startswith("_")}
        assert public - base - {"run", "name"} <= options | attributes | fastais | events


class TestSchedules:
    """alpha and prob as functions of the fraction of the fit."""

    @every_method
    @pytest.mark.parametrize(
        "schedule", [SchedCos(0.0, 0.6), combine_scheds([0.5, 0.5], [lambda t: t**2, SchedLin(1, 0.2)])]
    )
    def test_alpha_follows_its_schedule(self, method, schedule):
        mixer, seen = method(schedule), []
        look = on("after_loss", lambda learn: seen.append(mixer.distrib.concentration1.item() if mixer.mix else 0))
        learn = learner(mixer, cbs=[look])
        learn.fit_one_cycle(4, 0.01)
        training = [alpha for i, alpha in enumerate(seen) if i % 6 < 3]  # the rest is validation
        assert training == pytest.approx([schedule(i / 12) for i in range(12)], abs=1e-6)
        assert learn.spy.batches[0].mix is None

    def test_lam_is_drawn_from_the_alpha_of_the_moment(self):
        learn = learner(MixUp(lambda t: 1e-6 if t < 0.5 else 1e6))
        learn.fit(2)
        far = [(row.lam - 0.5).abs() for row in learn.spy.batches]
        assert min(t.min() for t in far[:3]) > 0.49
        assert max(t.max() for t in far[3:]) < 0.01
        learn.mix_up.alpha = 50
        learn.fit(1)
        assert all(0.5 <= lam < 0.75 for row in learn.spy.batches[6:] for lam in row.lam)
        learn.mix_up.alpha = 0
        with pytest.raises(ValueError, match=r"alpha must be.*prob=0"):
            learn.fit(1)

    def test_a_schedule_that_leaves_its_range_raises_value_error_in_the_batch(self):
        for name in ("alpha", "prob"):
            with pytest.raises(ValueError, match=f"{name} must be"):
                trained(MixUp(**{name: lambda t: -1.0 if 0 < t < 1 else 1.0}))

    def test_prob_follows_its_schedule(self):
        assert mixed(trained(MixUp(prob=lambda t: float(t >= 0.5)), fit=(4,))) == [False] * 6 + [True] * 6

    @every_method
    def test_prob_is_the_fraction_of_mixed_batches(self, method):
        seen = mixed(trained(method(prob=0.3), fit=(40, 0.0)))
        assert sum(seen) / len(seen) == pytest.approx(0.3, abs=0.1)


WHEN = [({"start": 1}, "0111"), ({"start": 0.5}, "0011"), ({"stop": 3}, "1110"), ({"stop": -1}, "1110"),
        ({"start": -3, "stop": -1}, "0110"), ({"start": 0.25, "stop": 0.75}, "0110"), ({"stop": 0}, "0000"),
        ({"start": 1, "stop": 0.5}, "0100"), ({"stop": 1.0}, "1111")]  # fmt: skip


class TestStartAndStop:
    @pytest.mark.parametrize(
        ("method", "how", "when", "expected"),
        [
            *((MixUp, "fit", *row) for row in WHEN),
            *((method, "fit", {"start": -3, "stop": 0.75}, "0110") for method in METHODS.values()),
            *((CutMix, how, {"start": 0.25, "stop": -1}, "0110") for how in ("fit_one_cycle", "fit_flat_cos")),
        ],
    )
    def test_mixing_starts_and_stops(self, method, how, when, expected):
        learn = learner(method(**when))
        never = pytest.warns(UserWarning, match="mixes nothing in this fit of 4 epochs")
        with never if expected == "0000" else nullcontext():
            getattr(learn, how)(4, 0.01)
        for first in (0, 2):
            assert "".join(str(int(seen)) for seen in mixed(learn)[first::3]) == expected

    @pytest.mark.parametrize(
        "when",
        [
            {"start": 4},
            {"stop": -4},
            {"start": -1, "stop": 3},
            {"start": 0.5, "stop": 1},
            {"start": 6, "stop": 8},
            {"start": -9, "stop": -6},
        ],
    )
    def test_a_method_that_never_mixes_warns_once_a_fit(self, when):
        learn = learner(MixUp(**when))
        with pytest.warns(UserWarning, match=r"MixUp\(0.4, st.*\) mixes nothing in this fit of 4 epochs") as told:
            learn.fit(4)
        assert (len(told), set(mixed(learn))) == (1, {False})

    def test_the_frozen_epoch_of_fine_tune_is_not_warned_of(self):
        learn = learner(MixUp(stop=-1), splitter=lambda model: [params(model[0]), params(model[1:])])
        learn.fine_tune(2)
        assert set(mixed(learn)) == {False, True}

    def test_a_fraction_may_be_in_the_middle_of_an_epoch(self):
        assert mixed(trained(MixUp(start=0.5))) == [False, False, True]

    def test_each_fit_counts_for_itself_and_a_resumed_one_goes_on_where_it_was(self):
        learn = learner(MixUp(start=1))
        learn.fine_tune(2, freeze_epochs=2)
        assert mixed(learn)[::3] == [False, True, False, True]
        learn = learner(MixUp(start=2, stop=0.75))
        learn.fit(4, start_epoch=1)
        assert mixed(learn)[::3] == [False, True, False]


def partners(cb, y):
    return mix_batch(cb, torch.rand(len(y), 2, 3), y, lambda pred, y: pred.sum()).mix.partner.tolist()


class TestPair:
    @every_method
    @pytest.mark.parametrize("pair", ["same", "other"])
    def test_partners_by_class(self, method, pair):
        y = torch.tensor([9, 9 if pair == "other" else 0, 1, 2, 0, 1, 2, 0])  # one sample alone in its class
        seen = set()
        for row in trained(method(pair=pair), y=y, x=images(n=8), model=cnn(10), fit=(8, 0.01)).spy.batches:
            seen.add(tuple(row.mix.partner.tolist()))
            for i, j in enumerate(row.mix.partner.tolist()):
                assert (y[i] == y[j]) == (pair == "same")
                assert i != j or (y == y[i]).sum() == 1
        assert len(seen) > 3

    def test_a_batch_of_one_class_has_no_other(self):
        assert partners(MixUp(pair="other"), torch.zeros(5, dtype=torch.int64)) == [0, 1, 2, 3, 4]

    def test_partners_by_a_function_of_the_targets(self):
        assert all(
            j < i
            for i, j in enumerate(partners(CutMix(pair=lambda y: torch.ones(9, 9).tril(-1)), torch.ones(9, 1)))
            if i
        )
        with pytest.raises(ValueError, match="pair"):
            partners(MixUp(pair=lambda y: torch.ones(3, 3)), torch.ones(9, 1))

    @pytest.mark.parametrize("y", [torch.rand(N), torch.rand(N, C), torch.randint(0, 2, (N, C))])
    def test_pairing_by_class_needs_class_indices_and_cmixup_continuous_targets(self, y):
        with pytest.raises(ValueError, match="pair="):
            partners(MixUp(pair="same"), y)
        with pytest.raises(TypeError, match="MixUp"):
            partners(CMixup(), y.long())

    @pytest.mark.parametrize("make", [CMixup, partial(MixUp, pair="same")])
    def test_pairing_needs_targets(self, make):
        with pytest.raises(ValueError, match="mix_batch"):
            make().draw(torch.rand(4, 2))
        with pytest.raises(ValueError, match="mix_batch"):
            trained(make(), cbs=[replace(yb=lambda learn: ())])

    def test_cmixup_pairs_similar_targets(self):
        y, far = torch.arange(9.0), {}
        by_function = CutMix(pair=partial(target_similarity, bandwidth=0.2))
        mixers = {"MixUp": MixUp(), "wide": CMixup(), "narrow": CMixup(bandwidth=0.2), "other": by_function}
        for name, cb in mixers.items():
            away = [(torch.tensor(partners(cb, y)) - y).abs().mean().item() for _ in range(100)]
            far[name] = sum(away) / len(away)
        assert far["MixUp"] > far["wide"] + 0.3 > far["narrow"] + 0.6
        assert far["other"] == pytest.approx(far["narrow"], abs=0.2)


CLEAN = {
    **METHODS,
    "one lam": partial(MixUp, per_sample=False),
    "PatchUp": PatchUp,
    "PatchUp, one box": partial(PatchUp, per_sample=False),
    "ResizeMix": ResizeMix,
    "OneOf, each sample": partial(OneOf, MixUp(), CutMix(), per_sample=True),
    "OneOf": lambda clean: OneOf(MixUp(clean=clean), PatchUp(clean=clean, hard=True)),
}


class TestClean:
    @pytest.mark.parametrize("name", CLEAN)
    def test_the_unmixed_batch_comes_before_the_mixed_one(self, name):
        learn = trained(CLEAN[name](clean=True), fit=(2, 0.01))
        check_losses(learn)  # the mean of those of the batch and of its mix
        for row in learn.spy.batches:
            n = len(row.lam) // 2
            assert [len(t) for t in (row.x[0], row.y[0], row.pred)] == [2 * n] * 3
            assert torch.equal(row.x[0][:n], row.x0[0][:n])
            assert (row.lam[:n] == 1).all()
            assert (row.mix.partner[n:] >= n).all()
            if row.place == "input":
                close(row.x[0], slow_mix(row.x0[0], row.mix))
            if "one" in name:
                assert (row.mix.mask[n:] == row.mix.mask[n]).all()
        assert any((row.lam < 1).any() for row in learn.spy.batches)

    @pytest.mark.parametrize("clean", [False, True])
    def test_tensor_subclasses_and_copies_of_their_attributes_are_kept(self, clean):
        x, y = TensorImage(torch.rand(8, 3, 6, 6)), TensorMultiCategory(torch.randint(0, 2, (8, 3)))
        x.img_size, x.note = 6, []
        mixed = mix_batch(MixUp(clean=clean), x, y, BCEWithLogitsLossFlat())  # converts targets to floats
        assert (type(mixed.xb[0]), mixed.xb[0].img_size) == (TensorImage, 6)
        mixed.xb[0].note.append("mixed")
        assert x.note == []
        assert type(mixed.yb[0]) is type(mixed.yb1[0]) is TensorMultiCategory
        assert mixed.yb[0].is_floating_point()

    @pytest.mark.parametrize("make", [partial(MixUp, clean=True), partial(OneOf, MixUp(), CutMix(), per_sample=True)])
    def test_lam_of_each_sample_needs_a_loss_that_is_an_average(self, make):
        with pytest.raises(ValueError, match="is_average"):
            trained(make(), images(), loss=lambda pred, y: cross_entropy(pred, y) ** 2)
