"""Masks against slow, obvious counterparts."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixaug import CutMix, FMix, Mix, box_mask, fourier_mask, paste_mask, saliency_peak


def lam_of(mask):
    return Mix(torch.arange(len(mask)), mask).lam


sizes = st.lists(st.integers(1, 13), min_size=1, max_size=3)


@given(size=sizes, lam=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_positions_whose_middles_are_in_the_box_are_cut(size, lam, seed):
    torch.manual_seed(seed)
    center = torch.rand(len(size), len(lam))
    masks = box_mask(torch.tensor(lam), size, center)
    assert masks.dtype == torch.bool
    assert masks.shape == (len(lam), *size)
    for i, keep in enumerate(lam):
        half = (1 - keep) ** (1 / len(size)) / 2
        for at in product(*map(range, size)):
            distances = [abs((p + 0.5) / n - c.item()) for p, n, c in zip(at, size, center[:, i], strict=True)]
            if all(abs(d - half) > 1e-6 for d in distances):  # no position on the edge itself
                assert masks[(i, *at)].item() == any(d > half for d in distances)


@pytest.mark.parametrize("size", [(9,), (7, 13), (4, 5, 6), (30, 40)])
@pytest.mark.parametrize("same", [False, True])
def test_lam_is_the_mean_of_the_mask(size, same):
    torch.manual_seed(0)
    mask = box_mask(torch.rand(50), size)
    mask = mask[:1].expand_as(mask) if same else mask
    expected = [sum(m.flatten().tolist()) / math.prod(size) for m in mask]
    torch.testing.assert_close(lam_of(mask), torch.tensor(expected), rtol=0, atol=1e-7)
    assert same or len(set(expected)) > 5  # a box of its own for every sample


def test_masks_of_no_samples():
    assert box_mask(torch.rand(0), (3, 4)).shape == (0, 3, 4)
    assert lam_of(box_mask(torch.rand(0), (3, 4))).shape == (0,)
    assert paste_mask(torch.rand(0), (3, 4, 5))[0].shape == (0, 3, 4, 5)


def test_lam_of_one_cuts_nothing_and_of_zero_everything_around_the_center():
    assert box_mask(torch.ones(20), (6, 6)).all()
    assert not box_mask(torch.zeros(200), (1, 1)).any()


def test_centers_are_uniform_over_the_positions():
    torch.manual_seed(0)
    cut = ~box_mask(torch.full((30_000,), 1 - 1 / 100), (10, 10))  # one position each
    assert cut.flatten(1).sum(1).unique().tolist() == [1]
    expected = 30_000 / 100
    chi2 = ((cut.sum(0) - expected) ** 2 / expected).sum().item()
    assert chi2 < 149  # the 99.9 % quantile for 99 degrees of freedom


lams = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5)


@given(size=sizes, lam=lams, seed=st.integers(0, 2**32))
def test_fourier_mask_keeps_lam_of_the_positions(size, lam, seed):
    torch.manual_seed(seed)
    masks = fourier_mask(torch.tensor(lam), size)
    assert masks.dtype == torch.bool
    assert masks.shape == (len(lam), *size)
    for mask, keep in zip(masks, lam, strict=True):
        assert abs(mask.sum().item() - keep * math.prod(size)) <= 0.5 + 1e-4


@pytest.mark.parametrize("size", [(256,), (32, 40), (12, 12, 12)])
def test_decay_makes_fourier_masks_smooth(size):
    """Neighbors along each axis agree more often the larger the decay; with none they are independent."""

    def agreement(decay):
        mask = fourier_mask(torch.full((50,), 0.5), size, decay)
        return [(mask == mask.roll(1, axis)).float().mean().item() for axis in range(1, mask.ndim)]

    torch.manual_seed(0)
    for none, little, much in zip(agreement(0), agreement(1.5), agreement(3), strict=True):
        assert none == pytest.approx(0.5, abs=0.02)
        assert none + 0.1 < little < much
        assert much > 0.85


def test_fmix_draws_new_noise_for_each_batch_from_its_seed():
    x, partner, lam = torch.rand(4, 1, 16, 16), torch.tensor([1, 2, 3, 0]), torch.full((4,), 0.5)

    def drawn(global_seed, seed=3):
        torch.manual_seed(global_seed)
        state, method = torch.get_rng_state(), FMix(seed=seed)
        masks = [method.cut(x, partner, lam).mask for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), state)
        return torch.stack(masks)

    assert torch.equal(drawn(1), drawn(2))
    assert (drawn(1)[0] == drawn(1)[1]).float().mean() < 0.8
    assert (drawn(1) == drawn(1, seed=4)).float().mean() < 0.8


def test_fourier_mask_is_the_papers():
    """The largest values of filtered noise, computed with numpy a sample at a time."""
    lam, size = torch.tensor([0.3, 0.8]), (5, 8)
    torch.manual_seed(0)
    got = fourier_mask(lam, size)
    torch.manual_seed(0)
    noise = torch.randn(2, *size, dtype=torch.complex64).numpy().astype(np.complex128)
    for i in range(2):
        spectrum = np.zeros(size, dtype=np.complex128)
        for a in range(5):
            for b in range(8):
                f = math.hypot(np.fft.fftfreq(5)[a], np.fft.fftfreq(8)[b])
                spectrum[a, b] = noise[i, a, b] / max(f, 1 / 8) ** 3
        gray = np.fft.ifft2(spectrum).real.flatten()
        kept = set(np.argsort(gray)[len(gray) - round(lam[i].item() * 40) :])
        assert kept == set(got[i].flatten().nonzero().flatten().tolist())


@given(size=sizes, lam=lams, seed=st.integers(0, 2**32))
def test_the_whole_partner_is_in_the_box(size, lam, seed):
    torch.manual_seed(seed)
    masks, index = paste_mask(torch.tensor(lam), size)
    assert [p.shape for p in index] == [(len(lam), length) for length in size]
    for i, keep in enumerate(lam):
        cut = (~masks[i]).nonzero()
        full = [length * float((1 - torch.tensor(keep)) ** (1 / len(size))) for length in size]
        if len(cut) == 0:
            assert min(full) <= 0.5 + 1e-5
            continue
        sides = (cut.max(0).values - cut.min(0).values + 1).tolist()
        assert len(cut) == math.prod(sides)
        assert all(abs(side - wanted) <= 0.5 + 1e-5 for side, wanted in zip(sides, full, strict=True))  # never cropped
        for axis, (side, length) in enumerate(zip(sides, size, strict=True)):
            first, last = cut[:, axis].min().item(), cut[:, axis].max().item()
            assert last - first + 1 == side
            expected = [math.floor((k + 0.5) * length / side) for k in range(side)]
            assert index[axis][i, first : last + 1].tolist() == expected


def test_pasted_boxes_are_uniform_inside():
    torch.manual_seed(0)
    masks, _ = paste_mask(torch.full((2000,), 0.5), (4,))
    starts = (~masks).float().argmax(1)
    assert starts.bincount().tolist() == pytest.approx([2000 / 3] * 3, rel=0.1)


@pytest.mark.parametrize("size", [(40,), (1, 30), (21, 33), (2, 9, 17), (8, 9, 10)])
@pytest.mark.parametrize("channels", [1, 3])
def test_saliency_peak_finds_what_stands_out(size, channels):
    torch.manual_seed(0)
    at = torch.stack([torch.randint(0, length, (6,)) for length in size])
    x = 0.05 * torch.rand(6, channels, *size) + torch.rand(6, 1, *[1] * len(size))
    for i in range(6):
        x[(i, slice(None), *at[:, i])] += 3
    got = saliency_peak(x)
    assert got.shape == (len(size), 6)
    for found, length, where in zip(got, size, at, strict=True):
        found = (found * length).floor()
        assert ((found - where).abs() <= 1).all()
        assert ((found >= 0) & (found < length)).all()


def test_an_object_is_more_salient_than_a_pixel():
    x = torch.zeros(1, 1, 20, 20)
    x[0, 0, 4:7, 12:15] = 1
    x[0, 0, 15, 3] = 1.3
    row, column = (saliency_peak(x)[:, 0] * 20).floor().tolist()
    assert 4 <= row < 7
    assert 12 <= column < 15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(), (300, 300)])
def test_lam_of_half_precision_masks_is_exact(dtype, size):
    mask = torch.rand(3, *size).to(dtype)
    expected = mask.double().flatten(1).mean(1) if size else mask.double()
    torch.testing.assert_close(lam_of(mask), expected.float())


# The shape of CutMix's boxes


def sides_of(mask):
    """Return the lengths of the box of each mask (B, *size) along each axis, (B, k)."""
    axes = range(1, mask.ndim)
    return torch.stack([(~mask).sum(axis).flatten(1).amax(1) for axis in axes], 1)


def test_sides_are_uniform_between_the_shortest_and_the_longest_and_boxes_inside():
    method = CutMix(sides=(0.2, 0.8), inside=True, seed=0)
    mask = method.draw(torch.zeros(4000, 1, 100, 200)).mask
    relative = sides_of(mask) / torch.tensor([100, 200])
    assert (relative >= 0.19).all()
    assert (relative <= 0.81).all()
    assert relative.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert relative.std(0).tolist() == pytest.approx([0.6 / 12**0.5] * 2, abs=0.01)
    assert torch.corrcoef(relative.T)[0, 1].abs() < 0.05  # each axis by itself
    assert (relative.prod(1) - (~mask).float().mean((1, 2))).abs().max() < 1e-5


@pytest.mark.parametrize("inside", [False, True])
def test_the_border_crops_no_box_that_is_inside(inside):
    method = CutMix(inside=inside, seed=0)
    method.draw_lam = lambda x, device=None: torch.full((len(x),), 0.75)
    mask = method.draw(torch.zeros(500, 1, 40, 40)).mask
    whole = (~mask).sum((1, 2)) == 400
    assert whole.all() if inside else 0.2 < whole.float().mean() < 0.35  # a quarter of the centers have room
    touching = (~mask[:, 0]).any(1).float().mean()
    assert touching.item() == pytest.approx(1 / 21 if inside else 0.25, abs=0.04)


def test_the_aspect_changes_the_sides_and_not_the_area():
    method = CutMix(aspect=4, inside=True, seed=0)
    method.draw_lam = lambda x, device=None: torch.full((len(x),), 0.91)
    mask = method.draw(torch.zeros(2000, 1, 200, 100)).mask
    relative = sides_of(mask) / torch.tensor([200, 100])
    ratio = relative[:, 0] / relative[:, 1]
    assert ratio.max().item() == pytest.approx(4, rel=0.1)
    assert ratio.min().item() == pytest.approx(0.25, rel=0.1)
    assert ratio.log().mean().abs() < 0.05
    assert (~mask).float().mean((1, 2)).tolist() == pytest.approx([0.09] * 2000, rel=0.1)


def test_a_longer_side_is_at_most_the_whole_length():
    method = CutMix(aspect=100, inside=True, seed=0)
    method.draw_lam = lambda x, device=None: torch.full((len(x),), 0.5)
    mix = method.draw(torch.zeros(200, 1, 30, 30))
    assert torch.equal(mix.lam, mix.mask.float().mean((1, 2)))
    assert (mix.lam >= 0.45).all()


@pytest.mark.parametrize(
    "options",
    [{"sides": (0.8, 0.2)}, {"sides": (0, 2)}, {"sides": 0.5}, {"sides": (0.1, 0.2), "aspect": 2}, {"aspect": 0.5},
     {"sides": (0.1, 0.2), "fold": True}, {"inside": 1.5}, {"aspect": "2"}],
)  # fmt: skip
def test_bad_shapes_of_boxes_are_an_error_at_once(options):
    with pytest.raises((TypeError, ValueError), match=rf"{next(iter(options))} (must|cannot)"):
        CutMix(**options)


def test_without_shapes_the_boxes_are_those_of_box_mask():
    x = torch.zeros(8, 1, 9, 7)
    method, twin = CutMix(1.0, seed=5), CutMix(1.0, seed=5)
    twin.draw_partner(x)
    expected = box_mask(twin.draw_lam(x), (9, 7), rng=twin.rng)
    assert torch.equal(method.draw(x).mask, expected)
