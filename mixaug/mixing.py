"""What a draw does to tensors: a `Mix` says who is mixed with whom and how much of itself each sample keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .masks import share


def sample_partner(n: int, device: torch.device | str | None = None) -> Tensor:
    """Draw the partner of each of `n` samples, shape (n,): a random cycle, so that for n > 1 nobody is its own."""
    order = torch.randperm(n, device=device)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def blend(x: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
    """Return a new tensor in which each sample of `x` keeps the share `mask` and takes the rest from its partner.

    `x` is (B, ..., *size), `partner` (B,) integers, `mask` (B, *size): its positions are the last axes of `x`. A bool
    mask chooses, for any dtype of `x`; a float mask averages, which is a TypeError for integers.
    """
    # A tensor of fastai's pays for its type in every operation
    plain = x if type(x) is Tensor else x.as_subclass(Tensor)
    weight = mask.view(len(mask), *[1] * (x.ndim - mask.ndim), *mask.shape[1:])
    if not x.numel():
        return x
    if mask.dtype == torch.bool:
        out = torch.where(weight, plain, plain[partner])
    elif x.is_floating_point() or x.is_complex():
        out = torch.lerp(plain[partner], plain, weight.to(x.dtype))
    else:
        raise TypeError(
            f"a {type(x).__name__} of {x.dtype} and shape {tuple(x.shape)} came to be averaged, floats were wanted: "
            "turn images of bytes into floats first (fastai: batch_tfms=IntToFloatTensor()), mix codes and tokens in a "
            "hidden layer (ManifoldMixup), leave class numbers to the loss (stack_y=True)"
        )
    if plain is not x:
        out = out.as_subclass(type(x))
        vars(out).update(vars(x))
    return out


def map_tensors(f: Callable[[Tensor], Any], nest: Any) -> Any:
    """Return a nest of tuples, lists and mappings, of whatever classes, with `f(t)` for each tensor t."""
    kind: Any = type(nest)
    if isinstance(nest, Tensor):
        return f(nest)
    if isinstance(nest, Mapping):
        return kind({key: map_tensors(f, value) for key, value in nest.items()})
    if isinstance(nest, (tuple, list)):
        items = [map_tensors(f, item) for item in nest]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)  # a namedtuple has fields
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
    float (B,), or for each position (B, *size), bool to choose and float to average.
    """

    partner: Tensor
    mask: Tensor

    @cached_property
    def lam(self) -> Tensor:
        """The share that each sample keeps of itself over all positions, float (B,) in [0, 1]."""
        return share(self.mask)

    def covers(self, x: Tensor) -> bool:
        """Whether the last axes of `x` are the positions that the mask speaks of."""
        size = self.mask.shape[1:]
        return x.ndim > len(size) and x.shape[x.ndim - len(size) :] == size

    def blend(self, x: Tensor) -> Tensor:
        """Return `x` of shape (B, ...) mixed: position by position where the mask covers it, else averaged by `lam`."""
        if len(x) != len(self.partner):
            raise ValueError(f"a tensor of shape {tuple(x.shape)} came, {len(self.partner)} samples were wanted")
        return blend(x, self.partner, self.mask if self.covers(x) else self.lam)

    def shared(self) -> "Mix":
        """Return the same mix with the first sample's mask for the whole batch."""
        return Mix(self.partner, self.mask[:1].expand_as(self.mask))
