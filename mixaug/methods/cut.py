"""`CutMix` and its mask: which positions of each sample are kept."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from ..draw import new_rng, send
from ..handler import MixHandler
from ..mix import Mix
from ..options import CutOptions, Schedule, with_options


def box_mask(
    lam: Tensor,
    size: Sequence[int],
    center: Tensor | None = None,
    *,
    rng: np.random.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return a mask that is False in one random box for each sample.

    Along each axis, the box has ``(1 - lam)^(1/k)`` of the length, k = len(size): a segment, a rectangle, a cuboid.
    A position is cut if its middle is inside. The border crops the box, as in https://arxiv.org/abs/1905.04899, so that
    more than lam is kept on average; use the mean of the mask as the coefficient.

    Args:
        lam: Wanted fraction of positions to keep, ``(B,)`` in [0, 1].
        size: Spatial size.
        center: Centers of the boxes, relative to the lengths, ``(k, B)`` in [0, 1); None: uniform.
        rng: Random generator for the centers; None: one that is seeded from torch's global generator.
        device: Device of the result; None: that of `lam`.

    Returns:
        Bool mask ``(B, *size)``.

    >>> box_mask(torch.tensor([0.75]), (4, 6), center=torch.tensor([[0.5], [0.5]])).int()
    tensor([[[1, 1, 1, 1, 1, 1],
             [1, 1, 0, 0, 1, 1],
             [1, 1, 0, 0, 1, 1],
             [1, 1, 1, 1, 1, 1]]], dtype=torch.int32)
    """
    if center is None:
        drawn = (rng or new_rng()).random((len(size), len(lam)), np.float32)
        center = send(torch.from_numpy(drawn), lam.device)
    half, outside = ((1 - lam) ** (1 / len(size)) / 2)[:, None], []
    for length, at in zip(size, center[..., None], strict=True):
        middle = torch.linspace(0.5 / length, 1 - 0.5 / length, length, device=lam.device)
        outside.append((middle - at).abs() >= half)
    return outside_box(outside, device)


def outside_box(outside: Sequence[Tensor], device: torch.device | str | None) -> Tensor:
    """Return the mask that is True where a position is outside of the box along some axis, each ``(B, length)``."""
    joined = send(torch.cat(list(outside), 1), device).view(torch.uint8)  # torch is slow on bools that it broadcasts
    mask, *others = joined.split([t.shape[1] for t in outside], 1)
    for other in others:
        mask = mask[..., None] | other.view(len(other), *[1] * (mask.ndim - 1), other.shape[1])
    return mask.view(torch.bool)


@with_options
class CutMix(MixHandler):
    """Replace a random box of each sample with its partner's (Yun et al., 2019).

    The coefficient of the loss is the fraction of positions that are kept, exactly.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        fold: Use max(lam, 1 - lam), so that the original dominates. Off as in the paper: a random
            box already tells a sample from its partner.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Inputs ``(B, C, *size)`` of any dtype: a segment, a rectangle, a cuboid is cut.

    Raises:
        ValueError: If the inputs have no spatial axes.

    Reference: https://arxiv.org/abs/1905.04899

    >>> x = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)
    >>> mix = CutMix(1.0).draw(x)
    >>> mix.mask.shape, mix.mask.dtype
    (torch.Size([4, 28, 28]), torch.bool)
    >>> torch.equal(mix.blend(x), torch.where(mix.mask[:, None], x, x[mix.partner]))
    True
    """

    _cuts = True

    def __init__(self, alpha: float | Schedule = 1.0, *, fold: bool = False, **kwargs: Unpack[CutOptions]):
        super().__init__(alpha, fold=fold, **kwargs)

    def draw(self, x: Tensor) -> Mix:
        """Return the mix of a batch ``(B, C, *size)``."""
        if not isinstance(x, Tensor):
            raise TypeError(
                f"Expected a batch (B, C, *size), got {type(x).__name__}. Mix tensors, after the transforms"
            )
        size = self.spatial_size(x)
        if len(size) < (self.spatial_dims or 1) or 0 in size:
            raise ValueError(
                f"Expected inputs (B, C, *size) with positions to cut, got shape {tuple(x.shape)}. spatial_dims says "
                "how many trailing axes are positions; MixUp averages such inputs, ManifoldMixup mixes hidden layers"
            )
        return self.cut(x, self.draw_partner(x), self.draw_lam(x, "cpu"))

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        """Return the mix that keeps about `lam` of the positions of `x`. Methods that cut in another way override this.

        Args:
            x: Inputs ``(B, C, *size)``.
            partner: Pairing index ``(B,)``, on the device of `x`.
            lam: Fraction to keep, ``(B,)``, on the CPU.
        """
        return Mix(partner, box_mask(lam, self.spatial_size(x), rng=self.rng, device=x.device))
