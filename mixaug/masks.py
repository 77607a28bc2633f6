"""How much each sample keeps of itself: shares drawn from Beta(alpha, alpha) and the masks made of them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta, Distribution

from . import fast


class SymmetricBeta(Beta):
    """Beta(alpha, alpha), right for the smallest alpha, too, where torch's own draws are near one half too often."""

    def __init__(self, alpha: Tensor):
        alpha = alpha.clamp(min=1e-30)  # below, both logarithms are infinite
        super().__init__(alpha, alpha, validate_args=False)  # whose check would wait for the device
        self.alpha, self._next = alpha, alpha + 1

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.sample_logit(sample_shape).sigmoid_()

    def sample_logit(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw log(t / (1 - t)), the difference of the logarithms of two draws from Gamma(alpha).

        Those can be too small for a float. But Gamma(alpha) is Gamma(alpha + 1) times a uniform number to the power of
        1 / alpha, of which the logarithm is no problem.
        """
        log = torch._standard_gamma(self._next.expand(2, *sample_shape, *self.alpha.shape)).log_()  # pyright: ignore[reportPrivateImportUsage]
        log.addcdiv_(torch.empty_like(log).exponential_(), self.alpha, value=-1)
        one, other = log.unbind()
        return one - other


def sample_lam(distrib: Distribution, n: int, fold: bool = True) -> Tensor:
    """Draw `n` shares in [0, 1] from `distrib`, on its device.

    With `fold` each draw t becomes max(t, 1 - t): the larger share is the sample's own, so that no two mixed samples
    of a batch can be duplicates of each other.

    >>> lam = sample_lam(torch.distributions.Beta(0.4, 0.4), 100)
    >>> bool((lam >= 0.5).all())
    True
    """
    if isinstance(distrib, SymmetricBeta):
        logit = distrib.sample_logit([n])
        return (logit.abs_() if fold else logit).sigmoid_()
    lam = distrib.sample(torch.Size([n])).view(n)
    return torch.maximum(lam, 1 - lam) if fold else lam


def box_mask(lam: Tensor, size: Sequence[int], centre: Tensor | None = None) -> Tensor:
    """Return a bool mask of shape (B, *size) that is False in one random box for each sample, True around it.

    The box of sample i has sides of (1 - lam_i)^(1/k) times those of `size`, k = len(size): a segment, a rectangle, a
    cuboid. Its centre is uniform, or given as shares of the axes' lengths by `centre`, (k, B) in [0, 1); the positions
    whose middles are inside are cut. The border crops it, as in https://arxiv.org/abs/1905.04899, so on average more
    than `lam` (shape (B,), in [0, 1]) is kept; the share that counts is the mask's mean.

    >>> box_mask(torch.tensor([0.75]), (4, 6), centre=torch.tensor([[0.5], [0.5]])).int()
    tensor([[[1, 1, 1, 1, 1, 1],
             [1, 1, 0, 0, 1, 1],
             [1, 1, 0, 0, 1, 1],
             [1, 1, 1, 1, 1, 1]]], dtype=torch.int32)
    """
    half, outside = ((1 - lam) ** (1 / len(size)) / 2)[:, None], []
    if centre is None:
        centre = torch.rand(len(size), len(lam), device=lam.device)
    for length, at in zip(size, centre[..., None], strict=True):
        middle = torch.linspace(0.5 / length, 1 - 0.5 / length, length, device=lam.device)
        outside.append((middle - at).abs_() >= half)
    return _outside(outside)


def _outside(along: Sequence[Tensor]) -> Tensor:
    """The mask that is True where a position is outside along some axis, each (B, length)."""
    mask, *others = (outside.view(torch.uint8) for outside in along)  # torch is slow on bools that it broadcasts
    for outside in others:
        mask = mask[..., None] | outside.view(len(outside), *[1] * (mask.ndim - 1), outside.shape[1])
    return mask.view(torch.bool)


def fourier_mask(lam: Tensor, size: Sequence[int], decay: float = 3.0) -> Tensor:
    """Return a bool mask of shape (B, *size) that is True in smooth random regions of the share `lam`, (B,) in [0, 1].

    They are where noise is largest whose amplitude falls with the frequency to the power of `decay`: `lam` of the
    positions, to within half a one. The paper: https://arxiv.org/abs/2002.12047

    >>> fourier_mask(torch.tensor([0.25, 0.5]), (8, 8)).flatten(1).sum(1)
    tensor([16, 32])
    """
    axes = [torch.fft.fftfreq(length, device=lam.device) for length in size]
    frequency = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0).clamp(min=1 / max(size))
    noise = torch.randn(len(lam), *size, dtype=torch.complex64, device=lam.device)
    noise = torch.fft.ifftn(noise / (frequency * max(size)) ** decay, dim=tuple(range(1, len(size) + 1))).real
    order = noise.flatten(1).argsort(1)
    kept = (lam * math.prod(size)).round()[:, None]
    largest = torch.arange(order.shape[1], device=lam.device) >= order.shape[1] - kept
    return torch.empty_like(largest).scatter_(1, order, largest).view(len(lam), *size)


def whole_in_box(lam: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a mask like `box_mask`'s, whose boxes lie inside, and the places that bring all of the partner into them.

    The places are for each axis (B, length): from where in the partner, the nearest position, each position is taken.

    >>> mask, (places,) = whole_in_box(torch.tensor([0.5]), (4,))
    >>> places[~mask]  # the partner's positions that fill the box
    tensor([1, 3])
    """
    ratio, outside, places = (1 - lam) ** (1 / len(size)), [], []
    for length in size:
        side = (ratio * length).round()[:, None]
        start = (torch.rand_like(side) * (length + 1 - side)).floor()
        at = torch.arange(length, device=lam.device) - start
        outside.append((at < 0) | (at >= side))
        places.append(((at + 0.5) * length / side.clamp(min=1)).long().clamp(0, length - 1))
    return _outside(outside), tuple(places)


def salient_position(x: Tensor) -> Tensor:
    """Return where each sample of `x`, (B, C, *size) with up to three axes, stands out most from its surroundings.

    As shares of the axes' lengths, (k, B) in [0, 1]: the largest contrast to the average over surroundings of three
    sizes, channels averaged, itself averaged over its neighbours.
    """
    size = x.shape[2:]

    def smooth(t: Tensor, n: int) -> Tensor:
        kernel = [min(n, length - 1 + length % 2) for length in size]
        average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]
        return average(t, kernel, stride=1, padding=[k // 2 for k in kernel], count_include_pad=False)

    grey = x.float().mean(1, keepdim=True)
    contrast = smooth(torch.stack([(grey - smooth(grey, n)).abs() for n in (3, 7, 15)]).sum(0), 3)
    at, shares = contrast.flatten(1).argmax(1), []
    for length in reversed(size):
        shares.insert(0, (at % length + torch.rand(at.shape, device=at.device)) / length)  # anywhere in the position
        at = at // length
    return torch.stack(shares)


def share(mask: Tensor) -> Tensor:
    """Return lam of shape (B,), the mean of each sample's mask of shape (B, *size), in single precision at least."""
    dtype = torch.promote_types(mask.dtype, torch.float32)
    if mask.ndim == 1:
        return mask.to(dtype)
    kept = fast.count(mask) if mask.dtype == torch.bool else mask.flatten(1).sum(1, dtype=dtype)
    return kept / math.prod(mask.shape[1:])
