"""Partners that are not in the batch: of another loader, or of the batch before."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .draw import send
from .nests import map_tensors, tensors


class Source:
    """Batches to take partners from, without an end.

    Args:
        batches: A loader, or anything else that can be iterated again and again; ``"last"``: the batch before.

    Raises:
        TypeError: If it is something else.
    """

    def __init__(self, batches: Any):
        wrong = isinstance(batches, (str, bytes, Tensor)) or not hasattr(batches, "__iter__")
        if (wrong and batches != "last") or hasattr(batches, "train_ds"):
            raise TypeError(
                f'partners must be a loader or another iterable of batches, "last" or None, got {batches!r}'
                + (". Use dls.train" if hasattr(batches, "train_ds") else "")
            )
        self.batches = batches
        self.restart()

    def restart(self) -> None:
        """Begin at the first batch again."""
        self.iterator = self.before = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "iterator": None, "before": None}

    def next(self, xb: tuple, yb: tuple, need_targets: bool) -> tuple[tuple, tuple] | None:
        """Return inputs and targets ``(M, ...)`` to take partners from, on the device of `xb`; None: from the batch.

        Args:
            xb: Inputs of the batch.
            yb: Its targets.
            need_targets: Whether partners need targets.

        Raises:
            ValueError: If there are no batches, or they are of another form.
        """
        if isinstance(self.batches, str):
            before, self.before = self.before, (xb, yb)
            return before if before and _forms(before[0]) == _forms(xb) and _forms(before[1]) == _forms(yb) else None
        batch = self._next()
        batch = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        batch = map_tensors(lambda t: send(t, tensors(xb)[0].device), batch)
        xs, ys = batch[: len(xb)], batch[len(xb) :]
        if _forms(xs) != _forms(xb) or (_forms(ys) != _forms(yb) and (need_targets or ys)):
            raise ValueError(
                f"Expected batches of partners like those to mix, of {_forms(xb)} and {_forms(yb)} for each sample, "
                f'got {_forms(batch)}. With targets="keep" they need no targets'
            )
        return xs, ys

    def _next(self) -> Any:
        for _ in range(2):
            self.iterator = iter(self.batches) if self.iterator is None else self.iterator
            for batch in self.iterator:
                return batch
            self.iterator = None
        raise ValueError(
            f"partners must have batches again and again, got none (any more) from {self.batches!r}. A generator ends: "
            "give a loader or a list"
        )


def _forms(nest: Any) -> Any:
    """Return the dtype and the size of a sample of each tensor of a nest."""
    if isinstance(nest, Tensor):
        return (str(nest.dtype), *nest.shape[1:])
    if isinstance(nest, Mapping):
        return {key: _forms(item) for key, item in nest.items()}
    return [_forms(item) for item in nest] if isinstance(nest, (tuple, list)) else None
