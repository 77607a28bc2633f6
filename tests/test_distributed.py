"""Two processes train one model: this file is the test, and what each of the processes runs."""

import os
import subprocess
import sys

import fastai.distributed  # noqa: F401  (patches Learner)
import pytest
import torch
from common import METHODS, C, images, learner, no_hooks, slow_loss
from fastai.distributed import DistributedDL
from fastai.torch_core import rank_distrib, set_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def broadcast(self, t, rank):
    t = torch.tensor(t)
    torch.distributed.broadcast(t, rank)
    return t.tolist()


def use_no_gpu():
    """Replace what has to run on a GPU: how fastai sends indices, and synchronized norms, as soon as they are made."""
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
        wrong = [row for row in learn.spy.batches if not torch.isclose(row["loss"], slow_loss(row, row["y"][0]))]
    return {
        "mixes": [(row["mix"].partner, row["lam"]) for row in learn.spy.batches],
        "layers": [row.get("mixed_layer") for row in learn.spy.batches],
        "wrong": len(wrong),
        "parameters": [p.detach() for p in learn.model.parameters()],
        "valid": learn.validate()[0],  # by each alone, over all samples
        "synced": any(isinstance(m, nn.SyncBatchNorm) for m in learn.model.modules()),
        "restored": learn.loss_func is loss and no_hooks(learn.model),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes saw, by the run's name: two equal trainings of each."""
    out = tmp_path_factory.mktemp("ranks")
    run = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*run, __file__, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


RUNS = [(name, sync_bn) for name in METHODS for sync_bn in (False, True)]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def mixes(run):
    return [t for mix in run["mixes"] for t in mix]


@pytest.mark.parametrize("run", RUNS)
def test_processes_mix_each_its_own_share_and_end_with_one_model(ranks, run):
    first, second = (rank[run][0] for rank in ranks)
    assert len(first["mixes"]) == len(second["mixes"]) == 4  # batches of 8 and 3, twice
    for rank in (first, second):
        assert rank["wrong"] == 0
        assert rank["restored"]
        assert rank["synced"] == run[1]
    assert not any(same(a, b) for a, b in zip(first["mixes"], second["mixes"], strict=True))
    assert same(first["parameters"], second["parameters"])
    assert first["valid"] == second["valid"]


@pytest.mark.parametrize("run", RUNS)
def test_one_seed_repeats_the_training_of_all_processes(ranks, run):
    for rank in ranks:
        first, again = rank[run]
        assert same(mixes(first), mixes(again))
        assert first["layers"] == again["layers"]
        assert same(first["parameters"], again["parameters"])


def test_a_seed_of_its_own_differs_by_process(ranks):
    for rank in ranks:
        first, again, other = map(mixes, rank["seed"])
        assert same(first, again)
        assert not same(first, other)
    assert not same(*(mixes(rank["seed"][0]) for rank in ranks))


def test_after_training_with_others_the_draws_are_those_of_one_process(monkeypatch):
    def lams(cb):
        set_seed(3)
        learn = learner(cb)
        learn.fit(1)
        return [row["lam"].tolist() for row in learn.spy.batches]

    cb, alone = METHODS["MixUp"](), lams(METHODS["MixUp"]())
    with monkeypatch.context() as several:
        several.setattr("mixaug.handlers.num_distrib", lambda: 2)
        assert lams(cb) != alone
    assert lams(cb) == alone


if __name__ == "__main__":
    use_no_gpu()
    results = {(name, sync_bn): [train(METHODS[name], sync_bn) for _ in range(2)] for name, sync_bn in RUNS}
    results["seed"] = [train(METHODS["MixUp"], False, seed=seed) for seed in (3, 3, 4)]
    torch.save(results, f"{sys.argv[1]}/{rank_distrib()}.pt")
    torch.distributed.destroy_process_group()
