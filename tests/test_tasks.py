"""One table of tasks: each is trained with every method, and every batch's inputs, targets and loss are checked."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import BS, EVERY, METHODS, C, N, classes, cnn, images, learner, replace, trained
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, L1LossFlat, MSELossFlat
from fastai.torch_core import TensorBase
from reference import close, partners_of, slow_average, slow_loss, slow_mix, slow_weighted, slow_weights
from torch import nn

from mixaug import ManifoldMixup

SIZE = (5, 6)
WEIGHT = torch.tensor([0.1, 1.0, 20.0])


@dataclass
class Task:
    """Inputs, targets, a model, a loss, and the rule of each target: "loss", "average" or "mask"."""

    x: Any
    y: Any
    model: Any
    loss: Any
    rule: Any
    weighted: bool = False  # the loss divides by the targets' weights
    lams: int = 2  # at least so many different coefficients in a batch
    targets: Any = None  # what the user says, where shapes do not


def head(n_out, n_in=60, tail=None):
    return lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(n_in, 12), nn.ReLU(), nn.Linear(12, n_out), *([tail] if tail else [])
    )


def dense(n_out, conv=nn.Conv2d, channels=2, tail=None):
    tail = tail or nn.Identity()
    return lambda: nn.Sequential(conv(channels, 4, 3, padding=1), nn.ReLU(), conv(4, n_out, 1), tail)


def void(y):
    return torch.where(torch.rand(y.shape) < 0.3, 255, y)


class Two(nn.Module):
    """A network with two inputs: two images that share a body, or an image and a row of a table."""

    def __init__(self, columns=None):
        super().__init__()
        self.body, self.second = nn.Linear(60, 8), nn.Linear(columns, 8) if columns else None
        self.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, C))

    def forward(self, a, b):
        return self.head(torch.cat([self.body(a.flatten(1)), (self.second or self.body)(b.flatten(1))], 1))


def class_and_value(pred, label, value):
    return F.cross_entropy(pred[:, :C], label) + F.mse_loss(pred[:, C], value)


def two_masks(pred, first, second):
    return F.cross_entropy(pred[:, :C], first) + F.cross_entropy(pred[:, C:], second)


void_and_weight = partial(CrossEntropyLossFlat, axis=1, ignore_index=255)

TASKS = {
    "classes": lambda: Task(images(), classes(), cnn, CrossEntropyLossFlat(), "loss"),
    "classes, int32": lambda: Task(images(), classes(dtype=torch.int32), cnn, CrossEntropyLossFlat(), "loss"),
    "classes, uint8": lambda: Task(images(), classes(dtype=torch.uint8), cnn, nn.CrossEntropyLoss(), "loss"),
    "classes, weights": lambda: Task(images(), classes(), cnn, CrossEntropyLossFlat(weight=WEIGHT), "loss", True),
    "multi-label": lambda: Task(images(), classes(C, high=2).float(), cnn, BCEWithLogitsLossFlat(), "average"),
    "multi-label, integers": lambda: Task(images(), classes(C, high=2), cnn, BCEWithLogitsLossFlat(), "average"),
    "soft labels": lambda: Task(images(), torch.rand(N, C).softmax(1), cnn, nn.CrossEntropyLoss(), "average"),
    "continuous": lambda: Task(images(), torch.randn(N), head(1), MSELossFlat(), "average"),
    "continuous, float64": lambda: Task(images(), torch.randn(N).double(), head(1), MSELossFlat(), "average"),
    "age": lambda: Task(images(), classes(high=90), head(1), MSELossFlat(), "average"),
    "points": lambda: Task(
        images(),
        torch.rand(N, 2, 2),
        head(4, tail=nn.Unflatten(1, (2, 2))),
        MSELossFlat(),
        "average",
        targets="average",
    ),
    "sequence": lambda: Task(
        images((7,)), classes(7), dense(C, nn.Conv1d), CrossEntropyLossFlat(axis=1), "mask", targets="mask"
    ),
    "segmentation": lambda: Task(images(), classes(*SIZE), dense(C), CrossEntropyLossFlat(axis=1), "mask"),
    "segmentation, int16": lambda: Task(
        images(), classes(*SIZE, dtype=torch.int16), dense(C), CrossEntropyLossFlat(axis=1), "mask"
    ),
    "segmentation, void": lambda: Task(images(), void(classes(*SIZE)), dense(C), void_and_weight(), "mask", True),
    "segmentation, void and weights": lambda: Task(
        images(), void(classes(*SIZE)), dense(C), void_and_weight(weight=WEIGHT), "mask", True
    ),
    "image to image": lambda: Task(images(), images(channels=3), dense(3), L1LossFlat(), "mask"),
    "depth": lambda: Task(images(), torch.rand(N, *SIZE), dense(1, tail=nn.Flatten(1, 2)), F.l1_loss, "mask"),
    "class and value": lambda: Task(
        images(), (classes(), torch.randn(N)), head(C + 1), class_and_value, ("loss", "average"), lams=1
    ),
    "two dense targets": lambda: Task(
        images(), (classes(*SIZE), classes(*SIZE)), dense(2 * C), two_masks, ("mask", "mask"), lams=1
    ),
    "signal": lambda: Task(images((9,)), classes(), head(C, 18), CrossEntropyLossFlat(), "loss"),
    "volume": lambda: Task(images((3, 4, 5)), classes(), head(C, 120), CrossEntropyLossFlat(), "loss"),
    "odd image": lambda: Task(images((7, 13)), classes(), cnn, CrossEntropyLossFlat(), "loss"),
    "line of one pixel": lambda: Task(images((1, 30)), classes(), head(C), CrossEntropyLossFlat(), "loss"),
    "two images": lambda: Task((images(), images()), classes(), Two, CrossEntropyLossFlat(), "loss"),
    "image and table": lambda: Task(
        (images(), torch.randn(N, 4)), classes(), partial(Two, 4), CrossEntropyLossFlat(), "loss"
    ),
    "noncontiguous images": lambda: Task(images().transpose(2, 3), classes(), head(C), CrossEntropyLossFlat(), "loss"),
    "expanded images": lambda: Task(
        images(channels=1).expand(N, 2, *SIZE), classes(), head(C), CrossEntropyLossFlat(), "loss"
    ),
}


def several(value):
    return value if isinstance(value, tuple) else (value,)


def remedy(task, method):
    """Return the remedy that an error names where a method does not fit a task, else None."""
    rules, first = several(task.rule), several(task.y)[0]
    if method.startswith("PatchUp"):  # needs layers with positions, and targets without
        if "mask" in rules:
            return "CutMix"
        return None if any(isinstance(m, nn.Conv2d) for m in task.model().modules()) else "modules="
    if method in ("clean", "OneOf, each sample") and task.loss is class_and_value:
        return "is_average"
    if first.is_floating_point() or getattr(task.loss, "floatify", False):
        return None
    return "MixUp" if method == "CMixup" else "per_sample=False" if "mask" in rules and "each" in method else None


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("task", TASKS)
def test_task(task, method):
    task = TASKS[task]()
    xs, ys, rules = several(task.x), several(task.y), several(task.rule)
    before = [t.clone() for t in (*xs, *ys)]
    mixer, model = EVERY[method](1), task.model()
    for part in (mixer, *getattr(mixer, "methods", ())):
        if isinstance(model, Two) and isinstance(part, ManifoldMixup):
            part.modules = [model.head[0]]
        if not method.startswith("PatchUp") and (part is mixer or "each" not in method):
            part.targets = task.targets
    learn = learner(mixer, task.x, task.y, model=model, loss=task.loss)
    if remedy(task, method):
        with pytest.raises((TypeError, ValueError), match=remedy(task, method)):
            learn.fit(2, 0.01)
        return
    learn.fit(2, 0.01)
    for row in learn.spy.batches:
        mix, lam, cut = row.mix, row.lam, row.mix.mask.dtype == torch.bool
        weights = torch.tensor([slow_weights(mix, i) for i in range(len(lam))])
        close(lam, weights if mix.then else weights[:, 0])
        assert cut or mix.mask.ndim > 1 or len(lam.unique()) >= task.lams
        for got, x in zip(row.x, row.x0, strict=True):
            close(got, slow_mix(x, mix) if row.place == "input" else x)
            assert got.dtype == x.dtype
        original, partners = [], []  # the targets of both losses
        for got, y, rule in zip(row.y, row.y0, rules, strict=True):
            if rule == "loss" or (rule == "mask" and not cut and not y.is_floating_point()):
                assert torch.equal(got, y)
                partners.append(partners_of(y, mix))
            else:
                y = y if rule == "mask" else y.to(got.dtype)
                close(got, slow_mix(y, mix) if rule == "mask" else slow_average(y, mix, weights))
                assert got.dtype == y.dtype
                partners.append(got.expand(len(mix.parts), *got.shape) if mix.then else got)
            original.append(got)
        if task.weighted:
            inner = task.loss.func
            expected = slow_weighted(row.pred, *original, *partners, lam, inner.weight, inner.ignore_index)
        else:
            expected = slow_loss(row.pred, original, partners, lam, task.loss)
        close(row.loss, expected.detach())
    assert all(torch.equal(a, b) for a, b in zip(before, (*xs, *ys), strict=True))


# Inputs and targets that cannot be mixed, and data that must not be changed


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = cnn()

    def forward(self, x):
        return self.net(x.float() / 255)


def test_uint8_images_are_cut_but_not_averaged():
    x = torch.randint(0, 256, (N, 2, *SIZE), dtype=torch.uint8)
    for row in trained(METHODS["CutMix"](), x, model=Scaled()).spy.batches:
        assert torch.equal(row.x[0], slow_mix(row.x0[0], row.mix))
    with pytest.raises(TypeError, match="IntToFloatTensor"):
        trained(METHODS["MixUp"](), x, model=Scaled())


@pytest.mark.parametrize("name", ["TensorBBox", "BoundingBoxes"])  # of fastai and torchvision
@pytest.mark.parametrize("method", ["CutMix", "OutputMixup"])
def test_bounding_boxes_raise_type_error(method, name):
    kind = type(name, (TensorBase,), {})
    boxes = replace(yb=lambda learn: (kind(torch.rand(len(learn.x), 1, 4)),))
    with pytest.raises(TypeError, match="bounding boxes"):
        trained(METHODS[method](), loss=lambda pred, y: pred.sum(), cbs=[boxes])


@pytest.mark.parametrize("y", [torch.rand(N, C), classes(C)], ids=["labels", "heads"])
def test_as_many_labels_as_positions_are_ambiguous(y):
    loss = MSELossFlat() if y.is_floating_point() else lambda pred, y: F.mse_loss(pred, y.float())
    args, of_sample = {"x": images((C,)), "y": y, "model": head(C, 6)(), "loss": loss}, "average"
    if not y.is_floating_point():
        of_sample = "loss"
    with pytest.raises(ValueError, match=f'targets="mask".*targets="{of_sample}"'):
        trained(METHODS["CutMix"](), **args)
    for options in ({"targets": "mask"}, {"targets": of_sample}, {"stack_y": True}):
        trained(METHODS["CutMix"](per_sample=False, **options), **args)
    trained(METHODS["MixUp"](per_sample=False), **args)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_and_the_memory_format_of_images_are_kept(method, dtype):
    x = images(n=BS).to(dtype).contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(Scaled(), nn.Linear(C, C), nn.ReLU(), nn.Linear(C, C))
    learn = trained(METHODS[method](), x, model=model, cbs=[replace(xb=lambda learn: (x,))])
    (got,) = learn.spy.batches[0].x
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("method", METHODS)
def test_a_loader_of_views_of_one_tensor_finds_it_unchanged(method):
    x, y = images(), torch.rand(N, 2, *SIZE)
    kept = x.clone(), y.clone()
    at = lambda learn: slice(learn.iter * BS, (learn.iter + 1) * BS)  # noqa: E731
    views = replace(xb=lambda learn: (x[at(learn)],), yb=lambda learn: (y[at(learn)],))
    trained(METHODS[method](), x, y, model=dense(2)(), loss=MSELossFlat(), cbs=[views], fit=(2, 0.1))
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
