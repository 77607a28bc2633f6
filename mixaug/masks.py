"""How much each sample keeps of itself: shares drawn from Beta(alpha, alpha) and the masks made of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution


def sample_lam(distrib: Distribution, n: int, fold: bool = True) -> Tensor:
    """Draw `n` shares in [0, 1] from `distrib`, on its device.

    With `fold` each draw t becomes max(t, 1 - t): the larger share is the sample's own, so that no two mixed samples
    of a batch can be duplicates of each other.
    """
    lam = distrib.sample(torch.Size([n])).view(n)
    return torch.maximum(lam, 1 - lam) if fold else lam


def box_mask(lam: Tensor, size: Sequence[int]) -> Tensor:
    """Return a bool mask of shape (B, *size) that is False in one random box for each sample, True around it.

    The box of sample i has sides of (1 - lam_i)^(1/k) times those of `size`, k = len(size): a segment, a rectangle, a
    cuboid. Its centre is uniform over the positions and the border crops it (https://arxiv.org/abs/1905.04899), so
    the share kept is at least `lam` (shape (B,), in [0, 1]) up to rounding; the share that counts is the mask's mean.
    """
    inside = torch.ones((), dtype=torch.bool, device=lam.device)
    ratio = (1 - lam) ** (1 / len(size))
    centre = torch.rand(len(size), len(lam), device=lam.device)
    for axis, (length, at) in enumerate(zip(size, centre, strict=True)):
        side = (ratio * length).round()
        start = ((at * length).floor() - (side / 2).floor())[:, None]
        position = torch.arange(length, device=lam.device)
        within = (position >= start) & (position < start + side[:, None])
        inside = inside[..., None] & within.view(-1, *[1] * axis, length)
    return ~inside


def share(mask: Tensor) -> Tensor:
    """Return lam of shape (B,), the mean of each sample's mask of shape (B, *size)."""
    return mask if mask.ndim == 1 else mask.flatten(1).sum(1) / math.prod(mask.shape[1:])
