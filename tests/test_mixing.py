"""`blend`, `Mix` and the pairing against loops over the samples."""

import math
from collections import OrderedDict, defaultdict

import pytest
import torch
from common import slow_mix
from fastai.torch_core import TensorImage
from hypothesis import given
from hypothesis import strategies as st

from mixaug import Mix, blend, box_mask, choose, closeness, sample_partner, sample_partner_by, whole_in_box
from mixaug.mixing import map_tensors


def slow_blend(x, partner, mask):
    """The papers' formula, a sample and a position at a time."""
    out = x.clone()
    for i, j in enumerate(partner.tolist()):
        m = mask[i].to(x.dtype) if mask.dtype != torch.bool else mask[i]
        out[i] = (m * x[i].double() + (1 - m.double()) * x[j].double()).to(x.dtype) if m.dtype != torch.bool else x[i]
        if m.dtype == torch.bool:
            out[i][..., ~m] = x[j][..., ~m]
    return out


@given(n=st.integers(2, 40), seed=st.integers(0, 2**32))
def test_partners_form_one_cycle(n, seed):
    torch.manual_seed(seed)
    partner = sample_partner(n).tolist()
    visited, at = [], 0
    for _ in range(n):
        visited.append(at)
        at = partner[at]
    assert sorted(visited) == list(range(n))
    assert at == 0


def test_every_partner_is_as_likely():
    torch.manual_seed(0)
    counts = torch.zeros(5, 5)
    for _ in range(4000):
        counts[torch.arange(5), sample_partner(5)] += 1
    assert (counts.diagonal() == 0).all()
    off = counts[~torch.eye(5, dtype=torch.bool)]
    assert (off - 1000).abs().max() < 120  # some four standard deviations of 27


def test_a_sample_alone_is_its_own_partner():
    assert sample_partner(1).tolist() == [0]


shapes = st.lists(st.integers(1, 5), min_size=0, max_size=3)
floats = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


@given(n=st.integers(1, 6), shape=shapes, dtype=floats, seed=st.integers(0, 2**32))
def test_a_float_mask_averages(n, shape, dtype, seed):
    torch.manual_seed(seed)
    x, partner, lam = torch.randn(n, *shape).to(dtype), sample_partner(n), torch.rand(n)
    before = x.clone()
    out = blend(x, partner, lam)
    assert out.dtype == dtype
    torch.testing.assert_close(out, slow_blend(x, partner, lam))
    assert torch.equal(x, before)


@given(
    n=st.integers(1, 6),
    channels=st.lists(st.integers(1, 3), max_size=1),
    size=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.uint8, torch.int64, torch.bool, torch.float16]),
    seed=st.integers(0, 2**32),
)
def test_a_bool_mask_chooses_for_every_dtype(n, channels, size, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randint(0, 200, (n, *channels, *size)).to(dtype)
    partner, mask = sample_partner(n), box_mask(torch.rand(n), size)
    before = x.clone()
    out = blend(x, partner, mask)
    assert out.dtype == dtype
    assert torch.equal(out, slow_blend(x, partner, mask))
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [(8,), (6, 7), (4, 5, 6)])
@pytest.mark.parametrize("make", ["float", "bool", "soft"])
def test_the_mean_of_a_constant_image_follows_lam(make, size):
    """The law of input mixing: it rules out a forgotten correction of lam and a reversed direction."""
    torch.manual_seed(0)
    n, value = 8, torch.arange(8.0)
    x = value.view(-1, 1, *[1] * len(size)).expand(n, 3, *size)
    lam = torch.rand(n) * 0.4 + 0.55
    mask = {"float": lam, "bool": box_mask(lam, size), "soft": torch.rand(n, *size)}[make]
    mix = Mix(sample_partner(n), mask)
    expected = mix.lam * value + (1 - mix.lam) * value[mix.partner]
    torch.testing.assert_close(mix.blend(x).flatten(1).mean(1), expected)
    assert not torch.allclose(expected, (1 - mix.lam) * value + mix.lam * value[mix.partner])


def test_integers_are_never_averaged():
    with pytest.raises(TypeError, match=r"torch.uint8.*IntToFloatTensor"):
        blend(torch.zeros(2, 3, dtype=torch.uint8), torch.tensor([1, 0]), torch.rand(2))


def test_an_inf_does_not_leak_through_a_bool_mask():
    x = torch.tensor([[[1.0, float("inf")]], [[2.0, 3.0]]])
    mix = Mix(torch.tensor([1, 0]), torch.tensor([[True, False], [True, False]]))
    assert mix.blend(x).tolist() == [[[1.0, 3.0]], [[2.0, float("inf")]]]


def test_positions_get_the_mask_and_everything_else_lam():
    mask = box_mask(torch.full((2,), 0.5), (4, 4))
    mix = Mix(torch.tensor([1, 0]), mask)
    labels, depth = torch.eye(2), torch.randn(2, 4, 4)
    torch.testing.assert_close(mix.blend(labels), blend(labels, mix.partner, mix.lam))
    torch.testing.assert_close(mix.blend(depth), blend(depth, mix.partner, mask))
    assert mix.covers(depth)
    assert not mix.covers(labels)
    assert not mix.covers(torch.zeros(4, 4))


def test_a_tensor_of_another_batch_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 2\) came with 2 partners"):
        Mix(torch.tensor([1, 0]), torch.rand(2)).blend(torch.zeros(3, 2))


def test_shared_gives_everyone_the_first_mask():
    mix = Mix(sample_partner(4), box_mask(torch.rand(4), (5, 5))).shared()
    assert torch.equal(mix.mask, mix.mask[:1].expand(4, 5, 5))
    assert mix.lam.shape == (4,)


def test_the_tensor_type_and_its_notes_are_kept():
    x = TensorImage(torch.rand(2, 3, 4, 4), note="seen")
    for mask in (torch.rand(2), box_mask(torch.rand(2), (4, 4))):
        out = blend(x, torch.tensor([1, 0]), mask)
        assert type(out) is TensorImage
        assert out.note == "seen"


def test_gradients_flow_to_both_samples():
    x = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    partner, lam = sample_partner(4), torch.rand(4, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda t: blend(t, partner, lam), x)


def test_partners_are_drawn_in_proportion_to_the_weights():
    torch.manual_seed(0)
    weights = torch.tensor([[9.0, 1.0, 3.0, 0.0], [0.0, 0.0, 0.0, 2.0], [1.0, 1.0, 7.0, 1.0], [0.0, 0.0, 0.0, 5.0]])
    kept = weights.clone()
    drawn = torch.stack([sample_partner_by(weights) for _ in range(4000)])
    assert torch.equal(weights, kept)
    assert (drawn[:, 0] == 2).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert (drawn[:, 0] == 1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (drawn[:, 1] == 3).all()
    assert drawn[:, 2].bincount(minlength=4).tolist() == pytest.approx([4000 / 3, 4000 / 3, 0, 4000 / 3], abs=120)
    assert (drawn[:, 3] == 3).all()  # nobody else has weight


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"weights of shape \(3, 2\) came, \(B, B\) was wanted"):
        sample_partner_by(torch.ones(3, 2))


@pytest.mark.parametrize("value", [-0.5, torch.nan])
def test_weights_that_are_no_shares_are_refused(value):
    weights = torch.ones(3, 3)
    weights[1, 2] = value
    with pytest.raises(ValueError, match=f"weights down to {value} came, from 0 on were wanted"):
        sample_partner_by(weights)


@given(n=st.integers(2, 8), shape=st.lists(st.integers(1, 3), max_size=2), width=st.floats(0.1, 5))
def test_closeness_is_the_papers_density(n, shape, width):
    torch.manual_seed(n)
    y = 100 * torch.randn(n, *shape, dtype=torch.float64)
    variance, got = sum(t.var() for t in y.view(n, -1).T), closeness(y, width)
    for i in range(n):
        expected = torch.tensor([math.exp(-((y[i] - y[j]) ** 2).sum() / (2 * width**2 * variance)) for j in range(n)])
        expected[i] = 0
        if expected.max() > 1e-30:
            torch.testing.assert_close(got[i], (expected / expected.sum()).float(), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(closeness(1000 * y + 5, width)[i], got[i], rtol=1e-3, atol=1e-6)  # of any unit


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closeness_has_no_unit(scale, dtype):
    y = torch.randn(20, dtype=torch.float64)
    torch.testing.assert_close(closeness((y * scale).to(dtype), 0.3), closeness(y, 0.3), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_closeness_knows_no_zero(dtype):
    y = torch.randint(0, 100, (20,))
    torch.testing.assert_close(closeness((y + 1_700_000_000_000).to(dtype), 0.3), closeness(y, 0.3))
    assert torch.equal(closeness(y.to(torch.uint8)), closeness(y))


def test_partners_are_wanted_of_as_many_samples():
    mix = Mix(sample_partner(4), torch.rand(4))
    for x in (torch.arange(9), torch.rand(3, 2), torch.tensor(1)):
        with pytest.raises(ValueError, match="as many samples were wanted"):
            mix.partners(x)


def test_equal_targets_are_equally_close():
    torch.testing.assert_close(closeness(torch.ones(4)), (torch.ones(4, 4) - torch.eye(4)) / 3)


@given(size=st.lists(st.integers(1, 6), min_size=1, max_size=3), channels=st.lists(st.integers(1, 3), max_size=1),
       dtype=st.sampled_from([torch.float32, torch.uint8, torch.int64]), seed=st.integers(0, 2**32))  # fmt: skip
def test_places_bring_other_positions_of_the_partner(size, channels, dtype, seed):
    torch.manual_seed(seed)
    x, lam = (50 * torch.rand(5, *channels, *size)).to(dtype), torch.rand(5)
    mix = Mix(sample_partner(5), *whole_in_box(lam, size))
    out = mix.blend(x)
    assert out.dtype == dtype
    assert torch.equal(out, slow_mix(x, mix))


def mixes(n, size):
    """Of every form that a mix can have."""
    partner = lambda: sample_partner(n)  # noqa: E731
    return [
        Mix(partner(), torch.rand(n)),
        Mix(partner(), box_mask(torch.rand(n), size)),
        Mix(partner(), torch.rand(n, *size)),
        Mix(partner(), *whole_in_box(torch.rand(n), size)),
    ]


@given(size=st.lists(st.integers(1, 6), min_size=1, max_size=3), at=st.lists(st.integers(0, 3), min_size=1, max_size=4),
       seed=st.integers(0, 2**32))  # fmt: skip
def test_a_choice_mixes_each_sample_as_one_of_the_mixes(size, at, seed):
    torch.manual_seed(seed)
    x, choice = torch.randn(6, 2, *size), torch.randint(0, len(at), (6,))
    some = [mixes(6, size)[k] for k in at]
    chosen = choose(some, choice)
    out = chosen.blend(x)
    for i, k in enumerate(choice):
        torch.testing.assert_close(out[i], some[k].blend(x)[i])
        torch.testing.assert_close(chosen.lam[i], some[k].lam[i])
        assert chosen.partner[i] == some[k].partner[i]


@given(size=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_every_form_of_a_mix_has_its_like(size, seed):
    torch.manual_seed(seed)
    x = torch.randn(6, 2, *size)
    for mix in mixes(6, size):
        assert torch.equal(mix.unmixed().blend(x), x)
        double = mix.after_clean()
        assert torch.equal(double.blend(torch.cat([x, x])), torch.cat([x, mix.blend(x)]))
        assert torch.equal(double.lam, torch.cat([torch.ones(6), mix.lam]))
        shared = mix.shared()
        assert torch.equal(shared.partner, mix.partner)
        torch.testing.assert_close(shared.lam, mix.lam[:1].expand(6))
        first = Mix(torch.cat([mix.partner[:1], mix.partner[1:]]), mix.mask, mix.places)
        assert torch.equal(shared.blend(x)[0], first.blend(x)[0])
        torch.testing.assert_close(shared.blend(x), slow_mix(x, shared))


def test_mappings_of_any_class_are_walked():
    nest = defaultdict(list, a=torch.ones(2), b=OrderedDict(c=torch.zeros(1)))
    got = map_tensors(lambda t: t + 1, nest)
    assert type(got) is defaultdict
    assert type(got["b"]) is OrderedDict
    assert got["new"] == []
    assert got["a"].tolist() == [2, 2]
    assert got["b"]["c"].tolist() == [1]
    assert nest["a"].tolist() == [1, 1]


def test_masks_of_fewer_axes_are_of_the_last():
    x, partner = torch.arange(32.0).view(2, 4, 4), torch.tensor([1, 0])
    columns = Mix(partner, torch.tensor([True, True, True, False]).expand(2, 4))
    boxes = Mix(partner, torch.ones(2, 4, 4, dtype=torch.bool))
    out = choose([columns, boxes], torch.tensor([0, 1])).blend(x)
    assert torch.equal(out[0], columns.blend(x)[0])
    assert torch.equal(out[1], x[1])
