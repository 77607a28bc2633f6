"""`mixaug.compare`: its statistics by hand, its runs against trainings by hand, the file of finished runs."""

import itertools
import json
import math
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from common import loaders, on
from fastai.callback.core import Callback
from fastai.callback.schedule import SchedLin, combine_scheds
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat, MSELossFlat
from fastai.metrics import accuracy, foreground_acc, rmse
from fastai.tabular.model import TabularModel
from fastai.torch_core import params, set_seed
from fastprogress import fastprogress
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from mixaug import CutMix, ManifoldMixup, MixUp, OneOf, OutputMixup, remix, target_similarity
from mixaug.compare import Comparison, compare, ece
from mixaug.compare.fingerprint import told
from mixaug.compare.measures import is_lower_better
from mixaug.compare.methods import makers, named
from mixaug.compare.progress import Progress
from mixaug.compare.statistics import decimals_for, paired_difference
from mixaug.compare.training import Training

# Statistics


def test_ece_equals_the_slow_formula():
    for n_classes, scale in ((4, 1), (40, 0.3)):  # many classes: confidences in the lowest bins too
        prob = (scale * torch.randn(300, n_classes, dtype=torch.double)).softmax(1)
        target = torch.where(torch.rand(300) < 0.1, prob.argmax(1), torch.randint(0, n_classes, (300,)))
        top, guess = prob.max(1)
        bins = [(top > b / 15) & (top <= (b + 1) / 15) for b in range(15)]
        slow = sum(abs(top[at].sum() - (guess == target)[at].sum()) for at in bins) / 300
        assert ece(prob, target) == pytest.approx(float(slow))
        assert ece(prob, target[:, None]) == ece(prob, target)  # as tables have them
    assert [ece(torch.eye(4), torch.arange(4).roll(k)) for k in (0, 1)] == [0, 1]
    edge = torch.tensor([[0.4, 0.3, 0.3], [0.5, 0.25, 0.25]])  # both in (0.25, 0.5]
    assert ece(edge, torch.tensor([0, 1]), bins=4) == pytest.approx((0.5 - 0.6) / -2)


@pytest.mark.parametrize(("comparisons", "t"), [(1, 4.302653), (2, 6.205347), (5, 9.924843)])  # of 2 degrees of freedom
def test_an_interval_is_students_corrected_for_the_number_of_comparisons(comparisons, t):
    d = paired_difference([5.0, 4.0, 9.0], [4.0, 2.0, 6.0], comparisons)  # 1, 2, 3: a deviation of 1
    assert d.mean == pytest.approx(2)
    assert (d.low, d.high) == (pytest.approx(2 - t / 3**0.5, abs=1e-5), pytest.approx(2 + t / 3**0.5, abs=1e-5))
    assert (d.seeds, d.significant, f"{d:.2f}") == (3, False, f"+2.00 ± {t / 3**0.5:.2f}")
    d = paired_difference([5.0, 4.0, 9.0], [4.0, 2.9, 8.1])
    assert (d.significant, f"{d:.1f}") == (True, "+1.0 ± 0.2 *")


@pytest.mark.parametrize(
    ("differences", "mean"),
    [([2.0], 2), ([1.0, 3.0], 2), ([0.1, 0.3 - 0.2, 0.1], 0.1), ([0.0] * 3, 0), ([1, 2, math.nan], math.nan)],
)
def test_there_is_no_interval_of_two_seeds_of_equal_differences_and_of_nan(differences, mean):
    d = paired_difference(differences, [0.0] * len(differences))
    assert d.mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(d.low)
    assert math.isnan(d.high)
    assert (d.significant, f"{d:.1f}") == (False, f"{mean:+.1f}")


def test_losses_and_errors_are_better_if_lower():
    lower = "valid_loss", "error_rate", "_rmse", "mse", "ECE %", "RMSE", "exp_rmspe", "memorized %", "perplexity"
    assert all(map(is_lower_better, lower))
    assert not any(map(is_lower_better, ("accuracy", "roc_auc_score", "dice", "glossary", "accuracy %")))


@pytest.mark.parametrize(
    ("means", "deviations", "decimals"),
    [
        ([0.952], [], 3),
        ([95.2], [1.8], 1),
        ([30841], [24], 0),
        ([175.6], [0.08], 2),
        ([0.0471], [0.002], 4),
        ([0], [], 2),
    ],
)
def test_as_many_decimals_are_shown_as_differ(means, deviations, decimals):
    assert decimals_for(means, deviations) == decimals


# The methods


def test_methods_have_labels_and_fresh_callbacks():
    instance = MixUp(8)
    given = {
        "a": None,
        "b": lambda: ManifoldMixup(2),
        "c": OutputMixup,
        "d": instance,
        "e": "cutmix:1",
        "f": [instance],
    }
    made = {label: make() for label, make in makers(given, "a").items()}
    assert list(made) == ["a", "b", "c", "d", "e", "f"]
    assert made["a"] is None
    assert [repr(made[label]) for label in "bcde"] == [
        "ManifoldMixup(2.0)",
        "OutputMixup(0.4)",
        "MixUp(8.0)",
        "CutMix(1.0)",
    ]
    assert made["d"] is not instance is not made["f"][0]
    assert list(makers(["cutmix", "mixup:.2", MixUp(8), None], "none")) == [
        "none",
        "cutmix:1",
        "mixup:0.2",
        "MixUp(8.0)",
    ]
    assert (named("mixup", 3)[0], named("patch_up")[0], named("mixup:.12345678")[0]) == (
        "mixup:3",
        "patch_up:2",
        "mixup:0.12345678",
    )


@pytest.mark.parametrize(
    ("methods", "error", "match"),
    [
        (["mixupp"], ValueError, "methods must be none, mixup"),
        (["mixup:0"], ValueError, "methods must have an alpha"),
        (["mixup:x"], ValueError, "methods must have an alpha"),
        ({"a": 3}, TypeError, "methods must be names"),
        (3, TypeError, "methods must be a dict"),
    ],
)
def test_what_is_no_method_raises(methods, error, match):
    with pytest.raises(error, match=match):
        makers(methods, "none")


def test_a_baseline_that_is_missing_raises():
    with pytest.raises(ValueError, match="baseline must be one of"):
        makers(["mixup"], "no mixing")


# Comparisons with known values


class Plus(Callback):
    """A method that changes the score by a number for each seed."""

    def __init__(self, *changes):
        self.changes = changes


def score(learn):
    return 80 + 2 * learn.seed + sum(cb.changes[learn.seed] for cb in learn.cbs if isinstance(cb, Plus))


def tiny(seed, make=lambda: nn.Linear(3, 2)):
    x, y = torch.randn(12, 3), torch.randint(0, 2, (12,))
    learn = Learner(loaders(x, y), make(), CrossEntropyLossFlat(), metrics=accuracy)
    learn.seed = seed
    return learn


FIT = lambda learn: learn.fit(2, 0.1)  # noqa: E731
METHODS = {
    "none": None,
    "good": lambda: Plus(2, 2.2, 2.1),
    "bad": lambda: Plus(-2, -2.2, -2.1),
    "same": lambda: Plus(1, -2, 0.4),
}


def scored(methods=METHODS, seeds=3, **options):
    options = {"fit": FIT, "measures": {"score": score}, **options}
    return compare(tiny, methods, seeds=seeds, **options)


@pytest.fixture(scope="module")
def result():
    return scored()


def test_runs_have_each_measure_after_each_epoch(result):
    runs = result.runs
    assert list(runs) == ["method", "seed", "epoch", "train_loss", "valid_loss", "accuracy", "score", "seconds"]
    assert len(runs) == 4 * 3 * 2
    assert runs.score.isna().tolist() == [True, False] * 12
    assert result.measures == ["valid_loss", "accuracy", "score"]
    assert result.values("score", "good").tolist() == [82, 84.2, 86.1]
    assert result.main == "accuracy"
    infinite = scored({}, seeds=1, measures={"score": lambda learn: math.inf})
    assert math.isnan(infinite.values("score", "none")[0])


def test_differences_are_paired_by_seed_and_corrected_for_the_methods(result):
    d = result.difference("score", "good")
    half = 7.648885 * 0.1 / 3**0.5  # Student's t at 1 - 0.05 / 3 / 2
    assert d.mean == pytest.approx(2.1)
    assert (d.low, d.high) == (pytest.approx(2.1 - half, abs=1e-5), pytest.approx(2.1 + half, abs=1e-5))
    assert result.difference("score", "good", "bad").mean == pytest.approx(4.2)
    assert result.difference("score", "bad", "good").seeds == 3
    for measure, method in (("scores", "good"), ("score", "none of them")):
        with pytest.raises(ValueError, match="must be one of"):
            result.difference(measure, method)


def test_the_verdict_comes_first_then_the_table_then_how_to_read_it():
    learn = partial(scored, better={"score": "higher"})
    result = learn()
    result.main = "score"
    lines = result.report().splitlines()
    assert lines[0] == "Best: good, score 84.1, +2.1 ± 0.4 over none (3 seeds)"
    assert lines[1] == "Worse than none: bad"
    rows = {line.split()[0]: line for line in lines[3:8]}
    assert list(rows) == ["method", "none", "good", "bad", "same"]
    assert re.search(r"84\.1 ± 2\.1 +\+2\.1 ± 0\.4 \*", rows["good"])
    assert re.search(r"79\.9 ± 2\.0 +-2\.1 ± 0\.4 \*", rows["bad"])
    assert re.search(r"81\.8 ± 2\.3 +-0\.2 ± 7\.0 ", rows["same"])
    assert "corrected for 3 methods" in lines[-1]
    assert result.table(["score"]).loc["good"].tolist() == ["84.1 ± 2.1", "+2.1 ± 0.4 *"]
    assert (repr(result), result.verdict()) == (result.report(), "\n".join(lines[:2]))
    assert "+2.1 ± 0.4 *" in result._repr_html_()
    lower = learn(better={"score": "lower"})
    lower.main = "score"
    assert lower.best() == "bad"


def test_where_no_difference_is_shown_the_verdict_says_so():
    result = scored({"same": lambda: Plus(1, -2, 0.4)})
    result.main = "score"
    assert result.report().startswith("No method is better than none: no gain in score that 3 seeds show\n\n")
    worse = scored({"bad": METHODS["bad"]})
    worse.main = "score"
    assert (worse.best(), worse.verdict().splitlines()[1]) == (None, "Worse than none: bad")
    two = scored({"good": lambda: Plus(2, 2.2)}, seeds=2)
    two.main = "score"
    assert two.report().startswith("2 seeds can show no difference: use more seeds (largest: good, score +2.1)\n")
    alone = scored({}, seeds=2)
    assert "none: accuracy" in alone.report()


def test_a_seed_counts_once_the_baseline_has_finished_it():
    run = {"epochs": [{"loss": 1.0}], "measures": {}, "seconds": 1.0, "first": {"weights": "", "batch": ""}}
    result = Comparison(dict.fromkeys([("a", 1), ("none", 0), ("a", 0), ("b", 1)], run), ["none", "a", "b"], "none", {})
    assert (result.methods, result.values("loss", "a").index.tolist()) == (["none", "a"], [0])
    result = Comparison(dict.fromkeys([("none", 0), ("none", 1), ("a", 1)], run), ["none", "a"], "none", {})
    assert (result.difference("loss", "a").seeds, result.difference("loss", "none", "a").seeds) == (1, 1)


def test_another_baseline_and_other_seeds():
    result = scored({"good": lambda: Plus(2, 2.2, 2.1), "none": None}, baseline="good", seeds=[2, 0, 1])
    assert result.methods == ["good", "none"]
    assert result.values("score", "none").to_dict() == {2: 84, 0: 80, 1: 82}
    assert result.difference("score", "none").mean == pytest.approx(-2.1)


def test_the_picture_sorts_the_methods_and_marks_what_is_better(result):
    axes = result.plot()
    assert [ax.get_title() for ax in axes] == ["← valid_loss", "accuracy →", "score →"]
    assert [t.get_text() for t in axes[2].get_yticklabels()] == ["bad", "same", "none", "good"]
    shown = [t.get_text() for t in axes[2].texts]
    assert shown == ["79.9 *", "81.8", "82.0", "84.1 *"]


def test_results_as_a_dict_are_json(result):
    found = json.loads(json.dumps(result.as_dict()))
    assert found["changes"]["good"]["score"]["mean"] == pytest.approx(2.1)
    assert (found["comparisons"], len(found["runs"])) == (3, 24)


# Against trainings by hand


def table(seed):
    x = torch.randint(0, 3, (40, 2)), torch.randn(40, 3)
    model = TabularModel([(3, 2), (3, 2)], 3, 2, [8])
    return Learner(loaders(x, x[0][:, 0] % 2), model, CrossEntropyLossFlat(), metrics=accuracy)


def text(seed):
    x = torch.randint(0, 20, (40, 6))
    model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2))
    return Learner(loaders(x, x[:, 0] % 2), model, CrossEntropyLossFlat(), metrics=accuracy)


def segmentation(seed):
    x = torch.randn(24, 1, 6, 6)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return Learner(loaders(x, (x[:, 0] > 0).long()), model, CrossEntropyLossFlat(axis=1), metrics=foreground_acc)


def regression(seed):
    x = torch.randn(40, 3)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    return Learner(loaders(x, x.sum(1, keepdim=True)), model, MSELossFlat(), metrics=rmse)


TASKS = {
    "table": (table, lambda: ManifoldMixup(2)),
    "text": (text, OutputMixup),
    "segmentation": (segmentation, CutMix),
    "regression": (regression, lambda: MixUp(2)),
}


@pytest.mark.parametrize(("new_learner", "method"), TASKS.values(), ids=TASKS)
def test_any_learner_is_compared_as_by_hand(new_learner, method):
    result = compare(new_learner, {"none": None, "method": method}, fit=lambda learn: learn.fit(2, 0.05), seeds=3)
    finals = {}
    for seed, (label, make) in itertools.product(range(3), (("none", lambda: None), ("method", method))):
        set_seed(seed)
        learn = new_learner(seed)
        learn.add_cbs(make())
        set_seed(seed)
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 0.05)
        finals.setdefault(label, []).append(learn.recorder.values[-1][1:])
        assert result.runs[(result.runs.method == label) & (result.runs.seed == seed)].train_loss.tolist() == [
            values[0] for values in learn.recorder.values
        ]
    difference = np.array(finals["method"]) - np.array(finals["none"])
    for measure, d in zip(result.measures, difference.T, strict=True):
        got = result.difference(measure, "method")
        half = 4.302653 * d.std(ddof=1) / 3**0.5
        assert got.mean == pytest.approx(d.mean())
        assert (got.high - got.low) / 2 == pytest.approx(half, rel=1e-5) or math.isnan(got.low)
    assert not result.unlike()


def test_all_methods_of_a_seed_start_alike_or_the_report_says_so():
    class Random(Callback):
        """A method that draws from the global generators."""

        def before_fit(self):
            torch.rand(3), np.random.rand(3)

    result = scored({"random": Random}, seeds=2)
    assert not result.unlike()
    rng = np.random.default_rng()

    def unseeded(seed):
        x = torch.from_numpy(rng.normal(size=(12, 3))).float()
        return Learner(loaders(x, torch.arange(12) % 2), nn.Linear(3, 2), CrossEntropyLossFlat())

    result = compare(unseeded, {"a": Random}, fit=FIT, seeds=2)
    assert result.unlike() == ["a, seed 0: another first batch", "a, seed 1: another first batch"]
    assert "Not paired: a, seed 0: another first batch" in result.report()

    def unlike_weights(seed):
        return tiny(seed, lambda: nn.Linear(3, 2, generator=None) if rng.random() < 2 else None)

    def changed(seed):
        learn = tiny(seed)
        learn.model.weight.data += float(rng.random())
        return learn

    assert "another first weights" in compare(changed, {"a": Random}, fit=FIT, seeds=1).unlike()[0]


def test_a_measure_that_draws_numbers_draws_the_same_for_all_methods():
    drawing = partial(on, "after_fit", lambda learn: torch.rand(3))
    result = scored({"draws": drawing}, seeds=2, measures={"drawn": lambda learn: torch.rand(1).item()})
    assert result.values("drawn", "draws").tolist() == result.values("drawn", "none").tolist()


def test_fine_tune_is_one_run_whose_frozen_epoch_is_no_progress():
    def new_learner(seed):
        learn = tiny(seed, lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
        learn.splitter = lambda model: [params(model[0]), params(model[1])]
        return learn

    told, fits = [], on("before_fit", lambda learn: frozen.append(learn.opt.frozen_idx))
    frozen = []
    run = Training(new_learner, lambda learn: learn.fine_tune(2)).run(lambda: fits, 0, told.append)
    assert (frozen, told, len(run["epochs"])) == ([1, 0], [0.5, 1], 2)


def test_runs_side_by_side_are_the_same_runs():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one, two = (scored({"good": lambda: Plus(2, 2.2, 2.1), "mix": lambda: MixUp(1)}, jobs=jobs) for jobs in (1, 2))
    torch.set_num_threads(threads)
    keys = ["method", "seed", "epoch"]
    pd.testing.assert_frame_equal(
        *(r.runs.drop(columns="seconds").sort_values(keys, ignore_index=True) for r in (one, two))
    )


# The file of finished runs


def trained(capsys):
    """The labels of the trainings that finished."""
    return re.findall(r"run \d+ of \d+, \d+:\d\d left: (.+)", capsys.readouterr().err)


def test_finished_runs_are_used_again_whatever_the_order(tmp_path, capsys):
    runs = tmp_path / "runs.jsonl"
    first = scored(runs=runs)
    before = runs.read_bytes()
    assert len(trained(capsys)) == 12
    again = scored(dict(reversed(METHODS.items())), runs=runs, seeds=4 - 1)
    assert trained(capsys) == []
    assert runs.read_bytes() == before
    assert again.difference("score", "good") == first.difference("score", "good")
    scored(runs=runs, seeds=[0, 5], methods={"other": lambda: Plus(*range(6))})
    assert trained(capsys) == ["other, seed 0", "none, seed 5", "other, seed 5"]


def test_stored_runs_are_read_without_training(tmp_path, capsys):
    first = scored(runs=tmp_path / "runs.jsonl")
    capsys.readouterr()
    again = Comparison.read(tmp_path / "runs.jsonl")
    assert (again.report(), again.methods, trained(capsys)) == (first.report(), first.methods, [])
    assert Comparison.read(tmp_path / "runs.jsonl", "good").difference("score", "none").mean == pytest.approx(-2.1)
    with pytest.raises(ValueError, match="baseline must be one of"):
        Comparison.read(tmp_path / "runs.jsonl", "no mixing")
    scored({}, seeds=1, runs=tmp_path / "runs.jsonl", settings={"note": 2})
    with pytest.raises(ValueError, match="runs of the same settings"):
        Comparison.read(tmp_path / "runs.jsonl")


CHANGES = {
    "fit": {"fit": lambda learn: learn.fit(3, 0.1)},
    "settings": {"settings": {"note": 2}},
    "measures": {"measures": {"score": lambda learn: score(learn) + 1}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_runs_of_other_settings_are_not_used_which_is_said(change, tmp_path, capsys):
    runs = tmp_path / "runs.jsonl"
    scored({}, seeds=1, runs=runs)
    capsys.readouterr()
    scored({}, seeds=1, runs=runs, **CHANGES[change])
    err = capsys.readouterr().err
    assert f"1 other runs in {runs} are not used: they differ in {change}" in err
    assert "none, seed 0" in err
    assert len(runs.read_text().splitlines()) == 2


def other(x=None, model=None, loss=None, **options):
    dls = tiny(0).dls if x is None else loaders(x, torch.zeros(12).long())
    return lambda seed: Learner(
        dls, model or nn.Linear(3, 2), loss or CrossEntropyLossFlat(), metrics=accuracy, **options
    )


OTHERS = {
    "model": other(model=nn.Sequential(nn.Linear(3, 2))),
    "loss": other(loss=CrossEntropyLossFlat(reduction="sum")),
    "data": other(torch.ones(12, 3)),
    "optimizer": other(wd=0.3),
}


def test_runs_of_other_code_are_used_if_the_user_says_so(tmp_path, capsys, monkeypatch):
    once = lambda learn: learn.fit(1)  # noqa: E731
    for code, installed, fit, n in (
        (False, "1", FIT, 1),
        (False, "2", once, 0),
        (True, "2", FIT, 1),
        (True, "3", FIT, 1),
    ):
        monkeypatch.setattr("mixaug.compare.run.installed", lambda installed=installed: {"torch": installed})
        scored({}, seeds=1, runs=tmp_path / "runs.jsonl", code=code, fit=fit)
        assert len(trained(capsys)) == n
    scored({}, seeds=1, runs=tmp_path / "runs.jsonl", code=False, settings={"epochs": 3})
    assert len(trained(capsys)) == 1


@pytest.mark.parametrize(("what", "new_learner"), OTHERS.items())
def test_runs_belong_to_the_model_the_data_the_loss_and_the_optimizer(what, new_learner, tmp_path, capsys):
    runs = tmp_path / "runs.jsonl"
    compare(tiny, {}, fit=FIT, seeds=1, runs=runs)
    capsys.readouterr()
    compare(new_learner, {}, fit=FIT, seeds=1, runs=runs)
    assert re.search(rf"not used: they differ in .*\b{what}\b", capsys.readouterr().err)


def test_runs_belong_to_a_method_with_its_options(tmp_path, capsys):
    runs = tmp_path / "runs.jsonl"
    for make, n in ((lambda: Plus(1), 2), (lambda: Plus(2), 1), (lambda: Plus(1), 0)):
        scored({"plus": make}, seeds=1, runs=runs)
        assert len(trained(capsys)) == n
    for method, n in ((MixUp(0.2), 1), (MixUp(0.3), 1), (MixUp(0.2), 0)):
        scored({"mix": method}, seeds=1, runs=runs)
        assert len(trained(capsys)) == n


@pytest.mark.parametrize("zeros", [b"", b"\0" * 9])
def test_a_damaged_line_is_skipped_with_a_warning_that_names_it(tmp_path, zeros, capsys):
    runs = tmp_path / "runs.jsonl"
    scored({"good": METHODS["good"]}, seeds=1, runs=runs)
    first, second = runs.read_bytes().splitlines(keepends=True)
    capsys.readouterr()
    for rest in (b"Dear reader", second[:2], second[: len(second) // 2], second[:-2]):
        runs.write_bytes(first + rest + zeros)
        with pytest.warns(UserWarning, match=r"runs.jsonl, line 2, is damaged") as told:
            scored({"good": METHODS["good"]}, seeds=2, runs=runs)
        assert (len(told), trained(capsys)) == (1, ["good, seed 0", "none, seed 1", "good, seed 1"])
        assert runs.read_bytes().startswith(first + rest + zeros + b"\n{")
        with pytest.warns(UserWarning, match="damaged"):
            scored({"good": METHODS["good"]}, seeds=1, runs=runs)
        assert trained(capsys) == []


@pytest.mark.parametrize("content", [b"Dear reader,\n", b"\x89PNG\r\n\x1a\n\x00\xff", b"1\n", b'{"a": 1}\n'])
def test_a_file_of_something_else_is_refused_and_unchanged(tmp_path, content):
    runs = tmp_path / "notes"
    runs.write_bytes(content)
    with pytest.raises(ValueError, match="runs must be a file of finished runs"):
        scored({}, seeds=1, runs=runs)
    assert runs.read_bytes() == content


def test_two_processes_write_to_one_file_and_train_nothing_twice(tmp_path, capsys):
    runs = tmp_path / "runs.jsonl"

    def fit(learn):
        if learn.seed == 0 and not runs.read_text():
            compare(tiny, {"good": METHODS["good"]}, fit=fit, seeds=[1], runs=runs, measures={"score": score})
        learn.fit(1, 0.1)

    compare(tiny, {"good": METHODS["good"]}, fit=fit, seeds=2, runs=runs, measures={"score": score})
    assert len(runs.read_text().splitlines()) == 4
    assert sorted(trained(capsys)) == ["good, seed 0", "good, seed 1", "none, seed 0", "none, seed 1"]


# Failures and interruptions


def throw(error):
    raise error


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_method_that_fails_stops_no_other_and_is_reported(jobs, capsys):
    broken = partial(on, "before_fit", lambda learn: throw(RuntimeError("shapes do not fit\nin line 2")))
    result = scored({"broken": broken, "good": METHODS["good"]}, jobs=jobs)
    assert result.methods == ["none", "good"]
    assert list(result.failed) == ["broken"]
    assert "shapes do not fit in line 2" in result.failed["broken"]
    assert "Failed: broken" in result.report()
    assert capsys.readouterr().err.count("failed: broken") <= jobs


def test_a_baseline_that_fails_raises_value_error_at_once(capsys):
    with pytest.raises(ValueError, match=r"baseline that can be trained.*no luck"):
        scored({"none": lambda: throw(RuntimeError("no luck")), "good": METHODS["good"]})
    assert trained(capsys) == []


def test_the_baseline_is_not_trained_on_once_all_methods_have_failed(capsys):
    result = scored({"broken": lambda: throw(RuntimeError("no luck"))}, seeds=4)
    assert (result.failed, trained(capsys)) == ({"broken": "RuntimeError: no luck"}, ["none, seed 0"])
    alone = scored({}, seeds=2)
    assert len(alone.values("score", "none")) == 2


def test_a_learner_in_the_place_of_a_function_raises_type_error():
    with pytest.raises(TypeError, match="new_learner must be a function of a seed"):
        compare(tiny(0), {}, fit=FIT)


def test_an_interruption_loses_nothing(tmp_path, capsys):
    stop = partial(on, "before_fit", lambda learn: throw(KeyboardInterrupt()))
    runs = tmp_path / "runs.jsonl"
    result = scored({"good": METHODS["good"], "stop": stop, "bad": METHODS["bad"]}, runs=runs)
    assert (result.interrupted, result.methods, len(result.last)) == (True, ["none", "good"], 2)
    assert "Interrupted" in result.report()
    assert "interrupted after 2 of 12 runs" in capsys.readouterr().err
    scored({"good": METHODS["good"], "bad": METHODS["bad"]}, runs=runs)
    assert trained(capsys)[0] == "bad, seed 0"
    with pytest.raises(KeyboardInterrupt):
        scored({"none": stop})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seeds": 0}, "seeds must be"),
        ({"seeds": [1, 1]}, "seeds must be"),
        ({"jobs": 0}, "jobs must be"),
        ({"better": {"score": "up"}}, "better must be"),
        ({"fit": lambda learn: None}, "fit must train"),
    ],
)
def test_bad_arguments_raise_value_error(options, match):
    with pytest.raises(ValueError, match=match):
        scored(**options)


# What can be told of functions and values

LEVEL = 1


def uses_a_global():
    return LEVEL


def test_what_is_told_of_functions_changes_with_all_they_depend_on(monkeypatch):
    def made(inner, default=1):
        return lambda x, y=default: inner * x + y

    alike = [made(2), made(2)]
    others = [
        made(3),
        made(2, 5),
        partial(made(2), 1),
        lambda x: [2 * i for i in range(x)],
        lambda x: [3 * i for i in range(x)],
    ]
    assert repr(told(alike[0])) == repr(told(alike[1]))
    assert len({repr(told(f)) for f in (*alike, *others)}) == 1 + len(others)
    before = repr(told(uses_a_global))
    monkeypatch.setitem(globals(), "LEVEL", 2)
    assert repr(told(uses_a_global)) != before
    assert "torch" in told(F.cross_entropy)


def test_what_is_told_of_data_changes_with_the_values():
    frames = pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]}), pd.Series([1])
    tensors = torch.ones(3), torch.zeros(3), np.ones(3), np.ones((3, 1)), nn.Linear(2, 3), nn.Linear(3, 3)
    values = [*frames, *tensors, MixUp(1), MixUp(2), {"a": 1}, {"a": 2}, [1, 2], np, torch]
    assert len({repr(told(v)) for v in values}) == len(values)
    cycle = [1]
    cycle.append(cycle)
    assert "..." in repr(told(cycle))


# Progress


def test_progress_is_a_bar_in_notebooks_which_goes_at_the_end(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("mixaug.compare.progress.IN_NOTEBOOK", True)
    monkeypatch.setattr(fastprogress, "progress_bar", fastprogress.NBProgressBar)
    display = lambda html, **kwargs: shown.append(html) or SimpleNamespace(update=shown.append)  # noqa: E731
    monkeypatch.setattr("IPython.display.display", display)
    failing = partial(on, "before_fit", lambda learn: throw(RuntimeError("shapes do not fit")))
    for methods, end in (({"good": METHODS["good"]}, "run 2 of 2: good, seed 0"), ({"bad": failing}, "of 2")):
        shown.clear()
        scored(methods, seeds=1)
        assert (end in str(shown[-2]), shown[-1].data) == (True, "")
    assert "left" not in capsys.readouterr().err


def test_progress_is_one_line_on_terminals_and_a_line_for_each_run_in_files(capsys, monkeypatch):
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        progress = Progress(2)
        for done in (0.5, 1.0):
            progress.tell("none, seed 0", done)
        progress.end()
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.count("run 1 of 2, 0:00 left: none, seed 0") == (2 if terminal else 1)


def test_methods_are_told_by_what_is_not_their_default_and_by_what_their_rules_depend_on():
    assert told(MixUp(0.4)) == told(MixUp()) == ["MixUp", "MixUp(0.4)", {}]  # a new option changes no key
    rules = [remix([9, 1], kappa) for kappa in (2, 3)]
    methods = [MixUp(), MixUp(0.5), MixUp(prob=0.5), MixUp(k=3), *(MixUp(lam_targets=rule) for rule in rules)]
    methods += [OneOf(MixUp(), CutMix()), OneOf(MixUp(prob=0.5), CutMix()), OneOf(MixUp(), CutMix(), per_sample=True)]
    methods += [MixUp(pair=partial(target_similarity, bandwidth=b)) for b in (1, 2)]
    methods += [MixUp(combine_scheds([0.5, 0.5], [SchedLin(0.1, to), SchedLin(to, 1)])) for to in (1, 5)]
    data = [TensorDataset(fill * torch.ones(2000), torch.zeros(2000)) for fill in (1, 2)]
    methods += [MixUp(partners=[part.tensors]) for part in data]
    assert len({repr(told(method)) for method in methods}) == len(methods)
    assert [told(method) for method in methods] == [told(method) for method in methods]


def test_runs_of_a_loader_of_partners_are_never_used_again_as_nobody_can_tell_what_it_draws():
    data = TensorDataset(torch.rand(12, 3), torch.arange(12) % 2)
    samplers = [WeightedRandomSampler(weights, 12) for weights in ([1.0] * 12, [1.0, 1000.0] * 6)]
    loaders = [DataLoader(data, 4), *(DataLoader(data, 4, sampler=sampler) for sampler in samplers)]
    seen = {repr(told(MixUp(partners=loader))) for loader in [*loaders, *loaders]}
    assert len(seen) == 6
    assert told(loaders[0]) != told(DataLoader(TensorDataset(torch.rand(12, 3), data.tensors[1]), 4))  # elsewhere
    assert told(MixUp(partners="last")) == told(MixUp(partners="last")) != told(MixUp())


class Rule:
    def __init__(self, power=2):
        self.power = power

    def __call__(self, mix, y, y1):
        return mix.lam**self.power


def test_objects_are_told_by_their_attributes():
    rules = [told(Rule(power)) for power in (2, 3, None)]
    assert len({repr(rule) for rule in rules}) == 3
    assert told(MixUp(lam_targets=Rule(2))) != told(MixUp(lam_targets=Rule(3)))


def test_methods_of_a_list_with_the_same_label_are_an_error():
    with pytest.raises(ValueError, match=r"methods must have different labels.*Give a dict"):
        makers([MixUp(lam_targets=remix([1, n])) for n in (2, 3)], "none")
    assert len(makers([MixUp(pair=partial(target_similarity, bandwidth=b)) for b in (1, 2)], "none")) == 3
    (_, label) = makers([MixUp(partners=DataLoader(TensorDataset(torch.zeros(9, 3)), 3))], "none")
    assert "0x" not in label
    (_, label) = makers([MixUp(partners=[(torch.rand(500, 3), torch.rand(500))])], "none")
    assert len(label) <= 200
