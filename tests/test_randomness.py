"""What is random: a seed repeats every draw and touches nothing else; without one fastai's `set_seed` repeats a run."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from common import METHODS, C, N, classes, cnn, every_method, images, learner, trained
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from reference import close, in_threads
from torch import nn

from mixaug import CutMix, FMix, ManifoldMixup, MixUp, OneOf, PatchUp, ResizeMix, SaliencyMix, mix_batch

SEEDED = {
    **METHODS,
    "FMix": FMix,
    "SaliencyMix": SaliencyMix,
    "ResizeMix": ResizeMix,
    "PatchUp": PatchUp,
    "OneOf": lambda seed: OneOf(OneOf(MixUp(), FMix()), CutMix(), ManifoldMixup(), seed=seed),
    "OneOf, each sample": lambda seed: OneOf(OneOf(MixUp(), per_sample=True), FMix(), per_sample=True, seed=seed),
}
every_seeded = pytest.mark.parametrize("name", SEEDED)
X = torch.rand(6, 3, 8, 9)


def fields(mix):
    return [t.tolist() for t in (mix.partner, mix.mask, *mix.source_index)]


def global_generators():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


@every_seeded
def test_equal_seeds_draw_equally_whatever_the_global_generators(name):
    drawn = []
    for global_seed, seed in ((1, 1), (2, 1.0), (1, 2)):
        set_seed(global_seed)
        before, method = global_generators(), SEEDED[name](seed=seed)
        drawn.append([fields(method.draw(X)) for _ in range(3)])
        assert global_generators() == before
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]
    method = SEEDED[name](seed=1)  # in a choice each method keeps its seed
    assert fields(OneOf(method, seed=3).draw(X)) == drawn[0][0]


@every_seeded
def test_equal_seeds_train_on_equal_mixes_and_touch_no_global_generator(name):
    x, y, seen, after = images(), classes(), [], []
    for global_seed, mixer in ((1, SEEDED[name](seed=5)), (2, SEEDED[name](seed=5)), (1, None)):
        learn = learner(mixer, x, y)
        set_seed(global_seed)
        learn.fit(2)
        seen.append([(fields(row.mix), row.get("mixed_layer"), row.lam.tolist()) for row in learn.spy.batches if mixer])
        after.append(global_generators())
    assert seen[0] == seen[1]
    assert len(seen[0]) == 6
    assert after[0] == after[2]  # as without mixing


@every_seeded
def test_a_copy_goes_on_where_the_original_is(name):
    method = SEEDED[name](seed=3)
    first = fields(method.draw(X))
    copies = copy.deepcopy(method), pickle.loads(pickle.dumps(method))
    second = fields(method.draw(X))
    assert [fields(twin.draw(X)) for twin in copies] == [second, second]
    assert second != first


def test_threads_draw_what_each_draws_alone():
    def work(out, seed):
        methods = MixUp(seed=seed), FMix(seed=seed)
        out[seed] = [fields(m.draw(X)) for _ in range(50) for m in methods]

    alone, together = {}, {}
    for seed in (1, 2):
        work(alone, seed)
    in_threads(lambda seed: work(together, seed), 1, 2)
    assert together == alone
    assert alone[1] != alone[2]


def run(mixer, seed=7):
    """Return the loss of each batch, and what is drawn after the training."""
    set_seed(seed, reproducible=True)
    learn = trained(mixer, images(), classes(), nn.Sequential(*cnn(), nn.Dropout(0.2)), fit=(2, 0.01))
    return [row.loss.item() for row in learn.spy.batches], global_generators()


@every_method
def test_without_a_seed_set_seed_repeats_a_run(method):
    cb = method()
    assert run(cb) == run(cb) == run(method()) != run(cb, seed=8)
    assert run(method(prob=0)) == run(None) != run(method(prob=1))


@every_method
def test_a_seeded_callback_goes_on_in_its_next_fit(method):
    cb = method(seed=5)
    losses, after = run(cb)
    assert after == run(None)[1]
    assert run(method(seed=5)) == (losses, after)
    assert run(cb)[0] not in (losses, run(None)[0])


class Alone(nn.Sequential):
    """A model that leaves out what stack_x adds."""

    def forward(self, x, *more):
        return super().forward(x)


@pytest.mark.parametrize("method", [MixUp, CutMix, ResizeMix])
@pytest.mark.parametrize("options", [{}, {"per_sample": False}, {"clean": True}, {"stack_x": True}])
@pytest.mark.parametrize("targets", ["classes", "floats", "dense"])
def test_mix_batch_with_a_mix_gives_the_batch_that_was_trained_on(method, options, targets):
    y = {"classes": classes(), "floats": torch.rand(N, C), "dense": classes(5, 6)}[targets]
    loss = nn.MSELoss() if targets == "floats" else nn.CrossEntropyLoss()
    model = Alone(nn.Conv2d(2, C, 1) if targets == "dense" else cnn())
    for row in trained(method(1.0, **options), y=y, model=model, loss=loss, fit=(2, 0.01)).spy.batches:
        n = len(row.lam) // (2 if "clean" in options else 1)
        mixed = mix_batch(method(1.0, **options), row.x0[0][:n], row.y0[0][:n], loss, mix=row.mix)
        got, expected = (*mixed.xb, *mixed.yb, *mixed.yb1, mixed.lam), (*row.x, *row.y, *row.yb1, row.lam)
        assert len(got) == len(expected)
        assert all(map(torch.equal, got, expected))
        close(mixed.loss(row.pred), row.loss)


@pytest.mark.parametrize("name", ["MixUp", "CutMix", "ResizeMix", "OneOf, each sample"])
def test_a_plain_loop_with_the_seed_of_a_learner_has_its_losses(name):
    x, y, model, loss = images(), classes(), cnn(), nn.CrossEntropyLoss(torch.tensor([1.0, 2, 9]))
    plain, method, losses = copy.deepcopy(model), SEEDED[name](seed=4), []
    opt = torch.optim.SGD(plain.parameters(), 0.1)
    for xb, yb in [*zip(x.split(8), y.split(8), strict=True)] * 2:
        mixed = mix_batch(method, xb, yb, loss)
        value = mixed.loss(plain(*mixed.xb))
        losses.append(value.item())
        value.backward()
        opt.step()
        opt.zero_grad()
    learn = trained(SEEDED[name](seed=4), x, y, model, loss, fit=(2, 0.1), opt_func=SGD)
    assert [row.loss.item() for row in learn.spy.batches] == pytest.approx(losses, abs=1e-6)
