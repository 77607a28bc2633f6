"""The command `mixaug compare`: its statistics by value, its results on small settings, every way to go wrong."""

import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
import torch
from common import on
from fastai.torch_core import params
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import ttest_1samp

from mixaug import ManifoldMixup, MixUp
from mixaug.__main__ import main
from mixaug.compare import (
    METHODS,
    TILES,
    BadInputError,
    Clock,
    Run,
    RunsFile,
    by_method,
    digits,
    ece,
    figure,
    fingerprint,
    learner,
    noisy,
    paired_interval,
    parse_methods,
    report,
    split,
    spread,
    statements,
    summarize,
    table,
    train,
)
from mixaug.compare import folder as read_folder


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """A directory of the test's own, where the command leaves its files."""
    monkeypatch.chdir(tmp_path)


def slow_ece(prob, target, bins=15):
    total = 0.0
    for b in range(bins):
        inside = [
            (p.max().item(), float(p.argmax() == t))
            for p, t in zip(prob, target, strict=True)
            if b / bins < p.max().item() <= (b + 1) / bins
        ]
        if inside:
            top, right = np.mean(inside, 0)
            total += len(inside) * abs(top - right)
    return total / len(target)


def test_ece():
    for n_classes, scale in ((4, 1), (40, 0.3)):  # many classes: confidences in the lowest bins, too
        prob = (scale * torch.randn(300, n_classes, dtype=torch.double)).softmax(1)
        target = torch.where(torch.rand(300) < 0.1, prob.argmax(1), torch.randint(0, n_classes, (300,)))
        assert ece(prob, target) == pytest.approx(slow_ece(prob, target))
    assert ece(torch.eye(4), torch.arange(4)) == 0
    assert ece(torch.eye(4), torch.arange(4).roll(1)) == 1


@pytest.mark.parametrize("comparisons", [1, 5])
def test_the_paired_interval_is_that_of_the_t_test_for_each_of_the_comparisons(comparisons):
    for shift in (0.0, 1.0):
        d = np.random.default_rng(0).normal(shift, 1, 8)
        low, high = ttest_1samp(d, 0).confidence_interval(1 - 0.05 / comparisons)
        mean, half = paired_interval(d.tolist(), comparisons)
        assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))


def test_the_paired_interval_by_hand_and_where_there_is_none():
    # Student's t with one degree of freedom is Cauchy: its 97.5 % quantile is tan(0.475 pi), the standard error 1
    assert paired_interval([1.0, 3.0]) == (2, pytest.approx(math.tan(0.475 * math.pi)))
    assert paired_interval([1.0, 3.0], 2) == (2, pytest.approx(math.tan(0.4875 * math.pi)))
    assert paired_interval([2.0]) == (2, pytest.approx(math.nan, nan_ok=True))
    assert paired_interval([0.3 - 0.2, 0.2 - 0.1, 0.1]) == (pytest.approx(0.1), pytest.approx(math.nan, nan_ok=True))
    assert paired_interval([0.0, 0.0]) == (0, pytest.approx(math.nan, nan_ok=True))
    assert all(map(math.isnan, paired_interval([1.0, math.nan, 2.0])))
    for bad in (([],), ([1.0, 2.0], 0)):
        with pytest.raises(ValueError, match="at least were wanted"):
            paired_interval(*bad)


def test_spread():
    assert spread([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert spread([1.0], 1) == "1.0"


def results_of(accuracies, eces=None):
    """Results from accuracies and calibration errors in percent, by label."""
    eces = eces or {}
    return {
        label: {
            seed: Run([a / 100], 0.5, eces.get(label, [10.0] * len(values))[seed] / 100, 1.0)
            for seed, a in enumerate(values)
        }
        for label, values in accuracies.items()
    }


NONE = [80.0, 82.0, 84.0]
WORDS = {
    "better": ([82.0, 84.2, 86.1], "cutmix:1 is better than none: +2.1 ± 0.2 points over 3 seeds"),
    "worse": ([78.0, 79.8, 81.9], "cutmix:1 is worse than none: -2.1 ± 0.2 points over 3 seeds"),
    "no difference": ([80.2, 82.6, 83.9], "cutmix:1: no difference to none that 3 seeds show: +0.2 ± 0.9 points"),
    "one seed": ([88.0], "cutmix:1: +8.0 points with one seed, which carries no claim"),
    "equal": (
        [81.0, 83.0, 85.0],
        "cutmix:1: +1.0 points with each of 3 seeds, no claim: equal differences give no interval",
    ),
    "nan": ([math.nan, 83.0, 85.0], "cutmix:1: no claim, as not every run has a number"),
}


@pytest.mark.parametrize(("values", "words"), WORDS.values(), ids=WORDS)
def test_what_is_said_of_a_method(values, words):
    results = results_of({"none": NONE, "cutmix:1": values})
    assert statements(results) == {"cutmix:1": words}
    assert words in report(results, 0).splitlines()
    assert ("*" in table(results)) == (" than none" in words)


@pytest.mark.parametrize(("sign", "word"), [(1, "higher: +2.1 ± 0.2"), (-1, "lower: -2.1 ± 0.2"), (0, None)])
def test_what_is_said_of_the_calibration(sign, word):
    eces = {"none": [10.0, 12.0, 14.0], "cutmix:1": [10 + 2.0 * sign, 12 + 2.2 * sign, 14 + 2.1 * sign]}
    said = statements(results_of({"none": NONE, "cutmix:1": [80.2, 82.6, 83.9]}, eces))["cutmix:1"]
    assert said.endswith(f". Its calibration error is {word} points" if word else "show: +0.2 ± 0.9 points")


def test_more_methods_need_more_for_a_claim():
    some = {"none": NONE, "mixup:8": [82.0, 84.5, 85.6]}
    (half,) = [row["accuracy %"].half_width for label, row in summarize(results_of(some)).items() if label != "none"]
    assert half == pytest.approx(paired_interval([2, 2.5, 1.6])[1])
    assert "is better" in statements(results_of(some))["mixup:8"]
    assert "Bonferroni" not in report(results_of(some), 0)
    many = results_of({**some, **{f"cutmix:{k}": [80.0 + k, 82.5, 84.0] for k in range(1, 5)}})
    assert summarize(many)["mixup:8"]["accuracy %"].half_width == pytest.approx(paired_interval([2, 2.5, 1.6], 5)[1])
    assert "no difference" in statements(many)["mixup:8"]
    assert "Bonferroni for 5 comparisons" in report(many, 0)
    assert "*" not in table(many)


def test_nothing_is_said_of_none_alone():
    assert statements(results_of({"none": NONE})) == {}


@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_wrong_labels_are_the_share_asked_for_and_of_any_other_class(share):
    y = torch.randint(0, 5, (5000,))
    wrong = noisy(y, share, 5, seed=1)
    assert (wrong != y).sum() == share * 5000
    shifts = ((wrong - y) % 5)[wrong != y]
    assert all(abs((shifts == k).float().mean() - 0.25) < 0.04 for k in range(1, 5)) or share == 0
    assert torch.equal(wrong, noisy(y, share, 5, seed=1))


def test_the_split_is_fixed_and_stratified():
    y = torch.arange(3).repeat_interleave(torch.tensor([20, 40, 60]))
    train, valid = split(y, 0.25)
    assert sorted(torch.cat([train, valid]).tolist()) == list(range(120))
    assert y[valid].bincount().tolist() == [5, 10, 15]


def test_the_digits_are_the_real_ones():
    data = digits()
    assert len(data.train[1]) + len(data.valid[1]) == 1797
    assert data.train[0].shape[1:] == (1, 8, 8)
    assert (data.train[0].min(), data.train[0].max()) == (0, 1)


def test_methods_are_parsed():
    methods = parse_methods("cutmix, none,mixup:8,manifold_mixup", 2.0)
    assert list(methods) == ["none", "cutmix:2", "mixup:8", "manifold_mixup:2"]
    assert methods["none"] is None
    made = [methods[k]() for k in ("mixup:8", "manifold_mixup:2")]
    assert [(type(cb), cb.alpha) for cb in made] == [(MixUp, 8.0), (ManifoldMixup, 2.0)]
    alphas = "mixup:0.2,mixup:1,none,mixup:1.0,mixup:.2,mixup:0.12345678,mixup:0.12345679,mixup"
    labels = ["none", "mixup:0.2", "mixup:1", "mixup:0.12345678", "mixup:0.12345679", "mixup:0.4"]
    assert list(parse_methods(alphas, None)) == labels
    assert list(parse_methods(",".join(METHODS), None)) == [
        "none", "mixup:0.4", "cutmix:1", "fmix:1", "resize_mix:1", "saliency_mix:1", "manifold_mixup:0.4", "patch_up:2",
        "output_mixup:0.4", "one_of:1",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["mixupp", "mixup:x", "mixup:0", "mixup:-1", ""])
def test_unknown_methods_and_bad_alphas_are_refused(text):
    with pytest.raises(BadInputError):
        parse_methods(text, None)


# The whole command


def run(capsys, *argv):
    code = main(["compare", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def rows(out):
    """The table's lines, as far as the accuracy and its change."""
    lines = [line.split() for line in out.splitlines()]
    return [words[:8] for words in lines if words[1:] and words[1].isdigit() and words[0].split(":")[0] in
            ("none", *METHODS)]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two classes of pictures that a small network can tell apart."""
    for name, level in (("cat", 60), ("dog", 190)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i).integers(level - 50, level + 50, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def is_picture(file):
    with Image.open(file) as image:
        image.verify()
        return image.format == "PNG" and min(image.size) > 100


def test_a_small_run_on_the_digits(capsys, tmp_path):
    argv = "--methods", "mixup:8,output_mixup", "--seeds", 2, "--epochs", 1, "--out", "out.png", "--runs", ""
    code, out, err = run(capsys, *argv)
    assert code == 0
    assert [row[:2] for row in rows(out)] == [["none", "2"], ["mixup:8", "2"], ["output_mixup:0.4", "2"]]
    assert is_picture(tmp_path / "out.png")
    assert "run 6 of 6" in err
    assert rows(run(capsys, *argv)[1]) == rows(out)  # the same seeds give the same accuracies
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


def test_a_folder_of_images(capsys, tmp_path, folder):
    argv = "--data", folder, "--arch", "resnet18", "--size", 32, "--epochs", 1, "--seeds", 1, "--bs", 8
    code, out, _ = run(capsys, *argv, "--methods", "cutmix,manifold_mixup", "--out", tmp_path / "out.png")
    assert code == 0
    assert [row[0] for row in rows(out)] == ["none", "cutmix:1", "manifold_mixup:0.4"]
    assert "16 training images" in out
    assert is_picture(tmp_path / "out.png")


def test_results_that_were_computed_are_shown_after_an_interruption(capsys, tmp_path, monkeypatch):
    for error, expected in ((KeyboardInterrupt(), 130), (RuntimeError("out of memory"), 1)):
        monkeypatch.setattr(MixUp, "draw", lambda self, x, error=error: (_ for _ in ()).throw(error))
        out_file = tmp_path / f"{expected}.png"
        monkeypatch.setattr("mixaug.compare.tiles", lambda data, cb: [])
        argv = "--methods", "cutmix,mixup", "--epochs", 1, "--seeds", 1, "--out", out_file
        code, out, err = run(capsys, *argv, "--runs", f"{expected}.jsonl")
        assert code == expected
        assert [row[0] for row in rows(out)] == ["none", "cutmix:1"]
        assert is_picture(out_file)
        assert "in run 3 of 3 (mixup:0.4, seed 0)" in err
        assert "the same command goes on" in err
        _, out, err = run(capsys, *argv, "--runs", "")
        assert "in run 3 of 3" in err
        assert "the same command goes on" not in err


# Finished runs


@pytest.fixture
def trained(monkeypatch):
    """The labels of the trainings that were done."""
    labels = []

    def counted(learn, clock, epochs, lr):
        labels.append(clock.label)
        return train(learn, clock, epochs, lr)

    monkeypatch.setattr("mixaug.compare.train", counted)
    return labels


@pytest.fixture
def pretended(monkeypatch):
    """The labels of trainings that did not take place, each with an accuracy of its own, the third's ECE nan."""
    labels = []

    def pretend(learn, clock, epochs, lr):
        labels.append(clock.label)
        calibration = math.nan if len(labels) == 3 else 0.1 + 0.013 * len(labels)
        return Run([math.sin(len(labels)) ** 2] * epochs, 0.5, calibration, 1.0)

    monkeypatch.setattr("mixaug.compare.train", pretend)
    monkeypatch.setattr("mixaug.compare.figure", lambda *args: Figure())  # drawing takes longest
    return labels


def strict(text):
    """What the JSON says, without the extensions of Python's reader."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def without_seconds(out):
    methods = strict(out)["methods"]
    for method in methods.values():
        for r in method["runs"]:
            del r["seconds"]
    return methods


def test_a_run_that_crashed_goes_on_where_it_stopped(capsys, trained, monkeypatch):
    argv = "--methods", "mixup:8,output_mixup", "--seeds", 2, "--epochs", 1, "--json"
    code, whole, _ = run(capsys, *argv, "--runs", "whole.jsonl")
    jobs = [f"{label}, seed {seed}" for seed in range(2) for label in ("none", "mixup:8", "output_mixup:0.4")]
    assert (code, trained) == (0, jobs)
    trained.clear()
    with monkeypatch.context() as m:

        def crash(learn, clock, epochs, lr):
            if clock.done == 4:
                raise RuntimeError("out of memory")
            trained.append(clock.label)
            return train(learn, clock, epochs, lr)

        m.setattr("mixaug.compare.train", crash)
        assert run(capsys, *argv)[0] == 1
    assert trained == [*jobs[:4], jobs[5]]  # the other methods go on
    code, out, err = run(capsys, *argv)
    assert (code, trained) == (0, [*jobs[:4], jobs[5], jobs[4]])
    assert "5 of 6 runs taken from compare.jsonl" in err
    assert "run 1 of 1" in err
    assert without_seconds(out) == without_seconds(whole)
    code, out, err = run(capsys, *argv)
    assert (code, len(trained)) == (0, 6)
    assert "6 of 6 runs taken" in err
    assert without_seconds(out) == without_seconds(whole)


def test_a_method_that_failed_is_not_tried_with_other_seeds_and_stops_no_other(capsys, monkeypatch):
    tried = []

    def broken(learn, clock, epochs, lr):
        tried.append(clock.label)
        if clock.label.startswith("mixup"):
            raise RuntimeError("shapes do not fit")
        return train(learn, clock, epochs, lr)

    monkeypatch.setattr("mixaug.compare.train", broken)
    code, out, err = run(capsys, "--methods", "mixup:8,cutmix", "--seeds", 2, "--epochs", 1)
    assert code == 1
    assert tried == ["none, seed 0", "mixup:8, seed 0", "cutmix:1, seed 0", "none, seed 1", "cutmix:1, seed 1"]
    assert err.count("shapes do not fit") == 1
    assert "cutmix:1" in out
    assert "mixup:8" not in out


CHANGES = {
    "epochs": ["--epochs", 2],
    "noise": ["--noise", 0.1],
    "bs": ["--bs", 9],
    "lr": ["--lr", 0.001],
    "arch": ["--arch", "resnet18"],
    "size": ["--size", 40],
    "seeds": ["--seeds", 2],
}


@pytest.mark.parametrize("argv", CHANGES.values(), ids=CHANGES)
def test_other_settings_are_computed_anew_and_old_runs_stay(capsys, tmp_path, folder, pretended, argv):
    usual = "--data", folder, "--arch", "cnn", "--epochs", 1, "--seeds", 1, "--size", 32, "--bs", 8
    usual = *usual, "--methods", "mixup:8"
    run(capsys, *usual)
    before = (tmp_path / "compare.jsonl").read_bytes()
    pretended.clear()
    assert run(capsys, *usual, *argv)[0] == 0
    assert pretended == [f"{label}, seed {'--seeds' in argv:d}" for label in ("none", "mixup:8")]
    after = (tmp_path / "compare.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == 4
    assert len([strict(line) for line in after.splitlines()]) == 4
    assert run(capsys, *usual)[0] == 0
    assert len(pretended) == 2
    assert (tmp_path / "compare.jsonl").read_bytes() == after


def test_runs_are_those_of_the_images_not_of_their_folder(capsys, folder, pretended):
    argv = "--arch", "cnn", "--epochs", 1, "--seeds", 1, "--size", 32, "--bs", 8, "--methods", "none", "--data"
    run(capsys, *argv, folder)
    run(capsys, *argv, folder.rename(folder.with_name("moved")))
    assert len(pretended) == 1
    Image.new("RGB", (20, 20)).save(folder.with_name("moved") / "cat" / "0.png")
    run(capsys, *argv, folder.with_name("moved"))
    assert len(pretended) == 2


def test_each_method_with_its_alpha_has_its_own_runs(capsys, pretended):
    argv = "--seeds", 1, "--epochs", 1
    run(capsys, *argv, "--methods", "mixup:0.2,mixup:1")
    run(capsys, *argv, "--methods", "mixup:0.2,none,mixup:2,mixup:1")
    assert pretended == ["none, seed 0", "mixup:0.2, seed 0", "mixup:1, seed 0", "mixup:2, seed 0"]


def other_version(name, asked):
    return "9.9" if asked == name else version(asked)


def test_versions_and_devices_are_settings(capsys, tmp_path, pretended, monkeypatch):
    argv = "--seeds", 1, "--epochs", 1, "--methods", "none"
    run(capsys, *argv)
    changes = [
        ("mixaug.compare.__version__", "9.9"),
        ("mixaug.compare.__file__", str(tmp_path / "compare.py")),  # other code
        *(("mixaug.compare.version", partial(other_version, name)) for name in ("torch", "torchvision", "fastai")),
        ("mixaug.compare.default_device", lambda: torch.device("meta")),
    ]
    learn = learner(digits(), 0, 0, 128, "cnn", False)
    monkeypatch.setattr("mixaug.compare.learner", lambda *args, **kwargs: learn)  # which stays on the CPU
    for name, value in changes:
        pretended.clear()
        with monkeypatch.context() as m:
            m.setattr(name, value)
            assert run(capsys, *argv)[0] == 0
        assert len(pretended) == 1, name


def test_the_fingerprint_is_that_of_tensors_and_classes(folder):
    data = read_folder(folder, 8)
    (x, y), (valid_x, valid_y) = data.train, data.valid
    other = x.clone()
    other[0, 0, 0, 0] += 1
    changed = [
        replace(data, train=(other, y)),
        replace(data, train=(x, 1 - y)),
        replace(data, valid=(255 - valid_x, valid_y)),
        replace(data, valid=(valid_x, 1 - valid_y)),
        replace(data, train=(x.view(torch.int8), y)),
        replace(data, train=(x.view(len(x), 3, 4, 16), y)),
        replace(data, classes=["cat", "wolf"]),
    ]
    assert len({fingerprint(d) for d in [data, *changed]}) == 1 + len(changed)
    assert fingerprint(data) == fingerprint(read_folder(folder, 8))


@pytest.mark.parametrize("zeros", [b"", b"\0" * 9])
def test_a_line_cut_off_anywhere_is_skipped_and_spoils_no_other(tmp_path, zeros):
    settings, file = {"epochs": 1}, tmp_path / "runs.jsonl"
    jobs = {("none", 0): Run([0.5], math.nan, 0.1, 2.0), ("mixup:8", 0): Run([0.25], 0.5, 0.3, 1 / 3)}
    kept = RunsFile(str(file), settings)
    for job, result in jobs.items():
        kept.add(job, result)
    first, second = file.read_bytes().splitlines(keepends=True)
    for cut in range(len(zeros) == 0, len(second)):
        file.write_bytes(first + second[:cut] + zeros)
        kept = RunsFile(str(file), settings)
        assert len(kept.done) == 1 + (cut == len(second) - 1)  # but for the line's end the last is whole
        kept.add(("mixup:8", 0), jobs["mixup:8", 0])
        again = RunsFile(str(file), settings)
        assert repr(again.done) == repr(jobs)
        assert file.read_bytes() == first + second[:cut] + zeros + b"\n" + second


FOREIGN = {
    "text": b"Dear reader,\n",
    "bytes": b"\x89PNG\r\n\x1a\n\x00\xff",
    "a number": b"1\n",
    "a list": b"[1]\n",
    "JSON": b'{"a": 1}\n',
    "results": b'{"settings": {}, "methods": {}}\n',
    "run of another kind": b'{"settings": {}, "method": "none", "seed": 0, "run": 5}\n',
    "the second line": b'{"settings": {}, "method": "none", "seed": 0, "run": {}}\nx',
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_something_else_is_refused_and_left_alone(capsys, tmp_path, pretended, content):
    (tmp_path / "notes").write_bytes(content)
    code, out, err = quick(capsys, tmp_path, "--runs", "notes")
    assert (code, out, pretended) == (2, "", [])
    assert err.startswith(f"mixaug compare: line {1 + content.endswith(b'x')} of 'notes' is no run")
    assert err.count("\n") == 1
    assert (tmp_path / "notes").read_bytes() == content


def test_runs_that_cannot_be_kept_end_it_with_what_there_is(capsys, tmp_path, pretended, monkeypatch):
    def full(self, job, run, add=RunsFile.add):
        if job == ("mixup:8", 0):
            raise OSError(28, "No space left on device")
        add(self, job, run)

    monkeypatch.setattr(RunsFile, "add", full)
    code, out, err = run(capsys, "--methods", "mixup:8", "--seeds", 1, "--epochs", 1)
    assert code == 1
    assert [row[0] for row in rows(out)] == ["none"]
    assert "No space left" in err


def test_a_seed_counts_where_none_has_it_too():
    runs = [Run([k / 10], 0.5, 0.1, 1.0) for k in range(4)]
    done = {("mixup:8", 1): runs[0], ("none", 1): runs[1], ("mixup:8", 0): runs[2], ("cutmix:1", 0): runs[3]}
    jobs = [(label, seed) for seed in range(2) for label in ("none", "mixup:8", "cutmix:1")]
    assert by_method(done, jobs) == {"none": {1: runs[1]}, "mixup:8": {1: runs[0]}}


def test_json_has_the_numbers_of_the_table(capsys, tmp_path, pretended):
    argv = "--methods", "mixup:8,cutmix,mixup:1", "--seeds", 3, "--epochs", 2
    _, text, _ = run(capsys, *argv)
    code, out, _ = run(capsys, *argv, "--json", "--out", "json.png")
    assert code == 0
    assert is_picture(tmp_path / "json.png")
    assert out.count("\n") == 1
    found = strict(out)
    assert (found["settings"]["data"], found["settings"]["epochs"]) == ("digits", 2)
    assert found["interval"] == {"confidence": 0.95, "comparisons": 3}
    shown = rows(text)
    assert [row[:2] for row in shown] == [[label, "3"] for label in ("none", "mixup:8", "cutmix:1", "mixup:1")]
    assert list(found["methods"]) == [row[0] for row in shown]
    for row, (label, method) in zip(shown, found["methods"].items(), strict=True):
        assert [r["seed"] for r in method["runs"]] == [0, 1, 2]
        accuracy = method["accuracy %"]
        assert accuracy["mean"] == pytest.approx(100 * np.mean([r["accuracy"][-1] for r in method["runs"]]))
        numbers = [f"{accuracy['mean']:.1f}", "±", f"{accuracy['deviation']:.1f}"]
        if label != "none":
            numbers += [f"{accuracy['change']:+.1f}", "±", f"{accuracy['half_width']:.1f}"]
            assert method["statement"] in text.splitlines()
        assert row[2 : 2 + len(numbers)] == numbers
    assert found["methods"]["none"]["statement"] is None
    undefined = found["methods"]["cutmix:1"]  # the third training
    assert undefined["runs"][0]["ece"] is None
    assert undefined["ECE %"] == dict.fromkeys(("mean", "deviation", "change", "half_width"))
    assert undefined["accuracy %"]["mean"] is not None


def test_json_of_an_interrupted_run_is_whole(capsys, monkeypatch):
    def interrupt(learn, clock, epochs, lr):
        raise KeyboardInterrupt

    monkeypatch.setattr("mixaug.compare.train", interrupt)
    code, out, _ = run(capsys, "--seeds", 1, "--epochs", 1, "--json")
    assert (code, strict(out)["methods"]) == (130, {})


def test_a_training_counts_its_accuracy_exactly_and_has_no_infinite_loss():
    learn = learner(digits(), 0, 0, 128, "cnn", False)
    (accuracy,) = train(learn, Clock(1), 1, 0.005).accuracy
    right = accuracy * len(learn.dls.valid_ds)
    assert right == pytest.approx(round(right), abs=1e-9)
    clock = Clock(1)
    clock.seconds = [1.0]
    learn.fit_one_cycle = lambda epochs, lr: setattr(learn.recorder, "values", [[0.1, math.inf, 0.5, math.nan]])
    assert repr(train(learn, clock, 1, 0.005)) == "Run(accuracy=[0.5], loss=nan, ece=nan, seconds=1.0)"


def test_a_run_that_begins_frozen_ends_once(capsys):
    learn = learner(digits(), 0, 0, 128, "cnn", False)
    learn.pretrained, learn.splitter = True, lambda model: [params(model[0]), params(model[1:])]
    fits = []
    learn.add_cb(on("before_fit", lambda learn: fits.append(learn.opt.frozen_idx)))
    train(learn, Clock(2), 2, 0.005)
    assert fits == [1, 0]
    assert re.fullmatch(r"run 1 of 2, \d+:\d\d left: \n", capsys.readouterr().err)


# So that a check which no longer refuses fails its test at once, instead of training for hours
QUICK = "--epochs", 1, "--seeds", 1, "--size", 32, "--bs", 8, "--methods", "none", "--out", "{tmp}/out.png"


def quick(capsys, tmp_path, *argv):
    return run(capsys, *(str(word).format(tmp=tmp_path) for word in (*QUICK, *argv)))


BAD = {
    "no folder": ["--data", "nowhere"],
    "no images": ["--data", "{tmp}"],
    "method": ["--methods", "none,mixupp"],
    "alpha": ["--methods", "mixup:0"],
    "alpha word": ["--alpha", "much"],
    "noise": ["--noise", "1.5"],
    "noise word": ["--noise", "much"],
    "epochs": ["--epochs", "0"],
    "epochs word": ["--epochs", "many"],
    "seeds": ["--seeds", "-1"],
    "arch": ["--arch", "resnet99"],
    "option": ["--speed", "fast"],
    "out": ["--out", "{tmp}/nowhere/a.png"],
    "runs": ["--runs", "{tmp}"],
    "runs in no folder": ["--runs", "{tmp}/nowhere/a.jsonl"],
    "runs and out": ["--runs", "out.png"],
    "runs and out, another way": ["--runs", "{tmp}/../{tmp.name}/out.png"],
}


@pytest.mark.parametrize("argv", BAD.values(), ids=BAD)
def test_bad_input_ends_with_one_line_and_code_2(capsys, tmp_path, argv):
    code, out, err = quick(capsys, tmp_path, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("mixaug compare: ")
    assert err.count("\n") == 1


def test_folders_of_one_class_and_of_broken_images(capsys, tmp_path, folder):
    (folder / "dog" / "3.png").write_bytes(b"no picture")
    code, _, err = quick(capsys, tmp_path, "--data", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "3.png cannot be read" in err
    for file in (folder / "dog").iterdir():
        file.unlink()
    code, _, err = quick(capsys, tmp_path, "--data", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "two class folders at least" in err


def test_train_and_valid_folders_are_used_as_they_are(capsys, tmp_path, folder):
    for part in ("train", "valid"):
        shutil.copytree(folder, tmp_path / "split" / part)
    code, out, _ = quick(capsys, tmp_path, "--data", tmp_path / "split", "--arch", "cnn")
    assert code == 0
    assert "20 training images" in out
    assert "20 validation images" in out
    (tmp_path / "split" / "train" / "dog").rename(tmp_path / "split" / "train" / "wolf")
    code, _, err = quick(capsys, tmp_path, "--data", tmp_path / "split", "--arch", "cnn")
    assert (code, err.count("\n")) == (2, 1)


def test_labels_of_tiles_do_not_overlap(tmp_path, folder):
    names = ["German_shorthaired_pointer", "American_pit_bull_terrier"]
    for old, new in zip(("cat", "dog"), names, strict=True):
        (folder / old).rename(folder / new)
    data, methods = read_folder(folder, 32), parse_methods("cutmix,output_mixup", None)
    results = {label: {0: Run([0.5], 0.7, math.nan, 1.0)} for label in methods}
    fig = figure(data, methods, results)
    fig.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in fig.axes if ax.get_title()]
    assert len(boxes) == 3 * TILES + 3
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_the_command_without_a_command(capsys):
    assert main([]) == 0
    assert "mixaug compare" in capsys.readouterr().out
    assert main(["compress"]) == 2
    assert "usage" in capsys.readouterr().err
