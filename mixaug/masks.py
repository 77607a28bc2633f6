"""How much each sample keeps of itself: shares drawn from Beta(alpha, alpha) and the masks made of them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta, Distribution


class SymmetricBeta(Beta):
    """Beta(alpha, alpha), right for the smallest alpha, too, where torch's own draws are near one half too often."""

    def __init__(self, alpha: Tensor):
        super().__init__(alpha, alpha, validate_args=False)  # whose check would wait for the device
        self.alpha, self._next = alpha, alpha + 1

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.sample_logit(sample_shape).sigmoid_()

    def sample_logit(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw log(t / (1 - t)), the difference of the logarithms of two draws from Gamma(alpha).

        Those can be too small for a float. But Gamma(alpha) is Gamma(alpha + 1) times a uniform number to the power of
        1 / alpha, of which the logarithm is no problem.
        """
        log = torch._standard_gamma(self._next.expand(2, *sample_shape)).log_()  # pyright: ignore[reportPrivateImportUsage]
        log.addcdiv_(torch.empty_like(log).exponential_(), self.alpha, value=-1)
        return log[0] - log[1]


def sample_lam(distrib: Distribution, n: int, fold: bool = True) -> Tensor:
    """Draw `n` shares in [0, 1] from `distrib`, on its device.

    With `fold` each draw t becomes max(t, 1 - t): the larger share is the sample's own, so that no two mixed samples
    of a batch can be duplicates of each other.
    """
    if isinstance(distrib, SymmetricBeta):
        logit = distrib.sample_logit([n])
        return (logit.abs_() if fold else logit).sigmoid_()
    lam = distrib.sample(torch.Size([n])).view(n)
    return torch.maximum(lam, 1 - lam) if fold else lam


def box_mask(lam: Tensor, size: Sequence[int], centre: Tensor | None = None) -> Tensor:
    """Return a bool mask of shape (B, *size) that is False in one random box for each sample, True around it.

    The box of sample i has sides of (1 - lam_i)^(1/k) times those of `size`, k = len(size): a segment, a rectangle, a
    cuboid. Its centre is uniform over the positions, or given as shares of the axes' lengths by `centre`, (k, B) in
    [0, 1). The border crops it (https://arxiv.org/abs/1905.04899), so the share kept is at least `lam` (shape (B,), in
    [0, 1]) up to rounding; the share that counts is the mask's mean.
    """
    ratio, within = (1 - lam) ** (1 / len(size)), []
    if centre is None:
        centre = torch.rand(len(size), len(lam), device=lam.device)
    for length, at in zip(size, centre, strict=True):
        side = (ratio * length).round()
        start = ((at * length).floor() - (side / 2).floor())[:, None]
        position = torch.arange(length, device=lam.device)
        within.append((position >= start) & (position < start + side[:, None]))
    return _outside(within)


def _outside(within: Sequence[Tensor]) -> Tensor:
    """The mask that is False where a position is within along every axis, each (B, length)."""
    outside = torch.zeros((), dtype=torch.uint8, device=within[0].device)  # torch is slow on masks that it broadcasts
    for axis, along in enumerate(within):
        outside = outside[..., None] | (~along).view(torch.uint8).view(-1, *[1] * axis, along.shape[1])
    return outside.view(torch.bool)


def fourier_mask(lam: Tensor, size: Sequence[int], decay: float = 3.0) -> Tensor:
    """Return a bool mask of shape (B, *size) that is True in smooth random regions of the share `lam`, (B,) in [0, 1].

    They are where noise is largest whose amplitude falls with the frequency to the power of `decay`
    (https://arxiv.org/abs/2002.12047): `lam` of the positions, to within half a one.
    """
    axes = [torch.fft.fftfreq(length, device=lam.device) for length in size]
    frequency = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0).clamp(min=1 / max(size))
    noise = torch.randn(len(lam), *size, dtype=torch.complex64, device=lam.device)
    noise = torch.fft.ifftn(noise / (frequency * max(size)) ** decay, dim=tuple(range(1, len(size) + 1))).real
    rank = noise.flatten(1).argsort(1).argsort(1)
    kept = (lam * math.prod(size)).round()[:, None]
    return (rank >= math.prod(size) - kept).view(len(lam), *size)


def whole_in_box(lam: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a mask like `box_mask`'s, whose boxes lie inside, and the places that bring all of the partner into them.

    The places are for each axis (B, length): from where in the partner, the nearest position, each position is taken.
    """
    ratio, within, places = (1 - lam) ** (1 / len(size)), [], []
    for length in size:
        side = (ratio * length).round()[:, None]
        start = (torch.rand_like(side) * (length + 1 - side)).floor()
        at = torch.arange(length, device=lam.device) - start
        within.append((at >= 0) & (at < side))
        places.append(((at + 0.5) * length / side.clamp(min=1)).long().clamp(0, length - 1))
    return _outside(within), tuple(places)


def salient_position(x: Tensor) -> Tensor:
    """Return where each sample of `x`, (B, C, *size) with up to three axes, stands out most from its surroundings.

    As shares of the axes' lengths, (k, B) in [0, 1): the largest contrast to the average over surroundings of three
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
        shares.insert(0, (at % length + 0.5) / length)
        at = at // length
    return torch.stack(shares)


def share(mask: Tensor) -> Tensor:
    """Return lam of shape (B,), the mean of each sample's mask of shape (B, *size)."""
    if mask.ndim == 1:
        return mask
    if mask.dtype == torch.bool:
        kept = mask.view(torch.uint8).flatten(1).sum(1, dtype=torch.int32)  # torch is slow on masks here, too
    else:
        kept = mask.flatten(1).sum(1)
    return kept / math.prod(mask.shape[1:])
