"""On an accelerator: nothing synchronizes with it, few kernels are launched, and a seed gives the same mixes."""

import warnings

import pytest
import torch
from common import EVERY, cnn, learner
from fastai.callback.core import TrainEvalCallback
from fastai.learner import Recorder
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mixaug.handler
from mixaug import (
    RICAP,
    CMixup,
    CutMix,
    Mix,
    MixUp,
    OneOf,
    OutputMixup,
    blend,
    box_mask,
    mixed_loss,
    sample_partner,
)
from mixaug.draw import new_rng
from mixaug.methods import hidden

FREE = (
    "prim::",
    "aten::empty",
    "aten::new_empty",
    "aten::detach",
    "aten::lift_fresh",
    "aten::_unsafe_view",
    "aten::randint",
)


class Watch(TorchDispatchMode):
    """Counts kernels and the bytes that they touch, and refuses operations that synchronize with the device."""

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        found = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}.values()
        copies = name in ("aten::_to_copy", "aten::copy_") and len({t.device.type for t in found}) > 1
        if (copies and not (kwargs or {}).get("non_blocking")) or name in (
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::masked_select",
            "aten::equal",
        ):
            raise RuntimeError(f"{name} synchronizes with the device")
        on_device = [t for t in found if t.device.type != "cpu"]
        if on_device and not (func.is_view or name.startswith(FREE) or name == "aten::reshape"):
            self.kernels.append(name)
            self.bytes += sum(t.nbytes for t in on_device)
        return out


def test_synchronization_is_seen():
    with FakeTensorMode(), Watch():
        x = torch.ones(3, device="cuda")
        for waits in (lambda: x.sum().item(), lambda: x[x > 0], x.cpu, lambda: bool((x == 1).all()), x.tolist):
            with pytest.raises(Exception, match=r"synchronizes|DataDependent|_local_scalar_dense|nonzero"):
                waits()
        with pytest.raises(RuntimeError, match="copy"):
            torch.ones(3, device="cpu").to("cuda")
        torch.ones(3, device="cpu").to("cuda", non_blocking=True)


def test_kernels_and_bytes_are_counted():
    with FakeTensorMode(), Watch() as watch:
        x = torch.empty(4, 8, device="cuda")
        (x.view(8, 4)[1:].T + 1).add_(1)
    assert watch.kernels == ["aten::add", "aten::add_"]
    assert watch.bytes == 4 * (28 + 28 + 28)


@pytest.fixture(autouse=True)
def unverified(monkeypatch, request):
    """A simulated device has no values: the tests of loss and layers on the first batch are left out."""
    if "on_a_gpu_nothing" not in request.node.name:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(mixaug.handler, "verify_loss", lambda *args: True)
        find = hidden.find_places
        monkeypatch.setattr(hidden, "find_places", lambda model, xb, given, **kwargs: find(model, (), given))


@pytest.fixture
def cpu_generators(monkeypatch):
    """Generators for a simulated device, which has none."""

    class Generator:  # a class: torch's own annotations name it
        def __new__(cls, device):
            return torch.default_generator

    monkeypatch.setattr(torch, "Generator", Generator)


def on_device(method, device, steps, x=None):
    """Take a learner through batches on a device that is simulated, or is there."""
    continuous = method is CMixup
    with torch.device(device):
        model = cnn(1 if continuous else 3)
        x = torch.randn(8, 2, 5, 6) if x is None else torch.randn(x)
        y = torch.linspace(0, 1, len(x))[:, None] if continuous else torch.randint(0, 3, (len(x),))
    mixer = method and method(1.0)
    if mixer:
        mixer.seed = 1  # torch's global generator has no values on a simulated device
    learn = learner(mixer, model=model, loss=nn.MSELoss() if continuous else nn.CrossEntropyLoss())
    learn.remove_cbs([Recorder, TrainEvalCallback])
    learn.dls.device, learn.dl = torch.device(device), learn.dls.train
    learn.epoch, learn.n_epoch, learn.iter, learn.n_iter, learn.pct_train, learn.training = 0, 1, 0, 3, 0.0, True
    learn.create_opt()
    for event in ("before_fit", "before_epoch", "before_train"):
        learn(event)
    steps(learn, x, y)
    return learn


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_no_synchronization_from_batch_to_loss(method, cpu_generators):
    def steps(learn, x, y):
        learn._do_grad_opt = lambda: None  # torch without CUDA has no backward pass on a simulated device
        with Watch():
            for i in range(4):
                learn.one_batch(i, (x, y))

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert on_device(method, "cuda", steps).loss.device.type == "cuda"


def test_draws_are_sent_from_pinned_memory(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t.shape) or t)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert sample_partner(8, "cuda", rng=new_rng(0)).device.type == "cuda"
    sample_partner(8, "cpu", rng=new_rng(0))
    assert pinned == [(8,)]


SIZE = (64, 2, 32, 32)


def cost(method):
    """Kernels and bytes of a batch, in batches, beyond those without mixing."""
    seen = []

    def steps(learn, x, y):
        learn._do_grad_opt = lambda: None
        learn.spy.after_loss = learn.spy.after_pred = lambda: None  # which copy
        with Watch() as watch:
            learn.one_batch(0, (x, y))
        seen.append((watch.kernels, watch.bytes / x.nbytes))

    with FakeTensorMode(allow_non_fake_inputs=True):
        for m in (None, method):
            on_device(m, "cuda", steps, SIZE)
    (plain, plain_bytes), (mixed, mixed_bytes) = seen
    return len(mixed) - len(plain), mixed_bytes - plain_bytes


@pytest.mark.parametrize(
    ("method", "kernels", "batches"),
    [
        (MixUp, 21, 8),  # six kernels keep what is not finite in one image from others
        (CutMix, 26, 4.6),  # a mask of a quarter of the batch is made, read and counted
        (OutputMixup, 22, 0.1),
        (lambda alpha: OneOf(MixUp(alpha), CutMix(alpha), per_sample=True), 36, 12.8),
        (lambda alpha: MixUp(alpha, k=3), 51, 16.1),
        (RICAP, 80, 83.1),  # four crops along two axes, each by indices for every position
        (lambda alpha: CutMix(alpha, partners="last"), 26, 4.6),
    ],
    ids=["MixUp", "CutMix", "OutputMixup", "OneOf, each sample", "three", "RICAP", "last"],
)
def test_cost_on_a_gpu(method, kernels, batches):
    launched, touched = cost(method)
    assert launched <= kernels
    assert touched <= batches + 0.05  # the targets and the loss


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_no_value_is_asked_for_from_batch_to_step(method):
    """The meta device has no values: whatever needs one fails."""

    def steps(learn, x, y):
        for i in range(4):
            learn.one_batch(i, (x, y))

    assert on_device(method, "meta", steps).loss.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_on_a_gpu_nothing_synchronizes_and_a_seed_gives_the_mixes_of_the_cpu(method):
    partners = {"cpu": [], "cuda": []}
    for device, seen in partners.items():

        def steps(learn, x, y, device=device, seen=seen):
            mixer = next(cb for cb in learn.cbs if type(cb).__module__.startswith("mixaug"))
            for i in range(20):  # each method that OneOf chooses tests the loss on its first batch
                torch.cuda.set_sync_debug_mode("error" if i > 15 and device == "cuda" else "default")
                try:
                    learn.one_batch(i, (x, y))
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                seen.append(mixer.mix and mixer.mix.partner.tolist())

        on_device(method, device, steps)
    assert partners["cpu"] == partners["cuda"]


def in_one_graph(f, *args):
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(f, fullgraph=True, backend="eager")(*args)


def test_every_function_is_one_graph():
    torch.manual_seed(0)
    x, partner, lam = torch.randn(6, 3, 8, 8), sample_partner(6), torch.rand(6)
    mask = box_mask(lam, (8, 8))
    for m in (lam, mask, torch.rand(6, 8, 8)):
        expected, exact = blend(x, partner, m), {"rtol": 0, "atol": 0} if m.dtype == torch.bool else {}
        for f in (blend, lambda x, p, m: Mix(p, m).blend(x)):
            torch.testing.assert_close(in_one_graph(f, x, partner, m), expected, **exact)
    center = torch.rand(2, 6)
    assert torch.equal(
        in_one_graph(lambda lam, c: box_mask(lam, (8, 8), c), lam, center), box_mask(lam, (8, 8), center)
    )
    pred, y = torch.randn(6, 4), torch.randint(0, 4, (6,))
    for loss in (nn.CrossEntropyLoss(weight=torch.rand(4)), nn.functional.cross_entropy):
        got = in_one_graph(lambda p, a, b, w, loss=loss: mixed_loss(loss, p, (a,), (b,), w), pred, y, y[partner], lam)
        torch.testing.assert_close(got, mixed_loss(loss, pred, (y,), (y[partner],), lam))
