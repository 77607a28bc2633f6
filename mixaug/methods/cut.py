"""`CutMix` and its mask: which positions of each sample are kept."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from ..draw import new_rng, send
from ..handler import MixHandler
from ..mix import Mix
from ..options import CutOptions, Schedule, flag, number, with_options


def box_mask(
    lam: Tensor,
    size: Sequence[int],
    center: Tensor | None = None,
    *,
    sides: Tensor | None = None,
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
        sides: Lengths of the boxes along each axis, relative, ``(k, B)``; None: those of `lam`.
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
    sides, outside = ((1 - lam) ** (1 / len(size))).expand(len(size), -1) if sides is None else sides, []
    for length, at, side in zip(size, center[..., None], sides[..., None], strict=True):
        middle = torch.linspace(0.5 / length, 1 - 0.5 / length, length, device=lam.device)
        outside.append((middle - at).abs() >= side / 2)
    return outside_box(outside, device)


def outside_box(outside: Sequence[Tensor], device: torch.device | str | None) -> Tensor:
    """Return the mask that is True where a position is outside of the box along some axis, each ``(B, length)``."""
    joined = send(torch.cat(list(outside), 1), device).view(torch.uint8)  # torch is slow on bools that it broadcasts
    mask, *others = joined.split([t.shape[1] for t in outside], 1)
    for other in others:
        mask = mask[..., None] | other.view(len(other), *[1] * (mask.ndim - 1), other.shape[1])
    return mask.view(torch.bool)


@with_options
class Cutting(MixHandler):
    """Base of the methods that replace parts of each sample with its partner's.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        fold: Use max(lam, 1 - lam), so that the original dominates.
        **kwargs: See :class:`MixHandler`.
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
        """Return the mix that keeps about `lam` of the positions of `x`. Each method does this in its own way.

        Args:
            x: Inputs ``(B, C, *size)``.
            partner: Pairing index ``(B,)``, on the device of `x`.
            lam: Fraction to keep, ``(B,)``, on the CPU.
        """
        raise NotImplementedError


@with_options
class CutMix(Cutting):
    """Replace a random box of each sample with its partner's (Yun et al., 2019).

    The coefficient of the loss is the fraction of positions that are kept, exactly.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        fold: Use max(lam, 1 - lam), so that the original dominates. Off as in the paper: a random
            box already tells a sample from its partner.
        aspect: How many times as long as another a side of the box may be, relative to the lengths, >= 1.
        sides: Shortest and longest side of the box, relative, from 0 to 1: drawn for each axis instead of lam (timm's
            ``cutmix_minmax``, which has boxes inside). None: by lam.
        inside: Only boxes that the border does not crop.
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

    def __init__(
        self,
        alpha: float | Schedule = 1.0,
        *,
        fold: bool = False,
        aspect: float = 1.0,
        sides: tuple[float, float] | None = None,
        inside: bool = False,
        **kwargs: Unpack[CutOptions],
    ):
        super().__init__(alpha, fold=fold, **kwargs)
        self.aspect = number("aspect", aspect, lambda a: 1 <= a < math.inf, "a finite number >= 1")
        self.sides, self.inside = sides, flag("inside", inside)
        if sides is None:
            return
        numbers = isinstance(sides, Sequence) and len(sides) == 2 and all(isinstance(s, Real) for s in sides)
        if not numbers or not 0 <= sides[0] <= sides[1] <= 1:
            raise ValueError(f"sides must be None or the shortest and the longest side, from 0 to 1, got {sides!r}")
        if aspect != 1 or fold:
            raise ValueError("sides cannot be given with aspect or fold: sides are drawn for each axis by themselves")

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        """Return the mix with the mask of :func:`box_mask`."""
        size, sides, center = self.spatial_size(x), None, None

        def uniform() -> Tensor:
            return torch.from_numpy(self.rng.random((len(size), len(lam)), np.float32))

        if self.sides is not None:
            sides = self.sides[0] + uniform() * (self.sides[1] - self.sides[0])
        elif self.aspect > 1 or self.inside:
            sides = ((1 - lam) ** (1 / len(size))).expand(len(size), -1)
        if self.aspect > 1 and sides is not None:
            longer = (uniform() - 0.5) * math.log(self.aspect)
            sides = (sides * (longer - longer.mean(0)).exp()).clamp(max=1)
        if self.inside and sides is not None:
            center = sides / 2 + uniform() * (1 - sides)
        return Mix(partner, box_mask(lam, size, center, sides=sides, rng=self.rng, device=x.device))
