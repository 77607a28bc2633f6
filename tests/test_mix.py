"""Draws, `blend` and `Mix` against loops over the samples."""

import math
import warnings
from collections import OrderedDict, defaultdict
from itertools import permutations

import numpy as np
import pytest
import scipy.stats
import torch
from fastai.torch_core import TensorImage
from hypothesis import given
from hypothesis import strategies as st
from reference import slow_mix
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from mixaug import Mix, blend, box_mask, choose, paste_mask, sample_lam, sample_partner
from mixaug.draw import new_rng
from mixaug.nests import map_tensors

seeds = st.integers(0, 2**32)
sizes = st.lists(st.integers(1, 6), min_size=1, max_size=3)


# Draws


@given(n=st.integers(1, 40), seed=seeds)
def test_partners_form_one_cycle(n, seed):
    partner = sample_partner(n, rng=new_rng(seed)).tolist()
    visited, at = [], 0
    for _ in range(n):
        visited.append(at)
        at = partner[at]
    assert sorted(visited) == list(range(n))
    assert at == 0


def test_all_partners_are_equally_likely():
    rng, counts = new_rng(0), torch.zeros(5, 5)
    for _ in range(4000):
        counts[torch.arange(5), sample_partner(5, rng=rng)] += 1
    assert (counts.diagonal() == 0).all()
    off = counts[~torch.eye(5, dtype=torch.bool)]
    assert (off - 1000).abs().max() < 120  # some four standard deviations of 27


@pytest.mark.parametrize("alpha", [1e-300, 1e-44, 1e-35, 1e-4, 1e-3, 0.01, 0.1, 0.4, 1, 8, 500])
def test_lam_has_the_distribution_asked_for(alpha):
    """By the largest distance of the draws' distribution to Beta's: 1.95 / sqrt(n) is exceeded once in a thousand."""
    n = 1_000_000
    lam = sample_lam(alpha, n, fold=False, rng=new_rng(0))
    assert lam.shape == (n,)
    assert lam.dtype == torch.float32
    # Between the ends: floats are too few near 0 and 1 to tell apart what is drawn there
    at = np.linspace(0.001, 0.999, 500)
    drawn = np.searchsorted(np.sort(lam.double().numpy()), at) / n
    assert np.abs(drawn - scipy.stats.beta.cdf(at, alpha, alpha)).max() < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 0.4, 1, 8])
def test_fold_keeps_the_larger_coefficient(alpha):
    plain = sample_lam(alpha, 1000, fold=False, rng=new_rng(0))
    folded = sample_lam(alpha, 1000, rng=new_rng(0))
    torch.testing.assert_close(folded, torch.maximum(plain, 1 - plain), rtol=0, atol=1e-6)
    assert (plain < 0.5).any()
    assert (folded >= 0.5).all()


def test_without_a_generator_draws_repeat_with_torchs_seed():
    def drawn(seed):
        torch.manual_seed(seed)
        return [sample_partner(20).tolist(), sample_lam(0.4, 20).tolist(), box_mask(torch.rand(4), (9,)).tolist()]

    assert drawn(1) == drawn(1) != drawn(2)


# Blending

floats = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


def slow_blend(x, partner, mask):
    """The papers' formula, a sample at a time, in double precision."""
    out = x.clone()
    for i, j in enumerate(partner.tolist()):
        if mask.dtype == torch.bool:
            out[i][..., ~mask[i]] = x[j][..., ~mask[i]]
        else:
            m = mask[i].to(x.dtype).double()
            out[i] = (m * x[i].double() + (1 - m) * x[j].double()).to(x.dtype)
    return out


@given(n=st.integers(1, 6), shape=st.lists(st.integers(1, 5), max_size=3), dtype=floats, seed=seeds)
def test_float_mask_averages(n, shape, dtype, seed):
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
    size=sizes,
    dtype=st.sampled_from([torch.float32, torch.uint8, torch.int64, torch.bool, torch.float16, torch.complex64]),
    seed=seeds,
)
def test_bool_mask_chooses_for_every_dtype(n, channels, size, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randint(0, 200, (n, *channels, *size)).to(dtype)
    partner, mask = sample_partner(n), box_mask(torch.rand(n), size)
    before = x.clone()
    out = blend(x, partner, mask)
    assert out.dtype == dtype
    assert torch.equal(out, slow_blend(x, partner, mask))
    assert torch.equal(x, before)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "strided": lambda x: x[:, :, ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_every_memory_format_is_kept(layout, dtype, grad):
    torch.manual_seed(0)
    x, partner = LAYOUTS[layout](torch.randn(6, 3, 8, 10).to(dtype)).requires_grad_(grad), sample_partner(6)
    for mask in (torch.rand(6), torch.rand(6, *x.shape[2:]), box_mask(torch.rand(6), x.shape[2:])):
        shaped = mask.view(6, *[1] * (4 - mask.ndim), *mask.shape[1:])
        shaped = shaped if mask.dtype == torch.bool else shaped.to(dtype)
        out = blend(x, partner, mask)
        formula = torch.where(shaped, x, x[partner]) if mask.dtype == torch.bool else torch.lerp(x[partner], x, shaped)
        assert torch.equal(out, formula)
        if layout in ("contiguous", "channels_last"):
            assert out.stride() == x.stride()


@pytest.mark.parametrize("size", [(8,), (6, 7), (4, 5, 6)])
@pytest.mark.parametrize("kind", ["float", "bool", "soft"])
def test_the_mean_of_constant_images_follows_lam(kind, size):
    """The law of input mixing: it rules out a forgotten correction of lam and a reversed direction."""
    torch.manual_seed(0)
    n, value = 8, torch.arange(8.0)
    x = value.view(-1, 1, *[1] * len(size)).expand(n, 3, *size)
    lam = torch.rand(n) * 0.4 + 0.55
    mask = {"float": lam, "bool": box_mask(lam, size), "soft": torch.rand(n, *size)}[kind]
    mix = Mix(sample_partner(n), mask)
    expected = mix.lam * value + (1 - mix.lam) * value[mix.partner]
    torch.testing.assert_close(mix.blend(x).flatten(1).mean(1), expected)
    assert not torch.allclose(expected, (1 - mix.lam) * value + mix.lam * value[mix.partner])


def test_integers_are_never_averaged():
    with pytest.raises(TypeError, match="IntToFloatTensor"):
        blend(torch.zeros(2, 3, dtype=torch.uint8), torch.tensor([1, 0]), torch.rand(2))


def test_bool_mask_keeps_every_bit():
    x = torch.tensor([[float("nan"), -0.0, 1.0], [float("inf"), 2.0, -float("nan")]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    expected = torch.where(mask, x, x.flip(0)).view(torch.int32)
    assert torch.equal(blend(x, torch.tensor([1, 0]), mask).view(torch.int32), expected)


def test_different_numbers_of_samples_raise_value_error():
    x = torch.ones(4, 3, 8, 8)
    for n, mask in ((2, torch.rand(4)), (4, torch.rand(1)), (4, torch.ones(2, 8, 8) > 0)):
        with pytest.raises(ValueError, match="Expected as many samples"):
            blend(x, sample_partner(n), mask)
    mix = Mix(sample_partner(4), torch.rand(4))
    for x in (torch.arange(9), torch.rand(3, 2), torch.tensor(1)):
        with pytest.raises(ValueError, match="Expected 4 samples"):
            mix.partners(x)


MASKS = {
    "lam": lambda n: torch.rand(n),
    "soft": lambda n: torch.rand(n, 7),
    "box": lambda n: torch.rand(n, 7) < 0.5,
}


@pytest.mark.parametrize("partner", [sample_partner, lambda n: torch.zeros(n, dtype=torch.long)])
@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_those_of_the_formula(mask, partner):
    """Also if several samples have the same partner; gradients of gradients, too."""
    torch.manual_seed(0)
    x, m, j = torch.randn(5, 3, 7, dtype=torch.double, requires_grad=True), MASKS[mask](5), partner(5)
    assert torch.autograd.gradcheck(lambda x: blend(x, j, m), x)
    assert torch.autograd.gradgradcheck(lambda x: blend(x**3, j, m), x)
    if mask != "box":  # a mask may be learned, too
        assert torch.autograd.gradcheck(lambda m: blend(x, j, m), m.double().requires_grad_())
        assert torch.autograd.gradcheck(lambda m: blend(x.detach(), j, m), m.double().requires_grad_())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_results_are_ordinary_tensors(mask, grad):
    torch.manual_seed(0)
    x, m, w = torch.randn(4, 5, 7, requires_grad=True), MASKS[mask](4), torch.ones((), requires_grad=True)
    partner = sample_partner(4)
    with torch.set_grad_enabled(grad):
        out = blend(x, partner, m)
    expected = out.detach().clone().relu()
    (nn.functional.relu_(out) * w).sum().backward()
    assert torch.equal(out.detach(), expected)
    assert (x.grad is not None) == grad
    with torch.no_grad():
        blend(x, partner, m).requires_grad_().detach_().mul_(2).resize_(3, 3)
        torch.add(x, 1, out=blend(x.detach(), partner, m))


@pytest.mark.filterwarnings("ignore:There is a performance drop because")  # of vmap, for lerp_
@pytest.mark.parametrize("mask", [torch.rand, lambda n: torch.rand(n, 6) < 0.5])
def test_transforms_and_recorded_graphs_are_right(mask):
    torch.manual_seed(0)
    x, several, partner, m = torch.randn(4, 6, requires_grad=True), torch.randn(3, 4, 6), sample_partner(4), mask(4)

    def f(t):
        return blend(t, partner, m)

    def close(got, expected):  # averages are computed in another way where no value can be looked at
        exact = {"rtol": 0, "atol": 0} if m.dtype == torch.bool else {}
        torch.testing.assert_close(got, expected, **exact)

    def g(t):
        shaped = m.view(4, -1)
        return torch.where(shaped, t, t[partner]) if m.dtype == torch.bool else torch.lerp(t[partner], t, shaped)

    close(torch.func.vmap(f)(several), torch.func.vmap(g)(several))
    masks = torch.stack([mask(4) for _ in range(3)])
    each = torch.func.vmap(lambda m: blend(several[0], partner, m))(masks)
    close(each, torch.stack([blend(several[0], partner, m) for m in masks]))
    close(*(torch.func.grad(lambda t, h=h: h(t).square().sum())(x) for h in (f, g)))
    close(*(torch.func.jvp(h, (x.detach(),), (several[0],))[1] for h in (f, g)))
    close(*(torch.autograd.grad(h(x), x, several, is_grads_batched=True)[0] for h in (f, g)))
    with torch.autograd.forward_ad.dual_level():
        duals = [h(torch.autograd.forward_ad.make_dual(several[0], several[1])) for h in (f, g)]
        close(*(torch.autograd.forward_ad.unpack_dual(d).tangent for d in duals))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for graph in (make_fx(f)(several[0]), torch.jit.trace(f, several[0])):
            close(graph(several[1]), g(several[1]))


@pytest.mark.filterwarnings("ignore:There is a performance drop because")  # of vmap, for lerp_
@pytest.mark.parametrize("how", ["in place", "with gradients", "compiled", "vmap", "positions"])
def test_equal_infinities_stay_and_what_has_no_weight_leaves_no_trace(how):
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[-inf, inf, 1.0, 2.0], [-inf, inf, nan, inf], [-inf, inf, -inf, 3.0], [-inf, inf, nan, -inf]])
    partner, lam = torch.tensor([1, 2, 0, 0]), torch.tensor([1.0, 0.25, 0.75, 0.0])
    expected = torch.tensor(
        [[-inf, inf, 1.0, 2.0], [-inf, inf, nan, inf], [-inf, inf, -inf, 2.75], [-inf, inf, 1.0, 2.0]]
    )
    mask = lam[:, None].expand(4, 4).clone() if how == "positions" else lam
    f = lambda x: blend(x, partner, mask)  # noqa: E731
    if how == "with gradients":
        x.requires_grad_()
    if how == "vmap":
        got = torch.func.vmap(f)(x[None])[0]
    else:
        got = torch.compile(f, fullgraph=True, backend="eager")(x) if how == "compiled" else f(x)
    torch.testing.assert_close(got.detach(), expected, equal_nan=True)
    if how == "with gradients":
        got[:, :2].sum().backward()  # that of a mask of 1 is of the original alone
        torch.testing.assert_close(x.grad[:, 0], torch.tensor([2.25, 0.25, 1.5, 0.0]))


def test_tensor_subclass_and_copies_of_its_attributes_are_kept():
    x = TensorImage(torch.rand(2, 3, 4, 4), notes=["seen"])
    for mask in (torch.rand(2), box_mask(torch.rand(2), (4, 4))):
        out = blend(x, torch.tensor([1, 0]), mask)
        assert type(out) is TensorImage
        assert out.notes == ["seen"]
        out.notes.append("mixed")
    assert x.notes == ["seen"]


# Mixes


def test_positions_get_the_mask_and_everything_else_lam():
    mask = box_mask(torch.full((2,), 0.5), (4, 4))
    mix = Mix(torch.tensor([1, 0]), mask)
    labels, depth = torch.eye(2), torch.randn(2, 4, 4)
    torch.testing.assert_close(mix.blend(labels), blend(labels, mix.partner, mix.lam))
    torch.testing.assert_close(mix.blend(depth), blend(depth, mix.partner, mask))
    assert mix.covers(depth)
    assert not mix.covers(labels)
    assert not mix.covers(torch.zeros(4, 4))


@given(size=sizes, channels=st.lists(st.integers(1, 3), max_size=1),
       dtype=st.sampled_from([torch.float32, torch.uint8, torch.int64]), seed=seeds)  # fmt: skip
def test_source_index_takes_other_positions_of_the_partner(size, channels, dtype, seed):
    torch.manual_seed(seed)
    x, lam = (50 * torch.rand(5, *channels, *size)).to(dtype), torch.rand(5)
    mix = Mix(sample_partner(5), *paste_mask(lam, size))
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
        Mix(partner(), *paste_mask(torch.rand(n), size)),
    ]


@given(size=sizes, at=st.lists(st.integers(0, 3), min_size=1, max_size=4), seed=seeds)
def test_choose_mixes_each_sample_as_one_of_the_mixes(size, at, seed):
    torch.manual_seed(seed)
    x, choice = torch.randn(6, 2, *size), torch.randint(0, len(at), (6,))
    some = [mixes(6, size)[k] for k in at]
    chosen = choose(some, choice)
    out = chosen.blend(x)
    for i, k in enumerate(choice):
        torch.testing.assert_close(out[i], some[k].blend(x)[i])
        torch.testing.assert_close(chosen.lam[i], some[k].lam[i])
        assert chosen.partner[i] == some[k].partner[i]


def test_choose_between_partners_pasted_in_different_axes():
    """Frames and pictures: one box for all frames, and one that ends in time too."""
    x, partner, lam = torch.randn(4, 2, 6, 4, 4), torch.tensor([1, 2, 3, 0]), torch.full((4,), 0.6)
    some = Mix(partner, *paste_mask(lam, (4, 4))), Mix(partner, *paste_mask(lam, (6, 4, 4))), Mix(partner, lam)
    for order in permutations(range(3)):
        choice = torch.tensor([*order, 0])
        out = choose(some, choice).blend(x)
        halves = choose(some[:2], choice % 2).masked(x[..., ::2, ::2, ::2])  # at another resolution
        for i, k in enumerate(choice):
            torch.testing.assert_close(out[i], some[k].blend(x)[i])
            torch.testing.assert_close(halves[i], some[k % 2].masked(x[..., ::2, ::2, ::2])[i])


def test_choose_between_masks_of_different_axes():
    x, partner = torch.arange(32.0).view(2, 4, 4), torch.tensor([1, 0])
    columns = Mix(partner, torch.tensor([True, True, True, False]).expand(2, 4))
    out = choose([columns, Mix(partner, torch.ones(2, 4, 4) > 0)], torch.tensor([0, 1])).blend(x)
    assert torch.equal(out, torch.stack([columns.blend(x)[0], x[1]]))


@given(size=sizes, seed=seeds)
def test_every_form_of_a_mix_can_be_shared_unmixed_and_doubled(size, seed):
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
        assert torch.equal(shared.blend(x)[0], mix.blend(x)[0])
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
