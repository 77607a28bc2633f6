"""`PatchUp`: mixes hidden layers, like `ManifoldMixup`, with the box of `CutMix`."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from ..batch import MIX_LATER
from ..draw import send
from ..mix import Mix
from ..nests import is_equal, tensors
from ..options import MixOptions, Schedule, flag, with_options
from .cut import box_mask
from .hidden import ManifoldMixup, Pass


@with_options
class PatchUp(ManifoldMixup):
    """Mix one box of each sample's feature maps in one random layer of each batch (Faramarzi et al., 2020).

    It mixes hidden layers, like :class:`ManifoldMixup`, with a box, like :class:`CutMix`; lam is the mask's mean on the
    feature map. The paper has many small blocks instead of one box.

    Args:
        alpha: Parameter of Beta(alpha, alpha), from which lam is drawn; > 0. May be a schedule.
        hard: Replace the box with the partner's; False: average inside of it, by another coefficient.
        modules: Layers to choose from; layers in a tuple are mixed together. None: those that :func:`hidden_layers`
            finds and that return spatial positions.
        input_mixup: Choose the input too, if all inputs to mix are floating-point.
        verify: As in :class:`ManifoldMixup`.
        **kwargs: See :class:`MixHandler`.

    Shape:
        The output of each candidate is ``(B, C, *size)`` with one to three spatial axes.

    Raises:
        ValueError: If a candidate returns another shape, or targets are dense; as in :class:`ManifoldMixup`.
        RuntimeError: If a candidate does not run exactly once in a batch.

    Reference: https://arxiv.org/abs/2006.07794
    """

    _cuts = True

    def __init__(
        self,
        alpha: float | Schedule = 2.0,
        *,
        hard: bool = False,
        modules: Iterable[nn.Module | tuple[nn.Module, ...]] | None = None,
        input_mixup: bool = True,
        verify: bool = True,
        **kwargs: Unpack[MixOptions],
    ):
        self.hard = flag("hard", hard)
        super().__init__(alpha, modules=modules, input_mixup=input_mixup, verify=verify, **kwargs)

    def _new_pass(self) -> Pass:
        return _BoxPass()

    def _choose_layer(self) -> None:
        mixed: Any = self._mixed
        x = tensors(self.learn.xb)[0]
        positions = Mix(mixed.mix.partner, x.new_empty(1, *self.spatial_size(x)))
        at_positions = self.targets is None and positions.mask.ndim > 1
        if dense := [tuple(y.shape) for y in mixed.original if at_positions and positions.covers(y)]:
            raise ValueError(
                f"Expected targets of whole samples, got dense targets of shapes {dense}. Use CutMix, "
                "or say what becomes of them (targets=...)"
            )
        n, device = len(mixed.lam) if self.per_sample and not mixed.one_lam else 1, mixed.lam.device
        center = torch.from_numpy(self.rng.random((3, n), np.float32))
        self._pass.center = send(center, device).expand(3, len(mixed.lam))
        self._pass.inside = None if self.hard else self.draw_lam(mixed.lam)[:n].expand_as(mixed.lam)
        super()._choose_layer()
        if self.mixed_layer is None:
            self._use(self.mix)

    def after_pred(self) -> None:
        """Check that every candidate ran once, and mix the targets by the lam of the layer that was mixed."""
        if self._pass.mix is not None and self.mixed_layer is not None and self._mixed is not None:
            self._mixed.check(self.learn.yb, self.old_lf)
            self._use(self._pass.used[self._pass.at])
        super().after_pred()

    def _use(self, mix: Mix | None) -> None:
        """Mix the targets by a layer's mix, None if the layer did not run."""
        if mix is None or self._mixed is None:
            return
        drawn, self._mixed = self._mixed, self._mixed.remixed(mix)
        each = list(zip(self.learn.yb, drawn.yb, self._mixed.yb, self._mixed.rules, strict=True))
        if any(rule not in ("loss", "keep") and not is_equal(now, y) for now, y, _, rule in each):
            raise TypeError(
                f"Expected the targets that were mixed, as the layer decides about lam, got others. {MIX_LATER}"
            )
        self.learn.yb = tuple(now if rule in ("loss", "keep") else y for now, _, y, rule in each)
        self.mix, self.lam = mix, self._mixed.lam


class _BoxPass(Pass):
    """What `PatchUp`'s hooks read: also where the boxes are, and the coefficient inside of them."""

    center: Any
    inside: Any

    def mix_for(self, nest: Any) -> Mix:
        size = self.check(nest)
        # Compiled, all layers are mixed, most of them with a mask of ones
        before = None if torch.compiler.is_compiling() else (*self.used, None)[self.at]
        if before is not None and before.mask.shape[1:] != size:
            raise ValueError(
                f"Expected layers that are mixed together to have the same spatial size, got {tuple(size)} and "
                f"{tuple(before.mask.shape[1:])}. Choose other layers (modules=[...])"
            )
        mask = box_mask(self.mix.mask, size, self.center[: len(size)])
        if self.inside is not None:
            mask = torch.where(mask, 1.0, self.inside.view(-1, *[1] * len(size)))
        return Mix(self.mix.partner, mask)

    def accepts(self, shapes: Any) -> bool:
        return any(3 <= len(shape) <= 5 for shape in shapes)

    def check(self, nest: Any) -> torch.Size:
        shapes = [t.shape for t in tensors(nest)]
        found = [shape[2:] for shape in shapes if 3 <= len(shape) <= 5]
        if not found:
            raise ValueError(
                "Expected layers that return (B, C, *size) with up to three spatial axes, got shapes "
                f"{list(map(tuple, shapes))}. Choose other layers (modules=[...]) or, for such inputs, "
                "input_mixup=False; or use ManifoldMixup"
            )
        return found[0]
