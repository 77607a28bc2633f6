"""What becomes of each input and each target, said by the user or guessed, by value."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from common import BS, C, N, classes, cnn, images, learner, on, trained
from fastai.losses import CrossEntropyLossFlat, MSELossFlat
from fastai.vision.core import TensorPoint
from reference import close, slow_loss, slow_mix
from torch import nn

from mixaug import (
    CutMix,
    FMix,
    ManifoldMixup,
    Mix,
    MixedMetric,
    MixHandler,
    MixUp,
    OneOf,
    OutputMixup,
    PatchUp,
    ResizeMix,
    SaliencyMix,
    mix_batch,
)

CUTTING = [CutMix, FMix, ResizeMix, SaliencyMix]


def slow_resized(mask, size):
    """Return the mask (B, *former) at another size, one of which is the other times a whole number."""
    out = torch.zeros(len(mask), *size, dtype=mask.dtype)
    for at in torch.cartesian_prod(*map(torch.arange, (len(mask), *size))).tolist():
        region = [
            slice(i * l // n, max((i + 1) * l // n, i * l // n + 1))
            for i, l, n in zip(at[1:], mask.shape[1:], size, strict=True)  # noqa: E741
        ]
        mean = mask[(at[0], *region)].float().mean()
        out[tuple(at)] = mean >= 0.5 if mask.dtype == torch.bool else mean
    return out


def loss_of_first(pred, *ys):
    return F.mse_loss(pred.mean(), ys[0].float().mean())


# At the target's own resolution


@pytest.mark.parametrize("size", [(8, 12), (16, 24), (24, 36), (4, 6), (2, 3)])
@pytest.mark.parametrize("mask", [torch.rand(5, 8, 12) < 0.5, torch.rand(5, 8, 12)])
def test_a_resized_mask_has_the_mean_of_each_position(mask, size):
    mix = Mix(torch.tensor([1, 2, 3, 4, 0]), mask).resized(size)
    close(mix.mask, slow_resized(mask, size))
    close(mix.lam, slow_resized(mask, size).float().mean((1, 2)))


@pytest.mark.parametrize("factor", [2, 3])
def test_a_pasted_partner_is_pasted_at_every_resolution(factor):
    """Each pixel of the image has several positions in a large target, which go where the pixel goes."""
    x, large = images((6, 8)), images((6 * factor, 8 * factor))
    mix = ResizeMix().draw(x)
    wide = mix.resized((6 * factor, 8 * factor))
    blocks = large.unflatten(2, (6, factor)).unflatten(4, (8, factor)).movedim((3, 5), (1, 2)).flatten(1, 3)
    expected = (
        slow_mix(blocks, mix).unflatten(1, (factor, factor, 2)).movedim((1, 2), (3, 5)).flatten(4, 5).flatten(2, 3)
    )
    close(wide.blend(large), expected)
    back = wide.resized((6, 8))
    assert torch.equal(back.mask, mix.mask)
    assert all(torch.equal(a, b) for a, b in zip(back.source_index, mix.source_index, strict=True))


DENSE = {  # targets beside images (8, 12)
    "twice as large": lambda n: torch.rand(n, 3, 16, 24),
    "half as large": lambda n: torch.rand(n, 3, 4, 6),
    "heatmaps at stride 4": lambda n: torch.rand(n, 5, 2, 3),
    "class maps at half": lambda n: torch.randint(0, C, (n, 4, 6)),
    "depth at double": lambda n: torch.rand(n, 16, 24),
    "the same": lambda n: torch.rand(n, 8, 12),
}


@pytest.mark.parametrize("method", CUTTING)
@pytest.mark.parametrize("y", DENSE.values(), ids=DENSE)
def test_dense_targets_are_cut_at_their_own_resolution(method, y):
    x, y = images((8, 12), n=BS), y(BS)
    if y.ndim == 3 and y.is_floating_point() and y.shape[1] < 5:
        y = y[:, None]
    mixed = mix_batch(method(), x, y, loss_of_first)
    assert mixed.rules == ("mask",)
    mix = mixed.mix.resized(y.shape[y.ndim - 2 :])
    close(
        mixed.yb[0], slow_mix(y, Mix(mix.partner, slow_resized(mixed.mix.mask, mix.mask.shape[1:]), mix.source_index))
    )


@pytest.mark.parametrize(("size", "k"), [((8, 7), 2), ((7, 6), 2), ((4, 4), 4), ((3, 3), 4)])
def test_sizes_that_strides_round_up_or_down_are_cut(size, k):
    y = classes(*size, n=BS)
    mixed = mix_batch(CutMix(), images((15, 13), n=BS), y, loss_of_first)
    assert mixed.rules == ("mask",)
    assert torch.equal(mixed.yb[0], slow_mix(y, Mix(mixed.mix.partner, mixed.mix.resized(size).mask)))
    assert (mixed.mix.resized(size).lam - mixed.lam).abs().max() < 0.3


def test_deep_supervision_has_a_target_for_each_resolution():
    x = images((8, 8), n=BS)
    yb = tuple(torch.randint(0, C, (BS, n, n)) for n in (8, 4, 2))
    mixed = mix_batch(CutMix(), x, yb, loss_of_first)
    assert mixed.rules == ("mask",) * 3
    for got, y in zip(mixed.yb, yb, strict=True):
        assert torch.equal(got, slow_mix(y, Mix(mixed.mix.partner, slow_resized(mixed.mix.mask, y.shape[1:]))))


def test_inputs_of_another_resolution_are_cut_there():
    xb = images((8, 8), n=BS), images((4, 4), n=BS), torch.rand(BS, 8)
    mixed = mix_batch(CutMix(), xb, classes(n=BS), F.cross_entropy)
    small = Mix(mixed.mix.partner, slow_resized(mixed.mix.mask, (4, 4)))
    close(mixed.xb[1], slow_mix(xb[1], small))
    close(mixed.xb[2], slow_mix(xb[2], Mix(mixed.mix.partner, mixed.lam)))  # a row of a table


@pytest.mark.parametrize(
    ("x", "other"),
    [
        (images((8, 8), n=BS), torch.rand(BS, 4, 4)),  # poses
        (images((9, 9), n=BS), torch.rand(BS, 3, 3)),  # intrinsics of cameras
        (torch.rand(BS, 3, 12), torch.rand(BS, 12)),  # numbers of the sample
    ],
)
def test_a_further_input_that_may_be_of_the_sample_needs_a_rule_to_be_cut(x, other):
    with pytest.raises(ValueError, match=r"(?s)inputs for each position or for the sample.*inputs=\(.*keep"):
        mix_batch(CutMix(), (x, other), classes(n=BS), F.cross_entropy)
    cut = mix_batch(CutMix(inputs=("mix", "mix")), (x, other), classes(n=BS), F.cross_entropy)
    close(cut.xb[1], slow_mix(other, Mix(cut.mix.partner, slow_resized(cut.mix.mask, other.shape[1:]))))
    kept = mix_batch(CutMix(inputs=("mix", "keep")), (x, other), classes(n=BS), F.cross_entropy)
    assert kept.xb[1] is other
    averaged = mix_batch(MixUp(), (x, other), classes(n=BS), F.cross_entropy)
    close(averaged.xb[1], slow_mix(other, averaged.mix))


@pytest.mark.parametrize("other", [["a", "b"] * 4, {"text": ["a"] * 8}, SimpleNamespace(x=1)], ids=str)
def test_inputs_that_are_no_tensors_have_to_be_kept(other):
    x, y = images(n=BS), classes(n=BS)
    with pytest.raises(TypeError, match=r"numbers, in the inputs to mix, got \['(str|SimpleNamespace)'\].*keep"):
        mix_batch(MixUp(), (x, other), y, F.cross_entropy)
    assert mix_batch(MixUp(inputs=("mix", "keep")), (x, other), y, F.cross_entropy).xb[1] is other


def test_labels_of_minus_one_that_are_averaged_are_warned_of_once_if_nobody_said_so():
    y = torch.tensor([[0.0, 1, -1], [1, 1, 0]] * (N // 2))

    def masked(pred, y):
        return (F.binary_cross_entropy_with_logits(pred, y, reduction="none") * (y != -1)).mean()

    with pytest.warns(UserWarning, match='Targets of -1, 0 and 1 are averaged.*targets="loss"') as told:
        trained(MixUp(), y=y, loss=masked, fit=(2, 0.0))
    assert len(told) == 1
    for targets in ("average", "loss"):
        trained(MixUp(targets=targets), y=y, loss=masked)
    for other in (y.abs(), torch.where(y < 0, -2, y), torch.where(y == 0, 1, y)):
        trained(MixUp(), y=other, loss=masked)


def test_manifold_mixup_never_mixes_inputs_that_are_no_tensors():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn()

        def forward(self, x, texts):
            assert len(texts) == len(x)
            return self.net(x)

    learn = trained(ManifoldMixup(8), (images(), [str(i) for i in range(N)]), classes(), Net(), fit=(4, 0.0))
    assert {row.place for row in learn.spy.batches} == {"net.0", "net.2"}


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_class_indices_in_floats_that_the_loss_rounds_raise_value_error(shape):
    y, loss = classes().float().view(shape), lambda pred, y: F.cross_entropy(pred, y.long().flatten())
    with pytest.raises(ValueError, match=r'which rounds them, as class indices.*integers.*targets="loss"'):
        trained(MixUp(), y=y, loss=loss)
    trained(MixUp(targets="loss"), y=y, loss=loss)
    trained(MixUp(), y=y, loss=lambda pred, y: F.mse_loss(pred[:, 0], y.flatten()))  # counts


AMBIGUOUS = {  # beside what, and the rule for values of the sample
    "labels beside signals": (images((6,), n=BS), torch.rand(BS, 6), "average"),
    "heads beside signals": (images((6,), n=BS), classes(6, n=BS), "loss"),
    "frames first": (images((12,), n=BS), torch.rand(BS, 6, 3), "average"),
    "a matrix": (images((8, 8), n=BS), torch.rand(BS, 4, 4), "average"),
    "two points": (images((8, 8), n=BS), torch.rand(BS, 2, 2), "average"),
}


@pytest.mark.parametrize(("x", "y", "rule"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_may_be_positions_or_not_has_to_be_said(x, y, rule):
    with pytest.raises(ValueError, match=f'targets="mask".*targets="{rule}"'):
        mix_batch(CutMix(), x, y, F.cross_entropy)
    assert mix_batch(CutMix(targets=rule), x, y, F.cross_entropy).rules == (rule,)
    assert mix_batch(CutMix(targets="mask"), x, y, F.cross_entropy).rules == ("mask",)
    assert mix_batch(MixUp(), x, y, F.cross_entropy).rules == (rule,)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (images((8, 8), n=BS), torch.rand(BS, 3, 7)),
        (images((8, 8), n=BS), classes(3, 7, n=BS)),
        (images((8, 8), n=BS), torch.rand(BS, 3, 1, 1)),
        (images((8, 8), n=BS), torch.rand(BS, 3, 12, 12)),  # one and a half times
        (images((8, 8), n=BS), torch.rand(BS, 3, 8, 16)),
        (images((12,), n=BS), torch.rand(BS, 2, 24)),  # cut, though it may be a forecast
        (images((12, 12), n=BS), torch.rand(BS, 6, 6)),  # cut, though it may be a matrix
        (images((4, 50), channels=1, n=BS), classes(50, n=BS)),  # left, though it may be of frames
    ],
)
def test_a_method_that_cuts_warns_once_of_what_it_has_to_guess(x, y):
    cb = CutMix()
    with pytest.warns(UserWarning, match=r'targets="(average|loss)".*spatial_dims'):
        mix_batch(cb, x, y, loss_of_first)
    mix_batch(cb, x, y, loss_of_first)
    mix_batch(CutMix(targets="average" if y.is_floating_point() else "loss"), x, y, loss_of_first)
    mix_batch(MixUp(), x, y, loss_of_first)


def test_dense_targets_and_labels_that_are_plain_are_not_warned_of():
    for x, y in (
        (images((12, 12), n=BS), classes(6, 6, n=BS)),
        (images((12, 12), n=BS), torch.rand(BS, 1, 6, 6)),
        (images((12, 12), n=BS), torch.rand(BS, 12, 12)),
        (images((12, 12), n=BS), torch.rand(BS, 5)),
        (images((12, 12), n=BS), torch.rand(BS, 12)),
        (images((12, 1), n=BS), classes(1, n=BS)),
    ):
        mix_batch(CutMix(), x, y, loss_of_first)  # warnings are errors here


@pytest.mark.parametrize(("y", "rule"), [(torch.rand(BS, 6), "average"), (classes(6, n=BS), "loss")])
def test_labels_and_heads_whose_number_divides_the_steps_are_of_the_sample(y, rule):
    assert mix_batch(CutMix(), images((12,), n=BS), y, loss_of_first).rules == (rule,)


@pytest.mark.parametrize("method", [CutMix, FMix, PatchUp, lambda: OneOf(MixUp(), CutMix(), per_sample=True)])
def test_points_raise_type_error_where_parts_are_cut(method):
    y = TensorPoint(torch.rand(BS, 2, 2))
    with pytest.raises(TypeError, match=r"points.*MixUp.*targets="):
        mix_batch(method(), images(n=BS), y, loss_of_first)
    assert mix_batch(MixUp(), images(n=BS), y, loss_of_first).rules == ("average",)
    assert mix_batch(CutMix(targets="keep"), images(n=BS), y, loss_of_first).rules == ("keep",)


# Videos


@pytest.mark.parametrize("method", CUTTING)
def test_videos_have_one_box_for_all_frames_and_channels(method):
    x = torch.rand(BS, 5, 3, 6, 8)
    mix = method(spatial_dims=2).draw(x)
    assert mix.mask.shape == (BS, 6, 8)
    close(mix.blend(x), torch.stack([slow_mix(x[:, t], mix) for t in range(5)], 1))
    assert method(spatial_dims=1).draw(x[:, 0, 0]).mask.shape == (BS, 8)  # a spectrogram is cut in time alone
    with pytest.raises(ValueError, match="spatial_dims"):
        method(spatial_dims=2).draw(x[:, 0, 0, 0])


def test_a_video_and_its_class_maps():
    x, y = torch.rand(BS, 5, 3, 6, 8), classes(6, 8, n=BS)
    mixed = mix_batch(CutMix(spatial_dims=2), x, y, F.cross_entropy)
    assert torch.equal(mixed.yb[0], slow_mix(y, mixed.mix))
    assert mixed.xb[0].shape == x.shape


# Rules that the user gives


@pytest.mark.parametrize("method", [MixUp, CutMix, OutputMixup, ManifoldMixup])
def test_each_target_follows_its_rule(method):
    """Class indices, sample weights with their loss, a soft label, an own number, and one of a function."""
    y = classes(), torch.rand(N), torch.rand(N, C), torch.arange(N), torch.rand(N)
    rules = ("loss", "loss", "average", "keep", lambda mix, y: torch.maximum(y, y[mix.partner]))

    def loss(pred, y, weight, soft, number, largest):
        each = F.cross_entropy(pred, y, reduction="none") + F.cross_entropy(pred, soft, reduction="none")
        return (each * weight * (1 + largest)).mean() + 0 * number.sum()

    learn = trained(method(1.0, targets=rules, per_sample=False), images(), y, loss=loss)
    for row in learn.spy.batches:
        (y, w, soft, number, largest), p, lam = row.y0, row.mix.partner, row.lam[0]
        soft, largest = lam * soft + (1 - lam) * soft[p], torch.maximum(largest, largest[p])
        assert torch.equal(row.y[3], number)
        expected = lam * loss(row.pred, y, w, soft, number, largest)
        close(row.loss, expected + (1 - lam) * loss(row.pred, y[p], w[p], soft, number, largest))


def test_one_rule_is_for_all_targets_and_none_is_a_guess():
    x, yb = images(n=BS), (classes(n=BS), torch.rand(BS))
    assert mix_batch(MixUp(targets="keep"), x, yb, loss_of_first).rules == ("keep", "keep")
    assert mix_batch(MixUp(targets=(None, "keep")), x, yb, loss_of_first).rules == ("loss", "keep")
    mixed = mix_batch(MixUp(targets="mask"), x, yb, loss_of_first)  # which has no positions
    assert mixed.rules == ("loss", "average")


def test_a_kept_target_belongs_to_the_original_in_both_losses():
    x, y, weight = images(n=BS), classes(n=BS), torch.rand(BS)
    loss = lambda pred, y, w: (F.cross_entropy(pred, y, reduction="none") * w).mean()  # noqa: E731
    mixed = mix_batch(MixUp(1.0, targets=(None, "keep"), per_sample=False), x, (y, weight), loss)
    pred, lam, p = torch.randn(BS, C), mixed.lam[0], mixed.mix.partner
    close(mixed.loss(pred), lam * loss(pred, y, weight) + (1 - lam) * loss(pred, y[p], weight))


def test_several_heads_are_left_to_the_loss():
    x, y, loss = images((6,)), classes(6), CrossEntropyLossFlat(axis=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6 * C), nn.Unflatten(1, (C, 6)))
    for row in trained(CutMix(targets="loss"), x, y, model, loss).spy.batches:
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))


def test_a_forecast_as_long_as_the_past_is_averaged_if_this_is_said():
    x, y = images((8,), channels=1), images((8,), channels=1)
    for row in trained(CutMix(targets="average"), x, y, nn.Conv1d(1, 1, 1), MSELossFlat()).spy.batches:
        close(row.y[0], slow_mix(row.y0[0], Mix(row.mix.partner, row.lam)))


def test_unknown_labels_stay_unknown():
    y = torch.where(torch.rand(N) < 0.3, -1, classes())
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    for row in trained(MixUp(1.0), y=y, loss=loss).spy.batches:
        known = [(t != -1).float() for t in (*row.y0, *row.partners)]
        each = [F.cross_entropy(row.pred, t, reduction="none", ignore_index=-1) for t in (*row.y0, *row.partners)]
        total = sum(lam * e for lam, e in zip((row.lam, 1 - row.lam), each, strict=True)).sum()
        close(row.loss, total / sum(lam * k for lam, k in zip((row.lam, 1 - row.lam), known, strict=True)).sum())


@pytest.mark.parametrize("method", [MixUp, CutMix])
def test_an_input_is_kept_or_mixed_by_a_function(method):
    site, x, length = torch.randint(0, 4, (N,)), images(), torch.rand(N)
    rules = ("keep", "mix", lambda mix, t: torch.maximum(t, t[mix.partner]))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.site = cnn(), nn.Embedding(4, C)

        def forward(self, site, x, length):
            return self.net(x) + self.site(site) * length[:, None]

    for row in trained(method(1.0, inputs=rules), (site, x, length), classes(), Net()).spy.batches:
        assert torch.equal(row.x[0], row.x0[0])
        close(row.x[1], slow_mix(row.x0[1], row.mix))
        close(row.x[2], torch.maximum(row.x0[2], row.x0[2][row.mix.partner]))
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))


@pytest.mark.parametrize("how", [{}, {"clean": True}, {"stack_x": True}])
def test_a_number_in_a_nest_of_inputs_stays(how):
    x, t, y = torch.rand(4, 3), torch.tensor(2.0), torch.arange(4)
    mixed = mix_batch(MixUp(**how), ({"x": x, "t": t},), y, nn.CrossEntropyLoss())
    assert all(nest["t"] is t for nest in mixed.xb if isinstance(nest, dict))


def test_manifold_mixup_mixes_the_inputs_by_their_rules():
    codes, x = torch.randint(0, 4, (N, 3)), torch.randn(N, 6)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes, self.body, self.head = nn.Embedding(4, 2), nn.Linear(12, 8), nn.Linear(8, C)

        def forward(self, codes, x):
            return self.head(self.body(torch.cat([self.codes(codes).flatten(1), x], 1)).relu())

    for inputs, places in ((("keep", "mix"), {"input", "body"}), (None, {"body"})):
        learn = trained(ManifoldMixup(8, inputs=inputs), (codes, x), classes(), Net(), fit=(6, 0.0))
        assert {row.place for row in learn.spy.batches} == places
        for row in learn.spy.batches:
            assert torch.equal(row.x[0], row.x0[0])
            close(row.x[1], slow_mix(row.x0[1], row.mix) if row.place == "input" else row.x0[1])


def test_methods_that_cut_take_their_positions_from_the_first_input_that_has_some():
    table, x = torch.rand(BS, 4), images(n=BS)
    mixed = mix_batch(CutMix(), (table, x), classes(n=BS), F.cross_entropy)
    close(mixed.xb[1], slow_mix(x, mixed.mix))
    close(mixed.xb[0], slow_mix(table, Mix(mixed.mix.partner, mixed.lam)))
    other = images((3, 4), n=BS)
    mixed = mix_batch(CutMix(inputs=("keep", "mix")), (other, x), classes(n=BS), F.cross_entropy)
    assert mixed.mix.mask.shape[1:] == x.shape[2:]
    mixed = mix_batch(CutMix(), {"number": torch.tensor(3.0), "x": x}, classes(n=BS), F.cross_entropy)
    assert mixed.mix.mask.shape[1:] == x.shape[2:]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"targets": "mix"}, "targets must be 'loss', 'average', 'mask', 'union', 'keep', a function"),
        ({"targets": ()}, "targets must be"),
        ({"targets": ("loss", 3)}, "targets must be"),
        ({"targets": MixUp}, "targets must be"),
        ({"inputs": "loss"}, "inputs must be 'mix', 'keep', a function"),
        ({"inputs": "keep"}, "inputs must have one that is mixed"),
        ({"inputs": ("keep", "keep")}, "inputs must have one that is mixed"),
        ({"inputs": ("keep", "mix"), "stack_x": True}, "inputs and stack_x"),
        ({"targets": "loss", "stack_y": True}, "targets and stack_y"),
        ({"spatial_dims": 0}, "spatial_dims must be a whole number >= 1"),
        ({"spatial_dims": 1.5}, "spatial_dims must be a whole number >= 1"),
    ],
)
def test_a_bad_rule_raises_value_error_at_once(options, match):
    for method in (MixHandler, MixUp, CutMix):
        with pytest.raises(ValueError, match=match):
            method(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"targets": ("loss",) * 2}, "each of 1 targets"), ({"inputs": ("mix",) * 2}, "each of 1 inputs")],
)
def test_another_number_of_rules_raises_value_error_on_the_first_batch(options, match):
    with pytest.raises(ValueError, match=match):
        trained(MixUp(**options))


def test_a_mask_for_a_target_without_positions_raises_value_error():
    with pytest.raises(ValueError, match=r'targets="average"'):
        mix_batch(CutMix(targets="mask"), images(n=BS), torch.rand(BS, 3), F.mse_loss)


@pytest.mark.parametrize(
    "options",
    [{"targets": "loss"}, {"inputs": ("mix", "keep")}, {"stack_y": False}, {"stack_y": True}, {"clean": True}],
)
def test_one_of_has_rules_for_samples_and_its_methods_for_batches(options):
    OneOf(MixUp(), CutMix(), per_sample=True, **options)
    OneOf(MixUp(**options), CutMix())
    for bad in (lambda: OneOf(MixUp(), CutMix(), **options), lambda: OneOf(MixUp(**options), per_sample=True)):
        with pytest.raises(ValueError, match="per_sample"):
            bad()


def test_the_call_shows_rules():
    assert (
        repr(CutMix(targets=("loss", "keep"), spatial_dims=2))
        == "CutMix(1.0, targets=('loss', 'keep'), spatial_dims=2)"
    )


@pytest.mark.parametrize("rule", ["keep", "loss"])
def test_mixed_metrics_count_kept_targets_as_they_are(rule):
    """The partner's second target differs from the first only if it is kept."""
    y, metric = (torch.arange(BS), torch.arange(BS)), MixedMetric(lambda pred, a, b: (a == b).float().mean())
    cb = MixUp(8, targets=("loss", rule))
    learn = learner(cb, images(n=BS), y, cnn(BS), lambda pred, a, b: F.cross_entropy(pred, a), metrics=metric)
    cb.per_sample, learn.recorder.train_metrics = False, True
    learn.fit(1)
    assert learn.recorder.values[-1][1] == pytest.approx(1 if rule == "loss" else cb.lam.mean().item())


def test_integers_that_the_loss_converts_are_integers_again_after_the_batch():
    seen, loss = [], MSELossFlat()
    look = on("after_batch", lambda learn: seen.append(learn.y.dtype) if learn.training else None, 60)
    trained(MixUp(), y=classes(high=90), model=nn.Sequential(nn.Flatten(), nn.Linear(60, 1)), loss=loss, cbs=[look])
    assert set(seen) == {torch.int64}
