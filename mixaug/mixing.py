"""What a draw does to tensors: a `Mix` says who is mixed with whom and how much of itself each sample keeps."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from . import fast
from .masks import share

# fastai's tensors pay for their type in every operation and in every look at a shape, but not in this context
untyped = torch._C.DisableTorchFunctionSubclass


def sample_partner(n: int, device: torch.device | str | None = None) -> Tensor:
    """Draw the partner of each of `n` samples, shape (n,): a random cycle, so that for n > 1 nobody is its own.

    >>> partner = sample_partner(5)
    >>> bool((partner == torch.arange(5)).any())
    False
    """
    order = torch.randperm(n, device=device)
    return order.scatter(0, order, order.roll(1, 0))


def sample_partner_by(weights: Tensor) -> Tensor:
    """Draw the partner of each sample, shape (n,), with probability in proportion to its row of `weights` (n, n), >= 0.

    Nobody is its own partner but where nobody else has any weight: such a sample stays unmixed. ValueError for other
    shapes and, on the CPU (elsewhere a look would wait for the device), for weights below 0 or NaN.

    >>> y = torch.tensor([0, 0, 1])
    >>> sample_partner_by(y[:, None] == y)  # of the same class
    tensor([1, 0, 2])
    """
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"weights of shape {tuple(weights.shape)} came, (B, B) was wanted")
    if weights.is_cpu and not torch.compiler.is_compiling() and not (weights >= 0).all():
        raise ValueError(f"weights down to {weights.min().item()} came, from 0 on were wanted")
    others = weights.float().masked_fill(torch.eye(len(weights), dtype=torch.bool, device=weights.device), 0)
    alone = (others.sum(1) == 0).float().diag()
    return ((others + alone) / torch.empty_like(others).exponential_()).argmax(1)


def closeness(y: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Return weights (n, n) that fall with the distance of the targets `y` (n, ...) like a Gaussian's density.

    `bandwidth` is its standard deviation, in units of the targets' own: https://arxiv.org/abs/2210.05775.

    >>> closeness(torch.tensor([0.0, 1.0, 9.0])).argmax(1)
    tensor([1, 0, 1])
    """
    y = (y if y.is_floating_point() else y.long()).reshape(len(y), -1)
    y = (y - y[:1]).float()  # before that large numbers, as those of times, are told apart
    y = y / y.abs().amax().clamp(min=torch.finfo(y.dtype).tiny)
    distance = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    distance = distance / (2 * bandwidth**2 * y.var(0).sum().clamp(min=1e-12))
    return distance.fill_diagonal_(torch.inf).neg().softmax(1)


def blend(x: Tensor, partner: Tensor, mask: Tensor, places: Sequence[Tensor] = ()) -> Tensor:
    """Return a new tensor in which each sample of `x` keeps the share `mask` and takes the rest from its partner.

    `x` is (B, ..., *size), `partner` (B,) integers from 0 on, `mask` (B, *size): its positions are the last axes of
    `x`. A bool mask chooses, for any dtype of `x`; a float mask averages, which is a TypeError for integers. `places`
    are for each axis of `size`, (B, length), those positions of the partner which come to the positions of the sample.
    On the CPU the memory of the last two results of 8 MB and more is kept, once they are no more, for the next;
    `mixaug.fast.release()` gives it up, as each training does at its end.

    >>> x, partner = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([1, 0])
    >>> blend(x, partner, torch.tensor([0.75, 0.5]))
    tensor([[0.2500, 0.2500],
            [0.5000, 0.5000]])
    >>> blend(x, partner, torch.tensor([[True, False], [True, True]]))
    tensor([[0., 1.],
            [1., 1.]])
    """
    with untyped():
        if not x.shape[:1] == partner.shape[:1] == mask.shape[:1]:
            raise ValueError(
                f"a tensor of shape {tuple(x.shape)} came with {len(partner)} partners and a mask of shape "
                f"{tuple(mask.shape)}, as many samples in each were wanted"
            )
        if not x.numel():
            return x
        n, *size = mask.shape
        mask = mask.view(n, *[1] * (x.ndim - mask.ndim), *size)
        if mask.dtype != torch.bool:
            if not (x.is_floating_point() or x.is_complex()):
                raise TypeError(
                    f"a {type(x).__name__} of {x.dtype} and shape {tuple(x.shape)} came to be averaged, floats were "
                    "wanted: turn images of bytes into floats first (fastai: batch_tfms=IntToFloatTensor()), mix codes "
                    "and tokens in a hidden layer (ManifoldMixup), leave class numbers to the loss (stack_y=True)"
                )
            mask = mask if mask.dtype == x.dtype else mask.to(x.dtype)
        if not places:
            return like(x, fast.mix(x, partner, mask))
        other = x[partner]
        for axis, place in enumerate(places, x.ndim - len(places)):
            index = place.view(len(x), *[1] * (axis - 1), -1, *[1] * (x.ndim - 1 - axis))
            other = torch.take_along_dim(other, index, axis)
        return like(x, fast.formula(x, other, mask))


def like(x: Tensor, t: Tensor) -> Tensor:
    """Return `t` with the type and the attributes of `x`."""
    if type(x) is not type(t):
        t = super(Tensor, t).as_subclass(type(x))  # torch's own: fastai's copies attributes, of which `t` has none
        vars(t).update(vars(x))
    return t


def map_tensors(f: Callable[[Tensor], Any], nest: Any) -> Any:
    """Return a nest of tuples, lists and mappings, of whatever classes, with `f(t)` for each tensor t."""
    kind: Any = type(nest)
    if isinstance(nest, Tensor):
        return f(nest)
    if isinstance(nest, (tuple, list)):
        items = [map_tensors(f, item) for item in nest]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)  # a namedtuple has fields
    if isinstance(nest, MutableMapping):
        result = copy(nest)  # of whatever class, a defaultdict's function included
        for key, value in nest.items():  # one by one: Hugging Face's refuse `update`
            result[key] = map_tensors(f, value)
        return result
    if isinstance(nest, Mapping):
        return kind({key: map_tensors(f, value) for key, value in nest.items()})
    return nest


def tensors(nest: Any) -> list[Tensor]:
    """Return the tensors of a nest in their order."""
    found: list[Tensor] = []
    map_tensors(found.append, nest)
    return found


@dataclass(frozen=True)
class Mix:
    """One draw for one batch, which inputs, targets and loss all read.

    `partner`: (B,) integers, the sample that each sample is mixed with. `mask`: the share that it keeps of itself,
    float (B,), or for each position (B, *size), bool to choose and float to average. `places`: for each axis of `size`,
    (B, length) integers, from where in the partner each position is taken; without it, from the same position.

    >>> mask = torch.tensor([[True, True, True, False], [True, False, True, False]])
    >>> mix = Mix(torch.tensor([1, 0]), mask)
    >>> mix.lam
    tensor([0.7500, 0.5000])
    >>> mix.blend(torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]))
    tensor([[0, 0, 0, 1],
            [1, 0, 1, 0]])
    """

    partner: Tensor
    mask: Tensor
    places: tuple[Tensor, ...] = ()

    @cached_property
    def lam(self) -> Tensor:
        """The share that each sample keeps of itself over all positions, float (B,) in [0, 1]."""
        return share(self.mask)

    def covers(self, x: Tensor) -> bool:
        """Whether the last axes of `x` are the positions that the mask speaks of."""
        with untyped():
            size, shape = self.mask.shape[1:], x.shape
        return len(shape) > len(size) and shape[len(shape) - len(size) :] == size

    def blend(self, x: Tensor) -> Tensor:
        """Return `x` of shape (B, ...) mixed: position by position where the mask covers it, else averaged by `lam`."""
        covered = self.covers(x)
        return blend(x, self.partner, self.mask if covered else self.lam, self.places if covered else ())

    def partners(self, x: Tensor) -> Tensor:
        """Return `x` of shape (B, ...) with each sample's partner in its place."""
        with untyped():
            if x.shape[:1] != self.partner.shape:
                raise ValueError(
                    f"a tensor of shape {tuple(x.shape)} came with {len(self.partner)} partners, as many samples were "
                    "wanted"
                )
            return like(x, x.index_select(0, self.partner))

    def shared(self) -> "Mix":
        """Return the same mix with the first sample's mask for the whole batch."""
        mask, *places = (t[:1].expand_as(t) for t in (self.mask, *self.places))
        return Mix(self.partner, mask, tuple(places))

    def unmixed(self) -> "Mix":
        """Return the mix of the same form in which each sample stays as it is."""
        own = torch.arange(len(self.partner), device=self.partner.device)
        places = (torch.arange(p.shape[1], device=p.device).expand_as(p) for p in self.places)
        return Mix(own, self.mask.new_ones(()).expand_as(self.mask), tuple(places))

    def after_clean(self) -> "Mix":
        """Return the mix of a batch of twice the size, the first half of which stays as it is."""
        clean, n = self.unmixed(), len(self.partner)
        mask, *places = map(torch.cat, zip((clean.mask, *clean.places), (self.mask, *self.places), strict=True))
        return Mix(torch.cat([clean.partner, self.partner + n]), mask, tuple(places))


def choose(mixes: Sequence[Mix], choice: Tensor) -> Mix:
    """Return the mix in which sample i is mixed as in `mixes[choice[i]]`, `choice` (B,) integers.

    Where masks of both kinds meet, the one that chooses becomes an average by 0 and 1.

    >>> partner = torch.tensor([1, 0])
    >>> mixes = Mix(partner, torch.tensor([0.9, 0.8])), Mix(partner, torch.tensor([0.6, 0.5]))
    >>> choose(mixes, torch.tensor([1, 0])).mask
    tensor([0.6000, 0.8000])
    """
    ndim = max(mix.mask.ndim for mix in mixes)
    masks = [mix.mask.view(len(choice), *[1] * (ndim - mix.mask.ndim), *mix.mask.shape[1:]) for mix in mixes]
    moved = next((mix.unmixed().places for mix in mixes if mix.places), ())
    each = [(mix.partner, mask, *(mix.places or moved)) for mix, mask in zip(mixes, masks, strict=True)]

    def pick(field: Sequence[Tensor]) -> Tensor:
        here = choice.view(-1, *[1] * (field[0].ndim - 1))
        return reduce(lambda t, k: torch.where(here == k, field[k], t), range(1, len(field)), field[0])

    partner, mask, *places = map(pick, zip(*each, strict=True))
    return Mix(partner, mask, tuple(places))
