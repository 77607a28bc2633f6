"""`MixHandler`, which takes each training batch through a mix, and the methods that mix its input."""

import math
import operator
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import num_distrib, rank_distrib
from fastcore.meta import delegates
from torch import Tensor

from . import fast
from .loss import MixUpLoss, is_average, mixed_loss
from .masks import SymmetricBeta, box_mask, fourier_mask, salient_position, sample_lam, whole_in_box
from .mixing import Mix, closeness, like, map_tensors, sample_partner, sample_partner_by, tensors, untyped

PAIRS: dict[Any, Any] = {"same": lambda y: y[:, None] == y, "other": lambda y: y[:, None] != y}


class MixHandler(Callback):
    """Mix the samples of each training batch with one another, features and targets alike.

    A method is a `draw`: who is mixed with whom, and how much of itself each sample keeps; the bare handler mixes
    nothing. After `before_batch` the callback has `mix` (the `Mix` drawn), `lam` (the share that each sample keeps,
    shape (B,)) and `yb1` (the partners' targets, a tuple): None, ones and None where the batch stays as it is.

    `alpha` and `prob` may be schedules: functions of the share of the fit that is done, as fastai's `SchedCos(0, 0.6)`.
    An alpha of 0 there mixes nothing. `start`, `stop` and schedules count each fit for itself: `fine_tune` has two.

    What becomes of a target is decided by its type. Floating-point targets are averaged. A map over the input's
    positions gets the mask of the input. Class numbers cannot be averaged: there the losses are combined, by a
    `MixUpLoss` in the place of `learn.loss_func` while training. A loss that is not known to be an average (see
    `mixaug.loss.is_average`) then gets one share for the batch, with which the combination is exact whatever it
    computes.

    >>> class Stripes(MixHandler):
    ...     def draw(self, x):
    ...         kept = torch.arange(x.shape[-1], device=x.device) % 2 == 0
    ...         return Mix(self.draw_partner(x), kept.expand(len(x), *x.shape[2:]))
    >>> Stripes(prob=0.8).draw(torch.rand(2, 3, 8, 8)).lam  # as for each batch of a training
    tensor([0.5000, 0.5000])
    """

    run_valid = False
    _learn: Any = None
    _xtra: Any = None  # without it fastai catches an error for each attribute of the learner that it reads
    _is_part = False  # of a `OneOf`, whose random stream it has
    _ready = False  # whether `before_fit` came since the callback was added
    mix: Any
    lam: Any
    yb1: Any
    _own: Any

    def __init__(
        self,
        alpha: Any = 0.5,  # Shares are drawn from Beta(alpha, alpha), alpha > 0: the larger, the closer to one half
        *,
        prob: Any = 1.0,  # Share of the batches that are mixed, or a schedule
        start: float | None = None,  # Mix from here on: an epoch (int, -1: the last) or a share of the training (float)
        stop: float | None = None,  # Mix up to here
        per_sample: bool = True,  # A draw for each sample; False: one share, one box for the batch
        fold: bool = True,  # Keep max(t, 1 - t) of a draw t, so that the larger share is the sample's own
        stack_x: bool = False,  # Give the model (x, x[partner], lam), to mix by itself; x alone where nothing is mixed
        stack_y: bool | None = None,  # True: combine losses; False: average targets; None: by the target's type
        clean: bool = False,  # Train on each batch as it is, too, beside the mixed one (https://arxiv.org/abs/2206.14502)
        pair: Any = None,  # "same" or "other": partners by class; or a function of targets (B, ...) to weights (B, B)
        seed: int | None = None,  # Draw from a random stream of its own that starts here, and disturb no other
    ):
        self.alpha, self.prob = alpha, _schedule("prob", prob)
        self.start, self.stop = _when("start", start), _when("stop", stop)
        both = None not in (start, stop) and type(self.start) is type(self.stop)
        if both and (self.start < 0) == (self.stop < 0) and self.start >= self.stop:
            raise ValueError(f"start={start!r} came with stop={stop!r}, a start before the stop was wanted")
        if seed is not None:
            seed = int(_number("seed", seed, float.is_integer, "a whole number"))
        if clean and stack_x:
            raise ValueError("clean=True came with stack_x=True, one of them was wanted")
        if not (pair is None or callable(pair) or pair in tuple(PAIRS)):
            raise ValueError(f"pair came as {pair!r}, None, {', '.join(map(repr, PAIRS))} or a function was wanted")
        self.clean, self.pair, self.stack_y = _flag("clean", clean), pair, stack_y
        self.per_sample, self.fold = _flag("per_sample", per_sample), _flag("fold", fold)
        self.stack_x = _flag("stack_x", stack_x)
        self.mix = self.lam = self.yb1 = self._own = None
        self.seed, self._stream = seed, None
        self.one_lam = False  # whether the loss is given one share for the batch

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha}, prob={self.prob})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):  # fastai would look again whether the learner has the name, which takes long
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def alpha(self) -> Any:
        """The parameter of the Beta distribution that shares are drawn from, or its schedule."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: Any) -> None:
        self._alpha = _schedule("alpha", alpha)
        if self._alpha == 0:
            raise ValueError(f"alpha came as {alpha!r}, a finite number above 0 was wanted: to mix nothing use prob=0")
        self.distrib = SymmetricBeta(torch.tensor(1.0 if callable(self._alpha) else self._alpha, device="cpu"))

    @property
    def learn(self) -> Any:
        """The one learner that has this callback: being added to another, it leaves the first in order."""
        return self._learn

    @learn.setter
    def learn(self, learn: Any) -> None:
        former, self._ready = self._learn, False
        if former is not None and learn is not former:
            self.restore()
            self._learn = None
            if learn is not None:
                former.remove_cb(self)
        self._learn = learn

    @property
    def name(self) -> str:
        """The learner's attribute for this callback: fastai's, but never one that hides a method of `Learner`."""
        name = super().name
        return f"{name}_cb" if hasattr(Learner, name) else name

    # What a method is

    def draw(self, x: Tensor) -> Mix | None:
        """Draw the mix of a batch whose first input is `x`, on its device; None leaves the batch as it is.

        In here the types of fastai play no part: what is computed from a `TensorImage` is a plain tensor.
        """
        return None

    def mix_features(self) -> None:
        """Blend the inputs; a method that mixes elsewhere overrides this."""
        self.learn.xb = map_tensors(self.mix.blend, tuple(self.learn.xb))

    def stack_features(self) -> None:
        """Give the model both samples and the share, unmixed."""
        partners = map_tensors(self.mix.partners, tuple(self.xb))
        self.learn.xb = (*self.xb, *partners, self.lam)

    def is_drawn(self) -> bool:
        """Draw whether the batch is mixed, by where the training stands."""
        begun = self.start is None or self.reached(self.start)
        if not begun or (self.stop is not None and self.reached(self.stop)):
            return False
        if callable(self.alpha):
            alpha = _schedule("alpha", self.alpha(self.pct_train))
            if alpha == 0:
                return False
            self.distrib = SymmetricBeta(torch.full_like(self.distrib.alpha, alpha))
        prob = _schedule("prob", self.prob(self.pct_train)) if callable(self.prob) else self.prob
        return prob > 0 and self.rng.random() < prob

    def reached(self, when: float) -> bool:
        """Whether the fit has come to an epoch (int, from the end if negative) or a share of it (float)."""
        if isinstance(when, float):
            return self.pct_train >= when
        return self.epoch >= (when if when >= 0 else self.n_epoch + when)

    def draw_partner(self, x: Tensor) -> Tensor:
        """Draw the partner of each sample, shape (B,)."""
        if self.pair is None:
            return sample_partner(len(x), x.device)
        if not self.yb:
            raise ValueError("pair wants targets, a batch without any came")
        y = self.yb[0]
        if not callable(self.pair) and (y.ndim != 1 or y.is_floating_point()):
            raise ValueError(
                f"pair={self.pair!r} wants class numbers (B,), {y.dtype} of shape {tuple(y.shape)} came: "
                "give a function of the targets to weights (B, B)"
            )
        weigh: Any = self.pair if callable(self.pair) else PAIRS[self.pair]
        weights = weigh(y)
        if weights.shape != (len(x), len(x)):
            raise ValueError(f"pair gave weights of shape {tuple(weights.shape)}, {(len(x), len(x))} was wanted")
        return sample_partner_by(weights)

    def draw_lam(self, x: Tensor) -> Tensor:
        """Draw each sample's share, shape (B,), from `self.distrib`."""
        return sample_lam(self.distrib, len(x), self.fold).to(x.device)

    def mix_targets(self) -> None:
        """Blend the targets that can be, and keep the partners' targets for the loss of the others."""
        self._own = self.learn.yb = tuple(map(self._as_wanted, self.learn.yb))
        self.one_lam = not self.per_sample or (not is_average(self.old_lf) and self.stack_y)
        if self.one_lam:
            self.mix = self.mix.shared()
        if self.clean:
            self.double()
        self.blend_targets()

    def blend_targets(self) -> None:
        """Give the batch the targets that `mix` makes of its own, and the loss the partners' and the share."""
        self.lam, self.yb1 = self.mix.lam, tuple(map(self.mix.partners, self._own))
        self.learn.yb = tuple(y if self.stacks(y) else self.mix.blend(y) for y in self._own)

    def double(self) -> None:
        """Put the batch as it is in front of the one that is mixed."""
        if self.one_lam and self.stack_y and not is_average(self.old_lf):
            raise ValueError(f"clean=True wants a loss known to be an average (see is_average), {self.old_lf} came")
        self.one_lam = False
        self.mix = self.mix.after_clean()
        self.learn.xb, self._own = map_tensors(lambda t: like(t, torch.cat([t, t])), (tuple(self.xb), self._own))

    # Randomness

    @property
    def rng(self) -> Any:
        """What is drawn once in a batch comes from here: Python's `random`, or the callback's own stream."""
        return self._stream or random

    def start_stream(self) -> None:
        """Give the callback its own stream, if it has a `seed` or is one of several processes.

        Those that start from one seed would all draw the same mixes otherwise.
        """
        if self.seed is not None:
            self._stream = self._stream or random.Random(f"{self.seed} {rank_distrib()}")
        elif not self._is_part:
            several = num_distrib() > 1
            self._stream = random.Random(f"{random.getrandbits(64)} {rank_distrib()}") if several else None

    def take_stream(self, stream: random.Random | None) -> None:
        """Draw from the stream of the `OneOf` that this is a part of, if it has no seed of its own."""
        if self.seed is None:
            self._stream = stream

    def drawing(self, device: torch.device) -> Any:
        """Let torch draw from the callback's own stream, too, if it has one, and leave torch's as it was."""
        return nullcontext() if self._stream is None else self._drawing(self._stream, device)

    @contextmanager
    def _drawing(self, stream: random.Random, device: torch.device) -> Iterator[None]:
        accelerators = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(accelerators, device_type=device.type):
            seed = stream.getrandbits(63)
            torch.default_generator.manual_seed(seed)
            for accelerator in accelerators:  # its own `manual_seed` is for the current device only
                state = torch.Generator(accelerator).manual_seed(seed).get_state()
                torch.get_device_module(accelerator).set_rng_state(state, accelerator)
            yield

    # The flow of a batch

    def __call__(self, event_name: str) -> Any:
        if not self.run and self.learn is not None:  # switched off in the middle of a training
            self.restore()
        elif event_name == "before_batch" and not self._ready and self.training:  # added in the middle of a fit
            self.before_fit()
        # For an event that a callback lacks fastai asks the learner, the model and all of its layers
        known = hasattr(type(self), event_name) or event_name in vars(self)
        return super().__call__(event_name) if known else None

    def before_fit(self) -> None:
        self._ready = True
        self.restore()
        self.start_stream()
        # fastai's own callbacks have a handler of the same name
        mixers = [cb for cb in self.learn.cbs if any(c.__name__ == MixHandler.__name__ for c in type(cb).__mro__)]
        if len(mixers) > 1:
            raise ValueError(f"one mixing callback was wanted, {mixers} came: keep one (learn.remove_cb)")
        if (type(self).draw, type(self).before_batch) == (MixHandler.draw, MixHandler.before_batch):
            warnings.warn("MixHandler mixes nothing by itself: use MixUp or another method", stacklevel=2)
        if isinstance(self.distrib, SymmetricBeta):
            device = next(self.model.parameters()).device
            # Drawn there, nothing waits for the device; but Apple's drew no Gamma before torch 2.12
            self.distrib = SymmetricBeta(self.distrib.alpha.to(device if device.type == "cuda" else "cpu"))

    def before_train(self) -> None:
        self.wrap_loss()

    def before_batch(self) -> None:
        xb = self.learn.xb
        if not (found := tensors(xb)):
            kinds = [type(x).__name__ for x in xb]
            raise TypeError(f"inputs of types {kinds} came, tensors in tuples, lists or mappings were wanted")
        x, self.yb1, self._own = found[0], None, None
        with untyped():
            with self.drawing(x.device):
                self.mix = self.draw(x) if len(x) > 1 and self.is_drawn() else None
            if self.mix is None:
                self.lam = torch.ones(len(x), device=x.device)
            else:
                self.mix_targets()
                self.stack_features() if self.stack_x else self.mix_features()

    def after_pred(self) -> None:
        if self.yb1 is None:
            return
        stacked = list(map(self.stacks, self.learn.yb))
        if self._own is not None and stacked != list(map(self.stacks, self._own)):
            came, mixed = ([str(y.dtype) for y in targets] for targets in (self.yb, self.yb1))
            raise TypeError(
                f"targets of {came} came to the loss, those mixed were of {mixed}: what changes targets has to come "
                f"before the mixing (a callback of order < {self.order})"
            )
        if any(stacked):
            self.wrap_loss()
            self.learn.loss_func.instead = self._mixed_or_plain

    def _mixed_or_plain(self, pred: Any, *yb: Any, **kwargs: Any) -> Tensor:
        """The loss of the mix for the prediction, and any other of the mixed inputs; the user's for what else comes."""
        own = self.learn.yb
        again = self.input_is_mixed() and len(yb) == len(own) and all(map(operator.is_, yb, own))
        return (self.lf if pred is self.learn.pred or again else self.old_lf)(pred, *yb, **kwargs)

    def input_is_mixed(self) -> bool:
        """Whether the model is given mixed inputs, so that whatever it makes of them is of the mix."""
        return True

    def lf(self, pred: Any, *yb: Any, **kwargs: Any) -> Tensor:
        """Return the loss of a mixed batch: `lam · L(pred, yb) + (1 - lam) · L(pred, yb1)`."""
        yb1 = tuple(like(y, y1) if self.stacks(y) else y for y, y1 in zip(yb, self.yb1, strict=True))
        loss_func = partial(self.old_lf, **kwargs) if kwargs else self.old_lf
        return mixed_loss(loss_func, pred, yb, yb1, self.lam[:1] if self.one_lam else self.lam)

    def after_loss(self) -> None:
        if not self.input_is_mixed():
            self.forget()

    def after_batch(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Give the batch its own loss and targets again, but maps that were cut: metrics see these."""
        if self.yb1 is not None:
            self.wrap_loss()  # anew, without `instead`
        if self._own is not None:
            left = zip(self.yb, self._own, strict=True)
            self.learn.yb = tuple(y if self.stacks(y) or self.cuts(y) else own for y, own in left)
            self._own = None

    def after_train(self) -> None:
        self.restore()

    # An exception can pass by after_train: everything that comes after it puts the learner in order as well
    before_validate = after_epoch = after_fit = after_train

    # Targets and loss

    def stacks(self, y: Tensor) -> bool:
        """Whether a target is left as it is because the losses are combined instead."""
        if self._stack_y is not None:
            return self._stack_y
        with untyped():
            return not (y.is_floating_point() or self.cuts(y))

    def cuts(self, y: Tensor) -> bool:
        """Whether a target is a map that is cut along with the input."""
        return self.mix is not None and self.mix.mask.dtype == torch.bool and self.mix.covers(y)

    @property
    def stack_y(self) -> bool:
        """Whether losses are combined for some target of the batch."""
        return any(map(self.stacks, self.learn.yb))

    @stack_y.setter
    def stack_y(self, value: bool | None) -> None:
        self._stack_y = None if value is None else _flag("stack_y", value)

    @property
    def old_lf(self) -> Callable:
        """The user's loss (fastai's name)."""
        loss_func = self.learn.loss_func
        return loss_func.loss_func if isinstance(loss_func, MixUpLoss) else loss_func

    def wrap_loss(self) -> None:
        """Put a `MixUpLoss` in the place of the user's loss."""
        self.learn.loss_func = MixUpLoss(self.old_lf)

    def restore(self) -> None:
        """Undo what training did to the learner."""
        self.learn.loss_func = self.old_lf
        fast.release()

    def _as_wanted(self, y: Tensor) -> Tensor:
        """A target in the type its loss wants (fastai's for numbers turn integers into floats), if it can be mixed."""
        if not isinstance(y, Tensor):
            raise TypeError(f"a target of type {type(y).__name__} came, tensors were wanted, each a target of its own")
        if any(c.__name__ in ("TensorBBox", "BoundingBoxes") for c in type(y).__mro__):
            raise TypeError("bounding boxes came, which cannot be mixed: an average of two boxes is around nothing")
        covered = self.mix.mask.ndim > 1 and self.mix.covers(y)
        if covered and self.mix.mask.is_floating_point() and self.stacks(y):
            raise ValueError(
                f"a map of class numbers of shape {tuple(y.shape)} came, whose inputs are averaged position by "
                "position: a mask that chooses was wanted, or one share for a sample (OneOf: per_sample=False)"
            )
        if getattr(self.old_lf, "floatify", False) and not y.is_floating_point():
            y = like(y, y.float())
        if y.ndim == 2 and y.is_floating_point() and covered and not self._stack_y:
            raise ValueError(
                f"a target of shape {tuple(y.shape)} came with inputs of {y.shape[1]} positions: if it is a value for "
                "each position, give it an axis of channels (B, 1, L); if it is labels of the sample, use stack_y=True"
            )
        return y


@delegates()
class MixUp(MixHandler):
    """Average each sample's inputs with its partner's: `lam · x + (1 - lam) · x1`, https://arxiv.org/abs/1710.09412.

    For floating-point inputs (B, ...); with `per_sample=True` each sample has a share of its own. TypeError for
    integer inputs (codes, tokens, images of bytes), whose averages mean nothing.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> mix = MixUp(0.4).draw(x)  # as for each batch of a training
    >>> bool((mix.lam >= 0.5).all())
    True
    >>> torch.allclose(mix.blend(x), mix.lam[:, None] * x + (1 - mix.lam[:, None]) * x[mix.partner])
    True
    """

    def __init__(
        self,
        alpha: Any = 0.4,  # Shares are drawn from Beta(alpha, alpha), alpha > 0, or a schedule
        **kwargs: Any,
    ):
        super().__init__(alpha, **kwargs)

    def draw(self, x: Tensor) -> Mix:
        return Mix(self.draw_partner(x), self.draw_lam(x))


@delegates()
class CutMix(MixHandler):
    """Replace one random box of each sample by its partner's, https://arxiv.org/abs/1905.04899.

    For inputs (B, C, *size) of any type: a segment, a rectangle, a cuboid; each sample has a box of its own. `lam` is
    the share of positions kept, exactly. ValueError for inputs without positions.

    >>> x = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)  # bytes can be cut
    >>> mix = CutMix(1.0).draw(x)
    >>> mix.mask.shape, mix.mask.dtype
    (torch.Size([4, 28, 28]), torch.bool)
    >>> torch.equal(mix.blend(x), torch.where(mix.mask[:, None], x, x[mix.partner]))
    True
    """

    def __init__(
        self,
        alpha: Any = 1.0,  # Shares are drawn from Beta(alpha, alpha), alpha > 0, or a schedule
        *,
        fold: bool = False,  # Keep max(t, 1 - t) of a draw t; the paper keeps t, as boxes differ anyway
        **kwargs: Any,
    ):
        super().__init__(alpha, fold=fold, **kwargs)

    def draw(self, x: Tensor) -> Mix:
        if x.ndim < 3:
            raise ValueError(
                f"{type(self).__name__} wants inputs (B, C, *size) to cut from, shape {tuple(x.shape)} came: "
                "MixUp averages such inputs, ManifoldMixup mixes hidden layers"
            )
        return self.cut(x, self.draw_partner(x), self.draw_lam(x))

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        """Return the mix that keeps the share `lam`, (B,), of the positions of `x`; other methods cut otherwise."""
        return Mix(partner, box_mask(lam, x.shape[2:]))


@delegates()
class FMix(CutMix):
    """Replace smooth random regions of each sample by its partner's, https://arxiv.org/abs/2002.12047.

    For inputs (B, C, *size) of any type. `lam` of the positions are kept, to within half a position.
    """

    def __init__(
        self,
        alpha: Any = 1.0,  # Shares are drawn from Beta(alpha, alpha), alpha > 0, or a schedule
        *,
        decay: float = 3.0,  # The larger, the fewer and smoother the regions
        **kwargs: Any,
    ):
        super().__init__(alpha, **kwargs)
        self.decay = _number("decay", decay, lambda d: 0 <= d < math.inf, "a finite number of at least 0")

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        return Mix(partner, fourier_mask(lam, x.shape[2:], self.decay))


class SaliencyMix(CutMix):
    """Replace a box of each sample by its partner's, around where the partner stands out.

    For inputs (B, C, *size) with one to three axes; what stands out is `salient_position`'s contrast, not a network's
    as in https://arxiv.org/abs/2006.01791.
    """

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        if x.ndim > 5:
            raise ValueError(
                f"SaliencyMix wants up to three axes of positions, shape {tuple(x.shape)} came: use CutMix"
            )
        centre = salient_position(x)[:, partner]
        return Mix(partner, box_mask(lam, x.shape[2:], centre))


class ResizeMix(CutMix):
    """Paste the whole partner, resized, into one random box of each sample, https://arxiv.org/abs/2012.11101.

    For inputs (B, C, *size) of any type; the box is inside the sample, and filled from the nearest positions, so that
    maps and bytes stay what they are. Sides are (1 - lam)^(1/k) of the sample's; the paper draws them from .1 to .8.
    """

    def cut(self, x: Tensor, partner: Tensor, lam: Tensor) -> Mix:
        return Mix(partner, *whole_in_box(lam, x.shape[2:]))


@delegates()
class CMixup(MixUp):
    """MixUp for regression: the closer two targets, the likelier they are partners, https://arxiv.org/abs/2210.05775.

    For inputs as in `MixUp` and numbers as targets (B, ...), TypeError for class numbers. Any other method pairs so
    with `pair=partial(closeness, bandwidth=.5)`.
    """

    def __init__(
        self,
        alpha: Any = 2.0,  # Shares are drawn from Beta(alpha, alpha), alpha > 0, or a schedule
        *,
        bandwidth: float = 1.0,  # How far a partner's target may be, in standard deviations of the batch's targets
        **kwargs: Any,
    ):
        bandwidth = _number("bandwidth", bandwidth, lambda b: 0 < b < math.inf, "a finite number above 0")
        super().__init__(alpha, **{"pair": partial(closeness, bandwidth=bandwidth), **kwargs})

    def draw_partner(self, x: Tensor) -> Tensor:
        if self.yb and not (self.yb[0].is_floating_point() or getattr(self.old_lf, "floatify", False)):
            raise TypeError(f"CMixup wants numbers as targets, class numbers ({self.yb[0].dtype}) came: use MixUp")
        return super().draw_partner(x)


def _number(name: str, value: Any, ok: Callable[[float], bool], wanted: str) -> float:
    message = f"{name} came as {value!r}, {wanted} was wanted"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(message)
    if not ok(number := float(value)):
        raise ValueError(message)
    return number


def _flag(name: str, value: Any) -> bool:
    if value not in (True, False):
        raise TypeError(f"{name} came as {value!r}, True or False was wanted")
    return bool(value)


def _schedule(name: str, value: Any) -> Any:
    """A number as float, or a schedule: a function of the share of the fit that is done, tried at both ends."""
    if callable(value) and not isinstance(value, Callback):
        for share in (0.0, 1.0):
            _schedule(name, value(share))
        return value
    if name == "alpha":
        return _number(name, value, lambda a: 0 <= a < math.inf, "a finite number above 0")
    return _number(name, value, lambda p: 0 <= p <= 1, "a share from 0 to 1")


def _when(name: str, value: Any) -> Any:
    """An epoch as int, a share of the fit as float, or None."""
    if value is None or (isinstance(value, Integral) and not isinstance(value, bool)):
        return value
    return _number(name, value, lambda share: 0 <= share <= 1, "an epoch (int) or a share from 0 to 1 (float)")
