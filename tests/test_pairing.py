"""Partners chosen by weights, and weights by the similarity of targets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixaug import sample_partner_by, target_similarity
from mixaug.draw import new_rng
from mixaug.pairing import sample_partner_by_targets


def test_partners_are_drawn_in_proportion_to_the_weights():
    weights = torch.tensor([[9.0, 1.0, 3.0, 0.0], [0.0, 0.0, 0.0, 2.0], [1.0, 1.0, 7.0, 1.0], [0.0, 0.0, 0.0, 5.0]])
    kept, rng = weights.clone(), new_rng(0)
    drawn = torch.stack([sample_partner_by(weights, rng=rng) for _ in range(4000)])
    assert torch.equal(weights, kept)
    assert (drawn[:, 0] == 2).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert (drawn[:, 0] == 1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (drawn[:, 1] == 3).all()
    assert drawn[:, 2].bincount(minlength=4).tolist() == pytest.approx([4000 / 3, 4000 / 3, 0, 4000 / 3], abs=120)
    assert (drawn[:, 3] == 3).all()  # no other sample has weight


def test_weights_keep_their_precision():
    weights = 1e-60 * torch.tensor([[0, 1, 3], [2, 0, 0], [0, 1, 0]], dtype=torch.float64)
    drawn = torch.stack([sample_partner_by(weights, rng=new_rng(seed)) for seed in range(400)])
    assert (drawn[:, 1:] == torch.tensor([0, 1])).all()
    assert (drawn[:, 0] == 2).float().mean().item() == pytest.approx(0.75, abs=0.08)


RATIOS = {
    "subnormal": torch.tensor([1e-45, 3e-45]),  # which are 1 and 2 times the smallest
    "subnormal, float64": torch.tensor([5e-324, 1.5e-323], dtype=torch.float64),
    "huge": torch.tensor([1e38, 3e38]),
    "huge, float64": torch.tensor([5e307, 1.5e308], dtype=torch.float64),
    "tiny": torch.tensor([1e-300, 3e-300], dtype=torch.float64),
    "half": torch.tensor([2e4, 6e4], dtype=torch.float16),
    "counts": torch.tensor([2**60, 3 * 2**60]),
    "bytes": torch.tensor([80, 240], dtype=torch.uint8),
}


@pytest.mark.parametrize("pair", RATIOS.values(), ids=RATIOS)
def test_weights_of_any_magnitude_are_drawn_by_their_ratio(pair):
    weights, rng = torch.zeros(3, 3, dtype=pair.dtype), new_rng(0)
    weights[0, 1:], weights[1, ::2], weights[2, :2] = pair, pair, pair
    drawn = torch.stack([sample_partner_by(weights, rng=rng) for _ in range(2000)])
    expected = 1 / (1 + pair[0].item() / pair[1].item())
    for i, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        assert ((drawn[:, i] == first) | (drawn[:, i] == second)).all()
        assert (drawn[:, i] == second).float().mean().item() == pytest.approx(expected, abs=0.04)


def test_a_float64_ratio_of_1e_300_is_kept():
    weights = torch.tensor([[0, 1, 1e-300], [1e-300, 0, 0], [1, 1e-300, 0]], dtype=torch.float64)
    drawn = torch.stack([sample_partner_by(weights, rng=new_rng(seed)) for seed in range(200)])
    assert (drawn == torch.tensor([1, 0, 0])).all()


@pytest.mark.parametrize("similar", [False, True])
def test_draws_of_ordinary_weights_are_the_first_of_exponential_times(similar):
    """Results that were stored with a seed depend on these."""
    y = torch.randn(16) if similar else torch.arange(16) % 4
    weights = target_similarity(y) if similar else y[:, None] == y
    rates = weights.float().fill_diagonal_(0)
    for seed in range(200):
        waiting = torch.from_numpy(new_rng(seed).exponential(size=(16, 16)).astype("float32"))
        assert torch.equal(sample_partner_by(weights, rng=new_rng(seed)), (rates / waiting).argmax(1))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("pair", ["same", "other"])
def test_classes_of_a_table_are_paired(pair, dtype):
    y = torch.arange(12).view(12, 1).to(dtype) % 3  # (B, 1), as fastai's tables have
    for seed in range(20):
        partner = sample_partner_by_targets(pair, (y,), 12, new_rng(seed))
        assert torch.equal(partner, sample_partner_by_targets(pair, (y[:, 0],), 12, new_rng(seed)))
        assert ((y[partner] == y) == (pair == "same")).all()
        assert (partner != torch.arange(12)).all()


@pytest.mark.parametrize("y", [torch.zeros(4, 2).long(), torch.zeros(4, 1, 1).long(), torch.zeros(4, 1)])
def test_other_targets_than_classes_are_not_paired(y):
    with pytest.raises(ValueError, match=r"class indices \(B,\) or \(B, 1\).*function of the targets"):
        sample_partner_by_targets("same", (y,), 4, new_rng(0))
    by_function = sample_partner_by_targets(lambda given: torch.ones(4, 4) * (given is y), (y,), 4, new_rng(0))
    assert (by_function != torch.arange(4)).all()


def test_weights_of_another_shape_raise_value_error():
    with pytest.raises(ValueError, match=r"weights of shape \(B, B\)"):
        sample_partner_by(torch.ones(3, 2))


@pytest.mark.parametrize("value", [-0.5, torch.nan, torch.inf])
def test_negative_and_infinite_weights_raise_value_error(value):
    weights = torch.ones(3, 3)
    weights[1, 2] = value
    with pytest.raises(ValueError, match="weights must be >= 0 and finite"):
        sample_partner_by(weights)


@given(n=st.integers(2, 8), shape=st.lists(st.integers(1, 3), max_size=2), width=st.floats(0.1, 5))
def test_similarity_is_the_papers_density(n, shape, width):
    torch.manual_seed(n)
    y = 100 * torch.randn(n, *shape, dtype=torch.float64)
    variance, got = sum(t.var() for t in y.view(n, -1).T), target_similarity(y, width)
    for i in range(n):
        expected = torch.tensor([math.exp(-((y[i] - y[j]) ** 2).sum() / (2 * width**2 * variance)) for j in range(n)])
        expected[i] = 0
        if expected.max() > 1e-30:
            torch.testing.assert_close(got[i], (expected / expected.sum()).float(), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(target_similarity(1000 * y + 5, width)[i], got[i], rtol=1e-3, atol=1e-6)  # any unit


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similarity_has_no_unit(scale, dtype):
    y = torch.randn(20, dtype=torch.float64)
    got = target_similarity((y * scale).to(dtype), 0.3)
    torch.testing.assert_close(got, target_similarity(y, 0.3), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_similarity_has_no_zero(dtype):
    y = torch.randint(0, 100, (20,))
    torch.testing.assert_close(target_similarity((y + 1_700_000_000_000).to(dtype), 0.3), target_similarity(y, 0.3))
    assert torch.equal(target_similarity(y.to(torch.uint8)), target_similarity(y))


def test_equal_targets_are_equally_similar():
    torch.testing.assert_close(target_similarity(torch.ones(4)), (torch.ones(4, 4) - torch.eye(4)) / 3)
