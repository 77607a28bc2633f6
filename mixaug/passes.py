"""What happens in a batch after its mixing: which predictions, targets and losses are of the mix."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor

from .batch import MIX_LATER, MixedBatch
from .graph import descends, functions
from .lifecycle import OwnHook
from .mix import same, tensors
from .targets import is_equal


class Passes:
    """Keeps track of the passes over one batch: the mixed one, second ones, those over the unmixed inputs.

    Args:
        xb: Inputs before mixing.
        yb: Targets before mixing.
        mixed: The batch.
    """

    def __init__(self, xb: tuple, yb: tuple, mixed: MixedBatch):
        self.xb, self.mixed_xb, self.targets = xb, mixed.xb, tuple(mixed.yb)
        self.known = [tuple(yb), mixed.original, self.targets]  # the targets, in each form that they had
        self.pred: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.begun, self.saw_unmixed = 0, False  # passes, and whether the last one was over the unmixed inputs

    def predicted(self, pred: Any, yb: tuple) -> None:
        """Take down the prediction of the mixed pass, and the targets as the last callback left them."""
        self.pred, self.targets = tensors(pred), tuple(yb)
        self.known.append(self.targets)

    def begins(self, inputs: Any, xb: tuple) -> None:
        """Take down that a pass over these inputs begins; `xb` is the batch as the last callback left it."""
        given, mixed, now = tensors(inputs), tensors(self.mixed_xb), tensors(xb)
        if len(now) == len(mixed) and any(x is t for x in given for t in now):
            sizes = [[len(t) for t in some if t.ndim] for some in (mixed, now)]
            if sizes[0] != sizes[1]:
                raise ValueError(f"Expected {sizes[0]} samples, as were mixed, got {sizes[1]}. {MIX_LATER}")
        self.begun += 1
        unmixed = [x for x in tensors(self.xb) if not any(x is t for t in mixed)]
        self.saw_unmixed = any(same(x, t) for x in unmixed for t in given)

    def are_targets(self, yb: tuple, pred: Any) -> bool:
        """Return whether these are the targets of this batch, before or after mixing."""
        known = [kind for kind in self.known if len(kind) == len(yb)]
        if known and all(any(same(y, t) for t in forms) for y, *forms in zip(yb, *known, strict=True)):
            return True
        # A copy has the same values, which other targets of this prediction, such as pseudo-labels, have not
        return self.is_own(tensors(pred)) and any(all(map(is_equal, yb, kind)) for kind in known)

    def is_own(self, pred: list[Tensor]) -> bool:
        """Return whether a prediction, given its tensors, is that of the mixed pass or was computed from it."""
        return any(same(t, own) for t in pred for own in self.pred) or descends(pred, functions(self.pred))

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


class Watch(OwnHook):
    """A hook that notices passes of the model, or of a copy of it, over inputs as they were before mixing."""

    def __init__(self, mixer: Any):
        super().__init__(id(mixer))
        self.mixer = ref(mixer)

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        mixer = None if torch.compiler.is_compiling() else self.mixer()
        if mixer is not None and mixer._passes is not None:
            mixer._passes.begins((args, kwargs), mixer.learn.xb)

    def __deepcopy__(self, memo: dict) -> "Watch":
        return self
