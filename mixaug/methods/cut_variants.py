"""Methods that cut other regions than :class:`CutMix`, or elsewhere, and their masks."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from ..draw import new_rng, send
from ..mix import Mix
from ..options import CutOptions, Schedule, number, with_options
from .cut import Cutting, box_mask, outside_box


def fourier_mask(
    lam: Tensor, size: Sequence[int], decay: float = 3.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return a mask that is True in smooth random regions, where low-frequency noise is largest.

    The amplitude of the noise falls with the frequency to the power of `decay`: https://arxiv.org/abs/2002.12047.

    Args:
        lam: Fraction of positions to keep, ``(B,)`` in [0, 1]; exact to within half a position.
        size: Spatial size.
        decay: Exponent of the frequency, >= 0. The larger, the fewer and smoother the regions.
        generator: Random generator on the device of `lam`; None: torch's global one.

    Returns:
        Bool mask ``(B, *size)``.

    >>> fourier_mask(torch.tensor([0.25, 0.5]), (8, 8)).flatten(1).sum(1)
    tensor([16, 32])
    """
    axes = [torch.fft.fftfreq(length, device=lam.device) for length in size]
    frequency = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0).clamp(min=1 / max(size))
    noise = torch.randn(len(lam), *size, dtype=torch.complex64, device=lam.device, generator=generator)
    noise = torch.fft.ifftn(noise / (frequency * max(size)) ** decay, dim=tuple(range(1, len(size) + 1))).real
    order = noise.flatten(1).argsort(1)
    kept = (lam * math.prod(size)).round()[:, None]
    largest = torch.arange(order.shape[1], device=lam.device) >= order.shape[1] - kept
    return torch.empty_like(largest).scatter_(1, order, largest).view(len(lam), *size)


def paste_mask(
    lam: Tensor,
    size: Sequence[int],
    *,
    rng: np.random.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a mask like that of :func:`box_mask`, with boxes inside, and the index that fits the partner into them.

    Args:
        lam: Wanted fraction of positions to keep, ``(B,)`` in [0, 1].
        size: Spatial size.
        rng: Random generator; None: one that is seeded from torch's global generator.
        device: Device of the result; None: that of `lam`.

    Returns:
        Bool mask ``(B, *size)`` and for each axis the `source_index` ``(B, length)`` of a :class:`Mix`: the nearest
        position of the resized partner.

    >>> mask, (index,) = paste_mask(torch.tensor([0.5]), (4,))
    >>> index[~mask]  # the partner's positions that fill the box
    tensor([1, 3])
    """
    drawn = (rng or new_rng()).random((len(size), len(lam), 1), np.float32)
    ratio, outside, index = (1 - lam) ** (1 / len(size)), [], []
    for length, u in zip(size, send(torch.from_numpy(drawn), lam.device), strict=True):
        side = (ratio * length).round()[:, None]
        start = (u * (length + 1 - side)).floor()
        at = torch.arange(length, device=lam.device) - start
        outside.append((at < 0) | (at >= side))
        index.append(((at + 0.5) * length / side.clamp(min=1)).long().clamp(0, length - 1))
    return outside_box(outside, device), tuple(send(i, device) for i in index)


def saliency_peak(x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
    """Return where each sample stands out most from its surroundings.

    Contrast is the difference to the averages over surroundings of three sizes, averaged over channels and smoothed.

    Args:
        x: Samples ``(B, C, *size)`` with one to three spatial axes.
        rng: Random generator for the offset inside a position; None: one seeded from torch's global generator.

    Returns:
        Coordinates relative to the lengths, ``(k, B)`` in [0, 1).
    """
    size = x.shape[2:]

    def smooth(t: Tensor, n: int) -> Tensor:
        kernel = [min(n, length - 1 + length % 2) for length in size]
        average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]
        return average(t, kernel, stride=1, padding=[k // 2 for k in kernel], count_include_pad=False)

    gray = x.float().mean(1, keepdim=True)
    contrast = smooth(torch.stack([(gray - smooth(gray, n)).abs() for n in (3, 7, 15)]).sum(0), 3)
    at, peak = contrast.flatten(1).argmax(1), []
    inside = send(torch.from_numpy((rng or new_rng()).random((len(size), len(x)), np.float32)), x.device)
    for axis in reversed(range(len(size))):
        peak.insert(0, (at % size[axis] + inside[axis]) / size[axis])
        at = at // size[axis]
    return torch.stack(peak)


@with_options
class FMix(Cutting):
    """Replace smooth random regions of each sample with its partner's (Harris et al., 2020).

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        decay: Exponent of the frequency, >= 0. The larger, the fewer and smoother the regions.
        fold: Use max(lam, 1 - lam), so that the original dominates.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Inputs ``(B, C, *size)`` of any dtype.

    Raises:
        ValueError: If the inputs have no spatial axes.

    Reference: https://arxiv.org/abs/2002.12047
    """

    def __init__(
        self,
        alpha: float | Schedule = 1.0,
        *,
        decay: float = 3.0,
        fold: bool = False,
        **kwargs: Unpack[CutOptions],
    ):
        super().__init__(alpha, fold=fold, **kwargs)
        self.decay = number("decay", decay, lambda d: 0 <= d < math.inf, "a finite number >= 0")

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        """Return the mix with the mask of :func:`fourier_mask`. Its noise is drawn on the device of `x`."""
        generator = None
        if x.device.type != "meta":  # which has no generator
            generator = torch.Generator(x.device).manual_seed(int(self.rng.integers(2**63)))
        return Mix(partner, fourier_mask(send(lam, x.device), self.spatial_size(x), self.decay, generator=generator))


@with_options
class SaliencyMix(Cutting):
    """Replace a box of each sample with its partner's, around where the partner stands out.

    Where that is, the contrast of :func:`saliency_peak` says; the paper uses a saliency detector.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        fold: Use max(lam, 1 - lam), so that the original dominates.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Inputs ``(B, C, *size)`` with one to three spatial axes.

    Raises:
        ValueError: If the inputs have no or too many spatial axes.

    Reference: https://arxiv.org/abs/2006.01791
    """

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        """Return the mix whose boxes have their centers at the partners' saliency peaks."""
        size = self.spatial_size(x)
        if len(size) > 3:
            raise ValueError(
                f"Expected inputs with up to three spatial axes, got shape {tuple(x.shape)}. Use CutMix, or say how "
                "many trailing axes are positions (spatial_dims=...)"
            )
        source = x if self._drawn_for[2] is None else self._drawn_for[2]
        center = saliency_peak(source.reshape(len(source), -1, *size), rng=self.rng)[:, partner]
        return Mix(partner, box_mask(send(lam, x.device), size, center))


@with_options
class ResizeMix(Cutting):
    """Paste the whole partner, resized, into a random box of each sample (Qin et al., 2020).

    The box is inside the sample and filled from the nearest positions, so that masks and integers keep their values.
    Along each axis, it has (1 - lam)^(1/k) of the length; the paper draws this from 0.1 to 0.8.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        fold: Use max(lam, 1 - lam), so that the original dominates.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Inputs ``(B, C, *size)`` of any dtype.

    Raises:
        ValueError: If the inputs have no spatial axes.

    Reference: https://arxiv.org/abs/2012.11101
    """

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        """Return the mix with the mask and the index of :func:`paste_mask`."""
        return Mix(partner, *paste_mask(lam, self.spatial_size(x), rng=self.rng, device=x.device))


@with_options
class RICAP(Cutting):
    """Put parts of four samples into the corners of one: random crops of them (Takahashi et al., 2018).

    For images, the corners meet at a random point, whose coordinates are from Beta(alpha, alpha); ``per_sample=False``,
    as in the paper, has one for the batch. Volumes have eight corners, signals two. `lam` is ``(B, 4)``, the part of
    each sample, the original's first; `yb1` has the targets of all partners in front, ``(3, B, ...)``.

    Args:
        alpha: Parameter of Beta(alpha, alpha); > 0. May be a schedule.
        fold: Use max(u, 1 - u) of each coordinate, so that the original has the largest corner.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Inputs ``(B, C, *size)`` of any dtype.

    Raises:
        ValueError: If the inputs have no spatial axes.

    Reference: https://arxiv.org/abs/1811.09030

    >>> mix = RICAP().draw(torch.rand(8, 3, 28, 28))
    >>> mix.lam.shape, torch.allclose(mix.lam.sum(1), torch.ones(8))
    (torch.Size([8, 4]), True)
    """

    _of_two = False
    _whole = False  # whether samples are resized, not cropped

    def __init__(self, alpha: float | Schedule = 0.3, *, fold: bool = False, **kwargs: Unpack[CutOptions]):
        super().__init__(alpha, fold=fold, **kwargs)

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        """Return the mix of a sample for each corner."""
        size, mix = self.spatial_size(x), None
        drawn = [lam, *(self.draw_lam(x, "cpu") for _ in size[1:])]
        at = [(u * n).round()[:, None] for u, n in zip(drawn, size, strict=True)]
        corners = [self._corner(behind, size, at, x) for behind in itertools.product((False, True), repeat=len(size))]
        for mask, index in corners[1:]:
            partner = partner if mix is None else self.draw_partner(x)
            mix = Mix(partner, mask, index, then=mix)
        return replace(cast(Any, mix), own_index=corners[0][1])

    def _corner(
        self, behind: Sequence[bool], size: Sequence[int], at: Sequence[Tensor], x: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the mask that is False in a corner, and the positions of a sample that fill it."""
        index, outside = [], []
        for is_behind, length, middle in zip(behind, size, at, strict=True):
            side = length - middle if is_behind else middle
            position = torch.arange(length) - middle * is_behind
            if self._whole:
                source = (position + 0.5) * length / side.clamp(min=1)
            else:
                u = torch.from_numpy(self.rng.random((len(middle), 1), np.float32))
                source = position + (u * (length - side + 1)).floor()
            index.append(send(source.long().clamp(0, length - 1), x.device))
            outside.append((position < 0) | (position >= side))
        return outside_box(outside, x.device), tuple(index)


@with_options
class Mosaic(RICAP):
    """Put four samples, resized, into the corners of one, as detectors are trained (Bochkovskiy et al., 2020).

    :class:`RICAP` with whole samples, filled from the nearest positions, so that masks keep their values.

    Args:
        alpha: Parameter of Beta(alpha, alpha); > 0. May be a schedule.
        fold: Use max(u, 1 - u) of each coordinate, so that the original has the largest corner.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Inputs ``(B, C, *size)`` of any dtype.

    Raises:
        ValueError: If the inputs have no spatial axes.

    Reference: https://arxiv.org/abs/2004.10934
    """

    _whole = True
