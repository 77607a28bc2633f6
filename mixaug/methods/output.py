"""Mixing in the output: the prediction, or whatever else a layer returns."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from ..handler import MixHandler
from ..mix import Mix, map_tensors, tensors
from ..options import MixOptions, Schedule, with_options


def blend_floats(mix: Mix, nest: Any) -> Any:
    """Return a nest of tuples, lists and mappings with every floating-point tensor ``(B, ...)`` mixed.

    ValueError if there is none.
    """
    n, mixed = len(mix.partner), []

    def blend(t: Tensor) -> Tensor:
        if not (t.is_floating_point() and t.ndim and len(t) == n):
            return t
        mixed.append(t)
        return mix.blend(t)

    result = map_tensors(blend, nest)
    if not mixed:
        raise ValueError(
            f"Expected floating-point tensors of {n} samples to mix as the output of a layer, got shapes "
            f"{[tuple(t.shape) for t in tensors(nest)]}. Choose other layers (modules=[...])"
        )
    return result


@with_options
class OutputMixup(MixHandler):
    """Average each sample's prediction with its partner's, before the loss.

    This is :class:`ManifoldMixup` at the last layer: the cheapest method, without a choice of layers, for any inputs.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Predictions: floating-point tensors ``(B, ...)`` in any nest.

    Raises:
        ValueError: If the prediction holds no floating-point tensor with the batch in front.

    >>> pred = torch.eye(3)
    >>> mix = OutputMixup(0.4).draw(pred)
    >>> torch.allclose(mix.blend(pred).diag(), mix.lam)
    True
    """

    order = 1  # after RNNCallback, which takes the prediction out of what a text model returns
    _mixes_input = False

    def __init__(self, alpha: float | Schedule = 0.4, **kwargs: Unpack[MixOptions]):
        super().__init__(alpha, **kwargs)

    def after_pred(self) -> None:
        """Mix the prediction."""
        if self._in_batch and not self.stack_x:
            mix: Any = self.mix
            self.learn.pred = blend_floats(mix, self.learn.pred)
        super().after_pred()

    def _is_mixed(self, pred: list[Tensor]) -> bool:
        return super()._is_mixed(pred) if self.stack_x else self._passes.is_own(pred)

    def after_loss(self) -> None:
        """Restore the targets: another pass over the inputs is not mixed."""
        if self._in_batch and not self.stack_x:
            self._restore_targets()
