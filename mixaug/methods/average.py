"""The methods that average inputs."""

import math

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from ..draw import send
from ..handler import MixHandler
from ..mix import Mix
from ..options import MixOptions, Schedule, number, whole, with_options
from ..pairing import sample_partner_by, target_similarity


@with_options
class MixUp(MixHandler):
    """Average each sample's inputs with its partner's: ``lam · x + (1 - lam) · x1`` (Zhang et al., 2018).

    With k > 2 samples, the weights are from a Dirichlet distribution, and its `lam` is ``(B, k)``: the original's
    weight, then each partner's; `yb1` has the targets of all partners in front of the batch, ``(k - 1, B, ...)``.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        k: Number of samples in a mix, >= 2.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Floating-point inputs ``(B, ...)``.

    Raises:
        TypeError: If the inputs are integers (categorical codes, token ids, uint8 images), which have no average.

    Reference: https://arxiv.org/abs/1710.09412

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> mix = MixUp(0.4).draw(x)
    >>> bool((mix.lam >= 0.5).all())
    True
    >>> torch.allclose(mix.blend(x), mix.lam[:, None] * x + (1 - mix.lam[:, None]) * x[mix.partner])
    True
    """

    def __init__(self, alpha: float | Schedule = 0.4, *, k: int = 2, **kwargs: Unpack[MixOptions]):
        super().__init__(alpha, **kwargs)
        self.k = whole("k", k, 2)
        self._of_two = k == 2

    def draw(self, x: Tensor) -> Mix:
        """Return the mix of a batch ``(B, ...)``."""
        if self.k == 2:
            return super().draw(x)
        weights = self.rng.dirichlet([self._alpha_now()] * self.k, len(x)).astype(np.float32)
        if self.fold:  # the original gets the largest
            at, top = np.arange(len(x)), weights.argmax(1)
            weights[at, top], weights[:, 0] = weights[:, 0], weights.max(1)
        partners = [self.draw_partner(x) for _ in range(self.k - 1)]
        return Mix.of(partners, send(torch.from_numpy(weights), x.device))


@with_options
class CMixup(MixUp):
    """MixUp for regression: samples with similar targets are more likely to be partners (Yao et al., 2022).

    Any other method pairs in this way with ``pair=partial(target_similarity, bandwidth=0.5)``.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        bandwidth: How far apart partners' targets are, in standard deviations of the batch's targets; > 0.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Floating-point inputs ``(B, ...)``, continuous targets ``(B, ...)``.

    Raises:
        TypeError: If the inputs are integers, or the targets class indices.

    Reference: https://arxiv.org/abs/2210.05775
    """

    def __init__(self, alpha: float | Schedule = 2.0, *, bandwidth: float = 1.0, **kwargs: Unpack[MixOptions]):
        super().__init__(alpha, **kwargs)
        self.bandwidth = number("bandwidth", bandwidth, lambda b: 0 < b < math.inf, "a finite number > 0")

    def draw_partner(self, x: Tensor) -> Tensor:
        """Draw partners by the similarity of their targets."""
        yb, loss_func, _ = self._drawn_for
        if not yb:
            raise ValueError("Expected continuous targets to choose partners by, got none. Use mix_batch, or MixUp")
        if not (yb[0].is_floating_point() or getattr(loss_func, "floatify", False)):
            raise TypeError(f"Expected continuous targets, got class indices ({yb[0].dtype}). Use MixUp")
        if self.pair is not None:
            return super().draw_partner(x)
        return sample_partner_by(target_similarity(yb[0], self.bandwidth), rng=self.rng)
