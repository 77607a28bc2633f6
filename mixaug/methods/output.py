"""Mixing in the output: the prediction, or whatever else a layer returns."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from ..handler import MixHandler
from ..lifecycle import own_hooks
from ..mix import Mix, map_tensors, tensors
from ..options import MixOptions, Schedule, with_options
from ..trial import Trial


def blend_floats(mix: Mix, nest: Any, rows: tuple[bool, ...] = ()) -> Any:
    """Return a nest of tuples, lists and mappings with every floating-point tensor ``(B, ...)`` mixed.

    ValueError if there is none.

    Args:
        mix: The draw.
        nest: The nest.
        rows: Whether the rows of a tensor are those of the samples, for each; others may have B rows by accident.
    """
    n, found = len(mix.partner), []

    def blend(t: Tensor) -> Tensor:
        mixes = t.is_floating_point() and t.ndim > 0 and len(t) == n and rows[len(found) : len(found) + 1] != (False,)
        found.append(mixes)
        return mix.blend(t) if mixes else t

    result = map_tensors(blend, nest)
    if not any(found):
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
    _rows: tuple[bool, ...] | None = None

    def __init__(self, alpha: float | Schedule = 0.4, **kwargs: Unpack[MixOptions]):
        super().__init__(alpha, **kwargs)

    def before_fit(self) -> None:
        """Check the set-up."""
        super().before_fit()
        self._rows = None

    def after_pred(self) -> None:
        """Mix the prediction."""
        if self._in_batch and not self.stack_x:
            mix: Any = self.mix
            self.learn.pred = blend_floats(mix, self.learn.pred, self._rows_of(self.learn.pred))
        super().after_pred()

    def _rows_of(self, pred: Any) -> tuple[bool, ...]:
        """Return which tensors have the samples as rows; a run of a few samples tells, once a fit."""
        if len(tensors(pred)) > 1 and self._rows is None:
            with Trial(self.learn.model, tuple(self.learn.xb), own_hooks(self.learn)) as trial:
                self._rows = tuple(map(trial.has_rows, tensors(trial.predict(trial.xb))))
        return self._rows or ()

    def _is_mixed(self, pred: Any) -> bool:
        return super()._is_mixed(pred) if self.stack_x else self._passes.origin(pred) == "own"

    def after_loss(self) -> None:
        """Restore the targets: another pass over the inputs is not mixed."""
        if self._in_batch and not self.stack_x:
            self._restore_targets()
