"""Mixes one batch: inputs, targets and loss, all decided once. Independent of `Learner`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .loss import examine, mixed_loss
from .mix import Mix
from .nests import like, map_tensors, map_with, tensors
from .targets import each, is_changed, mixed_inputs, mixed_targets, rule_for
from .torch_private import no_subclass

if TYPE_CHECKING:
    from .handler import MixHandler

MIX_LATER = (
    "Give the mixing callback a higher order than that of the callback which changes this, as in `mixer.order = 50`: "
    "then it mixes what is there"
)


@dataclass(frozen=True)
class MixedBatch:
    """A batch after mixing. :func:`mix_batch` makes it.

    Args:
        xb: Inputs for the model.
        yb: Targets for the loss.
        yb1: Each sample's partner's targets; those of k - 1 partners ``(k - 1, B, ...)`` in mixes of k > 2 samples.
        lam: Mixing coefficients of the targets, ``(B,)``; ``(B, k)`` in mixes of k > 2 samples.
        rules: What became of each target: ``"loss"`` (left as it is, the losses of both targets are combined),
            ``"average"`` (by lam), ``"mask"`` (position by position), ``"keep"`` (left as it is, for both losses) or a
            function.
        one_lam: Whether one lam serves the whole batch.
        method: The method that mixed the batch: of a :class:`OneOf`, the one that it chose.
        mix: The draw that all of this follows; None if the batch is left as it is.
        original: Targets before mixing.
        loss_func: The loss to combine.
        source: Inputs and targets that partners are taken from, a tuple, without targets if all are kept; None: those
            of the batch.
    """

    xb: tuple
    yb: tuple
    yb1: tuple
    lam: Tensor
    rules: tuple[Any, ...]
    one_lam: bool
    method: "MixHandler | None"
    mix: Mix | None
    original: tuple
    loss_func: Callable
    source: tuple | None = None

    def loss(self, pred: Any, *yb: Any, loss_func: Callable | None = None) -> Tensor:
        """Return the loss of the mixed batch: lam · L(pred, yb) + (1 - lam) · L(pred, yb1) where losses are combined.

        Args:
            pred: The model's prediction for `xb`.
            *yb: Targets; none: this batch's.
            loss_func: Loss to combine; None: this batch's.
        """
        loss_func, yb = loss_func or self.loss_func, yb or self.yb
        if self.mix is None or "loss" not in self.rules:
            return loss_func(pred, *yb)
        yb1 = self._partners(yb, [rule == "loss" for rule in self.rules])
        return mixed_loss(loss_func, pred, yb, yb1, self.lam[:1] if self.one_lam else self.lam)

    def _partners(self, yb: tuple, differ: list[bool]) -> tuple:
        """Return the partners' targets, or those of the batch where they do not differ."""
        shape = () if self.lam.ndim == 1 else (self.lam.shape[1] - 1,)
        each = zip(yb, self.yb1, differ, strict=True)
        return tuple(like(y, y1) if other else y.expand(*shape, *y.shape) for y, y1, other in each)

    def check(self, yb: tuple, loss_func: Callable) -> None:
        """Raise an error if a callback after the mixing changed targets or loss too much."""
        replaced = "loss" in self.rules and loss_func is not self.loss_func
        if replaced and not (self.one_lam or examine(loss_func).average):
            raise ValueError(
                "Expected a loss that is known to be an average (see mixaug.loss.is_average) once the batch is mixed, "
                f"got {loss_func}. {MIX_LATER}; or use per_sample=False"
            )
        each = zip(yb, self.yb, self.rules, strict=False)
        if len(yb) != len(self.yb) or any(is_changed(now, y, rule) for now, y, rule in each):
            raise TypeError(
                f"Expected the targets that were mixed, of {[(str(y.dtype), tuple(y.shape)) for y in self.yb]}, got "
                f"others, of {[(str(y.dtype), tuple(y.shape)) for y in yb]}. {MIX_LATER}"
            )

    def for_metrics(self, yb: tuple) -> tuple:
        """Return targets as metrics see them: the original ones, except masks that were cut."""
        each = zip(yb, self.original, self.rules, strict=True)
        return tuple(y if rule == "loss" or self._is_cut(rule) else original for y, original, rule in each)

    def partners_for_metrics(self, yb: tuple) -> tuple:
        """Return the partners' targets as metrics see them: those of the batch where both have the same."""
        return self._partners(yb, [not (rule == "keep" or self._is_cut(rule)) for rule in self.rules])

    def _is_cut(self, rule: Any) -> bool:
        return rule == "mask" and self.mix is not None and self.mix.mask.dtype == torch.bool

    def remixed(self, mix: Mix) -> "MixedBatch":
        """Return the batch with the targets and the lam of another mix, whose mask may have other axes."""
        method: Any = self.method
        given = zip(self.original, each("targets", method.targets, self.original), self.rules, strict=True)
        rules = tuple(
            rule_for(y, said, mix, method, self.loss_func) if said == "mask" else rule for y, said, rule in given
        )
        lam = lam_of_targets(method, mix, self.original, self.yb1, rules)
        yb = mixed_targets(self.original, rules, mix, lam, self.loss_func)
        return replace(self, mix=mix, lam=lam, rules=rules, yb=yb)


def lam_of_targets(method: Any, mix: Mix, yb: tuple, yb1: tuple, rules: tuple) -> Tensor:
    """Return the mixing coefficients of the targets: the mix's, or what the method's `lam_targets` makes of them."""
    if method.lam_targets is None:
        return mix.lam
    if not {"loss", "average", "union"}.intersection(rule for rule in rules if not callable(rule)):
        raise ValueError(f"Expected targets that are mixed by a coefficient for lam_targets, got the rules {rules}")
    lam = method.lam_targets(mix, yb[0], yb1[0])
    if not isinstance(lam, Tensor) or lam.shape != mix.lam.shape:
        shape = getattr(lam, "shape", lam)
        raise ValueError(f"Expected coefficients {tuple(mix.lam.shape)} from lam_targets, got {shape}")
    if not lam.is_floating_point():
        raise ValueError(f"Expected coefficients of floats from lam_targets, got {lam.dtype}")
    if lam.is_cpu and not torch.compiler.is_compiling():
        if not ((lam >= 0) & (lam <= 1)).all():
            got = f"{lam.min():.3g} to {lam.max():.3g}"
            raise ValueError(f"Expected coefficients from 0 to 1 from lam_targets, got {got}")
        if lam.ndim > 1 and not torch.allclose(total := lam.sum(1), torch.ones_like(total), atol=1e-3):
            raise ValueError(f"Expected coefficients with sum 1 from lam_targets, got a sum of {total.max():.3g}")
    return lam


def mix_batch(
    method: "MixHandler | None", xb: Any, yb: Any, loss_func: Callable[..., Tensor], *, mix: Mix | None = None
) -> MixedBatch:
    """Mix a batch: draw once, then decide what becomes of every input, every target and the loss.

    It works in any training loop; the callbacks call it too. The batch is not changed. `prob`, `start` and `stop`
    belong to a fit and do not count here: every batch of two or more samples is mixed. :class:`ManifoldMixup`,
    :class:`PatchUp` and :class:`OutputMixup` leave the inputs as they are: mix what the layer or the model returns,
    with ``mixed.mix.blend``.

    Args:
        method: A mixing method; None: leave the batch as it is.
        xb: Inputs: a tensor ``(B, ...)``, or a tuple of nests of such tensors.
        yb: Targets: a tensor ``(B, ...)``, or a tuple of such tensors.
        loss_func: Loss whose values are combined where targets cannot be mixed.
        mix: A draw to use again, as in ``mix_batch(mixed.method, ..., mix=mixed.mix)``; None: draw.

    Raises:
        TypeError: If `method` is no method, or inputs or targets cannot be mixed.
        ValueError: If targets or loss do not fit the method.

    >>> x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    >>> mixed = mix_batch(CutMix(1.0), x, y, torch.nn.functional.cross_entropy)
    >>> mixed.loss(model(*mixed.xb)).backward()
    """
    if method is not None and (isinstance(method, type) or not hasattr(method, "_chooses")):
        raise TypeError(f"method must be a mixing method, as in mix_batch(MixUp(), ...), got {method!r}")
    if mix is not None and method is not None and method._chooses:
        raise ValueError(f"method must be the one that drew the mix, got {method!r}. Use mixed.method")
    xb, yb = (tuple(b) if isinstance(b, (tuple, list)) else (b,) for b in (xb, yb))
    if not (found := [t for t in tensors(xb) if t.ndim]):
        kinds = [type(x).__name__ for x in xb]
        raise TypeError(f"Expected tensors (B, ...) in tuples, lists or mappings as inputs, got {kinds}")
    with no_subclass():
        while method is not None and method._chooses:
            method = method._pick()
        x, source = found[0], None
        if method is not None:
            in_rules = each("inputs", method.inputs, xb)
            kinds = [type(y).__name__ for y in yb if not isinstance(y, Tensor)]
            if kinds:
                raise TypeError(
                    f"Expected each target to be a tensor, got {kinds}. Pass the tensors of a nest one by one"
                )
            at = [i for i, rule in enumerate(in_rules) if rule != "keep"]
            cut = [t for i in at for t in tensors(xb[i]) if t.ndim]
            x = next((t for t in cut if method.spatial_size(t)), (*cut, x)[0])
            if mix is None:
                source = method._source and method._source.next(xb, yb, in_rules, each("targets", method.targets, yb))
            elif method.partners is not None:
                raise ValueError("mix must be None for partners from elsewhere, which are others in each batch")
            if mix is None and (len(x) > 1 or source):
                places: list = []  # that of x in the source
                if source:
                    for i in at:
                        map_with(lambda t, s: places.append(s) if t is x else None, xb[i], source[0][i])
                method._drawn_for, method._took = (yb, loss_func, places[0] if places else None), False
                try:
                    mix = method.draw(x)
                finally:
                    method._drawn_for = (), None, None
                if source and not method._took:
                    raise ValueError("Expected a draw that takes partners from self.draw_partner(x), got others")
        if mix is None or method is None:
            lam = torch.ones(len(x), device=x.device)
            return MixedBatch(xb, yb, yb, lam, ("loss",) * len(yb), False, method, None, yb, loss_func)
        given = zip(yb, each("targets", method.targets, yb), strict=True)
        rules = tuple(rule_for(y, rule, mix, method, loss_func) for y, rule in given)
        separable = "loss" not in rules or examine(loss_func).average
        if not separable and method._needs_average:
            raise ValueError(
                f"Expected a loss that is known to be an average (see mixaug.loss.is_average), got {loss_func}. "
                "Any other needs one lam for the batch: use clean=False, lam_targets=None, and OneOf with "
                "per_sample=False"
            )
        whole = len(mix.partner) == 2 * len(x)  # a draw that is used again, with the unmixed batch in front
        # One lam, the first sample's, combines the values of any loss exactly
        if (one_lam := not (method.per_sample and separable)) and not whole:
            mix = mix.shared()
        if method.clean:
            mix, one_lam = mix if whole else mix.after_clean(), False
            xb, yb = map_tensors(lambda t: like(t, torch.cat([t, t])) if t.ndim else t, (xb, yb))
        xs, ys = source or ((), ())
        pairs = zip(yb, ys or repeat(None), rules, strict=False)
        # Partners from elsewhere need no targets where these are kept
        yb1 = tuple(
            mix.unmixed().partners(y) if source and rule == "keep" else mix.partners(y, s) for y, s, rule in pairs
        )
        lam = lam_of_targets(method, mix, yb, yb1, rules)
        one_lam = one_lam and method.lam_targets is None
        if method.stack_x:
            partners = map_with(lambda t, s: mix.partners(t, s) if t.ndim else t, xb, source and xs)
            xb = (*xb, *partners, mix.lam)
        elif method._mixes_input:
            xb = mixed_inputs(xb, in_rules, mix, xs)
        mixed_yb = mixed_targets(yb, rules, mix, lam, loss_func, ys)
        return MixedBatch(xb, mixed_yb, yb1, lam, rules, one_lam, method, mix, yb, loss_func, source and (*xs, *ys))
