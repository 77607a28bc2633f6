"""The methods that mix in feature space: the output of one random layer of each batch."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from fastcore.basics import noop
from torch import nn
from typing_extensions import Unpack

from ..handler import MixHandler
from ..layers import hidden_layers
from ..mix import Mix, map_tensors, tensors
from ..options import MixOptions, Schedule, flag, with_options
from ..torch_private import forget_compiled, unwrapped
from .output import blend_floats


@with_options
class ManifoldMixup(MixHandler):
    """Average each sample's activations with its partner's in one random layer of each batch (Verma et al., 2019).

    From `before_fit` on, the attribute `hidden_layers` holds the candidates by name, as the function of that name finds
    them; `mixed_layer` is the one drawn for a batch, None for the input. With `torch.compile` all candidates are in one
    graph, and compiled models are compiled anew for each fit.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        modules: Layers to choose from; None: those that :func:`hidden_layers` finds.
        input_mixup: Choose the input too, if all inputs are floating-point.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Any inputs. The output of a candidate is a tensor ``(B, ...)`` or a nest of tuples, lists and mappings, in which
        every floating-point tensor ``(B, ...)`` is mixed.

    Raises:
        ValueError: In `before_fit`, if the model has no candidates or does not contain `modules`.
        RuntimeError: If a candidate does not run exactly once in a batch.

    Reference: https://proceedings.mlr.press/v97/verma19a

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> ManifoldMixup(2.0, modules=[model[1]], input_mixup=False)
    ManifoldMixup(2.0, modules=[ReLU()], input_mixup=False)
    """

    _mixes_input = False
    mixed_layer: str | None = None
    _loss_hook: Any = None

    def __init__(
        self,
        alpha: float | Schedule = 0.4,
        *,
        modules: Iterable[nn.Module] | None = None,
        input_mixup: bool = True,
        **kwargs: Unpack[MixOptions],
    ):
        super().__init__(alpha, **kwargs)
        self.input_mixup, self.hidden_layers = flag("input_mixup", input_mixup), {}
        self.modules = None if modules is None else _modules(modules)
        self._hooks: list[Any] = []
        self._pass: Any = self._new_pass()

    def _new_pass(self) -> "Pass":
        return Pass()

    def before_fit(self) -> None:
        """Find the candidates."""
        super().before_fit()
        self._pass = self._new_pass()
        model = unwrapped(self.learn.model)
        names = {module: name for name, module in model.named_modules()}
        if foreign := [type(m).__name__ for m in self.modules or () if m not in names]:
            raise ValueError(f"modules must be layers of {type(model).__name__}, got {foreign}")
        self.hidden_layers = hidden_layers(model) if self.modules is None else {names[m]: m for m in self.modules}
        if not self.hidden_layers:
            raise ValueError(
                f"Expected a model with layers that may be mixed, found none in {type(model).__name__}. Name some "
                "(modules=[...]) or mark them in the model (mixable(layer))"
            )

    def before_batch(self) -> None:
        """Draw the mix and the layer."""
        self._pass.mix, self._mixes_input = None, False
        if not self._checked:  # added in the middle of a fit
            self.before_fit()
        if not self._hooks:
            self._register_hooks()
        super().before_batch()
        if self.mix is not None and not self.stack_x:
            self._choose_layer()

    def _register_hooks(self) -> None:
        """Register the hooks until the end of the training: compiled models do not notice changes."""
        layers, model = enumerate(self.hidden_layers.values()), self.learn.model
        self._hooks = [m.register_forward_hook(_Hook(self._pass, model, m, at)) for at, m in layers]
        if self._pass.runs is None:
            forget_compiled()  # or a graph that was compiled without hooks would be used
        self._pass.runs = []

    def _choose_layer(self) -> None:
        """Draw the layer to mix in this batch; if it is the input, mix that."""
        xb = tuple(self.learn.xb)
        may_mix_input = self.input_mixup and all(t.is_floating_point() for t in tensors(xb) if t.numel())
        if may_mix_input:
            self._pass.check(xb)
        at = int(self.rng.integers(len(self.hidden_layers) + may_mix_input))
        self.mixed_layer = [*self.hidden_layers, None][at]
        self._pass.begin(self.mix, at, len(self.hidden_layers))
        if self.mixed_layer is None:  # the input
            self._mixes_input = True
            self.mix = mix = self._pass.mix_for(xb)
            self.learn.xb = map_tensors(mix.blend, xb)

    def after_pred(self) -> None:
        """Check that every candidate ran once."""
        if self._pass.mix is not None:
            self._pass.running = False
            runs = dict(zip(self.hidden_layers, self._pass.runs, strict=True))
            if wrong := {name: n for name, n in runs.items() if n != 1}:
                mode = "" if self.learn.model.training else " The model is in eval mode: call model.train()."
                raise RuntimeError(
                    f"Each mixed layer must run exactly once per forward pass, but the counts were {wrong}.{mode} "
                    "Choose other layers (modules=[...]); a callback that runs the model before the loss needs an "
                    f"order < {self.order}"
                )
        super().after_pred()

    def after_loss(self) -> None:
        """Restore targets and loss, unless the input was mixed and another pass may follow."""
        state, loss = self._pass, self.learn.loss_grad
        if state.mix is not None and loss.requires_grad:
            # Activation checkpointing runs layers again in the backward pass, which begins with this hook
            self._loss_hook = loss.register_hook(lambda grad: setattr(state, "running", True))
        if not (self._mixes_input or self.stack_x):
            self._reset_batch()

    def after_backward(self) -> None:
        """Mix no other pass."""
        self._pass.running = False

    def after_batch(self) -> None:
        """Restore targets and loss, and mix no more."""
        super().after_batch()
        self._remove_loss_hook()
        self._pass.mix, self._mixes_input = None, False

    def _remove_loss_hook(self) -> None:
        if self._loss_hook is not None:
            self._loss_hook.remove()
            self._loss_hook = None

    def _restore_learner(self) -> None:
        super()._restore_learner()
        self._remove_loss_hook()
        while self._hooks:
            self._hooks.pop().remove()
        self._pass.mix = None


class Pass:
    """What the hooks read: the mix of the current batch and the index of the layer to mix.

    A plain object, so that a compiled model can read and write it.
    """

    mix: Any = None  # until the backward pass is over
    runs: Any = None  # of each layer in this forward pass
    running = False  # whether this batch's forward or backward pass is running

    def mix_for(self, nest: Any) -> Mix:
        """Return the mix for a layer's output."""
        return self.mix

    def check(self, nest: Any) -> Any:
        """Raise an error for a layer whose output cannot be mixed, even if another layer is mixed in this batch."""

    def begin(self, mix: Any, at: int, layers: int) -> None:
        """Prepare for the forward pass of a batch, in which layer `at` of `layers` is mixed."""
        self.mix, self.at, self.runs, self.running = mix, at, [0] * layers, True
        self.used: list[Any] = [None] * layers  # the mix of each layer
        self.drawn = torch.full((), at, device=mix.mask.device)  # for compiled models: one graph for all layers


class _Hook:
    """The forward hook of layer `at`. Copies and pickles do nothing, so that a copied model is not mixed."""

    def __init__(self, state: Pass, model: nn.Module, layer: nn.Module, at: int):
        self.state, self.model, self.layer, self.at = state, model, layer, at

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        state, at = self.state, self.at
        if state.mix is None or not state.running:
            return None
        if torch.compiler.is_compiling():
            if not module.training:
                return None
            state.runs[at] += 1
            state.used[at] = mix = state.mix_for(output)
            mask = torch.where(state.drawn == at, mix.mask, torch.ones_like(mix.mask))
            return blend_floats(Mix(mix.partner, mask), output)
        if module is not self.layer or not self.model.training:  # of a copy of the model
            return None
        state.check(output)
        state.runs[at] += 1
        if state.at != at:
            return None
        state.used[at] = state.mix_for(output)
        return blend_floats(state.used[at], output)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return partial, (noop, None)


def _modules(modules: Iterable[nn.Module]) -> list[nn.Module]:
    given = list(modules) if isinstance(modules, Iterable) and not isinstance(modules, nn.Module) else []
    if not given or not all(isinstance(m, nn.Module) for m in given):
        raise ValueError(f"modules must be a non-empty list of torch.nn.Module, got {modules!r}")
    return given
