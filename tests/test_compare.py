"""The command `mixaug compare`: its statistics by value, its results on small settings, every way to go wrong."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ttest_rel

from mixaug import ManifoldMixup, MixUp
from mixaug.__main__ import main
from mixaug.compare import (
    METHODS,
    TILES,
    BadInputError,
    Run,
    change,
    digits,
    ece,
    figure,
    noisy,
    paired,
    parse_methods,
    split,
    spread,
)
from mixaug.compare import folder as read_folder


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


def test_paired_difference_and_its_star():
    rng = np.random.default_rng(0)
    for shift in (0.0, 1.0):
        a, b = rng.normal(shift, 1, 8).tolist(), rng.normal(0, 1, 8).tolist()
        test = ttest_rel(a, b)
        low, high = test.confidence_interval(0.95)
        mean, half = paired(a, b)
        assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
        assert change(a, b, 2).endswith("*") == (test.pvalue < 0.05)
    assert change([2.0], [1.0], 1) == "+1.0"
    assert spread([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert spread([1.0], 1) == "1.0"


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
    """The table's lines, as far as the accuracy."""
    return [line.split()[:5] for line in out.splitlines() if line.split()[:1] and line.split()[0].split(":")[0] in
            ("none", *METHODS) and "best epoch" not in line]  # fmt: skip


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
    argv = "--methods", "mixup:8,output_mixup", "--seeds", 2, "--epochs", 1, "--out", tmp_path / "out.png"
    code, out, err = run(capsys, *argv)
    assert code == 0
    assert [row[:2] for row in rows(out)] == [["none", "2"], ["mixup:8", "2"], ["output_mixup:0.4", "2"]]
    assert is_picture(tmp_path / "out.png")
    assert "run 6 of 6" in err
    assert rows(run(capsys, *argv)[1]) == rows(out)  # the same seeds give the same accuracies


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
        code, out, err = run(capsys, "--methods", "cutmix,mixup", "--epochs", 1, "--seeds", 1, "--out", out_file)
        assert code == expected
        assert [row[0] for row in rows(out)] == ["none", "cutmix:1"]
        assert is_picture(out_file)
        assert "in run 3 of 3 (mixup:0.4, seed 0)" in err


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
    results = {label: {0: Run([0.5], 0.7, 0.1, 1.0)} for label in methods}
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
