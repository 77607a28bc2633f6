"""The methods on `Learner`."""

import inspect
from itertools import pairwise

import pytest
from common import METHODS, learner
from fastai.callback import mixup as fm
from fastai.learner import Learner

from mixaug import CutMix, FMix, MixHandler, MixUp, OneOf

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


def test_mix_with_takes_any_mixing_callback_and_nothing_else():
    learn, cb = learner(None), OneOf(MixUp(), CutMix())
    assert learn.mix_with(cb).one_of is cb
    assert learn.mix_with(FMix()).cbs.filter(lambda cb: isinstance(cb, MixHandler)).map(type) == [FMix]
    for wrong in (0.4, MixUp, fm.MixUp()):
        with pytest.raises(TypeError, match=r"method must be a mixing callback of mixaug, as MixUp\(0.4\)"):
            learn.mix_with(wrong)
    with pytest.raises(TypeError, match=r"Call it: MixUp\(\)"):
        learn.mix_with(MixUp)
    with pytest.raises(TypeError, match="alpha must be"):
        learn.mixup(cb)


def test_mixing_of_fastai_is_named_with_the_way_to_import_ours():
    learn = learner(None, cbs=[fm.CutMix()])
    words = r"fastai\.callback\.mixup\.CutMix, which is fastai's own.*`import mixaug as mx`"
    with pytest.raises(ValueError, match=words):
        learn.mixup()
    learn.add_cb(MixUp())
    with pytest.raises(ValueError, match=f"Expected one mixing callback.*{words}"):
        learn.fit(1)
    with pytest.raises(TypeError, match=words):
        learn.mix_with(fm.CutMix())
