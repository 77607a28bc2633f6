"""The methods that average inputs."""

import math

from torch import Tensor
from typing_extensions import Unpack

from ..handler import MixHandler
from ..options import MixOptions, Schedule, number, with_options
from ..pairing import sample_partner_by, target_similarity


@with_options
class MixUp(MixHandler):
    """Average each sample's inputs with its partner's: ``lam · x + (1 - lam) · x1`` (Zhang et al., 2018).

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
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

    def __init__(self, alpha: float | Schedule = 0.4, **kwargs: Unpack[MixOptions]):
        super().__init__(alpha, **kwargs)


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
        yb, loss_func = self._drawn_for
        if not yb:
            raise ValueError("Expected continuous targets to choose partners by, got none. Use mix_batch, or MixUp")
        if not (yb[0].is_floating_point() or getattr(loss_func, "floatify", False)):
            raise TypeError(f"Expected continuous targets, got class indices ({yb[0].dtype}). Use MixUp")
        if self.pair is not None:
            return super().draw_partner(x)
        return sample_partner_by(target_similarity(yb[0], self.bandwidth), rng=self.rng)
