"""Shares and boxes against slow, obvious counterparts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Beta

from mixaug import box_mask, sample_lam
from mixaug.masks import share


def beta(alpha):
    return Beta(torch.tensor(float(alpha)), torch.tensor(float(alpha)))


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1, 8])
def test_lam_has_the_moments_of_the_beta_distribution(alpha):
    torch.manual_seed(0)
    lam = sample_lam(beta(alpha), 200_000, fold=False)
    assert lam.shape == (200_000,)
    assert lam.mean().item() == pytest.approx(0.5, abs=0.005)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1, 8])
def test_fold_keeps_the_larger_share(alpha):
    torch.manual_seed(0)
    plain = sample_lam(beta(alpha), 1000, fold=False)
    torch.manual_seed(0)
    folded = sample_lam(beta(alpha), 1000)
    assert folded.tolist() == [max(t, 1 - t) for t in plain]
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
            full = round(length * float((1 - torch.tensor(keep)) ** (1 / len(size))))
            assert side == full or (side < full and (first == 0 or first + side == length))  # only the border crops


@pytest.mark.parametrize("size", [(9,), (7, 13), (4, 5, 6)])
def test_lam_is_the_share_of_positions_kept(size):
    torch.manual_seed(0)
    mask = box_mask(torch.rand(50), size)
    expected = [sum(m.flatten().tolist()) / math.prod(size) for m in mask]
    torch.testing.assert_close(share(mask), torch.tensor(expected), rtol=0, atol=1e-7)
    assert len(set(expected)) > 5  # a box of its own for every sample


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
