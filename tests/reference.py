"""The oracles: slow, obvious versions of what mixaug does, and callbacks that keep what every batch was."""

import io
import pickletools
import zipfile
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.torch_core import find_bs
from fastcore.basics import AttrDict
from torch import Tensor

from mixaug import ManifoldMixup, MixHandler, OutputMixup


def slow_mix(t, mix, source=None):
    """Return a tensor (B, ...) mixed, a sample at a time, with partners of the source."""
    size, out, source = mix.mask.shape[1:], [], t if source is None else source
    covered = t.shape[1:][max(0, t.ndim - 1 - len(size)) :] == size or not size
    for i in range(len(t)):
        if covered:
            mixed = moved(t[i], mix.own_index, i)
            for part in mix.parts:
                other = moved(source[part.partner[i]], part.source_index, i)
                keep = part.mask[i]
                bools = keep.dtype == torch.bool
                mixed = torch.where(keep, mixed, other) if bools else keep * mixed + (1 - keep) * other
        else:
            unmoved = [t[i], *(source[part.partner[i]] for part in mix.parts)]
            mixed = sum(w * sample for w, sample in zip(slow_weights(mix, i), unmoved, strict=True))
        out.append(mixed)
    return torch.stack(out)


def moved(sample, indices, i):
    for axis, index in enumerate(indices, -len(indices)):
        sample = sample.index_select(axis, index[i])
    return sample


def slow_weights(mix, i):
    """Return what each sample has of mixed sample i, its own part first: the mean over the positions."""
    rows = []
    for values in zip(*(part.mask[i].double().flatten().tolist() for part in mix.parts), strict=True):
        row = [1.0]
        for keep in values:
            row = [keep * w for w in row] + [1 - keep]
        rows.append(row)
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def slow_average(t, mix, weights):
    """Return a tensor (B, ...) of which each sample is the sum of what weights (B, k) say, a sample at a time."""
    samples = [[t[i], *(t[part.partner[i]] for part in mix.parts)] for i in range(len(t))]
    return torch.stack([sum(w * s for w, s in zip(*both, strict=True)) for both in zip(weights, samples, strict=True)])


def slow_loss(pred, ys, ys1, lam, loss=F.cross_entropy):
    """Return the mean of lam · L(pred, y) + (1 - lam) · L(pred, y1), a sample at a time; lam (B, k) for k samples."""
    of = lambda i, targets: loss(pred[i : i + 1], *(y[i : i + 1] for y in targets))  # noqa: E731
    if lam.ndim == 1:
        return sum(lam[i] * of(i, ys) + (1 - lam[i]) * of(i, ys1) for i in range(len(lam))) / len(lam)
    samples = [ys, *([y[k] for y in ys1] for k in range(lam.shape[1] - 1))]
    return sum(w[i] * of(i, targets) for w, targets in zip(lam.T, samples, strict=True) for i in range(len(lam))) / len(
        lam
    )


def slow_weighted(pred, y, y1, lam, weight=None, ignore_index=-100):
    """Return the cross-entropy that divides by the class weights of all targets, a position at a time."""
    parts, targets = ((lam, 1 - lam), (y, y1)) if lam.ndim == 1 else (lam.T, (y, *y1))
    total, count = 0.0, 0.0
    logp = pred.log_softmax(1).movedim(1, -1)
    weight = torch.ones(logp.shape[-1]) if weight is None else weight
    for i in range(len(y)):
        for part, given in zip(parts, targets, strict=True):
            for p, target in zip(logp[i].reshape(-1, logp.shape[-1]), given[i].flatten(), strict=True):
                if target != ignore_index:
                    total -= part[i] * weight[target] * p[target]
                    count += part[i] * weight[target]
    return total / count


def partners_of(y, mix):
    return torch.stack([y[part.partner] for part in mix.parts]) if mix.then else y[mix.partner]


def close(got, expected, rtol=1.3e-6, atol=1e-5):
    torch.testing.assert_close(got, expected, check_dtype=False, rtol=rtol, atol=atol)


def check_losses(learn, loss=F.cross_entropy, **tolerance):
    """Assert that every batch's loss is the formula's, for targets whose losses are combined."""
    assert learn.spy.batches
    for row in learn.spy.batches:
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam, loss), **tolerance)


def place_of(mixer):
    """Return where the batch at hand is mixed: "input", "output", or the name of a layer."""
    mixer = getattr(mixer, "chosen", None) or mixer
    if isinstance(mixer, ManifoldMixup):
        return mixer.mixed_layer or "input"
    return "output" if isinstance(mixer, OutputMixup) else "input"


class Original(Callback):
    """Keeps the batch right before it is mixed."""

    order = -0.5

    def before_batch(self):
        copies = lambda b: tuple(t.as_subclass(Tensor).clone() if isinstance(t, Tensor) else t for t in b)  # noqa: E731
        self.xs, self.ys = copies(self.learn.xb), copies(self.learn.yb)


class Spy(Callback):
    """Keeps of each training batch what the last callback sees; of validation the loss function.

    A row has x, y (mixed), x0, y0 (original, twice for clean=True), partners (their targets), pred, loss, iter, place,
    and the mixer's mix, lam, yb1, mixed_layer, chosen.
    """

    order = 70

    def __init__(self, mixer=None):
        self.mixer, self.batches = mixer, []

    def before_batch(self):
        if self.training:
            one = torch.ones(find_bs(self.learn.xb))
            self.batches.append(AttrDict(x=self.learn.xb, iter=self.iter, mix=None, lam=one))
            self.look()

    def look(self):
        row, original = self.batches[-1], self.learn.original
        row.y = self.learn.yb
        if self.mixer is not None and self.mixer.run:
            names = ("mix", "lam", "yb1", "mixed_layer", "chosen")
            row.update((name, getattr(self.mixer, name)) for name in names if name in vars(self.mixer))
            row.place = place_of(self.mixer)
        times = 1 if row.mix is None or not original.ys else len(row.mix.partner) // len(original.ys[0])
        row.x0, row.y0 = (
            tuple(torch.cat([t] * times) if isinstance(t, Tensor) else t for t in b) for b in (original.xs, original.ys)
        )
        row.partners = row.y0
        if row.mix is not None and not getattr(self.mixer._mixed, "source", None):
            row.partners = tuple(partners_of(y, row.mix) for y in row.y0 if isinstance(y, Tensor))

    def after_pred(self):
        if self.training:
            self.look()  # again: PatchUp's lam is that of the layer
            pred = self.learn.pred
            self.batches[-1].pred = pred.detach().clone() if isinstance(pred, Tensor) else pred

    def after_loss(self):
        if self.training:
            self.batches[-1].loss = self.learn.loss.detach().clone()
        else:
            self.valid_loss = self.learn.loss_func


class Oracle(Callback):
    """Computes each prediction anew, a layer and a sample at a time, and its loss by the formula."""

    order = 70
    batches = 0

    def mix_now(self):
        mixer = next(iter(self.learn._grab_cbs(MixHandler)), None)
        return mixer.mix if self.training and mixer is not None else None

    def mixed(self, h, here):
        return slow_mix(h, self.mix_now()) if here and self.mix_now() is not None else h

    def after_pred(self):
        place = place_of(next(iter(self.learn._grab_cbs(MixHandler)), None))
        with torch.no_grad():
            h = self.mixed(self.learn.original.xs[0], place == "input")
            for name, layer in self.model.named_children():
                h = self.mixed(layer.forward(h), name == place)
            h = self.mixed(h, place == "output")
        close(self.pred.detach(), h)

    def after_loss(self):
        if not self.learn.original.ys:
            return
        mix, (y,) = self.mix_now(), self.learn.original.ys
        y1, lam = (y, torch.ones(len(y))) if mix is None else (partners_of(y, mix), mix.lam)
        close(self.learn.loss.detach().mean().as_subclass(Tensor), slow_loss(self.pred.detach(), [y], [y1], lam))
        self.batches += 1


def in_threads(work, *arguments):
    """Call `work` with each argument, all at once, each in a thread of its own."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        list(pool.map(work, arguments))


def from_mixaug(data):
    """Return the modules of mixaug that a pickle, or a file of `torch.save`, imports when it is opened."""
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            data = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    found, pushed, memo = set(), [], {}
    for opcode, arg, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            found.add(arg.split(" ")[0])
        elif opcode.name == "STACK_GLOBAL":
            found.add(pushed[-2])
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = pushed[-1:]
        elif "PUT" in opcode.name:
            memo[arg] = pushed[-1:]
        elif "GET" in opcode.name:
            pushed += memo[arg]
        elif isinstance(arg, str):
            pushed.append(arg)
    return {name for name in found if name.split(".")[0] == "mixaug"}
