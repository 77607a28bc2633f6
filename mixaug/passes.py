"""What happens in a batch after its mixing: which predictions, targets and losses are of the mix."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor

from .batch import MIX_LATER, MixedBatch
from .graph import ancestors, descends, functions, is_leaf
from .lifecycle import OwnHook
from .mix import same, tensors
from .targets import is_equal


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
        self.pred: list[Tensor] = []
        self.passes: list[tuple[Any, list[Tensor]]] = []  # inputs and predictions
        self.losses: list[Tensor] = []
        self.calls, self.others = 0, others

    def predicted(self) -> None:
        """Take down the prediction of the mixed pass, with inputs and targets as the last callback left them."""
        self.pred, self.targets = tensors(self.learn.pred), tuple(self.learn.yb)
        self.inputs["mixed"].append(self.learn.xb)
        self.known.append(self.targets)

    def begins(self, inputs: Any) -> None:
        """Raise an error if a pass over the batch begins with another number of samples than was mixed."""
        given, mixed, now = map(tensors, (inputs, self.inputs["mixed"][-1], self.learn.xb))
        if len(now) == len(mixed) and any(x is t for x in given for t in now):
            sizes = [[len(t) for t in some if t.ndim] for some in (mixed, now)]
            if sizes[0] != sizes[1]:
                raise ValueError(f"Expected {sizes[0]} samples, as were mixed, got {sizes[1]}. {MIX_LATER}")

    def are_targets(self, yb: tuple) -> bool:
        """Return whether these are the targets of this batch, before or after mixing."""
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
        """Return whether some of these targets are parts of those of this batch."""
        memory = [t.untyped_storage() for kind in self.known for t in kind]
        return any(y.untyped_storage() is m for y in tensors(yb) for m in memory)

    def origin(self, pred: Any) -> str:
        """Return what a prediction was computed from.

        The prediction of the mixed pass ("own"), what is "inside" of this pass, another pass over the "mixed", the
        "unmixed" or "other" inputs, or something "unknown".
        """
        found = tensors(pred)
        for inside in (False, True):  # the prediction of a pass, then its layers
            for given, outputs in ((None, self.pred), *self.passes):
                made = ancestors(outputs) if inside else functions(outputs)
                if _is_from(found, outputs, {f for f in made if not is_leaf(f)}):
                    return self._kind(given) if given is not None else "inside" if inside else "own"
        return "own" if self.pred and pred is self.learn.pred else "unknown"  # another callback detached it

    def is_mixed(self, pred: Any) -> bool:
        """Return whether a prediction is of mixed inputs, in whatever pass; RuntimeError if that is not known."""
        origin = self.origin(pred)
        if origin in ("other", "unknown"):
            raise RuntimeError(
                "Expected a loss of what learn.model predicts for the batch, mixed or unmixed, got one of something "
                "else (other inputs, another model, parts of the model), which may be either. Say which: "
                "mixer.old_lf(pred, *yb) is the loss of an unmixed one, mixaug.mixed_loss(mixer.old_lf, pred, yb, "
                "mixer.yb1, mixer.lam) that of a mixed one"
            )
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


def _is_from(pred: list[Tensor], outputs: list[Tensor], made: set[Any]) -> bool:
    return any(same(t, own) for t in pred for own in outputs) or descends(pred, made)


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
            mixer._passes.passes.append(((args, kwargs), tensors(output)))
        else:
            mixer._passes.begins((args, kwargs))

    def __deepcopy__(self, memo: dict) -> "Watch":
        return self
