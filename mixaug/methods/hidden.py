"""The methods that mix in feature space: the output of one random layer of each batch."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from ..exchange import Place
from ..graph import descends, functions
from ..handler import MixHandler
from ..layers import find_places
from ..lifecycle import OwnHook, own_hooks
from ..mix import Mix
from ..nests import tensors
from ..options import MixOptions, Schedule, flag, with_options
from ..targets import each, mixed_inputs, unmixable
from ..torch_private import forget_compiled, unwrapped
from .output import blend_floats


@with_options
class ManifoldMixup(MixHandler):
    """Average each sample's activations with its partner's in one random layer of each batch (Verma et al., 2019).

    From the first batch of a fit on, the attribute `hidden_layers` holds the candidates by name, as the function of
    that name finds and tests them; `mixed_layer` is the one drawn for a batch, None for the input. With `torch.compile`
    all candidates are in one graph, and compiled models are compiled anew for each fit.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        modules: Layers to choose from; layers in a tuple, such as parallel stems, are mixed together. None: those that
            :func:`hidden_layers` finds.
        input_mixup: Choose the input too, if all inputs to mix are floating-point.
        verify: Test on the first batch of a fit that nothing goes around the layers; False: mix `modules` untested.
        **kwargs: See :class:`MixHandler`.

    Shape:
        Any inputs. The output of a candidate is a tensor ``(B, ...)`` or a nest of tuples, lists and mappings, in which
        every floating-point tensor ``(B, ...)`` is mixed.

    Raises:
        ValueError: If the model has no candidates or does not contain `modules`, or if something goes around a layer
            that is named or marked.
        RuntimeError: If the layer to mix does not run as often as it did when it was tested.

    Reference: https://proceedings.mlr.press/v97/verma19a

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> ManifoldMixup(2.0, modules=[model[1]], input_mixup=False)
    ManifoldMixup(2.0, modules=[ReLU()], input_mixup=False)
    """

    _mixes_input = False
    mixed_layer: str | None = None
    _hooked = False
    _loss_hook: Any = None

    def __init__(
        self,
        alpha: float | Schedule = 0.4,
        *,
        modules: Iterable[nn.Module | tuple[nn.Module, ...]] | None = None,
        input_mixup: bool = True,
        verify: bool = True,
        **kwargs: Unpack[MixOptions],
    ):
        super().__init__(alpha, **kwargs)
        self.input_mixup, self.verify = flag("input_mixup", input_mixup), flag("verify", verify)
        self.modules = None if modules is None else _modules(modules)
        if not verify and modules is None:
            raise ValueError("verify=False must come with modules, the layers to mix untested")
        self._places: list[Place] = []
        self._pass: Any = self._new_pass()

    def _new_pass(self) -> "Pass":
        return Pass()

    @property
    def hidden_layers(self) -> dict[str, Any]:
        """Layers, or tuples of layers that are mixed together, by their names."""
        return {place.name: place.value for place in self._places}

    def before_fit(self) -> None:
        """Find the candidates."""
        super().before_fit()
        self._pass, self._places = self._new_pass(), []
        model = unwrapped(self.learn.model)
        inside = set(model.modules())
        if foreign := [type(m).__name__ for m in _flat(self.modules or ()) if m not in inside]:
            raise ValueError(f"modules must be layers of {type(model).__name__}, got {foreign}")
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError(
                "Expected a model that sees whole batches, got nn.DataParallel, which splits them, so that partners "
                "are on other devices. Start a process for each device (accelerate launch), or mix the input or the "
                "prediction (MixUp, CutMix, OutputMixup)"
            )
        if not find_places(model, (), self.modules):
            raise ValueError(self._none_found("that may be mixed"))

    def _none_found(self, what: str) -> str:
        return (
            f"Expected a model with layers {what}, found none in {type(unwrapped(self.learn.model)).__name__}. Name "
            "some (modules=[...]) or mark them in the model (mixable(layer)), or use OutputMixup"
        )

    def before_batch(self) -> None:
        """Draw the mix and the layer."""
        self._pass.mix, self._mixes_input = None, False
        if not self._checked:  # added in the middle of a fit
            self.before_fit()
        xb = tuple(self.learn.xb)
        if not (self._hooked or self.stack_x) and len(next((t for t in tensors(xb) if t.ndim), ())) > 1:
            if not self._places:
                self._find_places(xb)
            self._register_hooks()
        super().before_batch()
        if self.mix is not None and not self.stack_x:
            self._choose_layer()

    def _find_places(self, xb: tuple) -> None:
        """Find the layers and test them, once a fit."""
        xb, accept = xb if self.verify else (), self._pass.accepts
        self._places = find_places(self.learn.model, xb, self.modules, is_own=own_hooks(self.learn), accept=accept)
        if not self._places:
            raise ValueError(self._none_found("that nothing goes around"))

    def _register_hooks(self) -> None:
        """Register the hooks until the end of the training: compiled models do not notice changes."""
        self._hooked = True
        for at, place in enumerate(self._places):
            for m, rows in zip(place.layers, place.rows or [()] * len(place.layers), strict=True):
                m.register_forward_hook(_Hook(id(self), self._pass, self.learn.model, m, at, place.run, rows))
        if self._pass.runs is None:
            forget_compiled()  # or a graph that was compiled without hooks would be used
        self._pass.runs = []

    def _choose_layer(self) -> None:
        """Draw the layer to mix in this batch; if it is the input, mix that."""
        xb = tuple(self.learn.xb)
        rules = each("inputs", self.inputs, xb)
        mixed = [x for x, rule in zip(xb, rules, strict=True) if rule in (None, "mix")]
        to_mix, may_mix_input = tensors(mixed), self.input_mixup and not unmixable(mixed)
        may_mix_input = may_mix_input and all(t.is_floating_point() for t in to_mix if t.numel())
        if may_mix_input:
            self._pass.check(to_mix)
        at = int(self.rng.integers(len(self._places) + may_mix_input))
        self.mixed_layer = [*(place.name for place in self._places), None][at]
        self._pass.begin(self.mix, at, len(self._places))
        if self.mixed_layer is None:  # the input
            self._mixes_input = True
            self.mix = mix = self._pass.mix_for(to_mix)
            self.learn.xb = mixed_inputs(xb, rules, mix)
            self._passes.inputs["mixed"] = [self.learn.xb]

    def after_pred(self) -> None:
        """Check that the layer ran as often as it did when it was tested."""
        if self._pass.mix is not None:
            self._pass.running = False
            if self.mixed_layer is not None:
                place, ran = self._places[self._pass.at], self._pass.runs[self._pass.at]
                if ran == 0 and not set(place.layers) <= set(unwrapped(self.learn.model).modules()):
                    raise RuntimeError(f"Expected the model that has '{place.name}', but it was replaced in the fit")
                if ran == 0 and self.learn.model.training:  # some models skip layers at random
                    self._restore_targets()
                    self.mix, self.yb1, self.lam = None, None, torch.ones_like(self.lam)
                elif ran != (runs := place.runs or len(place.layers)):
                    mode = "" if self.learn.model.training else " The model is in eval mode: call model.train()."
                    raise RuntimeError(
                        f"Expected {runs} runs of '{place.name}' in the forward pass, got {ran}.{mode} Choose other "
                        "layers (modules=[...]); a callback that runs the model before the loss needs an order below "
                        "that of the mixing callback (`mixer.order = 50`)"
                    )
        super().after_pred()

    def _is_mixed(self, pred: Any) -> bool:
        if self._mixes_input or self.stack_x:
            return super()._is_mixed(pred)
        mixed = functions(self._pass.mixed)
        if descends(tensors(pred), mixed):
            return True
        origin = self._passes.known_origin(pred)
        # The output of a layer without gradients, or in a compiled model, is no part of the graph
        return origin == "own" or (origin == "inside" and not mixed)

    def after_loss(self) -> None:
        """Restore the targets, unless the input was mixed and another pass may follow."""
        state, loss = self._pass, self.learn.loss_grad
        if state.mix is not None and loss.requires_grad:
            # Activation checkpointing runs layers again in the backward pass, which begins with this hook
            self._loss_hook = loss.register_hook(lambda grad: setattr(state, "running", True))
        if self._in_batch and not (self._mixes_input or self.stack_x):
            self._restore_targets()

    def after_backward(self) -> None:
        """Mix no other pass."""
        self._pass.running = False

    def after_batch(self) -> None:
        """Restore targets and loss, and mix no more."""
        super().after_batch()
        self._remove_loss_hook()
        self._pass.reset()
        self._mixes_input = False

    def _remove_loss_hook(self) -> None:
        if self._loss_hook is not None:
            self._loss_hook.remove()
            self._loss_hook = None

    def _restore_learner(self) -> None:
        super()._restore_learner()
        self._hooked = False
        self._remove_loss_hook()
        self._pass.reset()


class Pass:
    """What the hooks read: the mix of the current batch and the index of the layer to mix.

    A plain object, so that a compiled model can read and write it.
    """

    mix: Any = None  # until the backward pass is over
    mixed: Any = ()  # the outputs that were mixed
    runs: Any = None  # of each layer in this forward pass
    running = False  # whether this batch's forward or backward pass is running

    def mix_for(self, nest: Any) -> Mix:
        """Return the mix for a layer's output."""
        return self.mix

    def check(self, nest: Any) -> Any:
        """Raise an error for a layer whose output cannot be mixed, even if another layer is mixed in this batch."""

    def accepts(self, shapes: Any) -> bool:
        """Return whether outputs of these shapes can be mixed."""
        return True

    def reset(self) -> None:
        """Mix no more, and keep nothing of the batch."""
        self.mix, self.mixed = None, ()

    def begin(self, mix: Any, at: int, layers: int) -> None:
        """Prepare for the forward pass of a batch, in which layer `at` of `layers` is mixed."""
        self.mix, self.at, self.runs, self.running, self.mixed = mix, at, [0] * layers, True, ()
        self.used: list[Any] = [None] * layers  # the mix of each layer
        self.drawn = torch.full((), at, device=mix.mask.device)  # for compiled models: one graph for all layers


class _Hook(OwnHook):
    """The forward hook of a layer in place `at`, to mix all its runs or one. It does nothing in copies of the model."""

    def __init__(
        self, owner: int, state: Pass, model: nn.Module, layer: nn.Module, at: int, run: int | None, rows: Any
    ):
        super().__init__(owner)
        self.state, self.model, self.layer, self.at, self.run, self.rows = state, model, layer, at, run, rows

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        state, at = self.state, self.at
        if state.mix is None or not state.running:
            return None
        if torch.compiler.is_compiling():
            if not module.training:
                return None
            state.runs[at] += 1
            if self.run not in (None, state.runs[at] - 1):
                return None
            state.used[at] = mix = state.mix_for(output)
            mask = torch.where(state.drawn == at, mix.mask, torch.ones_like(mix.mask))
            return blend_floats(Mix(mix.partner, mask), output, self.rows)
        if module is not self.layer or not self.model.training:  # of a copy of the model
            return None
        state.check(output)
        state.runs[at] += 1
        if state.at != at or self.run not in (None, state.runs[at] - 1):
            return None
        state.used[at] = state.mix_for(output)
        output = blend_floats(state.used[at], output, self.rows)
        state.mixed = (*state.mixed, *tensors(output))
        return output


def _modules(modules: Iterable[Any]) -> list[Any]:
    given = list(modules) if isinstance(modules, Iterable) and not isinstance(modules, nn.Module) else []
    if not given or () in given or not all(isinstance(m, nn.Module) for m in _flat(given)):
        raise ValueError(f"modules must be a non-empty list of torch.nn.Module, or of tuples of them, got {modules!r}")
    return given


def _flat(modules: Iterable[Any]) -> list[Any]:
    """Return layers, those in tuples too."""
    return [m for value in modules for m in (value if isinstance(value, tuple) else (value,))]
