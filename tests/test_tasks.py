"""One table of tasks: each is trained with every method, and every batch's features, targets and loss are checked."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import BS, EVERY, METHODS, C, N, cnn, images, learner, on, place_of, slow_mix
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, L1LossFlat, MSELossFlat
from fastai.torch_core import TensorBase
from torch import nn

from mixaug import ManifoldMixup, Mix

SIZE = (5, 6)
WEIGHT = torch.tensor([0.1, 1.0, 20.0])


@dataclass
class Task:
    """Inputs, targets, a model, a loss, and what becomes of each target: "losses", "average" or "map"."""

    x: Any
    y: Any
    model: Any
    loss: Any
    rule: Any
    weighted: bool = False  # the loss divides by the targets' weights
    lams: int = 2  # at least so many different shares in a batch


def head(n_out, n_in=60, tail=None):
    return lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(n_in, 12), nn.ReLU(), nn.Linear(12, n_out), *([tail] if tail else [])
    )


def dense(n_out, conv=nn.Conv2d, channels=2, tail=None):
    tail = tail or nn.Identity()
    return lambda: nn.Sequential(conv(channels, 4, 3, padding=1), nn.ReLU(), conv(4, n_out, 1), tail)


def classes(*size, high=C, dtype=torch.int64):
    return torch.randint(0, high, (N, *size)).to(dtype)


def void(y):
    return torch.where(torch.rand(y.shape) < 0.3, 255, y)


class Siamese(nn.Module):
    """Two images, one body."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(60, 8), nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, C))

    def forward(self, a, b):
        return self.head(torch.cat([self.body(a.flatten(1)), self.body(b.flatten(1))], 1))


class Both(nn.Module):
    """An image and the numbers that come with it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, C))

    def forward(self, image, numbers):
        return self.net(torch.cat([image.flatten(1), numbers], 1))


def class_and_number(pred, label, number):
    return F.cross_entropy(pred[:, :C], label) + F.mse_loss(pred[:, C], number)


def two_maps(pred, first, second):
    return F.cross_entropy(pred[:, :C], first) + F.cross_entropy(pred[:, C:], second)


void_and_weight = partial(CrossEntropyLossFlat, axis=1, ignore_index=255)

TASKS = {
    "classes": lambda: Task(images(), classes(), cnn, CrossEntropyLossFlat(), "losses"),
    "classes, int32": lambda: Task(images(), classes(dtype=torch.int32), cnn, CrossEntropyLossFlat(), "losses"),
    "classes, uint8": lambda: Task(images(), classes(dtype=torch.uint8), cnn, nn.CrossEntropyLoss(), "losses"),
    "classes, weights": lambda: Task(
        images(), classes(), cnn, CrossEntropyLossFlat(weight=WEIGHT), "losses", weighted=True
    ),
    "multi-label": lambda: Task(images(), classes(C, high=2).float(), cnn, BCEWithLogitsLossFlat(), "average"),
    "multi-label, integers": lambda: Task(images(), classes(C, high=2), cnn, BCEWithLogitsLossFlat(), "average"),
    "soft labels": lambda: Task(images(), torch.rand(N, C).softmax(1), cnn, nn.CrossEntropyLoss(), "average"),
    "number": lambda: Task(images(), torch.randn(N), head(1), MSELossFlat(), "average"),
    "number, float64": lambda: Task(images(), torch.randn(N).double(), head(1), MSELossFlat(), "average"),
    "age": lambda: Task(images(), classes(high=90), head(1), MSELossFlat(), "average"),
    "points": lambda: Task(
        images(), torch.rand(N, 2, 2), head(4, tail=nn.Unflatten(1, (2, 2))), MSELossFlat(), "average"
    ),
    "sequence": lambda: Task(
        images((7,)), classes(7), dense(C, nn.Conv1d), CrossEntropyLossFlat(axis=1), "map"
    ),
    "segmentation": lambda: Task(images(), classes(*SIZE), dense(C), CrossEntropyLossFlat(axis=1), "map"),
    "segmentation, int16": lambda: Task(
        images(), classes(*SIZE, dtype=torch.int16), dense(C), CrossEntropyLossFlat(axis=1), "map"
    ),
    "segmentation, void": lambda: Task(
        images(), void(classes(*SIZE)), dense(C), void_and_weight(), "map", weighted=True
    ),
    "segmentation, void and weights": lambda: Task(
        images(), void(classes(*SIZE)), dense(C), void_and_weight(weight=WEIGHT), "map", weighted=True
    ),
    "image to image": lambda: Task(images(), images(channels=3), dense(3), L1LossFlat(), "map"),
    "depth": lambda: Task(images(), torch.rand(N, *SIZE), dense(1, tail=nn.Flatten(1, 2)), F.l1_loss, "map"),
    "class and number": lambda: Task(
        images(), (classes(), torch.randn(N)), head(C + 1), class_and_number, ("losses", "average"), lams=1
    ),
    "two maps": lambda: Task(
        images(), (classes(*SIZE), classes(*SIZE)), dense(2 * C), two_maps, ("map", "map"), lams=1
    ),
    "signal": lambda: Task(images((9,)), classes(), head(C, 18), CrossEntropyLossFlat(), "losses"),
    "volume": lambda: Task(images((3, 4, 5)), classes(), head(C, 120), CrossEntropyLossFlat(), "losses"),
    "odd image": lambda: Task(images((7, 13)), classes(), cnn, CrossEntropyLossFlat(), "losses"),
    "line of one pixel": lambda: Task(images((1, 30)), classes(), head(C), CrossEntropyLossFlat(), "losses"),
    "two images": lambda: Task((images(), images()), classes(), Siamese, CrossEntropyLossFlat(), "losses"),
    "image and numbers": lambda: Task((images(), torch.randn(N, 4)), classes(), Both, CrossEntropyLossFlat(), "losses"),
    "noncontiguous images": lambda: Task(
        images().transpose(2, 3), classes(), head(C), CrossEntropyLossFlat(), "losses"
    ),
    "expanded images": lambda: Task(
        images(channels=1).expand(N, 2, *SIZE), classes(), head(C), CrossEntropyLossFlat(), "losses"
    ),
}  # fmt: skip


def several(value):
    return value if isinstance(value, tuple) else (value,)


def slow_weighted(loss, pred, y, y1, lam):
    """The formula for losses that divide by the targets' weights, a position at a time."""
    inner, total, count = loss.func, 0.0, 0.0
    weight = torch.ones(C) if inner.weight is None else inner.weight
    logp = pred.log_softmax(1).movedim(1, -1)
    for i in range(len(y)):
        for share, targets in ((lam[i], y[i]), (1 - lam[i], y1[i])):
            for p, target in zip(logp[i].reshape(-1, C), targets.flatten(), strict=True):
                if target != inner.ignore_index:
                    total -= share * weight[target] * p[target]
                    count += share * weight[target]
    return total / count


def refused(task, method):
    """What a method cannot do to a task: pair classes by distance, mix half of a map, cut boxes from what has none."""
    if method.startswith("PatchUp"):
        return "map" in several(task.rule) or not any(isinstance(m, nn.Conv2d) for m in task.model().modules())
    first = several(task.y)[0]
    classes = not first.is_floating_point() and not getattr(task.loss, "floatify", False)
    return (method == "CMixup" and classes) or (
        method == "OneOf, each sample" and classes and "map" in several(task.rule)
    )


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("task", TASKS)
def test_task(task, method):
    task = TASKS[task]()
    xs, ys, rules = several(task.x), several(task.y), several(task.rule)
    before = [t.clone() for t in (*xs, *ys)]
    mixer, model = EVERY[method](1), task.model()
    for part in (mixer, *getattr(mixer, "methods", ())):
        if isinstance(model, Siamese) and isinstance(part, ManifoldMixup):
            part.modules = [model.head[0]]
    learn = learner(mixer, task.x, task.y, model=model, loss=task.loss)
    places = []
    learn.add_cb(on("after_pred", lambda learn: places.append(place_of(mixer)) if learn.training else None))
    averages = method in ("clean", "OneOf, each sample")
    if refused(task, method) or (averages and task.loss is class_and_number):
        with pytest.raises(
            (TypeError, ValueError), match=r"(CMixup|PatchUp) wants|map of class numbers|known to be an average"
        ):
            learn.fit(2, 0.01)
        return
    learn.fit(2, 0.01)
    for row, place in zip(learn.spy.batches, places, strict=True):
        at, mix, lam = slice(row["iter"] * BS, (row["iter"] + 1) * BS), row["mix"], row["lam"]
        x_own, y_own = ([t[at] for t in ts] for ts in (xs, ys))
        if method == "clean":
            x_own, y_own = ([torch.cat([t, t]) for t in ts] for ts in (x_own, y_own))
        cut = mix.mask.dtype == torch.bool
        torch.testing.assert_close(lam, mix.mask.float().flatten(1).mean(1) if mix.mask.ndim > 1 else mix.mask)
        assert cut or mix.mask.ndim > 1 or len(lam.unique()) >= task.lams
        for got, x in zip(row["x"], x_own, strict=True):
            expected = slow_mix(x, mix) if place == "input" else x
            torch.testing.assert_close(got, expected, check_dtype=False)
            assert got.dtype == x.dtype
        own, partners = [], []
        for got, y, rule in zip(row["y"], y_own, rules, strict=True):
            if rule == "map" and cut:
                assert torch.equal(got, slow_mix(y, mix))
                assert got.dtype == y.dtype
                own.append(got)
                partners.append(got)
            elif rule == "losses" or (not y.is_floating_point() and rule == "map"):
                assert torch.equal(got, y)
                own.append(y)
                partners.append(y[mix.partner])
            else:
                expected = slow_mix(y.to(got.dtype), mix if rule == "map" else Mix(mix.partner, lam))
                torch.testing.assert_close(got, expected.to(got.dtype))
                own.append(got)
                partners.append(got)
        if task.weighted:
            expected = slow_weighted(task.loss, row["pred"], own[0], partners[0], lam)
        else:
            loss = lambda i, t: task.loss(row["pred"][i : i + 1], *(y[i : i + 1] for y in t))  # noqa: E731, B023
            each = [lam[i] * loss(i, own) + (1 - lam[i]) * loss(i, partners) for i in range(len(lam))]
            expected = sum(each) / len(each)
        torch.testing.assert_close(row["loss"], expected.detach(), check_dtype=False)
    assert all(torch.equal(a, b) for a, b in zip(before, (*xs, *ys), strict=True))


# What cannot be mixed, and what must not be touched


@pytest.mark.parametrize("method", METHODS)
def test_codes_and_tokens_are_for_the_hidden_layers(method):
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, C))
    learn = learner(METHODS[method](), classes(5, high=9), model=model)
    if method in ("ManifoldMixup", "OutputMixup"):
        learn.fit(1)
    else:
        with pytest.raises((TypeError, ValueError), match="ManifoldMixup"):
            learn.fit(1)
        assert not learn.spy.batches


def test_images_of_bytes_are_cut_but_not_averaged():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn()

        def forward(self, x):
            return self.net(x / 255)

    x = torch.randint(0, 256, (N, 2, *SIZE), dtype=torch.uint8)
    learn = learner(METHODS["CutMix"](), x, model=Scaled())
    learn.fit(1)
    for row in learn.spy.batches:
        own = x[row["iter"] * BS : (row["iter"] + 1) * BS]
        assert torch.equal(row["x"][0], slow_mix(own, row["mix"]))
    with pytest.raises(TypeError, match=r"torch.uint8.*IntToFloatTensor"):
        learner(METHODS["MixUp"](), x, model=Scaled()).fit(1)


@pytest.mark.parametrize("name", ["TensorBBox", "BoundingBoxes"])  # of fastai and torchvision
@pytest.mark.parametrize("method", METHODS)
def test_bounding_boxes_are_refused(method, name):
    kind = type(name, (TensorBase,), {})
    learn = learner(METHODS[method](), loss=lambda pred, y: pred.sum())
    boxes = lambda learn: setattr(learn, "yb", (kind(torch.rand(len(learn.x), 1, 4)),))  # noqa: E731
    learn.add_cb(on("before_batch", boxes, order=-1))
    with pytest.raises(TypeError, match="bounding boxes came"):
        learn.fit(1)


def test_labels_as_many_as_positions_are_ambiguous():
    x, y = images((C,)), torch.rand(N, C)
    with pytest.raises(ValueError, match=r"\(8, 3\) came with inputs of 3 positions.*\(B, 1, L\).*stack_y=True"):
        learner(METHODS["CutMix"](), x, y, model=head(C, 6)(), loss=MSELossFlat()).fit(1)
    learner(METHODS["CutMix"](stack_y=True), x, y, model=head(C, 6)(), loss=MSELossFlat()).fit(1)
    learner(METHODS["MixUp"](), x, y, model=head(C, 6)(), loss=MSELossFlat()).fit(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_and_the_memory_format_of_images_are_kept(method, dtype):
    x = images(n=BS).to(dtype).contiguous(memory_format=torch.channels_last)
    learn = learner(METHODS[method](), x, model=nn.Sequential(Float(), *cnn()))
    learn.add_cb(on("before_batch", lambda learn: setattr(learn, "xb", (x,)) if learn.training else None, -1))
    learn.fit(1)
    (got,) = learn.spy.batches[0]["x"]
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)


class Float(nn.Module):
    def forward(self, x):
        return x.float()


@pytest.mark.parametrize("method", METHODS)
def test_a_loader_of_views_of_one_tensor_finds_it_unchanged(method):
    x, y = images(), torch.rand(N, 2, *SIZE)
    kept = x.clone(), y.clone()
    learn = learner(METHODS[method](), x, y, model=dense(2)(), loss=MSELossFlat())

    def views(learn):
        at = slice(learn.iter * BS, (learn.iter + 1) * BS)
        learn.xb, learn.yb = (x[at],), (y[at],)

    learn.add_cb(on("before_batch", views, -1))
    learn.fit(2, 0.1)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
