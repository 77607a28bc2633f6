"""Which layers of a network may be mixed."""

from collections import Counter
from typing import Any, TypeVar

from torch import nn

from .torch_private import unwrapped

M = TypeVar("M", bound=nn.Module)
_WEIGHTS = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
_RECURRENT = nn.RNNBase, nn.RNNCellBase


def mixable(module: M) -> M:
    """Mark a layer whose output :class:`ManifoldMixup` may mix, and return it.

    If some modules of a model are marked, only these are chosen from. ``mixable(nn.Identity())`` marks any place that
    a model's `forward` passes its activations through.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), mixable(torch.nn.ReLU()), torch.nn.Linear(8, 2))
    >>> list(hidden_layers(model))
    ['1']
    """
    marked: Any = module
    marked.mixable = True
    return module


def hidden_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers of a model that may be mixed.

    These are the layers marked by :func:`mixable`, else the decoder blocks of a U-Net, else the network's blocks
    (residual blocks, encoder layers, `ConvLayer`, `LinBnDrop`, ...), else its convolutions and linear layers. Left out
    are parts of blocks, which a residual connection may skip, recurrent layers, attention with ``batch_first=False``,
    and the layer whose output is the prediction. The `forward` of the model itself is
    not examined: if it has branches or sums, mark the layers after them. The skip connections of a U-Net stay unmixed.

    Args:
        model: The network.

    Returns:
        Layers by their names in ``model.named_modules()``.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> hidden_layers(model)
    {'0': Linear(in_features=4, out_features=8, bias=True)}
    """
    model = unwrapped(model)
    names = {module: name for name, module in model.named_modules()}
    marked = [m for m in names if getattr(m, "mixable", None) is True]
    decoder = [m for m in names if type(m).__name__ == "UnetBlock"]
    return {names[m]: m for m in marked or decoder or _blocks(model)}


def _blocks(model: nn.Module) -> list[nn.Module]:
    last = [m for m in model.modules() if not list(m.children()) and list(m.parameters())][-1:]
    parts = [m for m in _parts(model, Counter(map(type, model.modules()))) if _has_weights(m)]
    head = [m for m in parts if set(last) & set(m.modules())]
    usable = [m for m in parts if m not in head and not any(map(_is_along_time, m.modules()))]
    # A head may contain layers, which are considered if nothing in front of it may be mixed
    return [m for m in usable if list(m.children())] or usable or [m for h in head for m in _blocks(h)]


def _parts(module: nn.Module, count: Counter[type]) -> list[nn.Module]:
    """Return the modules that run one after another in `module`: its children, with stages replaced by their blocks."""
    return [p for child in module.children() for p in (_parts(child, count) if _is_stage(child, count) else [child])]


def _is_stage(module: nn.Module, count: Counter[type]) -> bool:
    """Return whether a module only lines up others: a plain container, or the only one of its class that has blocks.

    A class that occurs again is a block, whose parts may run side by side.
    """
    if not _has_own_forward(module):
        return type(module) in (nn.Sequential, nn.ModuleList)
    return count[type(module)] == 1 and any(
        _repeats(c) or (_has_own_forward(c) and _is_stage(c, count)) for c in module.children()
    )


def _repeats(module: nn.Module) -> bool:
    """Return whether a plain container holds several blocks of one class."""
    blocks = _parts(module, Counter()) if type(module) in (nn.Sequential, nn.ModuleList) else []
    kinds = Counter(type(m) for m in blocks if _has_own_forward(m) and _has_weights(m))
    return max(kinds.values(), default=0) > 1


def _has_own_forward(module: nn.Module) -> bool:
    return bool(list(module.children())) and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def _is_along_time(module: nn.Module) -> bool:
    """Return whether a module carries a state through time, or has time as its first axis."""
    return isinstance(module, _RECURRENT) or getattr(module, "batch_first", True) is False


def _has_weights(module: nn.Module) -> bool:
    return any(isinstance(m, _WEIGHTS) for m in module.modules())
