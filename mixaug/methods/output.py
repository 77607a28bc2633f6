"""Mixing in the output: the prediction, or whatever else a layer returns."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from ..handler import MixHandler
from ..mix import Mix
from ..nests import map_tensors, tensors
from ..options import MixOptions, Schedule, with_options


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
        Predictions: floating-point tensors ``(B, ...)`` in any nest. A table that is computed from parameters, and has
        as many rows as the batch by accident, is mixed too.

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
            rows = self._rows_of(self.learn.pred)
            for at, (t, may_be) in enumerate(zip(tensors(self.learn.pred), rows, strict=True)):
                if may_be and t.is_floating_point() and t.shape[:1] != mix.lam.shape and t.numel() > 1:
                    self._warn_once(
                        f"Tensor {at} of the prediction has no row for each sample, and is not mixed, though its loss "
                        "may be combined. Return (B, ...) from the model, or use MixUp"
                    )
            self.learn.pred = blend_floats(mix, self.learn.pred, rows)
        super().after_pred()

    def _rows_of(self, pred: Any) -> tuple[bool, ...]:
        """Return for each tensor whether it may have the samples as rows: parameters, such as a table, have not."""
        found = tensors(pred)
        known = list(self.learn.model.parameters()) if len(found) > 1 else ()
        return tuple(not any(t.untyped_storage() is p.untyped_storage() for p in known) for t in found)

    def _is_mixed(self, pred: Any) -> bool:
        return super()._is_mixed(pred) if self.stack_x else self._passes.known_origin(pred) == "own"

    def after_loss(self) -> None:
        """Restore the targets: another pass over the inputs is not mixed."""
        if self._in_batch and not self.stack_x:
            self._restore_targets()
