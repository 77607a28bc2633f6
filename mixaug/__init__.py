"""Mix the samples of a batch while training with fastai: `Learner(..., cbs=MixUp(0.4))` or `learn.mixup()`.

How a batch flows:
1. `before_train`: `learn.loss_func` becomes a `MixUpLoss` around the user's loss.
2. `before_batch`: a `Mix` is drawn, that is who is mixed with whom (`partner`) and how much each keeps (`mask`);
   the inputs are blended, and the targets that can be.
3. The model: `ManifoldMixup` blends the output of one layer here instead, `OutputMixup` the prediction.
4. `after_pred`: the loss is told to combine, this once, the losses of the targets that could not be blended.
5. `after_train`: `learn.loss_func` is the user's own again, and validation knows nothing of any of this.
"""

from . import learner as _learner  # noqa: F401  (patches Learner)
from .combine import OneOf
from .handlers import CMixup, CutMix, FMix, MixHandler, MixUp, ResizeMix, SaliencyMix
from .loss import MixUpLoss, mixed_loss
from .manifold import ManifoldMixup, OutputMixup, PatchUp, hidden_layers, mixable
from .masks import box_mask, fourier_mask, salient_position, sample_lam, whole_in_box
from .metrics import MixedMetric
from .mixing import Mix, blend, choose, closeness, sample_partner, sample_partner_by
from .show import plot_lam

__version__ = "0.1.0"
__all__ = [
    "CMixup",
    "CutMix",
    "FMix",
    "ManifoldMixup",
    "Mix",
    "MixHandler",
    "MixUp",
    "MixUpLoss",
    "MixedMetric",
    "OneOf",
    "OutputMixup",
    "PatchUp",
    "ResizeMix",
    "SaliencyMix",
    "blend",
    "box_mask",
    "choose",
    "closeness",
    "fourier_mask",
    "hidden_layers",
    "mixable",
    "mixed_loss",
    "plot_lam",
    "salient_position",
    "sample_lam",
    "sample_partner",
    "sample_partner_by",
    "whole_in_box",
]
