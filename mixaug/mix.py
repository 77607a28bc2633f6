"""`Mix`: the pairing and the mask of one batch, and functions to apply them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import floordiv
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .nests import like
from .torch_private import no_subclass


def blend(
    x: Tensor, partner: Tensor, mask: Tensor, source_index: Sequence[Tensor] = (), source: Tensor | None = None
) -> Tensor:
    """Mix each sample of `x` with its partner, and return the result as a new tensor.

    Args:
        x: Samples ``(B, ..., *size)``.
        partner: Index of each sample's partner, ``(B,)``.
        mask: Weight of the original, ``(B, *size)`` over the last axes of `x`. A bool mask chooses, for any dtype; a
            float mask averages.
        source_index: For each axis of `size`, indices ``(B, length)``: the position of the partner that is used at each
            position.
        source: Samples ``(M, ..., *size)`` that `partner` is an index into; None: `x`.

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
        source = x if source is None else source
        in_place = not (x.requires_grad or source.requires_grad or torch.compiler.is_compiling())

        other = take(source, partner, source_index, in_place)
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
            other = take(source, partner, source_index)
        if is_bool:
            return like(x, torch.where(mask, x, other))
        return like(x, x.masked_fill(mask == 0, 0) * mask + other.masked_fill(mask == 1, 0) * (1 - mask))


def take(x: Tensor, partner: Tensor, source_index: Sequence[Tensor] = (), in_place: bool = False) -> Tensor:
    """Return what each sample is mixed with, as a new tensor; of samples ``(M, ..., *size)``."""
    if x.is_contiguous():
        other = x.index_select(0, partner)
    elif not in_place or len(partner) > len(x):
        other = x[partner]
    else:
        other = torch.index_select(x, 0, partner, out=torch.empty_like(x[: len(partner)]))  # in the memory format of x
    for axis, index in enumerate(source_index, x.ndim - len(source_index)):
        other = other.take_along_dim(index.view(len(index), *[1] * (axis - 1), -1, *[1] * (x.ndim - 1 - axis)), axis)
    return other


@dataclass(frozen=True)
class Mix:
    """One draw for one batch. Inputs, targets and loss all read it.

    Args:
        partner: Pairing index ``(B,)``: the sample that each sample is mixed with.
        mask: Weight of the original: 1 where it is kept. Float ``(B,)``, or for each spatial position ``(B, *size)``,
            bool to choose or float to average.
        source_index: For each axis of `size`, indices ``(B, length)``: the position of the partner that is used at each
            position. Empty: the same position.
        own_index: The same for the original.
        then: A further mix of the result, with another partner of each sample; None: a mix of two samples.

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
    own_index: tuple[Tensor, ...] = ()
    then: "Mix | None" = None

    @staticmethod
    def of(partners: Sequence[Tensor], weights: Tensor) -> "Mix":
        """Return the mix of k samples by weights ``(B, k)`` with sum 1: the original's, then each partner's.

        >>> mix = Mix.of([torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])], torch.tensor([[0.5, 0.3, 0.2]] * 3))
        >>> mix.blend(torch.tensor([0.0, 1.0, 10.0]))
        tensor([2.3000, 3.5000, 5.2000])
        """
        mix: Any = None
        for partner, mask in zip(reversed(partners), reversed(_masks_of(weights.T)), strict=True):
            mix = Mix(partner, mask, then=mix)
        return mix

    @cached_property
    def lam(self) -> Tensor:
        """Mixing coefficient of each sample, the mean of its mask: float ``(B,)`` in [0, 1].

        Of k > 2 samples ``(B, k)`` with sum 1: the weight of the original, then of each partner.
        """
        return _mean(self.mask) if self.then is None else torch.stack(list(map(_mean, self._weights())), 1)

    def _weights(self) -> list[Tensor]:
        """Return the weight of each sample ``(B, *size)``: the original's, then each partner's."""
        left, weights = torch.ones_like(self.mask), []
        for mix in reversed(self.parts):  # a later one covers what was there before
            if mix.mask.dtype == torch.bool:
                left, weight = left & mix.mask, left & ~mix.mask
            else:
                left, weight = left * mix.mask, left * (1 - mix.mask)
            weights.insert(0, weight)
        return [left, *weights]

    @property
    def parts(self) -> "list[Mix]":
        """This mix and those that follow it: one for each partner."""
        return [self, *(self.then.parts if self.then else ())]

    def by(self, lam: Tensor) -> "Mix":
        """Return the mix with the same partners that averages by coefficients like those of `lam`."""
        return Mix(self.partner, lam) if lam.ndim == 1 else Mix.of([mix.partner for mix in self.parts], lam)

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
        """Return the mix at another resolution: each position averages, or has the sample of which it shows most.

        Args:
            size: Spatial size, of as many axes as the mask has.
        """
        former = self.mask.shape[1:]
        if former == tuple(size):
            return self
        weights = torch.stack(self._weights())
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
        for axis, length in enumerate(size, 2):
            rows = weights.movedim(axis, -1)
            weights = F.adaptive_avg_pool1d(rows.flatten(0, -2), length).unflatten(0, rows.shape[:-1]).movedim(-1, axis)
        if self.mask.dtype == torch.bool:
            number = torch.arange(len(weights), device=weights.device).view(-1, *[1] * (weights.ndim - 1))
            most = (weights - 1e-5 * number).argmax(0)  # of two that show as much, whatever the rounding, the first
            masks = [most != k for k in range(1, len(weights))]
        else:
            masks = _masks_of(weights)

        def index(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
            resized = []
            for i, before, now in zip(given, former, size, strict=bool(given)):
                # The middle of a position lies in one of the input, which comes from position i of the sample
                middle = (2 * torch.arange(now, device=i.device) + 1) * before
                resized.append((i[:, middle // (2 * now)] * 2 * now + middle % (2 * now)) // (2 * before))
            return tuple(resized)

        resized: Any = None
        for part, kept in zip(reversed(self.parts), reversed(masks), strict=True):
            resized = Mix(part.partner, kept, index(part.source_index), index(part.own_index), resized)
        return resized

    def blend(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Return `x` ``(B, ...)`` mixed: position by position if the mask covers it, else averaged by `lam`.

        Args:
            x: Samples.
            source: Samples ``(M, ...)`` that the partners are taken from; None: `x`.
        """
        if self.mask.ndim == 1:
            return self._onto(x, x if source is None else source)
        return self.masked(x, source) if self.covers(x) else self.by(self.lam).blend(x, source)

    def masked(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Return `x` ``(B, ..., *size)`` mixed by the mask, position by position at its own resolution."""
        mix = self.resized(x.shape[x.ndim - self.mask.ndim + 1 :])
        own = take(x, torch.arange(len(x), device=x.device), mix.own_index) if mix.own_index else x
        return mix._onto(like(x, own), x if source is None else source)

    def _onto(self, x: Tensor, source: Tensor) -> Tensor:
        mixed = blend(x, self.partner, self.mask, self.source_index, source)
        return self.then._onto(mixed, source) if self.then else mixed

    def partners(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Return `x` ``(B, ...)`` with each sample's partner in its place; of k > 2 samples ``(k - 1, B, ...)``.

        Args:
            x: Samples.
            source: Samples ``(M, ...)`` that the partners are taken from; None: `x`.
        """
        with no_subclass():
            if x.shape[:1] != self.partner.shape:
                raise ValueError(f"Expected {len(self.partner)} samples, one for each partner, got {tuple(x.shape)}")
            source = x if source is None else source
            if self.then is None:
                return like(x, source.index_select(0, self.partner))
            return like(x, torch.stack([source.index_select(0, mix.partner) for mix in self.parts]))

    def shared(self) -> "Mix":
        """Return the same mix with the first sample's mask for the whole batch."""

        def first(t: Tensor) -> Tensor:
            return t[:1].expand_as(t)

        source_index, own_index = (tuple(map(first, given)) for given in (self.source_index, self.own_index))
        return Mix(self.partner, first(self.mask), source_index, own_index, self.then and self.then.shared())

    def unmixed(self) -> "Mix":
        """Return the mix of the same form that keeps every sample as it is."""

        def same_place(i: Tensor) -> Tensor:
            return torch.arange(i.shape[1], device=i.device).expand_as(i)

        partner = torch.arange(len(self.partner), device=self.partner.device)
        source_index, own_index = (tuple(map(same_place, given)) for given in (self.source_index, self.own_index))
        mask = self.mask.new_ones(()).expand_as(self.mask)
        return Mix(partner, mask, source_index, own_index, self.then and self.then.unmixed())

    def after_clean(self) -> "Mix":
        """Return the mix of a batch of twice the size that keeps the first half as it is."""
        clean, n = self.unmixed(), len(self.partner)

        def both(*given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(map(torch.cat, zip(*given, strict=True)))

        (partner, mask), then = both((clean.partner, clean.mask), (self.partner + n, self.mask)), self.then
        index = both(clean.source_index, self.source_index), both(clean.own_index, self.own_index)
        return Mix(partner, mask, *index, then and then.after_clean())


def weights_of(lam: Tensor) -> Tensor:
    """Return the weights ``(k, B)`` of a mix's samples, the original's first: of its `lam`, ``(B,)`` or ``(B, k)``."""
    return torch.stack([lam, 1 - lam]) if lam.ndim < 2 else lam.T


def _masks_of(weights: Tensor) -> list[Tensor]:
    """Return the masks of a mix, one after the other, by the weights ``(k, B, *size)`` of its samples."""
    total = weights.cumsum(0)  # what was mixed before has the weight of all up to this one
    return [torch.where(total[k] > 0, total[k - 1] / total[k], 1.0) for k in range(1, len(total))]


def _mean(mask: Tensor) -> Tensor:
    """Return the mean of the mask of each sample; bools are counted exactly, in large masks too."""
    dtype = torch.promote_types(mask.dtype, torch.float32)
    if mask.ndim == 1:
        return mask.to(dtype)
    total = mask.flatten(1).sum(1, dtype=torch.int32 if mask.dtype == torch.bool else dtype)
    return total / math.prod(mask.shape[1:])
