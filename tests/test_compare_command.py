"""The command `mixaug compare`: the data it trains on, its options, what it prints and draws, its errors."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.torch_core import TensorImage
from PIL import Image

from mixaug import MixUp
from mixaug.__main__ import main
from mixaug.compare import Comparison, images
from mixaug.compare.command import methods_of, parser
from mixaug.compare.folders import Picture, folder_task
from mixaug.compare.learners import BadInputError, digits, digits_task, noisy, split
from mixaug.compare.methods import NAMES
from mixaug.compare.tables import table_task
from mixaug.compare.training import Training


def throw(error):
    raise error


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """A function that runs the command, for one seed and epoch, and returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    return lambda text="": (main(shlex.split(f"compare --seeds 1 --epochs 1 --jobs 1 {text}")), *capsys.readouterr())


@pytest.fixture
def simulated(monkeypatch):
    """The labels of simulated trainings, each with another accuracy."""
    labels = []

    def run(self, make, seed, tell):
        labels.append(f"{make() or 'none'}, seed {seed}")
        final = {"train_loss": 0.1, "valid_loss": 0.9, "accuracy %": 50.0 + len(labels), "ECE %": 2.0}
        return {"epochs": [final], "measures": {}, "seconds": 1.0, "first": {"weights": "", "batch": ""}}

    monkeypatch.setattr(Training, "run", run)
    monkeypatch.setattr("mixaug.compare.command.picture", lambda *args: images.Figure())  # drawing takes longest
    return labels


def save(file, level, i=0, size=(20, 24)):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(i).integers(level, level + 100, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images that a small network can tell apart."""
    for (name, level), i in itertools.product((("cat", 10), ("dog", 140)), range(10)):
        save(tmp_path / "data" / name / f"{i}.png", level, i)
    return tmp_path / "data"


@pytest.fixture
def csv(tmp_path):
    """A table of a class, a category with a gap, and a number, of which the class is the sign."""
    number = np.random.default_rng(0).normal(size=40)
    frame = pd.DataFrame({"color": [None, *["red", "blue", "blue"] * 13], "number": number})
    frame["sign"], frame["square"] = np.where(number > 0, "plus", "minus"), number**2
    frame.loc[[3, 7], "square"] = np.nan
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def rows(out):
    """The labels and numbers of seeds in the lines of the table."""
    return re.findall(r"^([a-z_]+\S*) +(\d+)  ", out, re.M)


def trained(err):
    """The labels of the trainings that finished."""
    return re.findall(r"run \d+ of \d+, \d+:\d\d left: (.+)", err)


# Data


def test_split_is_stratified_and_digits_are_those_of_scikit_learn():
    y = torch.arange(3).repeat_interleave(torch.tensor([20, 40, 60]))
    train, valid = split(y, 0.25)
    assert sorted(torch.cat([train, valid]).tolist()) == list(range(120))
    assert y[valid].bincount().tolist() == [5, 10, 15]
    assert [t.tolist() for t in split(["a", "b"] * 4, 0.25)] == [t.tolist() for t in split([0, 1] * 4, 0.25)]
    (x, y), (valid_x, valid_y) = digits()
    assert (len(y) + len(valid_y), x.shape[1:], valid_x.shape[1:]) == (1797, (1, 8, 8), (1, 8, 8))
    assert (x.min(), x.max()) == (0, 1)


def test_noisy_replaces_the_fraction_by_all_other_classes_equally():
    y = torch.randint(0, 5, (5000,))
    for fraction in (0, 0.4, 1):
        noise = noisy(y, fraction, 5, seed=1)
        counts = ((noise - y) % 5).bincount(minlength=5) / 5000
        assert counts.tolist() == pytest.approx([1 - fraction, *[fraction / 4] * 4], abs=0.04 * fraction)
        assert (noise != y).sum() == fraction * 5000
        assert torch.equal(noise, noisy(y, fraction, 5, seed=1))


def task_of(folder, **options):
    usual = {"size": 16, "arch": "cnn", "bs": 8, "noise": 0.0, "pretrained": False, "augment": False, "skip_bad": False}
    return folder_task(folder, **{**usual, **options})


def test_a_folder_is_trained_as_fastai_would_and_read_when_it_is_needed(folder, monkeypatch):
    create, opened = Picture.create.__func__, []
    monkeypatch.setattr(Picture, "create", classmethod(lambda cls, f, **kw: (opened.append(f), create(cls, f))[1]))
    task = task_of(folder)
    opened.clear()  # each was tried once
    learn = task.new_learner(0)
    dls = learn.dls
    assert len(set(opened)) < 2  # fastai tries its pipeline
    opened.clear()
    assert (len(dls.train_ds), len(dls.valid_ds), dls.vocab, learn.loss_func.axis) == (16, 4, ["cat", "dog"], -1)
    x, y = (t.cpu() for t in dls.valid.one_batch())
    assert len(set(opened)) == 4
    assert isinstance(x, TensorImage)
    assert x.shape == (4, 3, 16, 16)
    for image, target, file in zip(x, y, opened, strict=True):
        assert dls.vocab[target] == file.parent.name
        # A square in the middle of 20 x 24 as ImageNet's, which the mean shows: 60 of 255 for cats, 190 for dogs
        mean = (image * torch.tensor([0.229, 0.224, 0.225])[:, None, None]).mean() + 0.449
        assert mean == pytest.approx({"cat": 60, "dog": 190}[file.parent.name] / 255, abs=0.02)
    names = lambda augment: [type(t).__name__ for t in task_of(folder, augment=augment).new_learner(0).dls.after_batch]  # noqa: E731
    assert ("Flip" in names(True), "Flip" in names(False), "Normalize" in names(False)) == (True, False, True)
    noised = task_of(folder, noise=0.5).new_learner(3).dls
    assert sum(int(a != b) for (_, a), (_, b) in zip(noised.train_ds, dls.train_ds, strict=True)) == 8
    assert [int(y) for _, y in noised.valid_ds] == [int(y) for _, y in dls.valid_ds]


def test_train_and_valid_folders_are_not_split_and_unusable_folders_are_bad_input(tmp_path, folder):
    for part in ("train", "valid"):
        shutil.copytree(folder, tmp_path / "split" / part)
    dls = task_of(tmp_path / "split").new_learner(0).dls
    assert (len(dls.train_ds), len(dls.valid_ds)) == (20, 20)
    (tmp_path / "split" / "train" / "dog").rename(tmp_path / "split" / "train" / "wolf")
    with pytest.raises(BadInputError, match=r"data must have images of \['cat', 'wolf'\] in .*valid"):
        task_of(tmp_path / "split")
    for file in (folder / "dog").iterdir():
        file.unlink()
    with pytest.raises(BadInputError, match="at least two class folders"):
        task_of(folder)
    save(folder / "dog" / "0.png", 0)
    with pytest.raises(BadInputError, match="two images of each class"):
        task_of(folder)


def test_all_images_that_cannot_be_read_are_listed_or_left_out(folder):
    (folder / "dog" / "3.png").write_bytes(b"no picture")
    whole = (folder / "cat" / "5.png").read_bytes()
    (folder / "cat" / "5.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match=r"(?s)skip-bad.*cat/5.png \(OSError.*dog/3.png \(Unidentified"):
        task_of(folder)
    task = task_of(folder, skip_bad=True)
    assert "2 unreadable" in task.words
    dls = task.new_learner(0).dls
    assert len(dls.train_ds) + len(dls.valid_ds) == 18
    assert task.samples()[0].shape[1:] == (3, 16, 16)


@pytest.mark.parametrize("mode", ["uint16", "float32", "L", "RGBA", "P"])
def test_images_of_all_kinds_are_read_with_their_values(tmp_path, mode):
    gray = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
    image = Image.fromarray({"uint16": gray.astype(np.uint16) * 257, "float32": gray / np.float32(240)}.get(mode, gray))
    file = tmp_path / "a.tiff"
    (image.convert(mode) if mode in ("RGBA", "P") else image).save(file)
    read = np.asarray(Picture.create(file))
    expected = np.round(gray / 240 * 255) if mode == "float32" else gray  # scaled to the largest value
    assert (read == expected[..., None]).all()


def test_a_table_has_fastais_categories_and_numbers_and_a_class_or_a_number_as_target(csv):
    task = table_task(csv, "sign", 16)
    learn = task.new_learner(0)
    dls = learn.dls
    assert "sign: 2 classes; categories: 1, numbers: 2" in task.words
    assert (len(dls.train_ds), len(dls.valid_ds), list(dls.cat_names), list(dls.cont_names)) == (
        32, 8, ["color", "square_na"], ["number", "square"],
    )  # fmt: skip
    assert [m.name for m in learn.metrics] == ["accuracy %", "ECE %"]
    task = table_task(csv, "square", 16)  # of 38 rows that have one
    learn = task.new_learner(0)
    assert "square: a number; categories: 2, numbers: 1" in task.words
    assert (len(learn.dls.train_ds) + len(learn.dls.valid_ds), learn.metrics[0].name) == (38, "_rmse")
    assert learn.dls.one_batch()[2].dtype == torch.float32
    frame = pd.read_csv(csv)
    frame["label"] = np.arange(40) % 3
    frame.loc[5, "label"] = np.nan  # then pandas reads floats
    frame.to_csv(csv, index=False)
    assert "label: 3 classes" in table_task(csv, "label", 16).words


# Methods


def test_alpha_counts_for_all_methods_without_one_also_in_the_default_list():
    def labels(text="", kind="digits"):
        return list(methods_of(parser().parse_args(shlex.split(text)), kind))

    assert labels() == ["none", "mixup:0.4", "mixup:8", "cutmix:1", "manifold_mixup:8", "output_mixup:8"]
    assert labels("--alpha 3") == ["none", "mixup:3", "cutmix:3", "manifold_mixup:3", "output_mixup:3"]
    assert labels("--alpha 3", "table") == ["none", "manifold_mixup:3", "output_mixup:3"]
    for methods in ("'cutmix, none,mixup:8'", "cutmix none mixup:8", "cutmix, mixup:8,"):
        assert labels(f"--alpha 2 --methods {methods}") == ["none", "cutmix:2", "mixup:8"]
    alphas = "mixup:0.2,mixup:1,none,mixup:1.0,mixup:.2,mixup:0.12345678,mixup:0.12345679,mixup,patch_up,one_of"
    expected = "none mixup:0.2 mixup:1 mixup:0.12345678 mixup:0.12345679 mixup:0.4 patch_up:2 one_of:1"
    assert labels(f"--methods {alphas}") == expected.split()
    assert len(labels("--methods all")) == len(NAMES)  # none, and all but cmixup


# The command


def is_picture(file, kind="PNG"):
    with Image.open(file) as image:
        return image.format == kind and min(image.size) > 100


def test_a_folder_is_compared(command, tmp_path, folder):
    code, out, err = command(f"--data {folder} --arch resnet18 --size 32 --bs 8 --methods cutmix,manifold_mixup")
    assert (code, is_picture(tmp_path / "compare.png")) == (0, True)
    assert "16 images for training, 4 for validation, 2 classes; 3 methods, 1 seeds, 1 epochs" in out
    assert rows(out) == [("none", "1"), ("cutmix:1", "1"), ("manifold_mixup:0.4", "1")]
    assert out.splitlines()[2].startswith("1 seed can show no difference: use more seeds")
    assert [line.split(" left: ")[-1] for line in err.splitlines()] == trained(err)  # nothing else on stderr


def test_a_table_is_compared_and_drawn_as_pdf(command, csv):
    code, out, _ = command(f"--csv {csv} --target sign --out a.pdf")
    assert (code, [row[0] for row in rows(out)]) == (0, ["none", "manifold_mixup:0.4", "output_mixup:0.4"])
    assert (csv.parent / "a.pdf").read_bytes().startswith(b"%PDF")
    code, _, err = command(f"--csv {csv} --target square --methods mixup")
    assert (code, trained(err)) == (2, [])  # categories have no average
    assert "methods must be able to mix the data, got mixup:0.4 (Expected floats" in err


def test_finished_runs_are_shown_after_an_interruption(command, tmp_path, monkeypatch):
    monkeypatch.setattr(MixUp, "draw", lambda self, x: throw(KeyboardInterrupt()))
    monkeypatch.setattr(images, "tiles", lambda x, names, cb: [])
    for runs in ("", "runs.jsonl"):
        code, out, err = command(f"--methods cutmix,mixup,output_mixup --out out.png --runs '{runs}'")
        assert (code, [row[0] for row in rows(out)]) == (130, ["none", "cutmix:1"])
        assert ("interrupted after 2 of 4" in err, "the same command goes on" in err) == (True, bool(runs))
        assert ({file.name for file in tmp_path.iterdir()}, is_picture("out.png")) == ({"out.png", runs} - {""}, True)
    monkeypatch.setattr(Training, "run", lambda *args: throw(KeyboardInterrupt()))
    assert command("--json")[:2] == (130, "")


def test_a_method_that_fails_gives_code_1_and_stops_no_other(command, monkeypatch):
    monkeypatch.setattr(MixUp, "draw", lambda self, x: throw(RuntimeError("shapes do not fit")))
    monkeypatch.setattr(images, "tiles", lambda x, names, cb: [])
    code, out, err = command("--methods mixup:8,cutmix --seeds 2")
    assert (code, err.count("failed: "), "failed: mixup:8, seed 0" in err) == (1, 1, True)
    assert trained(err) == ["none, seed 0", "cutmix:1, seed 0", "none, seed 1", "cutmix:1, seed 1"]
    assert ([row[0] for row in rows(out)], "the same command goes on" in err) == (["none", "cutmix:1"], True)


def test_a_full_disk_loses_no_run_of_this_comparison(command, simulated, monkeypatch):
    monkeypatch.setattr("builtins.open", lambda f, mode="r", *a, o=open, **k: o(f, mode, *a, **k) if mode != "r+b" else
                        throw(OSError(28, "No space left on device")))  # fmt: skip
    code, out, err = command("--methods mixup:8")
    assert (code, [row[0] for row in rows(out)]) == (0, ["none", "mixup:8"])
    assert err.count("is not kept in compare.jsonl: [Errno 28] No space left") == 2


def test_the_command_continues_where_it_stopped_with_the_same_results(command, monkeypatch):
    argv, known = "--methods mixup:8,output_mixup --seeds 2 --json", re.compile(r'"(seconds|runs)": [^,}]+')
    code, whole, err = command(f"{argv} --runs whole.jsonl")
    jobs = [f"{label}, seed {seed}" for seed in range(2) for label in ("none", "mixup:8", "output_mixup:0.4")]
    assert (code, trained(err)) == (0, jobs)
    run, begun = Training.run, []
    with monkeypatch.context() as m:
        fifth = lambda *args: throw(RuntimeError("out of memory")) if len(begun) == 5 else run(*args)  # noqa: E731
        m.setattr(Training, "run", lambda *args: (begun.append(1), fifth(*args))[1])
        code, _, err = command(argv)
    assert (code, trained(err)) == (1, jobs[:4] + jobs[5:])  # the other methods go on
    for reused, new in ((5, [jobs[4]]), (6, [])):
        code, out, err = command(argv)
        assert (code, trained(err)) == (0, new)
        assert f"{reused} of 6 runs are reused from compare.jsonl" in err
        assert len({known.sub("", text) for text in (out, whole)}) == 1


CHANGES = ["epochs 2", "noise 0.1", "bs 9", "lr 0.001", "arch resnet18", "size 40", "no-augment", "seeds 2"]


@pytest.mark.parametrize("changed", CHANGES)
def test_runs_of_other_options_are_trained_anew_and_old_ones_stay(command, folder, simulated, changed):
    usual = f"--size 32 --bs 8 --methods mixup:8 --data {folder} --arch cnn"
    command(usual)
    runs = folder.parent / "compare.jsonl"
    before = runs.read_bytes()
    simulated.clear()
    assert command(f"{usual} --{changed}")[0] == 0
    assert simulated == [f"{label}, seed {changed == 'seeds 2':d}" for label in ("none", "MixUp(8.0)")]
    after = runs.read_bytes()
    assert (after.startswith(before), len(list(map(strict, after.splitlines())))) == (True, 4)
    assert (command(usual)[0], len(simulated)) == (0, 2)


def test_runs_belong_to_the_images_wherever_they_are_and_to_the_code(command, folder, simulated, monkeypatch):
    usual = "--size 32 --bs 8 --methods none --arch cnn --data"
    command(f"{usual} {folder}")
    moved = folder.rename(folder.with_name("moved"))
    command(f"{usual} {moved}")
    assert len(simulated) == 1
    (moved / "cat" / "new.png").write_bytes((moved / "cat" / "0.png").read_bytes())
    command(f"{usual} {moved}")
    assert len(simulated) == 2
    save(moved / "cat" / "1.png", 99)
    command(f"{usual} {moved}")
    assert len(simulated) == 3
    monkeypatch.setattr("mixaug.compare.run.installed", lambda: {"torch": "9.9"})
    command(f"{usual} {moved}")
    assert len(simulated) == 4


def strict(text):
    """JSON, without the extensions of Python's parser."""
    return json.loads(text, parse_constant=pytest.fail)


def test_json_has_the_options_the_runs_and_the_differences(command, simulated):
    code, out, _ = command("--methods mixup:8,cutmix --seeds 3 --json")
    found = strict(out)
    assert (code, out.count("\n"), found["options"]["methods"]) == (0, 1, ["mixup:8,cutmix"])
    assert list(found["means"]) == ["none", "mixup:8", "cutmix:1"]
    assert found["means"]["none"]["accuracy %"] == 54  # 51, 54, 57
    assert found["changes"]["mixup:8"]["accuracy %"] == {"mean": 1, "low": None, "high": None, "seeds": 3}
    assert [run["accuracy %"] for run in found["runs"]] == [51, 52, 53, 54, 55, 56, 57, 58, 59]


def test_without_options_it_says_how_long_it_takes(simulated, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)  # simulated runs are of this process
    assert main(["compare"]) == 0
    out = capsys.readouterr().out
    assert "6 methods, 5 seeds, 25 epochs, about three minutes on two cores" in out.splitlines()[0]
    assert len(simulated) == 30


def refused(result, words):
    """Whether the command ended with code 2 and one line on stderr that contains `words`."""
    code, out, err = result
    return (code, out, err.count("\n"), err.startswith("mixaug compare: "), words in err) == (2, "", 1, True, True)


# With settings so small that a check which no longer refuses fails its test at once
BAD = [
    ("--data nowhere", "data must be a folder"),
    ("--csv nowhere --target a", "csv must be a file"),
    ("--csv {tmp}/table.csv", "as --target COLUMN"),
    ("--csv {tmp}/table.csv --target b", "target must be a column of ['color', 'number', 'sign', 'square'], got 'b'"),
    ("--csv {tmp}/table.csv --target sign --noise 0.1", "noise must be of images"),
    ("--csv {tmp}/table.csv --data {tmp}", "data and csv cannot both be given"),
    ("--csv {tmp}/empty.csv --target a", "csv must be a table"),
    ("--csv {tmp}/one.csv --target a", "target must have two values"),
    ("--methods none,mixupp", "methods must be"),
    ("--methods ''", "methods must be"),
    ("--methods mixup:0", "methods must have an alpha"),
    ("--methods mixup:x", "methods must have an alpha"),
    ("--alpha much", "--alpha: invalid float value"),
    ("--alpha 0", "alpha must be a number from"),
    ("--alpha nan", "alpha must be a number from"),
    ("--noise 1.5", "noise must be a number from 0 to 1"),
    ("--epochs 0", "epochs must be a number from 1"),
    ("--seeds -1", "seeds must be a number from 1"),
    ("--jobs 0", "jobs must be a number from 1"),
    ("--arch resnet18", "arch must be auto for digits and tables"),
    ("--pretrained", "pretrained must be"),
    ("--speed fast", "--speed"),
    ("--out {tmp}/nowhere/a.png", "out must be a file in a folder that exists"),
    ("--out a.docx", "out must end with ."),
    ("--out a", "out must end with"),
    ("--runs {tmp}", "runs must be a file in a folder"),
    ("--runs nowhere/a", "runs must be a file in a folder"),
    ("--runs {tmp}/../{tmp.name}/compare.png", "runs must be another file"),
    ("--runs {tmp}/table.csv", "runs must be a file of finished runs"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_bad_input_gives_one_line_and_code_2(command, simulated, csv, tmp_path, options, words):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "one.csv").write_text("a,b\n" + "1,2\n" * 20)
    code, _, err = command(f"--methods none {options.format(tmp=tmp_path)}")
    assert refused((code, "", err), words)  # what is trained may have been printed
    assert simulated == []


def test_an_unknown_network_names_what_is_installed_and_how_to_get_more(command, simulated, folder, monkeypatch):
    words = "arch must be a model for these data, of torchvision "
    assert refused(command(f"--data {folder} --arch resnet99"), words)
    missing = lambda name: throw(ModuleNotFoundError(name)) if name == "timm" else version(name)  # noqa: E731
    monkeypatch.setattr("mixaug.compare.command.version", missing)
    assert refused(
        command(f"--data {folder} --arch resnet99"), "timm (not installed: pip install timm), got 'resnet99'"
    )
    assert refused(command(f"--data {folder} --arch squeezenet1_0 --size 8"), "arch must be a model for these data")


# The picture


def comparison(labels, measures=("accuracy %", "ECE %")):
    run = {"epochs": [dict.fromkeys(measures, 50.0)], "measures": {}, "seconds": 1.0, "first": {}}
    return Comparison({(label, 0): run for label in labels}, list(labels), labels[0], {})


def test_titles_of_tiles_do_not_overlap_and_dollars_are_drawn():
    methods = methods_of(parser().parse_args(["--methods", "cutmix,output_mixup"]), "digits")
    names = ["German_shorthaired_pointer", "American_pit_bull_terrier", "a$b", "$\\frac{$"] * 8
    fig = images.picture(comparison(list(methods)), methods, (torch.rand(32, 3, 16, 16), names))
    fig.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in fig.axes if ax.get_title()]
    assert len(boxes) == 3 * images.TILES + 2
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    comparison(["none", "$x$\\frac{$"], ["$\\frac{$"]).plot()[0].figure.draw_without_rendering()


def test_tiles_are_the_mixed_images_or_original_beside_partner():
    x, names = torch.rand(64, 1, 6, 6), [str(i) for i in range(64)]
    for image, title in images.tiles(x, names, MixUp(1)):
        lam, i, rest, partner = re.fullmatch(r"(\S+) × (\d+) \+ (\S+) × (\d+)", title).groups()
        assert float(lam) + float(rest) == pytest.approx(1)
        assert torch.allclose(image, float(lam) * x[int(i)] + float(rest) * x[int(partner)], atol=0.01)
    for image, title in images.tiles(x, names, NAMES["output_mixup"](1)):
        i, partner = map(int, re.fullmatch(r"\S+ × (\d+) \+ \S+ × (\d+)", title).groups())
        assert torch.equal(image, torch.cat([x[i], torch.ones(1, 6, 1), x[partner]], -1))


def test_the_digits_are_shown_large_enough():
    x, names = digits_task(0.4, 64).samples()
    assert x.shape == (64, 1, 32, 32)
    assert set(names) == {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}


# The program


def program(*arguments, code=""):
    """Run the program `mixaug` in a new process; `code` runs at its end."""
    lines = f"import sys; sys.argv = ['mixaug', *{arguments!r}]", "from mixaug.__main__ import main", "code = main()"
    run, cwd = [sys.executable, "-c", "\n".join([*lines, code, "sys.exit(code)"])], Path(__file__).parent.parent
    return subprocess.run(run, capture_output=True, text=True, timeout=300, cwd=cwd)


def test_usage_and_version_are_printed_at_once_and_an_unknown_command_is_said():
    no_torch = "assert not {'torch', 'fastai', 'numpy'} & {*sys.modules}"
    usage = program(code=no_torch)
    assert (usage.returncode, "mixaug compare" in usage.stdout, usage.stderr) == (0, True, "")
    version = program("--version", code=no_torch)
    assert re.fullmatch(r"mixaug \d+\.\d+\.\d+\n", version.stdout)
    unknown = program("foo", code=no_torch)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("mixaug: there is no command 'foo'")


def test_the_program_prints_no_warning_of_others_also_in_runs_side_by_side(tmp_path):
    runs = tmp_path / "a.jsonl"
    argv = shlex.split(f"compare --seeds 2 --epochs 1 --methods none --jobs 2 --out {tmp_path}/a.png --runs {runs}")
    found = program(*argv)
    assert found.returncode == 0
    assert len(trained(found.stderr)) == len(found.stderr.splitlines()) == 2
    lines = runs.read_text().splitlines()
    runs.write_text(f"{lines[0]}\n{lines[1][:50]}\n")
    assert "a.jsonl, line 2, is damaged" in program(*argv).stderr  # but its own


def test_help_groups_the_options_names_the_methods_and_says_what_auto_is(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    text = capsys.readouterr().out
    assert all(f"\n{group}:\n" in text for group in ("data", "methods", "training", "output"))
    assert all(name in text for name in NAMES)
    assert "auto: chosen by the data" in " ".join(text.split())
