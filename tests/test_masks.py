"""Shares and boxes against slow, obvious counterparts."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Beta

from mixaug import box_mask, fourier_mask, salient_position, sample_lam, whole_in_box
from mixaug.masks import SymmetricBeta, share


@pytest.mark.parametrize("alpha", [1e-44, 1e-35, 1e-4, 1e-3, 0.01, 0.1, 0.4, 1, 8, 500])
def test_lam_has_the_distribution_asked_for(alpha):
    """By the largest distance of the draws' distribution to Beta's: 1.95 / sqrt(n) is exceeded once in a thousand."""
    torch.manual_seed(0)
    n = 1_000_000
    lam = sample_lam(SymmetricBeta(torch.tensor(float(alpha))), n, fold=False)
    assert lam.shape == (n,)
    # Where floats are too few near 0 and 1, only the distribution between is told apart
    at = np.linspace(0.001, 0.999, 500)
    drawn = np.searchsorted(np.sort(lam.double().numpy()), at) / n
    assert np.abs(drawn - scipy.stats.beta.cdf(at, alpha, alpha)).max() < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 0.4, 1, 8])
@pytest.mark.parametrize("kind", [SymmetricBeta, lambda alpha: Beta(alpha, alpha)])
def test_fold_keeps_the_larger_share(kind, alpha):
    torch.manual_seed(0)
    plain = sample_lam(kind(torch.tensor(float(alpha))), 1000, fold=False)
    torch.manual_seed(0)
    folded = sample_lam(kind(torch.tensor(float(alpha))), 1000)
    torch.testing.assert_close(folded, torch.maximum(plain, 1 - plain), rtol=0, atol=1e-6)
    assert (plain < 0.5).any()
    assert (folded >= 0.5).all()


sizes = st.lists(st.integers(1, 13), min_size=1, max_size=3)


@given(size=sizes, lam=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_box_is_one_cropped_box_of_the_papers_size(size, lam, seed):
    torch.manual_seed(seed)
    masks = box_mask(torch.tensor(lam), size)
    assert masks.dtype == torch.bool
    assert masks.shape == (len(lam), *size)
    for mask, keep in zip(masks, lam, strict=True):
        cut = (~mask).nonzero()
        if len(cut) == 0:
            continue
        sides = cut.max(0).values - cut.min(0).values + 1
        assert len(cut) == sides.prod()  # a box: as many positions as its sides span
        for side, length, first in zip(sides.tolist(), size, cut.min(0).values.tolist(), strict=True):
            full = length * float((1 - torch.tensor(keep)) ** (1 / len(size)))
            assert side < full + 1
            assert side > full - 1 or first == 0 or first + side == length  # only the border crops


@given(size=sizes, lam=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_positions_whose_middles_are_in_the_box_are_cut(size, lam, seed):
    torch.manual_seed(seed)
    centre = torch.rand(len(size), len(lam))
    masks = box_mask(torch.tensor(lam), size, centre)
    for i, keep in enumerate(lam):
        half = (1 - keep) ** (1 / len(size)) / 2
        for at in product(*map(range, size)):
            distances = [abs((p + 0.5) / n - c.item()) for p, n, c in zip(at, size, centre[:, i], strict=True)]
            if all(abs(d - half) > 1e-6 for d in distances):  # no position on the edge itself
                assert masks[(i, *at)].item() == any(d > half for d in distances)


def test_boxes_have_the_papers_size_on_average():
    torch.manual_seed(0)
    for side in (1.0, 2.3, 4.5, 7.9):
        centre = 0.5 + (torch.rand(2, 20_000) - 0.5) / 20  # of a position's width, and never at the border
        cut = ~box_mask(torch.full((20_000,), 1 - (side / 20) ** 2), (20, 20), centre)
        assert cut.flatten(1).sum(1).double().mean().item() == pytest.approx(side**2, rel=0.02)


@pytest.mark.parametrize("size", [(9,), (7, 13), (4, 5, 6), (30, 40)])
@pytest.mark.parametrize("same", [False, True])
def test_lam_is_the_share_of_positions_kept(size, same):
    torch.manual_seed(0)
    mask = box_mask(torch.rand(50), size)
    mask = mask[:1].expand_as(mask) if same else mask
    expected = [sum(m.flatten().tolist()) / math.prod(size) for m in mask]
    torch.testing.assert_close(share(mask), torch.tensor(expected), rtol=0, atol=1e-7)
    assert same or len(set(expected)) > 5  # a box of its own for every sample


def test_masks_of_no_samples():
    assert box_mask(torch.rand(0), (3, 4)).shape == (0, 3, 4)
    assert share(box_mask(torch.rand(0), (3, 4))).shape == (0,)
    assert whole_in_box(torch.rand(0), (3, 4, 5))[0].shape == (0, 3, 4, 5)


def test_extreme_shares_cut_nothing_and_everything_around_the_centre():
    assert box_mask(torch.ones(20), (6, 6)).all()
    assert not box_mask(torch.zeros(200), (1, 1)).any()


def test_centres_are_uniform_over_the_positions():
    torch.manual_seed(0)
    cut = ~box_mask(torch.full((30_000,), 1 - 1 / 100), (10, 10))  # one position each
    assert cut.flatten(1).sum(1).unique().tolist() == [1]
    expected = 30_000 / 100
    chi2 = ((cut.sum(0) - expected) ** 2 / expected).sum().item()
    assert chi2 < 149  # the 99.9 % quantile for 99 degrees of freedom


lams = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5)


@given(size=sizes, lam=lams, seed=st.integers(0, 2**32))
def test_a_fourier_mask_keeps_its_share_to_half_a_position(size, lam, seed):
    torch.manual_seed(seed)
    masks = fourier_mask(torch.tensor(lam), size)
    assert masks.dtype == torch.bool
    assert masks.shape == (len(lam), *size)
    for mask, keep in zip(masks, lam, strict=True):
        assert abs(mask.sum().item() - keep * math.prod(size)) <= 0.5 + 1e-4


@pytest.mark.parametrize("size", [(256,), (32, 40), (12, 12, 12)])
def test_the_decay_makes_regions_of_a_fourier_mask(size):
    """Neighbours along each axis agree more often the larger the decay; with none they are independent."""

    def agreement(decay):
        mask = fourier_mask(torch.full((50,), 0.5), size, decay)
        return [(mask == mask.roll(1, axis)).float().mean().item() for axis in range(1, mask.ndim)]

    torch.manual_seed(0)
    for none, little, much in zip(agreement(0), agreement(1.5), agreement(3), strict=True):
        assert none == pytest.approx(0.5, abs=0.02)
        assert none + 0.1 < little < much
        assert much > 0.85


def test_a_fourier_mask_is_the_papers():
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
        grey = np.fft.ifft2(spectrum).real.flatten()
        kept = set(np.argsort(grey)[len(grey) - round(lam[i].item() * 40) :])
        assert kept == set(got[i].flatten().nonzero().flatten().tolist())


@given(size=sizes, lam=lams, seed=st.integers(0, 2**32))
def test_the_whole_of_the_partner_is_in_the_box(size, lam, seed):
    torch.manual_seed(seed)
    masks, places = whole_in_box(torch.tensor(lam), size)
    assert [p.shape for p in places] == [(len(lam), length) for length in size]
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
            assert places[axis][i, first : last + 1].tolist() == expected


def test_the_box_of_the_whole_partner_may_be_anywhere_inside():
    torch.manual_seed(0)
    masks, _ = whole_in_box(torch.full((2000,), 0.5), (4,))
    starts = (~masks).float().argmax(1)
    assert starts.bincount().tolist() == pytest.approx([2000 / 3] * 3, rel=0.1)


@pytest.mark.parametrize("size", [(40,), (1, 30), (21, 33), (2, 9, 17), (8, 9, 10)])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_stands_out_is_found(size, channels):
    torch.manual_seed(0)
    at = torch.stack([torch.randint(0, length, (6,)) for length in size])
    x = 0.05 * torch.rand(6, channels, *size) + torch.rand(6, 1, *[1] * len(size))
    for i in range(6):
        x[(i, slice(None), *at[:, i])] += 3
    got = salient_position(x)
    assert got.shape == (len(size), 6)
    for found, length, where in zip(got, size, at, strict=True):
        found = (found * length).floor()
        assert ((found - where).abs() <= 1).all()
        assert ((found >= 0) & (found < length)).all()


def test_a_box_may_be_given_its_centre():
    centre = torch.tensor([[0.5, 0.1], [0.25, 0.9]])
    masks = box_mask(torch.full((2,), 0.75), (8, 8), centre)
    for mask, (rows, columns) in zip(masks, ((range(2, 6), range(4)), (range(3), range(5, 8))), strict=True):
        assert sorted((~mask).nonzero().tolist()) == [[r, c] for r in rows for c in columns]


def test_an_object_stands_out_more_than_a_pixel():
    x = torch.zeros(1, 1, 20, 20)
    x[0, 0, 4:7, 12:15] = 1
    x[0, 0, 15, 3] = 1.3
    row, column = (salient_position(x)[:, 0] * 20).floor().tolist()
    assert 4 <= row < 7
    assert 12 <= column < 15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(), (300, 300)])
def test_shares_of_half_precision_masks_are_exact(dtype, size):
    mask = torch.rand(3, *size).to(dtype)
    expected = mask.double().flatten(1).mean(1) if size else mask.double()
    torch.testing.assert_close(share(mask), expected.float())
