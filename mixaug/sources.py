"""Partners that are not in the batch: of another loader, or of the batch before."""

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

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
        self.iterator = self.before = None

    def restart(self, training: Any = None) -> None:
        """Begin at the first batch again.

        Args:
            training: The loader to train on, if a fit begins.

        Raises:
            ValueError: If it is the same, and has one iterator for both.
        """
        same = training is self.batches and isinstance(training, DataLoader)
        if same and training.persistent_workers:  # torch's own: fastai's makes another iterator
            raise ValueError(
                "partners must be another loader than the one to train on, if it has persistent_workers: they have one "
                "iterator, and either would skip the other's batches"
            )
        if self.iterator is not None:  # fastai's loader leaves one if the iteration does not end; it cannot be copied
            getattr(self.batches, "__dict__", {}).pop("it", None)
        self.iterator = self.before = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "iterator": None, "before": None}

    def next(self, xb: tuple, yb: tuple, x_rules: tuple, y_rules: tuple) -> tuple[tuple, tuple] | None:
        """Return inputs and targets ``(M, ...)`` to take partners from, on the device of `xb`; None: from the batch.

        Args:
            xb: Inputs of the batch.
            yb: Its targets.
            x_rules: A rule for each input; what is kept may be of another form.
            y_rules: The same for the targets; if all are kept, none are returned.

        Raises:
            ValueError: If there are no batches, or they are of another form.
        """
        forms, kept = (_forms(xb, x_rules), _forms(yb, y_rules)), set(y_rules) == {"keep"}
        if isinstance(self.batches, str):
            before, self.before = self.before, (xb, yb)
            return before if before and (_forms(before[0], x_rules), _forms(before[1], y_rules)) == forms else None
        batch = self._next()
        batch = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        batch = map_tensors(lambda t: send(t, tensors(xb)[0].device), batch)
        xs, ys = batch[: len(xb)], () if kept else batch[len(xb) :]
        if _forms(xs, x_rules) != forms[0] or not (kept or _forms(ys, y_rules) == forms[1]) or not len(tensors(xs)[0]):
            raise ValueError(
                f"Expected batches of partners like those to mix, of {_form(xb)} and {_form(yb)} for each sample, got "
                f'{_form(batch)}. With targets="keep" they need no targets'
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


def _forms(nests: Sequence[Any], rules: tuple) -> list:
    """Return the form of each nest that is not kept."""
    return [None if rule == "keep" else _form(n) for n, rule in zip(nests, chain(rules, repeat(None)), strict=False)]


def _form(nest: Any) -> Any:
    """Return the dtype and the size of a sample of each tensor of a nest."""
    if isinstance(nest, Tensor):
        return (str(nest.dtype), *nest.shape[1:])
    if isinstance(nest, Mapping):
        return {key: _form(item) for key, item in nest.items()}
    return [_form(item) for item in nest] if isinstance(nest, (tuple, list)) else None
