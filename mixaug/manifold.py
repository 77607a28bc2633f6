"""The methods that mix behind the input, and which layers of a network may be mixed."""

import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from fastcore.basics import noop
from fastcore.meta import delegates
from torch import Tensor, nn

from .handlers import MixHandler, MixUp, _flag
from .masks import box_mask
from .mixing import Mix, map_tensors, tensors

_WEIGHTS = nn.Linear, nn.modules.conv._ConvNd
_RECURRENT = nn.RNNBase, nn.RNNCellBase


def mixable(module: Any) -> Any:
    """Mark `module` as a layer whose output `ManifoldMixup` may mix, and return it.

    Where some modules of a model are marked, only they are chosen from. `mixable(nn.Identity())` marks any place that
    a model's `forward` takes its activations through.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), mixable(torch.nn.ReLU()), torch.nn.Linear(8, 2))
    >>> list(hidden_layers(model))
    ['1']
    """
    module.mixable = True
    return module


def hidden_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers of `model` that may be mixed, by name.

    Those marked by `mixable`, else the decoder blocks of a U-Net, else the network's blocks (residual blocks, encoder
    layers, `ConvLayer`, `LinBnDrop`, ...), else its convolutions and linear layers. Never a part of a block, which a
    residual connection may go around, nothing recurrent, no attention over sequences with the batch in second place
    (`batch_first=False`), and not the layer whose output is the prediction. What the `forward` of the model itself does
    is not seen: where it has branches or sums, mark the layers behind them. The features of a U-Net's encoder go around
    its decoder blocks, unmixed.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> hidden_layers(model)
    {'0': Linear(in_features=4, out_features=8, bias=True)}
    """
    names = {module: name for name, module in model.named_modules()}
    marked = [m for m in names if getattr(m, "mixable", None) is True]
    decoder = [m for m in names if type(m).__name__ == "UnetBlock"]
    return {names[m]: m for m in marked or decoder or _blocks(model)}


def _blocks(model: nn.Module) -> list[nn.Module]:
    last = [m for m in model.modules() if not list(m.children()) and list(m.parameters())][-1:]
    parts = [m for m in _parts(model, Counter(map(type, model.modules()))) if _computes(m)]
    head = [m for m in parts if set(last) & set(m.modules())]
    usable = [m for m in parts if m not in head and not any(map(_is_along_time, m.modules()))]
    # A head may have layers of its own, which come into question where nothing in front of it does
    return [m for m in usable if list(m.children())] or usable or [m for h in head for m in _blocks(h)]


def _parts(module: nn.Module, count: Counter[type]) -> list[nn.Module]:
    """The modules that follow one another in `module`: its children, and in the place of a stage what it lines up."""
    return [p for child in module.children() for p in (_parts(child, count) if _is_stage(child, count) else [child])]


def _is_stage(module: nn.Module, count: Counter[type]) -> bool:
    """Whether a module only lines others up: a plain container, or the one module of its class if it holds blocks.

    A class that occurs again is a block, whose parts may run side by side.
    """
    if not _is_own(module):
        return type(module) in (nn.Sequential, nn.ModuleList)
    return count[type(module)] == 1 and any(
        _repeats(c) or (_is_own(c) and _is_stage(c, count)) for c in module.children()
    )


def _repeats(module: nn.Module) -> bool:
    """Whether a plain container holds blocks of one class."""
    blocks = _parts(module, Counter()) if type(module) in (nn.Sequential, nn.ModuleList) else []
    kinds = Counter(type(m) for m in blocks if _is_own(m) and _computes(m))
    return max(kinds.values(), default=0) > 1


def _is_own(module: nn.Module) -> bool:
    """Whether a module made of others has a `forward` of its own."""
    return bool(list(module.children())) and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def _is_along_time(module: nn.Module) -> bool:
    """Whether a module carries a state from sample to sample in time, or wants the time in the place of the batch."""
    return isinstance(module, _RECURRENT) or getattr(module, "batch_first", True) is False


def _computes(module: nn.Module) -> bool:
    return any(isinstance(m, _WEIGHTS) for m in module.modules())


@delegates()
class ManifoldMixup(MixHandler):
    """Average each sample with its partner in one random layer of each batch.

    The layer's output may be a tensor or any nest of tuples, lists and mappings: every floating-point tensor with the
    batch in front is mixed. From `before_fit` on, its attribute `hidden_layers` has the layers in question by name, as
    the function finds them; in a batch `mixed_layer` is the one drawn, None for the input.
    ValueError in `before_fit` if there are none; RuntimeError if one of them does not run once in a batch. With
    `torch.compile` all the layers in question are in one graph, and what was compiled is compiled anew for each fit.
    The paper: https://proceedings.mlr.press/v97/verma19a

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> ManifoldMixup(2.0, modules=[model[1]], input_mixup=False)  # behind the ReLU, never the input
    ManifoldMixup(alpha=2.0, prob=1.0)
    """

    def __init__(
        self,
        alpha: Any = 0.4,  # Shares are drawn from Beta(alpha, alpha), alpha > 0, or a schedule
        *,
        modules: Iterable[nn.Module] | None = None,  # Layers to choose from; None: those that `hidden_layers` finds
        input_mixup: bool = True,  # Choose the input, too, where it is made of floating-point numbers
        **kwargs: Any,
    ):
        super().__init__(alpha, **kwargs)
        self.input_mixup, self.modules, self.hidden_layers = _flag("input_mixup", input_mixup), None, {}
        if modules is not None:
            self.modules = _modules(modules)
        self.mixed_layer: Any = None
        self._pass, self._hooks = self._new_pass(), []

    draw = MixUp.draw

    def before_fit(self) -> None:
        super().before_fit()
        self._pass = self._new_pass()
        self.find_layers()

    def _new_pass(self) -> Any:
        return _Pass()

    def find_layers(self) -> None:
        """Fill `hidden_layers` from the model of the learner."""
        model = getattr(self.model, "_orig_mod", self.model)  # what torch.compile put into a module of its own
        names = {module: name for name, module in model.named_modules()}
        if foreign := [type(m).__name__ for m in self.modules or () if m not in names]:
            raise ValueError(f"modules came with {foreign}, which {type(model).__name__} does not contain")
        self.hidden_layers = hidden_layers(model) if self.modules is None else {names[m]: m for m in self.modules}
        if not self.hidden_layers:
            raise ValueError(
                f"no layer of {type(model).__name__} was found that may be mixed: name some (modules=[...]) or "
                "mark them in the model (mixable(layer))"
            )

    def before_batch(self) -> None:
        self._pass.mix = None
        if not self._hooks:
            self.hook_layers()
        super().before_batch()

    def hook_layers(self) -> None:
        """Register the hooks until the end of the training: a compiled model takes no notice of changes."""
        layers = enumerate(self.hidden_layers.values())
        self._hooks = [m.register_forward_hook(_Hook(self._pass, self.model, m, at)) for at, m in layers]
        if self._pass.runs is None and "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # or a graph that was compiled before the hooks came would serve on
        self._pass.runs = []

    def restore(self) -> None:
        super().restore()
        while self._hooks:
            self._hooks.pop().remove()
        self._pass.mix = None

    def mix_features(self) -> None:
        floats = all(t.is_floating_point() for t in tensors(self.xb) if t.numel())
        if inputs := self.input_mixup and floats:
            self._pass.check(self.xb)
        at = self.rng.randrange(len(self.hidden_layers) + inputs)
        self.mixed_layer = [*self.hidden_layers, None][at]
        self._pass.begin(self.mix, at, len(self.hidden_layers))
        if self.mixed_layer is None:
            self.mix = self._pass.mix_for(self.xb)
            super().mix_features()

    def after_pred(self) -> None:
        if self._pass.mix is not None:
            self._pass.forward = False
            runs = dict(zip(self.hidden_layers, self._pass.runs, strict=True))
            if wrong := {name: n for name, n in runs.items() if n != 1}:
                mode = "" if self.model.training else " (the model is in eval mode, in which nothing is mixed)"
                raise RuntimeError(
                    "layers that may be mixed have to run once in a forward pass, these ran as often as the number "
                    f"says: {wrong}{mode}; choose from others (modules=[...])"
                )
        super().after_pred()

    def after_batch(self) -> None:
        super().after_batch()
        self._pass.mix = None

    def input_is_mixed(self) -> bool:
        return self.stack_x or self.mixed_layer is None


class _Pass:
    """What the hooks read: the mix of the batch that is on its way, and the number of the layer to be mixed.

    A plain object, so that a compiled model can read and write it.
    """

    mix: Any = None  # until the backward pass is over
    runs: Any = None  # of each layer in this forward pass

    def mix_for(self, nest: Any) -> Mix:
        """The mix as it is for a layer's output."""
        return self.mix

    def check(self, nest: Any) -> Any:
        """Refuse a layer whose output cannot be mixed, even in a batch that is mixed elsewhere."""

    def begin(self, mix: Mix, at: int, layers: int) -> None:
        self.mix, self.at, self.runs, self.forward = mix, at, [0] * layers, True
        self.used: list[Any] = [None] * layers  # the mix of each layer
        self.drawn = torch.full((), at, device=mix.mask.device)  # for compiled models, which get one graph for all


class _Hook:
    """The forward hook of the layer with number `at`. A copy or a pickle of it does nothing, wherever it is opened."""

    def __init__(self, state: _Pass, model: nn.Module, layer: nn.Module, at: int):
        self.state, self.model, self.layer, self.at = state, model, layer, at

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        state, at = self.state, self.at
        if state.mix is None:
            return None
        if torch.compiler.is_compiling():
            if not (state.forward and module.training):
                return None
            state.runs[at] += 1
            state.used[at] = mix = state.mix_for(output)
            mask = torch.where(state.drawn == at, mix.mask, torch.ones_like(mix.mask))
            return blend_all(Mix(mix.partner, mask), output)
        backward = torch._C._current_graph_task_id() != -1  # where activation checkpointing runs layers again
        if module is not self.layer or not self.model.training or not (state.forward or backward):
            return None
        state.check(output)
        state.runs[at] += state.forward
        if state.at != at:
            return None
        state.used[at] = state.mix_for(output)
        return blend_all(state.used[at], output)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return partial, (noop, None)


@delegates()
class PatchUp(ManifoldMixup):
    """Mix one box of each sample's feature maps in one random layer of each batch, https://arxiv.org/abs/2006.07794.

    `ManifoldMixup`'s place with `CutMix`'s mask: layers, input and errors are as there, but each layer in question has
    to give (B, C, *size), ValueError otherwise. The share kept is counted on the feature map. The paper has many small
    blocks where this has one box.
    """

    def __init__(
        self,
        alpha: Any = 2.0,  # Shares are drawn from Beta(alpha, alpha), alpha > 0, or a schedule
        *,
        hard: bool = False,  # Replace the box by the partner's; False: average inside of it, by another share
        **kwargs: Any,
    ):
        self.hard = _flag("hard", hard)
        super().__init__(alpha, **kwargs)

    def _new_pass(self) -> Any:
        return _BoxPass()

    def mix_features(self) -> None:
        positions = tensors(self.xb)[0].shape[2:]
        if maps := [tuple(y.shape) for y in self._own if positions and y.shape[1:][-len(positions) :] == positions]:
            raise ValueError(f"PatchUp wants targets of whole samples, maps of shapes {maps} came: use CutMix")
        n, device = len(self.lam) if self.per_sample and not self.one_lam else 1, self.lam.device
        with self.drawing(device):
            self._pass.centre = torch.rand(3, n, device=device).expand(3, len(self.lam))
            self._pass.inside = None if self.hard else self.draw_lam(self.lam)[:n].expand_as(self.lam)
        super().mix_features()
        self._see(self.mix)

    def after_pred(self) -> None:
        if self._pass.mix is not None and self.mixed_layer is not None:
            self._see(self._pass.used[self._pass.at])
        super().after_pred()

    def blend_targets(self) -> None:
        """Blend them by the share alone: the positions of a layer are not theirs."""
        layer, self.mix = self.mix, Mix(self.mix.partner, self.mix.lam)
        super().blend_targets()
        self.mix = layer

    def cuts(self, y: Tensor) -> bool:
        return False

    def _see(self, mix: Mix | None) -> None:
        """Let targets and loss have the shares of the layer that was mixed, if it ran."""
        self.mix = mix or self.mix
        self.blend_targets()


class _BoxPass(_Pass):
    """What `PatchUp`'s hooks read: also where the boxes are, and the share kept inside of them."""

    centre: Any
    inside: Any

    def mix_for(self, nest: Any) -> Mix:
        size = self.size(nest)
        mask = box_mask(self.mix.mask, size, self.centre[: len(size)])
        if self.inside is not None:
            mask = torch.where(mask, 1.0, self.inside.view(-1, *[1] * len(size)))
        return Mix(self.mix.partner, mask)

    def size(self, nest: Any) -> torch.Size:
        shapes = [t.shape for t in tensors(nest)]
        found = [shape[2:] for shape in shapes if 3 <= len(shape) <= 5]
        if not found:
            raise ValueError(
                "PatchUp wants layers that give (B, C, *size) with up to three axes, shapes "
                f"{list(map(tuple, shapes))} came: choose from others (modules=[...]), or use ManifoldMixup"
            )
        return found[0]

    check = size


@delegates()
class OutputMixup(MixHandler):
    """Average each sample's prediction with its partner's, before the loss.

    The last layer's place in ManifoldMixup: it costs least and needs no layer to be chosen; for any input.

    >>> pred = torch.eye(3)
    >>> mix = OutputMixup(0.4).draw(pred)
    >>> torch.allclose(mix.blend(pred).diag(), mix.lam)
    True
    """

    order = 1  # after RNNCallback, which takes the prediction out of what a text model returns

    def __init__(
        self,
        alpha: Any = 0.4,  # Shares are drawn from Beta(alpha, alpha), alpha > 0, or a schedule
        **kwargs: Any,
    ):
        super().__init__(alpha, **kwargs)

    draw = MixUp.draw

    def mix_features(self) -> None:
        pass

    def input_is_mixed(self) -> bool:
        return self.stack_x

    def after_pred(self) -> None:
        if self.mix is not None and not self.stack_x:
            self.learn.pred = blend_all(self.mix, self.pred)
        super().after_pred()


def blend_all(mix: Mix, nest: Any) -> Any:
    """Return a nest of tuples, lists and mappings with every floating-point tensor that has the batch in front mixed.

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
        shapes = [tuple(t.shape) for t in tensors(nest)]
        raise ValueError(
            f"tensors of floats with {n} samples in front were wanted of a layer to be mixed, shapes {shapes} came: "
            "choose from other layers (modules=[...])"
        )
    return result


def _modules(modules: Iterable[nn.Module]) -> list[nn.Module]:
    given = list(modules) if isinstance(modules, Iterable) and not isinstance(modules, nn.Module) else []
    if not given or not all(isinstance(m, nn.Module) for m in given):
        raise ValueError(f"modules came as {modules!r}, a list of one torch.nn.Module at least was wanted")
    return given
