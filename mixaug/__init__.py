"""Mix the samples of a batch while training with fastai: ``Learner(..., cbs=MixUp(0.4))`` or ``learn.mixup()``.

How a batch flows:
1. `before_train`: ``learn.loss_func`` becomes a :class:`MixUpLoss` around the user's loss.
2. `before_batch`: :func:`mix_batch` draws a :class:`Mix`, that is who is mixed with whom (`partner`) and how much of
   the original is kept (`mask`), and decides how the inputs and each target are mixed.
3. The model: :class:`ManifoldMixup` mixes the output of one layer here instead, :class:`OutputMixup` the prediction.
4. The loss: lam · L(original) + (1 - lam) · L(partner), for targets that could not be mixed themselves.
5. `after_train`: ``learn.loss_func`` is the user's again; validation is never mixed.
"""

import sys
from pathlib import Path

# The command `mixaug` (and `python -m mixaug`) imports by itself what it needs, so that it answers at once
if Path(sys.argv[0] if sys.argv else "").stem not in ("mixaug", "-m"):
    from . import learner as _learner  # noqa: F401  (patches Learner)
    from .batch import MixedBatch, mix_batch
    from .draw import sample_lam, sample_partner
    from .handler import MixHandler
    from .layers import hidden_layers, mixable
    from .loss import MixUpLoss, mixed_loss
    from .methods.average import CMixup, MixUp
    from .methods.cut import CutMix, box_mask
    from .methods.cut_variants import (
        RICAP,
        FMix,
        Mosaic,
        ResizeMix,
        SaliencyMix,
        fourier_mask,
        paste_mask,
        saliency_peak,
    )
    from .methods.hidden import ManifoldMixup
    from .methods.one_of import OneOf, choose
    from .methods.output import OutputMixup
    from .methods.patch_up import PatchUp
    from .metrics import MixedMetric
    from .mix import Mix, blend
    from .pairing import sample_partner_by, target_similarity
    from .show import plot_lam
    from .targets import remix

__version__ = "0.1.0"
__all__ = [
    "RICAP",
    "CMixup",
    "CutMix",
    "FMix",
    "ManifoldMixup",
    "Mix",
    "MixHandler",
    "MixUp",
    "MixUpLoss",
    "MixedBatch",
    "MixedMetric",
    "Mosaic",
    "OneOf",
    "OutputMixup",
    "PatchUp",
    "ResizeMix",
    "SaliencyMix",
    "blend",
    "box_mask",
    "choose",
    "fourier_mask",
    "hidden_layers",
    "mix_batch",
    "mixable",
    "mixed_loss",
    "paste_mask",
    "plot_lam",
    "remix",
    "saliency_peak",
    "sample_lam",
    "sample_partner",
    "sample_partner_by",
    "target_similarity",
]
