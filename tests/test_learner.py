"""The methods on `Learner`."""

import inspect

import pytest
from common import METHODS, learner
from fastai.learner import Learner

from mixaug import MixHandler

PATCHES = {"mixup": "MixUp", "cutmix": "CutMix", "manifold_mixup": "ManifoldMixup", "output_mixup": "OutputMixup"}


@pytest.mark.parametrize(("patch", "method"), PATCHES.items())
def test_each_adds_its_callback_and_returns_the_learner(patch, method):
    learn = learner(None)
    assert getattr(learn, patch)(0.7, prob=0.5) is learn
    (cb,) = learn._grab_cbs(MixHandler)
    assert type(cb) is METHODS[method]
    assert (cb.alpha, cb.prob) == (0.7, 0.5)
    assert inspect.ismethod(getattr(learn, patch))  # the callback did not hide it


@pytest.mark.parametrize(("patch", "method"), PATCHES.items())
def test_the_signature_is_the_methods_own(patch, method):
    own = dict(inspect.signature(METHODS[method]).parameters)
    patched = dict(inspect.signature(getattr(Learner, patch)).parameters)
    del patched["self"]
    assert {k: (p.default, p.kind) for k, p in patched.items()} == {k: (p.default, p.kind) for k, p in own.items()}


@pytest.mark.parametrize("first", PATCHES)
@pytest.mark.parametrize("second", PATCHES)
def test_a_second_call_replaces_the_first_ones_callback(first, second):
    learn = learner(None)
    getattr(learn, first)()
    learn.fit(1)
    getattr(learn, second)(1.0)
    learn.fit(1)
    (cb,) = learn._grab_cbs(MixHandler)
    assert type(cb) is METHODS[PATCHES[second]]
    assert cb.alpha == 1.0


def test_fastais_attribute_names_stay_where_they_hide_nothing():
    assert learner(None).mixup().mix_up.alpha == 0.4
    assert learner(None).cutmix().cut_mix.alpha == 1.0
