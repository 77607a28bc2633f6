"""The methods on `Learner`."""

import inspect
from itertools import pairwise

import pytest
from common import METHODS, learner
from fastai.learner import Learner

from mixaug import CutMix, MixHandler, MixUp, OneOf

PATCHES = {"mixup": "MixUp", "cutmix": "CutMix", "manifold_mixup": "ManifoldMixup", "output_mixup": "OutputMixup"}


@pytest.mark.parametrize(("patch", "method"), PATCHES.items())
def test_each_adds_its_callback_with_the_methods_signature_and_returns_the_learner(patch, method):
    learn = learner(None)
    assert getattr(learn, patch)(0.7, prob=0.5) is learn
    (cb,) = learn._grab_cbs(MixHandler)
    assert type(cb) is METHODS[method]
    assert (cb.alpha, cb.prob) == (0.7, 0.5)
    assert inspect.ismethod(getattr(learn, patch))  # the callback did not hide it
    wanted, patched = (inspect.signature(f).parameters for f in (METHODS[method], getattr(Learner, patch)))
    assert [*patched] == ["self", *wanted]
    assert all((patched[k].default, patched[k].kind) == (p.default, p.kind) for k, p in wanted.items())


def test_a_second_call_replaces_the_first_ones_callback():
    learn = learner(None)
    for patch, again in pairwise([*PATCHES, *PATCHES]):
        for name in (patch, again, again):
            getattr(learn, name)(1.0)
            learn.fit(1)
            (cb,) = learn._grab_cbs(MixHandler)
            assert type(cb) is METHODS[PATCHES[name]]


def test_fastais_attribute_names_stay_where_they_hide_nothing():
    assert learner(None).mixup().mix_up.alpha == 0.4
    assert learner(None).cutmix().cut_mix.alpha == 1.0


def test_mixup_takes_any_mixing_callback():
    learn, cb = learner(None), OneOf(MixUp(), CutMix())
    assert learn.mixup(cb).one_of is cb
    with pytest.raises(TypeError, match="alpha must be"):
        learn.mixup(cb, prob=0.5)
