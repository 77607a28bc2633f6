"""`Mix`: the pairing and the mask of one batch, and functions to draw and to apply them."""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .torch_private import no_subclass

# Drawing: on the host, so that a seed gives the same mixes on every device


def new_rng(*seed: int) -> np.random.Generator:
    """Return a random generator that starts at `seed`, or where torch's global generator is if there is no seed."""
    return np.random.default_rng(seed or int(torch.randint(2**63 - 1, (), device="cpu")))


def send(t: Tensor, device: torch.device | str | None) -> Tensor:
    """Return `t` on `device` (None: where it is), without synchronizing with it."""
    if device is None or t.device == (device := torch.device(device)):
        return t
    if device.type == "cuda" and torch.cuda.is_available():
        t = t.pin_memory()  # or the copy would be synchronous
    return t.to(device, non_blocking=True)


def sample_partner(
    n: int, device: torch.device | str | None = None, *, rng: np.random.Generator | None = None
) -> Tensor:
    """Draw the partner of each of `n` samples: a random cycle, so that for n > 1 no sample is its own partner.

    Args:
        n: Number of samples.
        device: Device of the result.
        rng: Random generator; None: one that is seeded from torch's global generator.

    Returns:
        Indices ``(n,)``, int64.

    >>> partner = sample_partner(5)
    >>> bool((partner == torch.arange(5)).any())
    False
    """
    order = (rng or new_rng()).permutation(n)
    partner = np.empty(n, np.int64)
    partner[order] = order[np.arange(n) - 1]
    return send(torch.from_numpy(partner), device)


def sample_lam(
    alpha: float,
    n: int,
    fold: bool = True,
    device: torch.device | str | None = None,
    *,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Draw `n` mixing coefficients from Beta(alpha, alpha).

    Accurate for tiny alpha, where ``torch.distributions.Beta`` is biased towards 0.5.

    Args:
        alpha: Parameter of the distribution, > 0.
        n: Number of samples.
        fold: Use max(lam, 1 - lam), so that the original dominates and no two mixed samples are duplicates.
        device: Device of the result.
        rng: Random generator; None: one that is seeded from torch's global generator.

    Returns:
        Coefficients ``(n,)`` in [0, 1], float32.

    >>> bool((sample_lam(0.4, 100) >= 0.5).all())
    True
    """
    lam = (rng or new_rng()).beta(alpha, alpha, n)
    lam = (np.maximum(lam, 1 - lam) if fold else lam).astype(np.float32)
    return send(torch.from_numpy(lam), device)


# Applying


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
                "(ManifoldMixup), leave class indices to the loss (stack_y=True)"
            )
        mask = mask if is_bool else mask.to(x.dtype)
        # In place on the partners, unless autograd or a compiler needs them
        in_place = not (x.requires_grad or torch.compiler.is_compiling())
        if x.is_contiguous() or not in_place:
            other = x.index_select(0, partner) if x.is_contiguous() else x[partner]
        else:
            other = torch.index_select(x, 0, partner, out=torch.empty_like(x))  # in the memory format of x
        for axis, index in enumerate(source_index, x.ndim - len(source_index)):
            other = other.take_along_dim(index.view(len(x), *[1] * (axis - 1), -1, *[1] * (x.ndim - 1 - axis)), axis)
        if in_place:
            try:
                return like(x, torch.where(mask, x, other, out=other) if is_bool else other.lerp_(x, mask))
            except RuntimeError:  # forward-mode AD or vmap: as below
                pass
        return like(x, torch.where(mask, x, other) if is_bool else torch.lerp(other, x, mask))


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
    found: list[Tensor] = []
    map_tensors(found.append, nest)
    return found


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
        """Return whether the last axes of `x` have the spatial size of the mask."""
        size = self.mask.shape[1:]
        return x.ndim > len(size) and x.shape[x.ndim - len(size) :] == size

    def blend(self, x: Tensor) -> Tensor:
        """Return `x` ``(B, ...)`` mixed: position by position if the mask covers it, else averaged by `lam`."""
        if self.mask.ndim == 1 or self.covers(x):
            return blend(x, self.partner, self.mask, self.source_index)
        return blend(x, self.partner, self.lam)

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
