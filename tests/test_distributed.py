"""Two processes train one model: this file is the test, and what each of the processes runs."""

import os
import subprocess
import sys

import fastai.distributed  # noqa: F401  (patches Learner)
import pytest
import torch
from common import METHODS, C, classes, images, learner, no_hooks
from fastai.distributed import DistributedDL
from fastai.torch_core import rank_distrib, set_seed
from reference import slow_loss, slow_mix
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def use_no_gpu():
    """Replace what needs a GPU: how fastai sends indices, and synchronized batch norm."""

    def broadcast(self, t, rank):
        torch.distributed.broadcast(t := torch.tensor(t), rank)
        return t.tolist()

    DistributedDL._broadcast = broadcast
    nn.SyncBatchNorm.forward = nn.BatchNorm2d.forward  # what it does in one process
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None


def model():
    body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(body, nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, C))


def train(method, sync_bn, **kwargs):
    set_seed(1)
    cb = method(8, **kwargs)
    learn = learner(cb, images(), torch.randint(0, C, (22,)), model())
    loss, learn.progress = learn.loss_func, None  # or fastai adds a bar
    with learn.distrib_ctx(sync_bn=sync_bn, cpu=True):
        learn.fit(2, 0.01)
        x1, y1 = kwargs["partners"][0] if "partners" in kwargs else (None, None)
        targets = [row.partners if y1 is None else [y1[row.mix.partner]] for row in learn.spy.batches]
        formula = [slow_loss(row.pred, row.y0, y, row.lam) for row, y in zip(learn.spy.batches, targets, strict=True)]
        wrong = [row for row, value in zip(learn.spy.batches, formula, strict=True) if not row.loss.isclose(value)]
        taken = [torch.allclose(row.x[0], slow_mix(row.x0[0], row.mix, x1)) for row in learn.spy.batches]
    return {
        "mixes": [t for row in learn.spy.batches for t in (row.mix.partner, row.lam)],
        "layers": [row.get("mixed_layer") for row in learn.spy.batches],
        "wrong": len(wrong),
        "taken": taken,
        "parameters": [p.detach() for p in learn.model.parameters()],
        "valid": learn.validate()[0],  # by each alone, over all samples
        "synced": any(isinstance(m, nn.SyncBatchNorm) for m in learn.model.modules()),
        "restored": learn.loss_func is loss and no_hooks(learn.model),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what the two processes saw, by the run's name: two equal trainings of each."""
    out = tmp_path_factory.mktemp("ranks")
    run = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*run, __file__, str(out)], env=env, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


RUNS = [(name, sync_bn) for name in METHODS for sync_bn in (False, True)]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize("run", RUNS)
def test_processes_mix_differently_end_with_one_model_and_repeat(ranks, run):
    first, second = (rank[run][0] for rank in ranks)
    assert len(first["mixes"]) == len(second["mixes"]) == 8  # of batches of 8 and 3, twice
    for rank in (first, second):
        assert rank["wrong"] == 0
        assert rank["restored"]
        assert rank["synced"] == run[1]
    assert not any(map(torch.equal, first["mixes"][1::2], second["mixes"][1::2]))
    assert same(first["parameters"], second["parameters"])
    assert first["valid"] == second["valid"]
    for first, again in (rank[run] for rank in ranks):  # set_seed repeats the training
        assert same(first["mixes"], again["mixes"])
        assert first["layers"] == again["layers"]
        assert same(first["parameters"], again["parameters"])


def test_one_seed_draws_differently_in_each_process(ranks):
    for rank in ranks:
        first, again, other = (run["mixes"] for run in rank["seed"])
        assert same(first, again)
        assert not same(first, other)
    assert not same(*(rank["seed"][0]["mixes"] for rank in ranks))


def test_each_process_takes_partners_of_the_loader_that_it_has(ranks):
    for rank in ranks:
        assert rank["partners"]["taken"] == [True] * 4
        assert rank["partners"]["wrong"] == 0
    assert not same(*(rank["partners"]["mixes"] for rank in ranks))


if __name__ == "__main__":
    use_no_gpu()
    results = {(name, sync_bn): [train(METHODS[name], sync_bn) for _ in range(2)] for name, sync_bn in RUNS}
    results["seed"] = [train(METHODS["MixUp"], False, seed=seed) for seed in (3, 3, 4)]
    partners = [(images(n=13) + 10 * rank_distrib(), classes(n=13))]
    results["partners"] = train(METHODS["CutMix"], False, partners=partners)
    torch.save(results, f"{sys.argv[1]}/{rank_distrib()}.pt")
    torch.distributed.destroy_process_group()
