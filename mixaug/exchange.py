"""The test of hidden layers: with a layer's output exchanged for the partners', the prediction must be the partners'.

It is run on a few samples, in the model's training form: auxiliary heads run, dropout and batch norm do not act.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import permutations
from operator import eq
from typing import Any

import torch
from torch import Tensor, nn

from .graph import descends, functions, path_around
from .nests import map_tensors, tensors
from .trial import Trial

REMEDY = (
    "Choose other layers (modules=[...]), join layers that share one place in a tuple, or say verify=False to mix them "
    "anyway"
)


@dataclass(frozen=True)
class Place:
    """Where hidden layers are mixed.

    Args:
        name: The names of its layers.
        layers: Layers whose outputs are mixed together.
        run: Number of the only run that is mixed, of a layer that runs several times; None: each run.
        runs: How often the layers run in a forward pass, altogether; None: not tested.
        rows: For each layer, whether the rows of a tensor that it returns are those of the samples; empty: not tested.
    """

    name: str = field(compare=False)
    layers: tuple[nn.Module, ...]
    run: int | None = None
    runs: int | None = field(default=None, compare=False)
    rows: tuple[tuple[bool, ...], ...] = field(default=(), compare=False)

    @staticmethod
    def of(value: Any, names: dict[nn.Module, str]) -> "Place":
        """Return the place of a layer, or of a tuple of layers."""
        layers = (value,) if isinstance(value, nn.Module) else tuple(value)
        return Place(" + ".join(names[m] for m in layers), layers)

    def in_run(self, run: int) -> "Place":
        """Return the place of one run of the layer."""
        return replace(self, name=f"{self.name} (run {run + 1})", run=run)

    @property
    def value(self) -> Any:
        """The layer, or the tuple of layers."""
        return self.layers[0] if len(self.layers) == 1 else self.layers


@contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Register forward hooks, and remove them again."""
    handles = [m.register_forward_hook(hook) for m, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Exchange(Trial):
    """Tests where a model may be mixed."""

    def __enter__(self) -> "Exchange":
        super().__enter__()
        try:
            self._record()
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, Exception):
                raise
            raise RuntimeError(
                f"Expected a model that runs on {self.n} samples, to test which hidden layers may be mixed, got "
                f"{error!r}. Say verify=False to mix the layers that you name without a test (modules=[...])"
            ) from error
        return self

    # By the graph of autograd

    def _record(self) -> None:
        """Run the model once, and keep what each module returns and the functions that computed it."""
        self.leaves: set[Tensor] = set()
        self.seen: dict[nn.Module, list[list[Tensor]]] = {}  # the tensors that each run returns
        self.order: list[nn.Module] = []  # in which runs end
        self.functions: dict[nn.Module, list[Any]] = {}  # of the graph, of each run

        def leaf(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t
            t = t.detach().requires_grad_()
            self.leaves.add(t)
            return t

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            found = tensors(output)
            codes = [t for t in tensors(args) if t.ndim and len(t) == self.n and not t.is_floating_point()]
            if codes and not list(module.children()) and any((t != t[:1]).any() for t in codes):
                output = map_tensors(leaf, output)  # an embedding: what codes of the samples reach begins here
            output = map_tensors(lambda t: t.clone() if self.has_rows(t) else t, output)
            self.seen.setdefault(module, []).append(found)
            self.functions.setdefault(module, []).append(functions(filter(self.has_rows, tensors(output))))
            self.order.append(module)
            return output

        with torch.enable_grad(), _hooked((m, after) for m in self.model.modules() if m is not self.model):
            self.outputs = self.run(map_tensors(leaf, self.xb))

    def runs_of(self, module: nn.Module) -> int:
        """Return how often a module runs in a forward pass."""
        return len(self.seen.get(module, ()))

    def rows_of(self, module: nn.Module) -> tuple[bool, ...]:
        """Return for each tensor that a module returns whether its rows are those of the samples."""
        return tuple(map(self.has_rows, self.seen[module][0]))

    def around(self, place: Place) -> list[Any] | None:
        """Return a path of the graph from the prediction to the inputs that goes around a place; None if none does."""
        runs = [run for m in place.layers for run in self.functions.get(m, ())]
        runs = runs if place.run is None else runs[place.run : place.run + 1]
        if not all(runs):  # computed without gradients: the graph cannot tell
            return None
        return path_around(self.outputs, {f for run in runs for f in run}, self.leaves)

    def can_exchange(self, place: Place, accept: Callable[[Any], bool] = lambda shapes: True) -> bool:
        """Return whether each layer runs, and returns floats with a row for each sample, and nothing else of them."""

        def good(found: list[Tensor]) -> bool:
            rows = [t for t in found if t.ndim and len(t) == self.n]
            return bool(rows) and all(map(self.has_rows, rows)) and accept([t.shape for t in rows])

        return all(self.runs_of(m) and all(map(good, self.seen[m])) for m in place.layers)

    def is_parallel(self, place: Place) -> bool:
        """Return whether no output of a place was computed from another one of it, which would be exchanged twice."""
        cut = {f for m in place.layers for run in self.functions[m] for f in run}
        return not any(descends(run, cut) for m in place.layers for run in self.seen[m])

    def has_weights_after(self, place: Place) -> bool:
        """Return whether weights are used behind a place: else its output is the prediction."""
        return any(p.ndim > 1 for m in self._after(place) for p in m.parameters(recurse=False))

    def _after(self, place: Place) -> list[nn.Module]:
        """Return the modules whose runs end after those of a place."""
        return self.order[max(i for i, m in enumerate(self.order) if m in place.layers) + 1 :]

    # By value

    def passing(self, places: Sequence[Place]) -> list[Place]:
        """Return the places that pass the test, with the number of their runs.

        A layer that runs several times, and fails if each run is mixed, may pass in single runs.
        """
        places = sorted(places, key=lambda place: min(self.order.index(m) for m in place.layers))
        with torch.enable_grad():  # else some layers take a faster path, past their parts
            if not self._are_close(self.run(self.xb, seed=1), self.outputs):  # noise would look like what goes around
                for m in self.model.modules():
                    m.training = m is self.model
                self.outputs = self.run(self.xb)
            first = tuple(range(self.n))
            self.orders = [order for order in permutations(first) if not any(map(eq, order, first))]
            self.turned: list[Tensor] | None = None
            passed = set(self._pass([p for p in places if self.is_parallel(p)]))
            again = {p: range(self.runs_of(p.layers[0])) for p in places if p not in passed and len(p.layers) == 1}
            runs = [p.in_run(i) for p, several in again.items() for i in several if len(several) > 1]
            passed |= set(self._pass([p for p in runs if self.around(p) is None]))
        found = [p for place in places for p in (place, *runs) if p in passed and p.layers == place.layers]
        return [
            replace(p, runs=sum(map(self.runs_of, p.layers)), rows=tuple(map(self.rows_of, p.layers))) for p in found
        ]

    def _pass(self, places: Sequence[Place]) -> list[Place]:
        """Test places, all in one pass: the samples stand in another order behind each, and in the wanted one at last.

        In no order a sample stands where it was first, and no order comes twice, so that what goes around some of the
        places differs. If one fails, both halves are tested.
        """
        if not places:
            return []
        if len(places) <= len(self.orders):
            orders, hooks = [tuple(range(self.n)), *self.orders[1 : len(places)], self.orders[0]], []
            for place, before, now in zip(places, orders, orders[1:], strict=False):
                turn = torch.tensor([before.index(sample) for sample in now])
                hooks += [(m, self._turn(place, turn)) for m in place.layers]
            with _hooked(hooks):
                got = self.run(self.xb)
            if self._is_wanted(got):
                return list(places)
            if len(places) == 1:
                return []
        half = len(places) // 2
        return self._pass(places[:half]) + self._pass(places[half:])

    def _turn(self, place: Place, turn: Tensor) -> Callable:
        """Return a hook that puts the rows of a layer's output in another order."""
        runs = 0

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal runs
            runs += 1
            if place.run is not None and runs != place.run + 1:
                return None
            return map_tensors(lambda t: t[turn.to(t.device)] if self.has_rows(t) else t, output)

        return hook

    def _is_wanted(self, got: list[Tensor]) -> bool:
        """Return whether predictions are those of the samples in the wanted order."""
        order = list(self.orders[0])
        if all(map(self.has_rows, self.outputs)) and self._are_close(got, [own[order] for own in self.outputs]):
            return True
        if self.turned is None:  # rows need not be the samples': flat positions, a stack of heads, a table
            self.turned = self.run(map_tensors(lambda t: t[order] if t.ndim and len(t) == self.n else t, self.xb))
        return self._are_close(got, self.turned)

    def _are_close(self, got: list[Tensor], wanted: list[Tensor]) -> bool:
        """Return whether predictions are as wanted, as far as these differ from those of the samples in order."""
        if not [t.shape for t in got] == [t.shape for t in wanted] == [t.shape for t in self.outputs]:
            return False
        for now, other, own in zip(got, wanted, self.outputs, strict=True):
            same = [(a == other) | (a.isnan() & other.isnan()) for a in (now, own)]
            finite = own.isfinite() & other.isfinite()
            error = (now - other).masked_fill(same[0], 0).abs().max()
            difference = (own - other).masked_fill(same[1] | ~finite, 0).abs().max()
            noise = 100 * torch.finfo(own.dtype).eps * other.nan_to_num(0, 0, 0).abs().max()
            if not error <= torch.maximum(0.001 * difference, noise):
                return False
        return len(got) > 0

    def require(self, places: Sequence[Place]) -> list[Place]:
        """Return places that the user named, with the number of their runs; ValueError if one fails the test."""
        for place in places:
            if not self.can_exchange(place):
                shapes = [[list(t.shape) for t in run] for m in place.layers for run in self.seen.get(m, ())]
                what = f"outputs of shapes {shapes}" if shapes else "no run in a forward pass"
                raise ValueError(
                    f"Expected '{place.name}' to return floating-point tensors of {self.n} samples, (B, ...), got "
                    f"{what}. {REMEDY}"
                )
            if (path := self.around(place)) is not None:
                raise ValueError(
                    f"Expected all that reaches the prediction to go through '{place.name}', but something goes around "
                    f"it{self._where(place, path)}. {REMEDY}"
                )
        passed = self.passing(places)
        if failed := {
            place.name: self.runs_of(place.layers[0])
            for place in places
            if place.layers not in [p.layers for p in passed]
        }:
            raise ValueError(
                "Expected the partners' predictions once the outputs of a layer are exchanged for the partners', got "
                f"others for layers that ran so often: {failed}. Something goes around them, or they do not have the "
                f"samples in front. {REMEDY}"
            )
        return sorted(passed, key=lambda p: [q.layers for q in places].index(p.layers))

    def _where(self, place: Place, path: list[Any]) -> str:
        """Return, in words, the first module after a place that what goes around it reaches."""
        names = {m: name for name, m in self.model.named_modules()}
        on_path = [m for m in self._after(place) if any(set(run) & set(path) for run in self.functions[m])]
        return f", which reaches '{names[on_path[0]]}'" if on_path else ", which reaches the prediction"
