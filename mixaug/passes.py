"""What happens in a batch after its mixing: which predictions, targets and losses are of the mix."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor

from .batch import MIX_LATER, MixedBatch
from .graph import ancestors, descends, functions, is_leaf
from .lifecycle import OwnHook
from .nests import is_equal, same, tensors
from .torch_private import is_compiled_in_place

UNKNOWN = (
    "Expected a loss of what learn.model predicts for the batch, mixed or unmixed, got one of something else (other "
    "inputs, another model, parts of the model, a detached prediction), which may be either. Say which: "
    "mixer.old_lf(pred, *yb) is the loss of an unmixed one, mixaug.mixed_loss(mixer.old_lf, pred, yb, mixer.yb1, "
    "mixer.lam) that of a mixed one"
)


PART = (
    "Expected predictions and targets of the whole batch, learn.yb, got a part or a view of them. "
    "mixaug.mixed_loss(mixer.old_lf, pred, yb, partners, lam) takes parts of mixer.yb1 and mixer.lam; "
    "mixer.old_lf(pred, *yb) is the loss without mixing"
)


class Passes:
    """Keeps track of the passes over one batch: the mixed one, second ones, those over the unmixed inputs.

    Args:
        learn: The learner, with the batch before mixing.
        mixed: The batch.
        others: Which calls of the loss in a batch, by number, had other targets in a former batch of the fit.
    """

    def __init__(self, learn: Any, mixed: MixedBatch, others: set[int]):
        self.learn = learn
        self.inputs = {"mixed": [mixed.xb], "unmixed": [learn.xb]}  # each in the forms that they had
        self.targets = tuple(mixed.yb)
        self.known = [tuple(learn.yb), mixed.original, self.targets]  # the targets, likewise
        self.made, self.pred = False, None  # whether the mixed pass was made, and its prediction
        self.passes: list[tuple[Any, Any]] = []  # inputs and predictions
        self.losses: list[Tensor] = []
        self.calls, self.others = 0, others

    def predicted(self) -> None:
        """Take down the prediction of the mixed pass, with inputs and targets as the last callback left them."""
        self.made, self.pred, self.targets = True, self.learn.pred, tuple(self.learn.yb)
        self.inputs["mixed"].append(self.learn.xb)
        self.known.append(self.targets)

    def begins(self, inputs: Any) -> None:
        """Raise an error if a pass over the batch begins with another number of samples than was mixed."""
        given, mixed, now = map(tensors, (inputs, self.inputs["mixed"][-1], self.learn.xb))
        if len(now) == len(mixed) and any(x is t for x in given for t in now):
            sizes = [[len(t) for t in some if t.ndim] for some in (mixed, now)]
            if sizes[0] != sizes[1]:
                raise ValueError(f"Expected {sizes[0]} samples, as were mixed, got {sizes[1]}. {MIX_LATER}")

    def are_targets(self, yb: tuple, options: Any = None) -> bool:
        """Return whether these are the targets of this batch, before or after mixing."""
        if not yb and options and self.are_targets(tuple(tensors(list(options.values())))):
            raise TypeError("Expected targets by position, learn.loss_func(pred, *learn.yb), got them by keyword")
        self.calls += 1
        known = [kind for kind in self.known if len(kind) == len(yb)]
        if known and all(any(same(y, t) for t in forms) for y, *forms in zip(yb, *known, strict=True)):
            return True
        # A copy always has the same values; other targets, such as pseudo-labels, once in a while
        equal = any(all(map(is_equal, yb, kind)) for kind in known)
        if not equal:
            self.others.add(self.calls)
        return equal and self.calls not in self.others

    def are_part(self, yb: tuple) -> bool:
        """Return whether some of these targets are parts of those of this batch, or of another number of samples."""
        memory = [t.untyped_storage() for kind in self.known for t in kind]
        found, n = tensors(yb), {len(t) for t in self.targets if t.ndim}
        other = any(y.ndim and len(y) not in n for y in found)
        return other or any(y.untyped_storage() is m for y in found for m in memory)

    def require_all(self, pred: Any) -> None:
        """Raise an error for a prediction of some of the samples, beside the targets of all."""
        n = {len(t) for t in self.targets if t.ndim}
        if (
            isinstance(pred, Tensor)
            and pred.ndim
            and len(pred) not in n
            and {len(t) for t in tensors(self.pred) if t.ndim} <= n
        ):
            raise TypeError(PART)

    def origin(self, pred: Any) -> str:
        """Return what a prediction was computed from.

        The prediction of the mixed pass ("own"), what is "inside" of this pass, another pass over the "mixed", the
        "unmixed" or "other" inputs, or something "unknown".
        """
        for inside in (False, True):  # the prediction of a pass, then its layers
            for given, output in ((None, self.pred), *self.passes):
                if pred is output or _is_from(tensors(pred), tensors(output), inside):
                    return self._kind(given) if given is not None else "inside" if inside else "own"
        # Another callback detached it, or it is no nest of tensors
        return "own" if self.made and pred is self.learn.pred else "unknown"

    def known_origin(self, pred: Any) -> str:
        """Return what a prediction was computed from; RuntimeError if that is not known."""
        if (origin := self.origin(pred)) == "unknown":
            raise RuntimeError(UNKNOWN)
        return origin

    def is_mixed(self, pred: Any) -> bool:
        """Return whether a prediction is of mixed inputs, in whatever pass; RuntimeError if that is not known."""
        origin = self.known_origin(pred)
        if origin == "other":
            raise RuntimeError(UNKNOWN)
        return origin != "unmixed"

    def unmixed(self, yb: tuple) -> tuple:
        """Return the targets for a prediction that is not mixed, given those of the loss."""
        before, original, *_ = self.known
        return before if len(yb) == len(before) and all(map(same, yb, before)) else original

    def _kind(self, given: Any) -> str:
        given = tensors(given)
        for kind, forms in self.inputs.items():
            if any(len(form) == len(given) and all(map(is_equal, form, given)) for form in map(tensors, forms)):
                return kind
        return "other"

    def require_mixed(self, loss: Tensor) -> None:
        """Raise an error if the loss to train on does not have a mixed loss in it."""
        if any(loss is value for value in self.losses):
            return
        mixing = functions(self.losses)
        if not self.losses or (mixing and not descends([loss], mixing)):
            what = "another callback replaced learn.loss_grad" if self.losses else "nothing called learn.loss_func"
            raise RuntimeError(
                f"Expected the mixed loss of the batch as the loss to train on, but {what}. Compute losses by "
                "learn.loss_func(pred, *learn.yb), and add them to learn.loss_grad; a callback that replaces "
                "learn.loss_func after the prediction needs an order below that of the mixing callback "
                "(`mixer.order = 50`)"
            )


def _is_from(pred: list[Tensor], outputs: list[Tensor], inside: bool) -> bool:
    """Return whether tensors are, or were computed from, the outputs of a pass, or what is inside of it."""
    made = ancestors(outputs) if inside else functions(outputs)
    own = any(same(t, output) for t in pred for output in outputs)
    return own or descends(pred, {f for f in made if not is_leaf(f)})


class Watch(OwnHook):
    """A hook, before and after the passes of the model and of its copies, that takes down what they are over."""

    def __init__(self, mixer: Any):
        super().__init__(id(mixer))
        self.mixer = ref(mixer)

    def __call__(self, module: Any, args: Any, kwargs: Any, *output: Any) -> None:
        mixer = None if torch.compiler.is_compiling() else self.mixer()
        if mixer is None or mixer._passes is None:
            return
        if output:
            mixer._passes.passes.append(((args, kwargs), *output))
        else:
            mixer._passes.begins((args, kwargs))

    def __deepcopy__(self, memo: dict) -> "Watch":
        return self


def watch(mixer: Any) -> None:
    """Have the passes of the learner's model taken down, until training or a validation removes the hooks."""
    model = mixer.learn.model
    if mixer._watched is model:
        return
    mixer._watched = model
    # A model that was compiled in place would be compiled anew whenever a hook comes or goes; scripted ones take none
    if not (is_compiled_in_place(model) or isinstance(model, torch.jit.ScriptModule)):
        for register in (model.register_forward_pre_hook, model.register_forward_hook):
            register(Watch(mixer), with_kwargs=True)
