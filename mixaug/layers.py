"""Which layers of a network may be mixed: candidates by structure, and the test that decides."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import nn

from .exchange import REMEDY, Exchange, Place
from .nests import tensors
from .torch_private import unwrapped
from .trial import padded

M = TypeVar("M", bound=nn.Module)
_RECURRENT = nn.RNNBase, nn.RNNCellBase
_CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict


def mixable(module: M) -> M:
    """Mark a layer whose output :class:`ManifoldMixup` may mix, and return it.

    If some modules of a model are marked, only these are chosen from. ``mixable(nn.Identity())`` marks any place that
    a model's `forward` passes its activations through.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), mixable(torch.nn.ReLU()), torch.nn.Linear(8, 2))
    >>> list(hidden_layers(model, torch.rand(3, 4)))
    ['1']
    """
    marked: Any = module
    marked.mixable = True
    return module


def hidden_layers(model: nn.Module, *xb: Any) -> dict[str, Any]:
    """Find the layers of a model that may be mixed.

    These are the layers marked by :func:`mixable`, else the network's blocks (residual blocks, encoder layers,
    `ConvLayer`, `LinBnDrop`, ...), else its layers with weights; never the one whose output is the prediction. Each is
    tested on up to four samples, and again with some of them cut short, as by padding: with its output exchanged for
    the partners', every output of the model must be the partners'. A layer that something goes around (a residual
    connection, a branch, the skip connections of a U-Net, an auxiliary head) fails, as does one that returns time in
    front of the batch. Layers that only pass together, such as parallel stems, are mixed together, and one that runs
    several times in each run or in a single one. Recurrent layers and the bodies that have them are left out. State,
    gradients and random generators are left as they are.

    Args:
        model: The network.
        *xb: Its inputs, two samples or more. None: the layers are not tested, which a warning says.

    Returns:
        Layers, or tuples of layers that are mixed together, by their names in ``model.named_modules()``.

    Raises:
        ValueError: If a marked layer fails the test.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> hidden_layers(model, torch.rand(3, 4))
    {'0': Linear(in_features=4, out_features=8, bias=True)}
    """
    if not xb:
        warnings.warn("These layers are not verified. Pass inputs of the model, hidden_layers(model, x)", stacklevel=2)
    return {place.name: place.value for place in find_places(model, xb)}


def find_places(
    model: nn.Module,
    xb: tuple = (),
    given: Iterable[Any] | None = None,
    *,
    is_own: Callable[[int, Any], bool] = lambda key, hook: True,
    accept: Callable[[Any], bool] = lambda output: True,
) -> list[Place]:
    """Return the places of a model where it may be mixed.

    Args:
        model: The network.
        xb: Inputs, to test the layers with; empty: they are not tested.
        given: Layers, or tuples of layers, that the user named; None: the marked ones, else those that are found.
        is_own: Whether a hook, given its key and itself, belongs to the model; others are silent in the test.
        accept: Whether the output of a layer, given the shapes of its tensors, can be mixed by the method.

    Raises:
        ValueError: If a layer that was named or marked fails the test.
    """
    model = unwrapped(model)
    if given is None:
        given = [m for m in model.modules() if getattr(m, "mixable", None) is True]
    names = {module: name for name, module in model.named_modules()}
    named = [Place.of(value, names) for value in given]
    if not xb:
        return named or [Place.of(m, names) for m in _in_structure(model)]
    with Exchange(model, xb, is_own) as trial:
        places = trial.require(named) if named else trial.passing(_Search(model, names, trial, accept).places())
    square = (t.is_floating_point() and t.ndim > 3 and t.shape[-1] == t.shape[-2] for t in tensors(trial.xb))
    if all(square):  # images have no padding
        return places
    try:
        with Exchange(model, padded(trial.model, trial.xb), is_own) as trial:
            passed = set(trial.passing(places))
    except RuntimeError:  # not every model takes what is padded
        return places
    if named and (failed := [place.name for place in places if place not in passed]):
        raise ValueError(
            f"Expected all that reaches the prediction to go through {failed}, but once some samples are cut short, as "
            f"padding does it, something goes around: a mask. {REMEDY}"
        )
    return [place for place in places if place in passed]


def _in_structure(model: nn.Module) -> list[nn.Module]:
    """Return layers by structure alone, without the last one with weights or what contains it."""
    last = [m for m in model.modules() if not list(m.children()) and has_weights(m)][-1:]
    return _Blocks(model).found(lambda m: not set(last) & set(m.modules()))


def has_weights(module: nn.Module) -> bool:
    """Return whether a module has weights, whatever their class; the vectors of a normalization are none."""
    return any(p.ndim > 1 for p in module.parameters())


class _Blocks:
    """The blocks of a network: modules that have a `forward` of their own, and parts with weights.

    A module of a class that occurs once and has several blocks inside is a stage or the whole body, and looked into.
    """

    def __init__(self, model: nn.Module):
        self.model, self.count = model, Counter(map(type, model.modules()))

    def under(self, module: nn.Module, ok: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
        for child in module.children():
            is_block = type(child) not in _CONTAINERS and any(map(has_weights, child.children()))
            if is_block and self.count[type(child)] > 1 and ok(child):
                yield child
                continue
            inside = list(self.under(child, ok))
            yield from [child] if is_block and len(inside) < 2 and ok(child) else inside

    def found(self, ok: Callable[[nn.Module], bool]) -> list[nn.Module]:
        """Return the blocks that are `ok`; the layers with weights instead, if more of these are outside of blocks."""
        blocks = list(self.under(self.model, ok))
        inside = {m for block in blocks for m in block.modules()}
        layers = [m for m in self.model.modules() if has_weights(m) and not any(map(has_weights, m.children()))]
        layers = [m for m in layers if m not in inside and ok(m)]
        return blocks + layers if len(layers) > sum(map(has_weights, inside)) else blocks


class _Search:
    """Finds the places of a model where, by the graph of autograd, nothing goes around."""

    def __init__(self, model: nn.Module, names: dict[nn.Module, str], trial: Exchange, accept: Callable[[Any], bool]):
        self.model, self.names, self.trial, self.accept = model, names, trial, accept
        self.known: dict[nn.Module, bool] = {}
        # A body with recurrent layers may take a sequence in parts, as many as it is long: each batch has other runs
        bodies = [m for m in model.modules() if m is not model and any(isinstance(r, _RECURRENT) for r in m.modules())]
        self.in_time = {m for body in bodies if type(body) not in _CONTAINERS for m in body.modules()}

    def places(self) -> list[Place]:
        blocks = _Blocks(self.model)
        found = [Place.of(m, self.names) for m in blocks.found(self.ok)]
        return found + list(self.together(found))

    def ok(self, module: nn.Module) -> bool:
        if module not in self.known:
            place = Place.of(module, self.names)
            self.known[module] = self.usable(place) and self.trial.around(place) is None
        return self.known[module]

    def usable(self, place: Place) -> bool:
        in_time = any(m in self.in_time for layer in place.layers for m in layer.modules())
        if in_time or not any(map(has_weights, place.layers)):
            return False
        return self.trial.can_exchange(place, self.accept) and self.trial.has_weights_after(place)

    def together(self, found: list[Place]) -> Iterator[Place]:
        """Yield siblings of one class that only pass together, such as parallel stems."""
        taken = {m for place in found for layer in place.layers for m in layer.modules()}
        for parent in self.model.modules():
            children = [m for m in parent.children() if parent not in taken and not taken & set(m.modules())]
            children = [m for m in children if self.usable(Place.of(m, self.names)) and not self.ok(m)]
            for kind in dict.fromkeys(map(type, children)):
                group = Place.of([m for m in children if type(m) is kind], self.names)
                if len(group.layers) > 1 and self.trial.around(group) is None and self.trial.is_parallel(group):
                    yield group
