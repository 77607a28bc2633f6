"""The mixed loss against its formula, written out sample by sample and position by position."""

import copy
import pickle
from functools import partial
from itertools import product
from types import FunctionType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from common import METHODS, learner, on
from fastai.losses import (
    BaseLoss,
    BCELossFlat,
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    DiceLoss,
    FocalLoss,
    FocalLossFlat,
    L1LossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
)
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from mixaug import MixUpLoss, mixed_loss
from mixaug.loss import is_average

N, C = 6, 4
WEIGHT = torch.tensor([0.1, 1.0, 5.0, 20.0])


class CombinedLoss:
    """Dice and focal loss added up, as in fastai's documentation: it has no unreduced form."""

    def __init__(self, axis=1, smooth=1.0, alpha=1.0):
        self.axis, self.alpha = axis, alpha
        self.focal_loss, self.dice_loss = FocalLossFlat(axis=axis), DiceLoss(axis, smooth)

    def __call__(self, pred, targ):
        return self.focal_loss(pred, targ) + self.alpha * self.dice_loss(pred, targ)


class Custom(nn.Module):
    """A module of the user's: its mean is over the weights of the classes, which nobody can know from outside."""

    def __init__(self):
        super().__init__()
        self.reduction = "mean"

    def forward(self, pred, targ):
        return F.cross_entropy(pred, targ, WEIGHT, reduction=self.reduction)


class Squared(CrossEntropyLossFlat):
    """A loss of the user's that builds on one of fastai's."""

    def __call__(self, pred, targ, **kwargs):
        return super().__call__(pred, targ, **kwargs) ** 2


def classes(*size):
    return torch.randn(N, C, *size), torch.randint(0, C, (N, *size)), torch.randint(0, C, (N, *size))


def continuous():
    return torch.randn(N, 3), torch.randn(N, 3), torch.randn(N, 3)


def labels():
    return torch.randn(N, C), torch.randint(0, 2, (N, C)).float(), torch.randint(0, 2, (N, C)).float()


def probabilities():
    pred, y, y1 = labels()
    return pred.sigmoid(), y, y1


def soft():
    return torch.randn(N, C), torch.rand(N, C).softmax(1), torch.rand(N, C).softmax(1)


# Losses that are an average of their unreduced values: (loss, its data). One line adds one.
AVERAGES = {
    "CrossEntropyLossFlat": (CrossEntropyLossFlat(), classes),
    "CrossEntropyLossFlat sum": (CrossEntropyLossFlat(reduction="sum"), classes),
    "CrossEntropyLossFlat none": (CrossEntropyLossFlat(reduction="none"), classes),
    "CrossEntropyLossFlat dense": (CrossEntropyLossFlat(axis=1), partial(classes, 3, 5)),
    "CrossEntropyLossFlat weight sum": (CrossEntropyLossFlat(weight=WEIGHT, reduction="sum"), classes),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), classes),
    "CrossEntropyLoss smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), classes),
    "CrossEntropyLoss dense": (nn.CrossEntropyLoss(), partial(classes, 3, 5)),
    "CrossEntropyLoss soft": (nn.CrossEntropyLoss(), soft),
    "CrossEntropyLoss soft weight": (nn.CrossEntropyLoss(weight=WEIGHT), soft),
    "F.cross_entropy": (F.cross_entropy, classes),
    "partial": (partial(F.cross_entropy, label_smoothing=0.2), classes),
    "partial sum": (partial(F.cross_entropy, reduction="sum"), classes),
    "LabelSmoothingCrossEntropy": (LabelSmoothingCrossEntropy(), classes),
    "LabelSmoothingCrossEntropy sum": (LabelSmoothingCrossEntropy(reduction="sum", weight=WEIGHT), classes),
    "LabelSmoothingCrossEntropyFlat": (LabelSmoothingCrossEntropyFlat(), classes),
    "LabelSmoothingCrossEntropyFlat dense": (LabelSmoothingCrossEntropyFlat(axis=1), partial(classes, 3, 5)),
    "FocalLoss": (FocalLoss(), classes),
    "FocalLoss weight": (FocalLoss(weight=WEIGHT), classes),
    "FocalLossFlat": (FocalLossFlat(), classes),
    "FocalLossFlat weight": (FocalLossFlat(weight=WEIGHT, axis=1), partial(classes, 3, 5)),
    "BCEWithLogitsLossFlat": (BCEWithLogitsLossFlat(), labels),
    "BCEWithLogitsLossFlat pos_weight": (BCEWithLogitsLossFlat(pos_weight=WEIGHT), labels),
    "BCELossFlat": (BCELossFlat(), probabilities),
    "MSELossFlat": (MSELossFlat(), continuous),
    "MSELossFlat sum": (MSELossFlat(reduction="sum"), continuous),
    "L1LossFlat": (L1LossFlat(), continuous),
    "SmoothL1Loss": (nn.SmoothL1Loss(), continuous),
    "HuberLoss": (nn.HuberLoss(), continuous),
    "DiceLoss": (DiceLoss(), partial(classes, 3, 5)),
    "DiceLoss mean": (DiceLoss(reduction="mean"), partial(classes, 3, 5)),
}
# Losses that divide by the weights of the targets and leave an index out
IGNORE = 2
WEIGHTED = {
    "CrossEntropyLossFlat weight": (CrossEntropyLossFlat(weight=WEIGHT), classes),
    "CrossEntropyLossFlat ignore_index": (CrossEntropyLossFlat(ignore_index=IGNORE), classes),
    "CrossEntropyLossFlat both": (CrossEntropyLossFlat(weight=WEIGHT, ignore_index=IGNORE), classes),
    "CrossEntropyLossFlat dense": (
        CrossEntropyLossFlat(axis=1, weight=WEIGHT, ignore_index=IGNORE),
        partial(classes, 3, 5),
    ),
    "CrossEntropyLoss smoothing": (nn.CrossEntropyLoss(WEIGHT, ignore_index=IGNORE, label_smoothing=0.1), classes),
    "NLLLoss": (nn.NLLLoss(WEIGHT, ignore_index=IGNORE), classes),
    "F.nll_loss": (partial(F.nll_loss, weight=WEIGHT), classes),
    "partial": (partial(F.cross_entropy, weight=WEIGHT, ignore_index=IGNORE), classes),
}
OTHERS = {
    "Squared": (Squared(), classes),
    "CombinedLoss": (CombinedLoss(), partial(classes, 3, 5)),
    "lambda": (lambda pred, y: F.cross_entropy(pred, y).exp(), classes),
    "Custom": (Custom(), classes),
    "SoftTargetCrossEntropy": (SoftTargetCrossEntropy(), soft),
    "BinaryCrossEntropy": (BinaryCrossEntropy(), classes),
    "BinaryCrossEntropy sum": (BinaryCrossEntropy(sum_classes=True), classes),
    "KLDivLoss": (nn.KLDivLoss(reduction="batchmean"), soft),
}
EVERY = {
    **{f"{k} average": v for k, v in AVERAGES.items()},
    **{f"{k} weighted": v for k, v in WEIGHTED.items()},
    **OTHERS,
}


def table(rows):
    return pytest.mark.parametrize(("loss", "data"), rows.values(), ids=rows)


def at(loss, option, default):
    """An option of a loss of any kind."""
    if isinstance(loss, partial):
        return loss.keywords.get(option, default)
    return getattr(getattr(loss, "func", loss), option, default)


def average(loss, pred, y, y1, lam):
    """The formula for an average of unreduced values: sample by sample."""
    each = [
        lam[i] * loss(pred[i : i + 1], y[i : i + 1]) + (1 - lam[i]) * loss(pred[i : i + 1], y1[i : i + 1])
        for i in range(len(lam))
    ]
    reduction = at(loss, "reduction", "mean")
    return torch.cat(each) if reduction == "none" else sum(each) / (len(lam) if reduction == "mean" else 1)


def weighted(loss, pred, y, y1, lam):
    """The formula for a loss that divides by the targets' weights: position by position."""
    weight, ignored = at(loss, "weight", None), at(loss, "ignore_index", -100)
    smoothing = {"label_smoothing": at(loss, "label_smoothing", 0.0)}
    value = F.nll_loss if "nll" in str(loss).lower() else partial(F.cross_entropy, **smoothing)
    total = count = 0.0
    for i, p in product(range(len(lam)), product(*map(range, y.shape[1:]))):
        for w, target in ((lam[i], y[(i, *p)]), (1 - lam[i], y1[(i, *p)])):
            if target != ignored:
                total += w * value(pred[(i, slice(None), *p)][None], target[None], weight, reduction="sum")
                count += w * (1 if weight is None else weight[target])
    return total / count


def one_lam(loss, pred, y, y1, lam):
    """The formula for any loss, for which all coefficients have to be equal."""
    assert len(lam.unique()) == 1
    return lam[0] * loss(pred, y) + (1 - lam[0]) * loss(pred, y1)


FORMULAS = [*((row, average) for row in AVERAGES.values()), *((row, weighted) for row in WEIGHTED.values()),
            *((row, one_lam) for row in OTHERS.values())]  # fmt: skip


@pytest.mark.parametrize(("row", "formula"), FORMULAS, ids=EVERY)
def test_samples_are_weighted_one_by_one(row, formula):
    (loss, data), lam = row, torch.rand(N) if formula is not one_lam else torch.tensor([0.3])
    pred, y, y1 = data()
    pred = pred.log_softmax(1) if "nll" in str(loss).lower() else pred
    got = mixed_loss(loss, pred, (y,), (y1,), lam)
    torch.testing.assert_close(got, formula(loss, pred, y, y1, lam), check_dtype=False)


@pytest.mark.parametrize("number", range(len(FORMULAS)), ids=EVERY)
def test_every_loss_in_a_training(number):
    """With one of the methods, in turn, and those whose targets are dense with each."""
    ((loss, data), formula), size = FORMULAS[number], (3, 5)
    for method in METHODS.values() if len(data()[1].shape) > 2 else [list(METHODS.values())[number % 4]]:
        check_training(loss, data, formula, method, size)


def check_training(loss, data, formula, method, size):
    pred, y, _ = data()
    dense, kind = y.shape[1:] == size, str(loss).lower()
    body = nn.Conv2d(2, 8, 1) if dense else nn.Sequential(nn.Flatten(), nn.Linear(30, 8))
    last = nn.Conv2d(8, C, 1) if dense else nn.Linear(8, pred.shape[1])
    tail = nn.Sigmoid() if "bceloss" in kind else nn.LogSoftmax(1) if "nll" in kind else nn.Identity()
    model, x = nn.Sequential(body, nn.ReLU(), last, tail), torch.randn(2 * N, 2, *size)
    learn = learner(method(1), x, torch.cat([y, data()[1]]), model, loss, bs=N)
    if at(loss, "reduction", "mean") == "none":
        learn.cbs = learn.cbs.filter(lambda cb: cb.name != "recorder")  # which wants one number
        learn.add_cb(on("after_loss", lambda learn: setattr(learn, "loss_grad", learn.loss_grad.mean())))
    learn.fit(1, 0.01)
    for row in learn.spy.batches:
        if y.is_floating_point() or (dense and method is METHODS["CutMix"]):
            expected = loss(row.pred, row.mix.blend(row.y0[0]))
        else:
            expected = formula(loss, row.pred, row.y0[0], row.partners[0], row.lam)
        torch.testing.assert_close(row.loss, expected.detach(), check_dtype=False)


@pytest.mark.parametrize("flat", [False, True])
def test_fastais_label_smoothing_weighs_only_what_has_a_target(flat):
    (pred, y, y1), lam, eps = classes(), torch.rand(N), 0.1
    y[0] = -100  # what F.nll_loss leaves out
    loss = (LabelSmoothingCrossEntropyFlat if flat else LabelSmoothingCrossEntropy)(weight=WEIGHT)
    logp, total, count = pred.log_softmax(1), 0.0, 0.0
    for i in range(N):
        for w, target in ((lam[i], y[i]), (1 - lam[i], y1[i])):
            if target >= 0:
                total -= w * WEIGHT[target] * logp[i, target]
                count += w * WEIGHT[target]
    expected = eps * -logp.mean() + (1 - eps) * total / count
    torch.testing.assert_close(mixed_loss(loss, pred, (y,), (y1,), lam), expected, check_dtype=False)
    assert loss.func.eps == eps if flat else loss.eps == eps


def test_a_weight_for_each_position_of_flat_multi_labels():
    (pred, y, y1), lam, weight = labels(), torch.rand(N), torch.rand(N * C)
    values = [F.binary_cross_entropy_with_logits(pred, t, weight.view(N, C), reduction="none").mean(1) for t in (y, y1)]
    expected = (lam * values[0] + (1 - lam) * values[1]).mean()
    torch.testing.assert_close(
        mixed_loss(BCEWithLogitsLossFlat(weight=weight), pred, (y,), (y1,), lam), expected, check_dtype=False
    )


@table(EVERY)
def test_one_lam_is_exact_for_every_loss(loss, data):
    pred, y, y1 = data()
    lam = torch.tensor([0.7])
    assert torch.equal(mixed_loss(loss, pred, (y,), (y1,), lam), lam[0] * loss(pred, y) + (1 - lam[0]) * loss(pred, y1))
    assert torch.equal(mixed_loss(loss, pred, (y,), (y1,), torch.ones(N)), loss(pred, y))  # bit for bit
    assert torch.equal(MixUpLoss(loss)(pred, y), loss(pred, y))
    assert is_average(loss) == all(loss is not other for other, _ in OTHERS.values())
    if is_average(loss):
        y1 = y[torch.arange(N).roll(1)]
        each = mixed_loss(loss, pred, (y,), (y1,), torch.full((N,), 0.7))
        torch.testing.assert_close(each, mixed_loss(loss, pred, (y,), (y1,), lam))


def test_losses_that_divide_by_something_else_are_black_boxes():
    for loss in (nn.CTCLoss(), F.ctc_loss, partial(F.mse_loss, weight=torch.rand(C)), partial(nn.CrossEntropyLoss())):
        assert not is_average(loss)


@pytest.mark.parametrize("make", [nn.CrossEntropyLoss, CrossEntropyLossFlat])
def test_loss_with_a_hook_or_another_forward_is_a_black_box(make):
    loss = make()
    inner = getattr(loss, "func", loss)
    for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        hook = getattr(inner, f"register_{kind}_hook")(lambda *args: None)
        assert not is_average(loss)
        hook.remove()
        assert is_average(loss)
    inner.forward = lambda pred, y: pred.sum()
    assert not is_average(loss)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.NLLLoss()])
def test_half_precision_lam_of_large_masks(loss):
    pred, y = torch.randn(2, 3, 200, 200).log_softmax(1), torch.randint(0, 3, (2, 200, 200))
    lam = torch.rand(2).half()
    each = copy.copy(loss)
    each.reduction = "none"
    parts = [each(pred, target).double().mean((1, 2)) for target in (y, y.flip(0))]
    expected = (lam.double() * parts[0] + (1 - lam.double()) * parts[1]).mean()
    torch.testing.assert_close(mixed_loss(loss, pred, (y,), (y.flip(0),), lam), expected.float())


def test_class_index_that_wraps_around_to_the_ignored_one_counts():
    pred, y = torch.randn(N, 200), torch.full((N,), 156, dtype=torch.uint8)
    loss, lam = nn.CrossEntropyLoss(), torch.rand(N)
    torch.testing.assert_close(mixed_loss(loss, pred, (y,), (y,), lam), loss(pred, y.long()))


layouts = {
    "(B, L, C)": (CrossEntropyLossFlat(), (4, 5, 3), -1),
    "(B, C, L)": (CrossEntropyLossFlat(axis=1), (4, 3, 5), 1),
    "(B, H, C, W)": (CrossEntropyLossFlat(axis=2), (4, 5, 3, 6), 2),
    "(B, C, H, W)": (
        CrossEntropyLossFlat(axis=1, weight=torch.tensor([1.0, 5.0, 2.0]), ignore_index=0),
        (4, 3, 5, 6),
        1,
    ),
    # fastai pairs their positions in another order, wrongly, and so with mixing
    "(B, C, L, K), axis -3": (CrossEntropyLossFlat(axis=-3), (4, 3, 5, 5), 1),
    "(B, C, D, H, W)": (CrossEntropyLossFlat(axis=1), (4, 3, 2, 5, 6), 1),
    "(B, H, W, C), not flat": (BaseLoss(nn.CrossEntropyLoss, axis=1, flatten=False), (4, 3, 3, 3), 1),
    "(B, 1)": (CrossEntropyLossFlat(), (4, 3), None),
}


def test_positions_that_are_ignored_may_have_any_prediction():
    """As where the class of padding is masked out."""
    torch.manual_seed(0)
    pred, y, lam = torch.randn(6, 4, 5), torch.randint(1, 4, (6, 5)), torch.rand(6)
    pred[:, 0] = -torch.inf
    y[:, 3:] = -100
    pred[:, :, 4] = torch.nan
    y1 = y.roll(1, 0)
    a, b = (F.cross_entropy(pred, t, reduction="none").nan_to_num().sum(1) for t in (y, y1))
    expected = (lam * a + (1 - lam) * b).sum() / 18
    torch.testing.assert_close(mixed_loss(nn.CrossEntropyLoss(), pred, (y,), (y1,), lam), expected)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (CrossEntropyLossFlat(), (torch.zeros(6).long(),) * 2),
        (nn.CrossEntropyLoss(), (torch.zeros(6) > 0,)),
        (nn.CrossEntropyLoss(), (torch.zeros(6),)),
        (nn.CrossEntropyLoss(weight=torch.ones(5)), (torch.zeros(6).long(),)),
        (CrossEntropyLossFlat(axis=1), (torch.zeros(6).long(),)),
        (nn.CrossEntropyLoss(), (torch.full((6,), 4),)),
        (nn.CrossEntropyLoss(), (torch.full((6,), -1),)),
    ],
)
def test_what_the_users_loss_refuses_raises_an_error(loss, targets):
    pred, lam = torch.randn(6, 4), torch.rand(6)
    for call in (partial(loss, pred, *targets), partial(mixed_loss, loss, pred, targets, targets, lam)):
        with pytest.raises((TypeError, RuntimeError, IndexError)):
            call()


def test_values_of_any_layout():
    pred, y, y1 = torch.rand(3, 4, 3, 8, 8)
    for lay in (lambda t: t.to(memory_format=torch.channels_last), lambda t: t.transpose(1, 3)):
        got = mixed_loss(nn.L1Loss(), lay(pred), (lay(y),), (lay(y1),), torch.full((4,), 0.3))
        torch.testing.assert_close(got, 0.3 * F.l1_loss(pred, y) + 0.7 * F.l1_loss(pred, y1))


def test_an_infinite_loss_stays_infinite_and_one_of_nothing_nan():
    pred, y = torch.full((2, 3), -torch.inf), torch.zeros(2, dtype=torch.long)
    assert mixed_loss(nn.NLLLoss(), pred, (y,), (y,), torch.tensor([0.3, 0.6])) == torch.inf
    ignored = torch.full((2,), -100)
    assert mixed_loss(nn.NLLLoss(), pred, (ignored,), (ignored,), torch.tensor([0.3, 0.6])).isnan()  # as torch's
    nothing = torch.empty(0, 2)
    assert mixed_loss(nn.MSELoss(), nothing, (nothing,), (nothing,), torch.empty(0)).isnan()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("layout", layouts)
def test_one_softmax_for_both_targets_is_the_loss_of_each_whatever_the_layout(layout, reduction):
    """One coefficient for all samples weights the user's loss itself, with its own order of positions."""
    torch.manual_seed(0)
    loss, shape, axis = copy.deepcopy(layouts[layout][0]), *layouts[layout][1:]
    loss.reduction = reduction
    size = (shape[0], 1) if axis is None else [n for i, n in enumerate(shape) if i != axis % len(shape)]
    pred, y, y1 = torch.randn(shape), torch.randint(0, 3, size), torch.randint(0, 3, size)
    got = mixed_loss(loss, pred, (y,), (y1,), torch.full((4,), 0.3))
    if loss.func.weight is not None and reduction == "mean":  # whose sums are mixed like the losses
        loss.reduction = "sum"
        count = [loss.func.weight[t[t != 0]].sum() for t in (y, y1)]
        expected = (0.3 * loss(pred, y) + 0.7 * loss(pred, y1)) / (0.3 * count[0] + 0.7 * count[1])
    else:
        expected = 0.3 * loss(pred, y) + 0.7 * loss(pred, y1)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))


def test_gradients_are_those_of_the_formula():
    (pred, y, y1), lam = classes(), torch.rand(N)
    pred.requires_grad_()
    loss = CrossEntropyLossFlat(weight=WEIGHT)
    (got,) = torch.autograd.grad(mixed_loss(loss, pred, (y,), (y1,), lam), pred)
    w, w1 = lam * WEIGHT[y], (1 - lam) * WEIGHT[y1]
    mixed = w[:, None] * F.one_hot(y, C) + w1[:, None] * F.one_hot(y1, C)
    expected = ((w + w1)[:, None] * pred.softmax(1) - mixed) / (w + w1).sum()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("one", [False, True])
def test_the_loss_has_single_precision_at_least(dtype, one):
    (pred, y, y1), lam = classes(), torch.full((1,), 0.3) if one else torch.rand(N)
    expected = mixed_loss(F.cross_entropy, pred, (y,), (y1,), lam)
    got = mixed_loss(F.cross_entropy, pred.to(dtype), (y,), (y1,), lam.to(dtype))
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(got.float(), expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-6, atol=0)


def test_a_loss_that_is_no_average_needs_one_lam():
    """Also if it has a reduction, which may be of anything."""

    def loss(pred, y, reduction="mean"):
        return F.cross_entropy(pred, y, reduction=reduction) ** 2

    (pred, y, y1), lam = classes(), torch.rand(N)
    for black_box in (loss, BinaryCrossEntropy(sum_classes=True)):
        with pytest.raises(ValueError, match=r"is_average.*lam\[:1\].*per_sample=False"):
            mixed_loss(black_box, pred, (y,), (y1,), lam)
    expected = 0.3 * loss(pred, y) + 0.7 * loss(pred, y1)
    torch.testing.assert_close(mixed_loss(loss, pred, (y,), (y1,), torch.tensor([0.3])), expected)


def test_values_that_belong_to_no_sample_raise_value_error():
    pred, lam = torch.randn(N, C), torch.rand(N)
    with pytest.raises(ValueError, match="per_sample=False"):
        mixed_loss(nn.MSELoss(), pred[1:], (pred[1:],), (pred[1:],), lam)


FORMER = [{"size_average": False}, {"size_average": True, "reduction": "sum"}, {"reduce": False},
          {"reduce": False, "size_average": False, "reduction": "mean"}, {"reduce": True, "reduction": "none"},
          {"reduce": None, "reduction": "sum"}]  # fmt: skip


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("options", FORMER, ids=str)
@pytest.mark.parametrize(
    ("loss", "data"),
    [(F.cross_entropy, classes), (partial(F.cross_entropy, label_smoothing=0.1), classes), (F.nll_loss, classes),
     (partial(F.cross_entropy, weight=WEIGHT), classes), (F.l1_loss, continuous), (F.mse_loss, continuous),
     (F.smooth_l1_loss, continuous), (F.binary_cross_entropy, probabilities),
     (F.binary_cross_entropy_with_logits, labels)],
)  # fmt: skip
def test_torchs_former_options_override_the_reduction(loss, data, options):
    (pred, y, y1), loss = data(), partial(loss, **options)
    assert is_average(loss)
    if loss.keywords.get("weight") is not None:
        y1 = y.flip(0)  # of the same weights, so that the formula is the plain one
    expected = 0.3 * loss(pred, y) + 0.7 * loss(pred, y1)
    got = mixed_loss(loss, pred, (y,), (y1,), torch.full((N,), 0.3))
    torch.testing.assert_close(got, expected)


def test_torch_warns_of_the_users_former_options():
    (pred, y, y1), loss = classes(), partial(F.cross_entropy, size_average=False)
    with pytest.warns(UserWarning, match="size_average"):
        mixed_loss(loss, pred, (y,), (y1,), torch.tensor([0.3]))


def test_a_partial_that_may_compute_anything_is_a_black_box():
    class Doubled(partial):
        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

    pred, y, _ = continuous()
    assert is_average(partial(F.mse_loss))
    for loss in (Doubled(F.mse_loss), partial(F.mse_loss, pred)):
        assert not is_average(loss)
        with pytest.raises(ValueError, match="is_average"):
            mixed_loss(loss, pred, (y,), (y,), torch.rand(N))


def test_unreduced_values_of_a_function_in_fastais_loss_are_of_a_partial():
    (pred, y, y1), loss = continuous(), BaseLoss(lambda: F.mse_loss, is_2d=False)
    got = mixed_loss(loss, pred, (y,), (y1,), torch.full((N,), 0.3))
    torch.testing.assert_close(got, 0.3 * loss(pred, y) + 0.7 * loss(pred, y1), check_dtype=False)
    assert not hasattr(F.mse_loss, "reduction")


class Logging(nn.Module):
    """A loss that keeps its parts, as losses of several terms do."""

    def forward(self, pred, targ):
        self.parts = F.cross_entropy(pred, targ), pred.square().mean()
        return sum(self.parts)


@pytest.mark.parametrize("flat", [False, True])
def test_what_a_loss_logs_is_of_the_originals_targets(flat):
    pred, y, y1 = classes()
    loss = BaseLoss(Logging) if flat else Logging()
    inner = loss.func if flat else loss
    got = mixed_loss(loss, pred, (y,), (y1,), torch.tensor([0.3]))
    assert torch.equal(inner.parts[0].as_subclass(torch.Tensor), F.cross_entropy(pred, y))
    lam = torch.tensor(0.3)
    assert torch.equal(got, lam * loss(pred, y) + (1 - lam) * loss(pred, y1))


# The wrapper


def test_the_wrapper_answers_for_the_users_loss():
    loss = CrossEntropyLossFlat(axis=1, weight=WEIGHT)
    wrapped = MixUpLoss(loss)
    x = torch.randn(2, C, 3)
    assert torch.equal(wrapped.activation(x), loss.activation(x))
    assert torch.equal(wrapped.decodes(x), loss.decodes(x))
    assert (wrapped.axis, wrapped.reduction, wrapped.y_int) == (1, "mean", True)
    assert repr(loss) in repr(wrapped)
    wrapped.reduction = "sum"
    assert loss.func.reduction == "sum"
    wrapped.to("cpu")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = wrapped.no_such_name


def test_the_wrapper_calls_the_mixers_loss_in_a_mixed_batch_only():
    pred, y, _ = classes()
    mixer = SimpleNamespace(_in_batch=True, lf=lambda pred, y: "mixed")
    wrapped = MixUpLoss(F.cross_entropy, mixer)
    assert wrapped(pred, y) == "mixed"
    mixer._in_batch = False
    assert torch.equal(wrapped(pred, y), F.cross_entropy(pred, y))


@table(EVERY)
def test_the_users_loss_is_never_written_to(loss, data, monkeypatch):
    (pred, y, y1), objects = data(), (loss, getattr(loss, "func", loss))
    for kind in {type(o) for o in objects if not isinstance(o, (partial, FunctionType))}:

        def guarded(self, name, value, original=kind.__setattr__):
            assert all(self is not o for o in objects), f"{name} is written to {self}"
            original(self, name, value)

        monkeypatch.setattr(kind, "__setattr__", guarded)
    mixed_loss(loss, pred, (y,), (y1,), torch.rand(N) if is_average(loss) else torch.tensor([0.4]))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_of_the_wrapper_is_the_users_loss(copied):
    assert type(copied(MixUpLoss(nn.CrossEntropyLoss()))) is nn.CrossEntropyLoss
    assert b"mixaug" not in pickle.dumps(MixUpLoss(nn.CrossEntropyLoss()))
