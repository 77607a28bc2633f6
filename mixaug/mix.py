"""`Mix`: the pairing and the mask of one batch, and functions to apply them."""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from operator import floordiv
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_private import no_subclass


def blend(x: Tensor, partner: Tensor, mask: Tensor, source_index: Sequence[Tensor] = ()) -> Tensor:
    """Mix each sample of `x` with its partner, and return the result as a new tensor.

    Args:
        x: Samples ``(B, ..., *size)``.
        partner: Index of each sample's partner, ``(B,)``.
        mask: Weight of the original, ``(B, *size)`` over the last axes of `x`. A bool mask chooses, for any dtype; a
            float mask averages.
        source_index: For each axis of `size`, indices ``(B, length)``: the position of the partner that is used at each
            position.

    Raises:
        TypeError: If integers would be averaged.
        ValueError: If the numbers of samples differ.

    >>> x, partner = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([1, 0])
    >>> blend(x, partner, torch.tensor([0.75, 0.5]))
    tensor([[0.2500, 0.2500],
            [0.5000, 0.5000]])
    >>> blend(x, partner, torch.tensor([[True, False], [True, True]]))
    tensor([[0., 1.],
            [1., 1.]])
    """
    with no_subclass():
        if not x.shape[:1] == partner.shape[:1] == mask.shape[:1]:
            raise ValueError(
                f"Expected as many samples in the tensor, its partners and its mask, got shapes {tuple(x.shape)}, "
                f"{tuple(partner.shape)} and {tuple(mask.shape)}"
            )
        if not x.numel():
            return x
        mask = mask.view(len(mask), *[1] * (x.ndim - mask.ndim), *mask.shape[1:])
        is_bool = mask.dtype == torch.bool
        if not (is_bool or x.is_floating_point() or x.is_complex()):
            raise TypeError(
                f"Expected floats to average, got {x.dtype} of shape {tuple(x.shape)}. Convert uint8 images to floats "
                "first (fastai: batch_tfms=IntToFloatTensor()), mix categorical codes and token ids in a hidden layer "
                '(ManifoldMixup), leave an input as it is (inputs=("mix", "keep")) or a target to the loss '
                '(targets="loss")'
            )
        mask = mask if is_bool else mask.to(x.dtype)
        # In place on the partners, unless autograd or a compiler needs them
        in_place = not (x.requires_grad or torch.compiler.is_compiling())

        other = _partners(x, partner, source_index, in_place)
        try:
            if is_bool:
                return like(x, torch.where(mask, x, other, out=other) if in_place else torch.where(mask, x, other))
            if x.is_cpu and not torch.compiler.is_compiling():
                mixed = other.lerp_(x, mask) if in_place else torch.lerp(other, x, mask)
                # NaN also where both are the same infinity, or where one is not finite that has no weight. Devices that
                # would have to be synchronized to see this get what is right for these, too
                if not mixed.detach().sum().isnan():
                    return like(x, mixed)
            elif in_place:
                own = x.masked_fill(mask == 0, 0)
                return like(x, other.masked_fill_(mask == 1, 0).mul_(1 - mask).addcmul_(own, mask))
        except RuntimeError:  # forward-mode AD or vmap: no operation in place, no look at values
            pass
        if in_place:  # it was written to
            other = _partners(x, partner, source_index, False)
        if is_bool:
            return like(x, torch.where(mask, x, other))
        return like(x, x.masked_fill(mask == 0, 0) * mask + other.masked_fill(mask == 1, 0) * (1 - mask))


def _partners(x: Tensor, partner: Tensor, source_index: Sequence[Tensor], in_place: bool) -> Tensor:
    """Return what each sample is mixed with, as a new tensor."""
    if x.is_contiguous() or not in_place:
        other = x.index_select(0, partner) if x.is_contiguous() else x[partner]
    else:
        other = torch.index_select(x, 0, partner, out=torch.empty_like(x))  # in the memory format of x
    for axis, index in enumerate(source_index, x.ndim - len(source_index)):
        other = other.take_along_dim(index.view(len(x), *[1] * (axis - 1), -1, *[1] * (x.ndim - 1 - axis)), axis)
    return other


def like(x: Tensor, t: Tensor) -> Tensor:
    """Return `t` with the tensor subclass of `x` and copies of its attributes."""
    if type(x) is not type(t):
        t = super(Tensor, t).as_subclass(type(x))  # torch's own: fastai's copies attributes, and `t` has none
        vars(t).update({name: v if isinstance(v, Tensor) else deepcopy(v) for name, v in vars(x).items()})
    return t


def map_tensors(f: Callable[[Tensor], Any], nest: Any) -> Any:
    """Return a nest of tuples, lists and mappings, of any class, with `f(t)` for each tensor t."""
    if isinstance(nest, Tensor):
        return f(nest)
    kind: Any = type(nest)
    if isinstance(nest, (tuple, list)):
        items = [map_tensors(f, item) for item in nest]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)  # a namedtuple has fields
    if isinstance(nest, MutableMapping):
        result = copy(nest)  # keeps the default function of a defaultdict
        for key, value in nest.items():  # one by one: Hugging Face's outputs refuse `update`
            result[key] = map_tensors(f, value)
        return result
    if isinstance(nest, Mapping):
        return kind({key: map_tensors(f, value) for key, value in nest.items()})
    return nest


def tensors(nest: Any) -> list[Tensor]:
    """Return the tensors of a nest in their order."""
    if isinstance(nest, Tensor):
        return [nest]
    items = nest.values() if isinstance(nest, Mapping) else nest if isinstance(nest, (tuple, list)) else ()
    return [t for item in items for t in ([item] if isinstance(item, Tensor) else tensors(item))]


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same, or the same memory: fastai casts each batch to plain tensors."""
    if a is b:
        return True
    views = ((t.dtype, t.shape, t.stride(), t.storage_offset()) for t in (a, b))
    return next(views) == next(views) and a.untyped_storage() is b.untyped_storage()


def is_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether tensors have the same values, NaN among them."""
    return same(a, b) or (a.shape == b.shape and bool(((a == b) | (a != a) & (b != b)).all()))


@dataclass(frozen=True)
class Mix:
    """One draw for one batch. Inputs, targets and loss all read it.

    Args:
        partner: Pairing index ``(B,)``: the sample that each sample is mixed with.
        mask: Weight of the original: 1 where it is kept. Float ``(B,)``, or for each spatial position ``(B, *size)``,
            bool to choose or float to average.
        source_index: For each axis of `size`, indices ``(B, length)``: the position of the partner that is used at each
            position. Empty: the same position.

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
    source_index: tuple[Tensor, ...] = ()

    @cached_property
    def lam(self) -> Tensor:
        """Mixing coefficient of each sample, the mean of its mask: float ``(B,)`` in [0, 1]."""
        dtype = torch.promote_types(self.mask.dtype, torch.float32)
        if self.mask.ndim == 1:
            return self.mask.to(dtype)
        # Bools are counted exactly, in large masks too
        total = self.mask.flatten(1).sum(1, dtype=torch.int32 if self.mask.dtype == torch.bool else dtype)
        return total / math.prod(self.mask.shape[1:])

    def covers(self, x: Tensor) -> bool:
        """Return whether the last axes of `x` are those of the mask, times or over one whole number (rounded)."""
        size = self.mask.shape[1:]
        now = tuple(x.shape[max(x.ndim - len(size), 1) :])
        if now == size or len(now) < len(size) or x.ndim == 2 or min(now, default=0) < 2:  # (B, K): of the sample
            return now == size and x.ndim > len(size)
        up, down = now[0] // size[0], {size[0] // now[0], -(-size[0] // now[0])} - {0}
        smaller = [tuple(rounded(n, k) for n in size) for k in down for rounded in (floordiv, lambda n, k: -(-n // k))]
        return now in (tuple(n * up for n in size), *smaller)

    def resized(self, size: Sequence[int]) -> "Mix":
        """Return the mix at another resolution: each position has the mean of the mask there, rounded if it is bool.

        Args:
            size: Spatial size, of as many axes as the mask has.
        """
        former = self.mask.shape[1:]
        if former == tuple(size):
            return self
        mask = self.mask.to(torch.promote_types(self.mask.dtype, torch.float32))
        for axis, length in enumerate(size, 1):
            rows = mask.movedim(axis, -1)
            mask = F.adaptive_avg_pool1d(rows.flatten(0, -2), length).unflatten(0, rows.shape[:-1]).movedim(-1, axis)
        if self.mask.dtype == torch.bool:
            mask = mask > 0.5 - 1e-4  # a position that is half cut is kept, whatever the rounding
        index = []
        for i, before, now in zip(self.source_index, former, size, strict=bool(self.source_index)):
            # The middle of a position lies in one of the input, which comes from position i of the partner
            middle = (2 * torch.arange(now, device=i.device) + 1) * before
            at = (i[:, middle // (2 * now)] * 2 * now + middle % (2 * now)) // (2 * before)
            index.append(at)
        return Mix(self.partner, mask, tuple(index))

    def blend(self, x: Tensor) -> Tensor:
        """Return `x` ``(B, ...)`` mixed: position by position if the mask covers it, else averaged by `lam`."""
        if self.mask.ndim == 1:
            return blend(x, self.partner, self.mask)
        return self.masked(x) if self.covers(x) else blend(x, self.partner, self.lam)

    def masked(self, x: Tensor) -> Tensor:
        """Return `x` ``(B, ..., *size)`` mixed by the mask, position by position at its own resolution."""
        mix = self.resized(x.shape[x.ndim - self.mask.ndim + 1 :])
        return blend(x, mix.partner, mix.mask, mix.source_index)

    def partners(self, x: Tensor) -> Tensor:
        """Return `x` ``(B, ...)`` with each sample's partner in its place."""
        with no_subclass():
            if x.shape[:1] != self.partner.shape:
                raise ValueError(f"Expected {len(self.partner)} samples, one for each partner, got {tuple(x.shape)}")
            return like(x, x.index_select(0, self.partner))

    def shared(self) -> "Mix":
        """Return the same mix with the first sample's mask for the whole batch."""
        mask, *index = (t[:1].expand_as(t) for t in (self.mask, *self.source_index))
        return Mix(self.partner, mask, tuple(index))

    def unmixed(self) -> "Mix":
        """Return the mix of the same form that keeps every sample as it is."""
        n, device = len(self.partner), self.partner.device
        index = (torch.arange(i.shape[1], device=i.device).expand_as(i) for i in self.source_index)
        return Mix(torch.arange(n, device=device), self.mask.new_ones(()).expand_as(self.mask), tuple(index))

    def after_clean(self) -> "Mix":
        """Return the mix of a batch of twice the size that keeps the first half as it is."""
        clean, n = self.unmixed(), len(self.partner)
        mask, *index = map(
            torch.cat, zip((clean.mask, *clean.source_index), (self.mask, *self.source_index), strict=True)
        )
        return Mix(torch.cat([clean.partner, self.partner + n]), mask, tuple(index))
