"""The command `mixaug compare`: its statistics by value, its results on small settings, its errors."""

import itertools
import json
import math
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import on
from fastai.torch_core import params
from PIL import Image
from scipy.stats import ttest_1samp

from mixaug import ManifoldMixup, MixUp
from mixaug.__main__ import main
from mixaug.compare import command as compare


def test_paired_interval_equals_the_bonferroni_t_interval():
    for n, comparisons, shift in itertools.product((2, 8), (1, 5), (0.0, 1.0)):
        d = np.random.default_rng(0).normal(shift, 1, n)
        low, high = ttest_1samp(d, 0).confidence_interval(1 - 0.05 / comparisons)
        mean, half = compare.paired_interval(d.tolist(), comparisons)
        assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    for differences, mean in (([2.0], 2), ([0.3 - 0.2, 0.2 - 0.1, 0.1], 0.1), ([0.0, 0.0], 0)):
        assert compare.paired_interval(differences) == (pytest.approx(mean), pytest.approx(math.nan, nan_ok=True))
    assert all(map(math.isnan, compare.paired_interval([1.0, math.nan, 2.0])))
    assert (compare.spread([1.0, 3.0], 1), compare.spread([1.0], 1)) == ("2.0 ± 1.4", "1.0")
    for bad, name in ((([],), "differences"), (([1.0, 2.0], 0), "comparisons")):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            compare.paired_interval(*bad)


def results_of(accuracies, shift=0):
    """Results from accuracies in percent by label. A method changes the calibration error by about 2 * shift points."""
    results = {}
    for label, values in accuracies.items():
        step = shift * (label != "none")
        pairs = enumerate(zip(values, (10 + 2.0 * step, 12 + 2.2 * step, 14 + 2.1 * step), strict=False))
        results[label] = {seed: compare.Run([a / 100], 0.5, e / 100, 1.0) for seed, (a, e) in pairs}
    return results


NONE, SAME = [80.0, 82.0, 84.0], [80.2, 82.6, 83.9]
NO_CHANGE = " is not significantly different from the baseline: +0.2 ± 0.9 points over 3 seeds"
SENTENCES = [
    ([82.0, 84.2, 86.1], 0, " is significantly better than the baseline: +2.1 ± 0.2 points over 3 seeds"),
    ([78.0, 79.8, 81.9], 0, " is significantly worse than the baseline: -2.1 ± 0.2 points over 3 seeds"),
    (SAME, 0, NO_CHANGE),
    (SAME, 1, f"{NO_CHANGE}. Its calibration error is significantly higher: +2.1 ± 0.2 points"),
    (SAME, -1, f"{NO_CHANGE}. Its calibration error is significantly lower: -2.1 ± 0.2 points"),
    ([88.0], 0, ": +8.0 points with one seed, which is no evidence"),
    ([81.0, 83.0, 85.0], 0, ": +1.0 points with each of 3 seeds. Equal differences have no interval"),
    ([math.nan, 83.0, 85.0], 0, ": no result, because some runs have no accuracy"),
]


@pytest.mark.parametrize(("values", "shift", "words"), SENTENCES)
def test_statement_claims_what_the_intervals_support(values, shift, words):
    results = results_of({"none": NONE, "cutmix:1": values}, shift)
    assert compare.statements(results) == {"cutmix:1": f"cutmix:1{words}"}
    assert f"cutmix:1{words}" in compare.report(results, 0).splitlines()
    assert ("*" in compare.table(results)) == ("is significantly" in words)


def test_intervals_are_corrected_for_the_number_of_methods():
    few = {"none": NONE, "mixup:8": [82.0, 84.5, 85.6]}
    many = {**few, **{f"cutmix:{k}": [80.0 + k, 82.5, 84.0] for k in range(1, 5)}}
    for accuracies, n, significant in ((few, 1, True), (many, 5, False)):
        results = results_of(accuracies)
        half = compare.summarize(results)["mixup:8"]["accuracy %"].half_width
        assert half == pytest.approx(compare.paired_interval([2, 2.5, 1.6], n)[1])
        assert ("is significantly better" in compare.statements(results)["mixup:8"]) == significant
        assert ("*" in compare.table(results)) == significant
        assert (f"Bonferroni for {n} comparisons" in compare.report(results, 0)) == (n > 1)


def test_noisy_replaces_the_fraction_by_all_other_classes_equally():
    y = torch.randint(0, 5, (5000,))
    for fraction in (0, 0.4, 1):
        noise = compare.noisy(y, fraction, 5, seed=1)
        counts = ((noise - y) % 5).bincount(minlength=5) / 5000
        assert counts.tolist() == pytest.approx([1 - fraction, *[fraction / 4] * 4], abs=0.04 * fraction)
        assert (noise != y).sum() == fraction * 5000
        assert torch.equal(noise, compare.noisy(y, fraction, 5, seed=1))


def test_split_is_stratified_and_digits_are_those_of_scikit_learn():
    y = torch.arange(3).repeat_interleave(torch.tensor([20, 40, 60]))
    train, valid = compare.split(y, 0.25)
    assert sorted(torch.cat([train, valid]).tolist()) == list(range(120))
    assert y[valid].bincount().tolist() == [5, 10, 15]
    data = compare.digits()
    assert (len(data.train[1]) + len(data.valid[1]), data.train[0].shape[1:]) == (1797, (1, 8, 8))
    assert (data.train[0].min(), data.train[0].max()) == (0, 1)


def test_parse_methods_gives_each_label_once():
    methods = compare.parse_methods("cutmix, none,mixup:8,manifold_mixup", 2.0)
    assert (list(methods), methods["none"]) == (["none", "cutmix:2", "mixup:8", "manifold_mixup:2"], None)
    made = [methods[k]() for k in ("mixup:8", "manifold_mixup:2")]
    assert [(type(cb), cb.alpha) for cb in made] == [(MixUp, 8.0), (ManifoldMixup, 2.0)]
    alphas = "mixup:0.2,mixup:1,none,mixup:1.0,mixup:.2,mixup:0.12345678,mixup:0.12345679,mixup,patch_up,one_of"
    labels = "none mixup:0.2 mixup:1 mixup:0.12345678 mixup:0.12345679 mixup:0.4 patch_up:2 one_of:1"
    assert " ".join(compare.parse_methods(alphas, None)) == labels
    assert len(compare.parse_methods(",".join(compare.METHODS), None)) == 10


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """A function that runs the command, for one seed and epoch, and returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    return lambda text="": (main(shlex.split(f"compare --seeds 1 --epochs 1 {text}")), *capsys.readouterr())


def rows(out):
    """The words of the table's lines, up to the accuracy and its change."""
    return [line.split()[:8] for line in re.findall(r"^[a-z_]+\S* +\d+  .*", out, re.M)]


@pytest.fixture
def folder(tmp_path):
    """Two classes of images that a small network can tell apart."""
    for name, level in (("cat", 10), ("dog", 140)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i).integers(level, level + 100, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def is_picture(file):
    with Image.open(file) as image:
        return image.format == "PNG" and min(image.size) > 100


def test_folder_of_images_is_split_and_trained(command, tmp_path, folder):
    code, out, _ = command(f"--data {folder} --arch resnet18 --size 32 --bs 8 --methods cutmix,manifold_mixup")
    assert (code, "16 training images" in out, is_picture(tmp_path / "compare.png")) == (0, True, True)
    assert [row[:2] for row in rows(out)] == [["none", "1"], ["cutmix:1", "1"], ["manifold_mixup:0.4", "1"]]


def trained(err):
    """The labels of the trainings that finished."""
    return re.findall(r"run \d of \d, \d+:\d\d left: (.+)", err)


def throw(error):
    raise error


def break_mixup(monkeypatch, error):
    monkeypatch.setattr(MixUp, "draw", lambda self, x: throw(error))
    monkeypatch.setattr(compare, "tiles", lambda data, cb: [])


def test_finished_runs_are_shown_after_an_interruption(command, tmp_path, monkeypatch):
    break_mixup(monkeypatch, KeyboardInterrupt())
    for runs in ("", "runs.jsonl"):
        code, out, err = command(f"--methods cutmix,mixup,output_mixup --out out.png --runs '{runs}'")
        assert (code, [row[0] for row in rows(out)]) == (130, ["none", "cutmix:1"])
        assert ("(mixup:0.4, seed 0)" in err, "run the same command again" in err) == (True, bool(runs))
        assert ({file.name for file in tmp_path.iterdir()}, is_picture("out.png")) == ({"out.png", runs} - {""}, True)
    monkeypatch.setattr(compare, "train", lambda *args: throw(KeyboardInterrupt()))
    code, out, _ = command("--json")
    assert (code, strict(out)["methods"]) == (130, {})


def test_failed_method_is_not_trained_again_and_stops_no_other(command, monkeypatch):
    break_mixup(monkeypatch, RuntimeError("shapes do not fit"))
    code, out, err = command("--methods mixup:8,cutmix --seeds 2")
    assert (code, err.count(" failed, "), "(mixup:8, seed 0)" in err) == (1, 1, True)
    assert trained(err) == ["none, seed 0", "cutmix:1, seed 0", "none, seed 1", "cutmix:1, seed 1"]
    assert ([row[0] for row in rows(out)], "run the same command again" in err) == (["none", "cutmix:1"], True)


@pytest.fixture
def simulated(monkeypatch):
    """The labels of simulated trainings, each with another accuracy; the third's ECE is nan."""

    labels = []

    def simulate(learn, clock, epochs, lr):
        labels.append(clock.label)
        calibration = math.nan if len(labels) == 3 else 0.1 + 0.013 * len(labels)
        return compare.Run([0.9, math.sin(len(labels)) ** 2][-epochs:], 0.5, calibration, 1.0)

    monkeypatch.setattr(compare, "train", simulate)
    monkeypatch.setattr(compare, "figure", lambda *args: compare.Figure())  # drawing takes longest
    return labels


def strict(text):
    """JSON, without the extensions of Python's parser."""
    return json.loads(text, parse_constant=pytest.fail)


def test_crashed_command_continues_where_it_stopped(command, monkeypatch):
    def train(learn, clock, *args, train=compare.train):
        return throw(RuntimeError("out of memory")) if clock.done == 4 else train(learn, clock, *args)

    argv = "--methods mixup:8,output_mixup --seeds 2 --json"
    jobs = [f"{label}, seed {seed}" for seed in range(2) for label in ("none", "mixup:8", "output_mixup:0.4")]
    code, whole, err = command(f"{argv} --runs whole.jsonl")
    assert (code, trained(err)) == (0, jobs)
    with monkeypatch.context() as m:
        m.setattr(compare, "train", train)
        code, _, err = command(argv)
    assert (code, trained(err)) == (1, jobs[:4] + jobs[5:])  # the other methods go on
    for reused, new in ((5, [jobs[4]]), (6, [])):
        code, out, err = command(argv)
        assert (code, trained(err), "run 1 of 1" in err) == (0, new, bool(new))
        assert f"{reused} of 6 runs reused from compare.jsonl" in err
        assert len({re.sub(r'"seconds": [^}]+', "", text) for text in (out, whole)}) == 1


SMALL = "--size 32 --bs 8 --methods none"
CHANGES = ["epochs 2", "noise 0.1", "bs 9", "lr 0.001", "arch resnet18", "size 40", "seeds 2"]


@pytest.mark.parametrize("changed", CHANGES)
def test_other_settings_are_trained_anew_and_old_runs_stay(command, tmp_path, folder, simulated, changed):
    usual = f"{SMALL} --data {folder} --arch cnn --methods mixup:8"
    command(usual)
    before = (tmp_path / "compare.jsonl").read_bytes()
    simulated.clear()
    assert command(f"{usual} --{changed}")[0] == 0
    assert simulated == [f"{label}, seed {changed == 'seeds 2':d}" for label in ("none", "mixup:8")]
    after = (tmp_path / "compare.jsonl").read_bytes()
    assert (after.startswith(before), len(list(map(strict, after.splitlines())))) == (True, 4)
    assert (command(usual)[0], len(simulated)) == (0, 2)
    assert (tmp_path / "compare.jsonl").read_bytes() == after


def test_runs_belong_to_the_images_and_to_a_method_with_its_alpha(command, folder, simulated):
    command(f"{SMALL} --arch cnn --data {folder}")
    moved = folder.rename(folder.with_name("moved"))
    command(f"{SMALL} --arch cnn --data {moved}")
    assert len(simulated) == 1
    Image.new("RGB", (20, 20)).save(moved / "cat" / "0.png")
    command(f"{SMALL} --arch cnn --data {moved}")
    assert len(simulated) == 2
    for methods in ("mixup:0.2,mixup:1", "mixup:0.2,none,mixup:2,mixup:1"):
        command(f"--methods {methods}")
    assert simulated[2:] == ["none, seed 0", "mixup:0.2, seed 0", "mixup:1, seed 0", "mixup:2, seed 0"]


def test_runs_belong_to_versions_code_and_device(command, tmp_path, simulated, monkeypatch):
    command("--methods none")
    changed_code = shutil.copytree(compare.Path(compare.__file__).parent.parent, tmp_path / "mixaug")
    (changed_code / "methods" / "cut.py").write_text("changed")
    learn, old = compare.learner(compare.digits(), 0, 0, 128, "cnn", False), compare.version
    monkeypatch.setattr(compare, "learner", lambda *args, **kwargs: learn)  # which stays on the CPU
    changes = [
        ("__version__", "9.9"),
        ("__file__", str(changed_code / "compare" / "command.py")),
        ("version", lambda name: "9.9" if name == "torch" else old(name)),
        ("version", lambda name: "9.9" if name == "fastai" else old(name)),
        ("default_device", lambda: torch.device("meta")),
    ]
    for n, (name, value) in enumerate(changes, 2):
        with monkeypatch.context() as m:
            m.setattr(compare, name, value)
            assert (command("--methods none")[0], len(simulated)) == (0, n), name


def test_fingerprint_depends_on_tensors_and_classes(folder):
    data = compare.folder(folder, 8)
    (x, y), (valid_x, valid_y) = data.train, data.valid
    other = x.clone()
    other[0, 0, 0, 0] += 1
    trains = (other, y), (x, 1 - y), (x.view(torch.int8), y), (x.view(len(x), 3, 4, 16), y)
    valids = (255 - valid_x, valid_y), (valid_x, 1 - valid_y)
    changed = [*(replace(data, train=t) for t in trains), *(replace(data, valid=v) for v in valids)]
    assert len({compare.fingerprint(d) for d in [data, *changed, replace(data, classes=["cat", "wolf"])]}) == 8
    assert compare.fingerprint(data) == compare.fingerprint(compare.folder(folder, 8))


@pytest.mark.parametrize("zeros", [b"", b"\0" * 9])
def test_truncated_line_is_skipped(tmp_path, zeros):
    settings, file = {"epochs": 1}, tmp_path / "runs.jsonl"
    jobs = {("none", 0): compare.Run([0.5], math.nan, 0.1, 2.0), ("mixup:8", 0): compare.Run([0.25], 0.5, 0.3, 1 / 3)}
    for job, result in jobs.items():
        compare.RunsFile(str(file), settings).add(job, result)
    first, second = file.read_bytes().splitlines(keepends=True)
    for cut in range(len(zeros) == 0, len(second)):
        file.write_bytes(first + second[:cut] + zeros)
        kept = compare.RunsFile(str(file), settings)
        assert len(kept.done) == 1 + (cut == len(second) - 1)  # only the line's end is missing
        kept.add(("mixup:8", 0), jobs["mixup:8", 0])
        assert repr(compare.RunsFile(str(file), settings).done) == repr(jobs)
        assert file.read_bytes() == first + second[:cut] + zeros + b"\n" + second


def refused(result, words):
    """Whether the command ended with code 2 and one line on stderr that contains `words`."""
    code, out, err = result
    return (code, out, err.count("\n"), err.startswith("mixaug compare: "), words in err) == (2, "", 1, True, True)


RUN = b'{"settings": {}, "method": "none", "seed": 0, "run": '
FOREIGN = [b"Dear reader,\n", b"\x89PNG\r\n\x1a\n\x00\xff", b"1\n", b"[1]\n", b'{"a": 1}\n',
           b'{"settings": {}, "methods": {}}\n', RUN + b"5}\n", RUN + b"{}}\nx"]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN)
def test_file_of_something_else_is_refused_and_unchanged(command, tmp_path, simulated, content):
    (tmp_path / "notes").write_bytes(content)
    line = 1 + content.endswith(b"x")
    assert refused(command(f"{SMALL} --runs notes"), f"something else in line {line}. Name another file\n")
    assert ((tmp_path / "notes").read_bytes(), simulated) == (content, [])


def test_full_disk_ends_the_command_with_the_finished_runs(command, simulated, monkeypatch):
    def full(self, job, run, add=compare.RunsFile.add):
        return add(self, job, run) if job[0] == "none" else throw(OSError(28, "No space left on device"))

    monkeypatch.setattr(compare.RunsFile, "add", full)
    code, out, err = command("--methods mixup:8")
    assert (code, [row[0] for row in rows(out)], "No space left" in err) == (1, ["none"], True)


def test_seed_counts_only_if_the_baseline_has_it():
    done = {("mixup:8", 1): "a", ("none", 1): "b", ("mixup:8", 0): "c", ("cutmix:1", 0): "d"}
    jobs = [(label, seed) for seed in range(2) for label in ("none", "mixup:8", "cutmix:1")]
    assert compare.by_method(done, jobs) == {"none": {1: "b"}, "mixup:8": {1: "a"}}


def test_json_has_the_numbers_of_the_table(command, tmp_path, simulated):
    argv = "--methods mixup:8,cutmix,mixup:1 --seeds 3 --epochs 2"
    text, (code, out, _) = command(argv)[1], command(f"{argv} --json --out json.png")
    found, shown = strict(out), rows(text)
    assert (code, out.count("\n"), is_picture(tmp_path / "json.png")) == (0, 1, True)
    assert (found["settings"]["data"], found["settings"]["epochs"]) == ("digits", 2)
    assert found["interval"] == {"confidence": 0.95, "comparisons": 3}
    assert list(found["methods"]) == [row[0] for row in shown] == ["none", "mixup:8", "cutmix:1", "mixup:1"]
    for row, method in zip(shown, found["methods"].values(), strict=True):
        seeds, finals = zip(*((r["seed"], r["accuracy"][-1]) for r in method["runs"]), strict=True)
        accuracy = method["accuracy %"]
        assert (seeds, accuracy["mean"]) == ((0, 1, 2), pytest.approx(100 * np.mean(finals)))
        numbers = ["3", f"{accuracy['mean']:.1f}", "±", f"{accuracy['deviation']:.1f}"]
        if row[0] != "none":
            numbers += [f"{accuracy['change']:+.1f}", "±", f"{accuracy['half_width']:.1f}"]
        assert method["statement"] in ([None] if row[0] == "none" else text.splitlines())
        assert row[1 : 1 + len(numbers)] == numbers
    undefined = found["methods"]["cutmix:1"]  # the third training
    assert undefined["ECE %"] == dict.fromkeys(("mean", "deviation", "change", "half_width"))
    assert (undefined["runs"][0]["ece"], undefined["accuracy %"]["mean"] is None) == (None, False)


def test_fine_tune_is_one_run_with_exact_accuracy_and_nan_for_an_infinite_loss(capsys):
    learn, clock, fits = compare.learner(compare.digits(), 0, 0, 128, "cnn", False), compare.Clock(2), []
    learn.pretrained, learn.splitter = True, lambda model: [params(model[0]), params(model[1:])]
    learn.add_cb(on("before_fit", lambda learn: fits.append(learn.opt.frozen_idx)))
    right = compare.train(learn, clock, 2, 0.005).accuracy[0] * len(learn.dls.valid_ds)
    assert right == pytest.approx(round(right), abs=1e-9)
    err = capsys.readouterr().err
    assert (fits, err.startswith("run 1 of 2, "), err.count("\n")) == ([1, 0], True, 1)
    learn.fine_tune = lambda epochs, lr: setattr(learn.recorder, "values", [[0.1, math.inf, 0.5, math.nan]])
    clock.seconds = [1.0]
    assert repr(compare.train(learn, clock, 1, 0.005)) == "Run(accuracy=[0.5], loss=nan, ece=nan, seconds=1.0)"


# With settings so small that a check which no longer refuses fails its test at once
BAD = [
    ("--data nowhere", "data must be"),
    ("--methods none,mixupp", "methods must be"),
    ("--methods ''", "methods must be"),
    ("--methods mixup:0", "mixup:0: alpha must be"),
    ("--methods mixup:x", "mixup:x: "),
    ("--alpha much", "alpha must be a number"),
    ("--noise 1.5", "noise must be a number from 0 to 1"),
    ("--epochs 0", "epochs must be a number from 1"),
    ("--seeds -1", "seeds must be a number from 1"),
    ("--arch resnet99", "arch must be"),
    ("--speed fast", "--speed"),
    ("--out {tmp}/nowhere/a.png", "out must be"),
    ("--runs {tmp}", "runs must be"),
    ("--runs {tmp}/../{tmp.name}/compare.png", "two files"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_bad_input_gives_one_line_and_code_2(command, tmp_path, options, words):
    assert refused(command(f"{SMALL} {options.format(tmp=tmp_path)}"), words)


def test_train_and_valid_folders_are_not_split_and_unusable_folders_are_bad_input(command, tmp_path, folder):
    for part in ("train", "valid"):
        shutil.copytree(folder, tmp_path / "split" / part)
    argv = f"{SMALL} --arch cnn --data"
    code, out, _ = command(f"{argv} split")
    assert (code, "20 training images" in out, "20 validation images" in out) == (0, True, True)
    (tmp_path / "split" / "train" / "dog").rename(tmp_path / "split" / "train" / "wolf")
    assert refused(command(f"{argv} split"), "images of the classes")
    (folder / "dog" / "3.png").write_bytes(b"no picture")
    assert refused(command(f"{argv} {folder}"), "3.png")
    for file in (folder / "dog").iterdir():
        file.unlink()
    assert refused(command(f"{argv} {folder}"), "at least two class folders")


def test_titles_of_tiles_do_not_overlap(folder):
    data = replace(compare.folder(folder, 32), classes=["German_shorthaired_pointer", "American_pit_bull_terrier"])
    methods = compare.parse_methods("cutmix,output_mixup", None)
    fig = compare.figure(data, methods, {label: {0: compare.Run([0.5], 0.7, math.nan, 1.0)} for label in methods})
    fig.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in fig.axes if ax.get_title()]
    assert len(boxes) == 3 * compare.TILES + 3
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_command_without_subcommand_prints_usage(capsys):
    assert (main([]), "mixaug compare" in capsys.readouterr().out) == (0, True)
    assert (main(["compress"]), "usage" in capsys.readouterr().err) == (2, True)
