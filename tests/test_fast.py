"""The fast ways against the formula, bit for bit; memory that is used again; nothing that waits for a device."""

import ctypes
import gc
import threading
import warnings

import numpy as np
import pytest
import torch
from common import EVERY, cnn, learner
from fastai.callback.core import TrainEvalCallback
from fastai.learner import CastToTensor, Recorder
from fastai.torch_core import TensorImage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixaug import CMixup, Mix, MixUp, blend, box_mask, fast, mixed_loss, sample_lam, sample_partner
from mixaug.masks import SymmetricBeta, share

HUGE = (4, 2, 1024, 300)  # more than 8 MB of floats

# The formula

ways = {"as it is": (), "sample by sample": ("_LARGE",), "in kept memory": ("_HUGE",), "both": ("_LARGE", "_HUGE")}
floats = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]
layouts = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "strided": lambda x: x[:, :, ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.fixture(params=ways)
def way(request, monkeypatch):
    """Each way of the module, for tensors of any size."""
    for size in ways[request.param]:
        monkeypatch.setattr(fast, size, 1)


@pytest.mark.parametrize("layout", layouts)
@pytest.mark.parametrize("dtype", floats, ids=str)
def test_an_average_is_the_formula_bit_for_bit(way, layout, dtype):
    torch.manual_seed(0)
    x, partner, lam = layouts[layout](torch.randn(6, 3, 8, 10).to(dtype)), sample_partner(6), torch.rand(6)
    for mask in (lam, torch.rand(6, *x.shape[2:])):
        shaped = mask.view(6, *[1] * (4 - mask.ndim), *mask.shape[1:]).to(dtype)
        before, out = x.clone(), blend(x, partner, mask)
        assert torch.equal(out, fast.formula(x, x[partner], shaped))
        assert out.stride() == torch.empty_like(x).stride()
        assert torch.equal(x, before)


@pytest.mark.parametrize("layout", layouts)
@pytest.mark.parametrize("dtype", [*floats, torch.uint8, torch.int64, torch.bool], ids=str)
def test_a_choice_is_the_formula_bit_for_bit(way, layout, dtype):
    torch.manual_seed(0)
    x, partner = layouts[layout]((torch.randn(6, 3, 8, 10) * 9).to(dtype)), sample_partner(6)
    for mask in (box_mask(torch.rand(6), x.shape[2:]), torch.rand(x.shape) < 0.5):
        before, out = x.clone(), blend(x, partner, mask)
        assert out.dtype == dtype
        assert torch.equal(out, fast.formula(x, x[partner], mask.view(6, -1, *x.shape[2:])))
        assert out.stride() == torch.empty_like(x).stride()
        assert torch.equal(x, before)


def test_a_choice_keeps_bits_that_are_no_numbers(way):
    x = torch.tensor([[float("nan"), -0.0, 1.0], [float("inf"), 2.0, -float("nan")]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    expected = torch.where(mask, x, x.flip(0)).view(torch.int32)
    assert torch.equal(blend(x, torch.tensor([1, 0]), mask).view(torch.int32), expected)


gradient_masks = {
    "share": lambda n: torch.rand(n),
    "map": lambda n: torch.rand(n, 7),
    "box": lambda n: torch.rand(n, 7) < 0.5,
}


@pytest.mark.parametrize("partner", [lambda n: sample_partner(n), lambda n: torch.zeros(n, dtype=torch.long)])
@pytest.mark.parametrize("mask", gradient_masks)
@given(n=st.integers(1, 20), part=st.integers(1, 500), seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_gradients_are_those_of_the_formula(mask, partner, n, part, seed):
    """Also where several have the same partner, and in parts of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "_LARGE", 1)
        patch.setattr(fast, "_PART", part)
        torch.manual_seed(seed)
        x, m, j = torch.randn(n, 5, 7, requires_grad=True), gradient_masks[mask](n), partner(n)
        grad = torch.randn(n, 5, 7)
        shaped = m.view(n, *[1] * (3 - m.ndim), *m.shape[1:])
        out, plain = blend(x, j, m), fast.formula(x, x[j], shaped)
        assert torch.equal(out, plain)
        torch.testing.assert_close(torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(plain, x, grad)[0])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mask", gradient_masks)
def test_results_may_be_changed_in_place(way, mask, grad):
    torch.manual_seed(0)
    x, m, w = torch.randn(4, 5, 7, requires_grad=True), gradient_masks[mask](4), torch.ones((), requires_grad=True)
    partner = sample_partner(4)
    with torch.set_grad_enabled(grad):
        out = blend(x, partner, m)
    assert not out._is_view()
    expected = out.detach().clone().relu()
    (nn.functional.relu_(out) * w).sum().backward()
    assert torch.equal(out.detach(), expected)
    assert (x.grad is not None) == grad
    with torch.no_grad():
        blend(x, partner, m).requires_grad_().detach_().mul_(2)


def test_samples_partners_and_masks_are_as_many():
    x = torch.ones(4, 3, 8, 8)
    for n, mask in ((2, torch.rand(4)), (4, torch.rand(1)), (4, torch.ones(2, 8, 8) > 0)):
        with pytest.raises(ValueError, match=r"shape \(4, 3, 8, 8\) came with .* partners .* as many samples"):
            blend(x, sample_partner(n), mask)


@pytest.mark.parametrize("mask", [torch.rand, lambda n: torch.rand(n, 6) < 0.5])
def test_functions_of_functions_and_recorded_graphs_are_right(way, mask):
    torch.manual_seed(0)
    x, several, partner, m = torch.randn(4, 6, requires_grad=True), torch.randn(3, 4, 6), sample_partner(4), mask(4)

    def f(t):
        return blend(t, partner, m)

    def g(t):
        return fast.formula(t, t[partner], m.view(4, -1))

    assert torch.equal(torch.func.vmap(f)(several), torch.func.vmap(g)(several))
    assert torch.equal(*(torch.func.grad(lambda t, h=h: h(t).square().sum())(x) for h in (f, g)))
    assert torch.equal(*(torch.func.jvp(h, (x,), (several[0],))[1] for h in (f, g)))
    torch.testing.assert_close(*(torch.autograd.grad(h(x), x, several, is_grads_batched=True)[0] for h in (f, g)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for graph in (make_fx(f)(several[0]), torch.jit.trace(f, several[0])):
            assert torch.equal(graph(several[1]), g(several[1]))


def test_gradients_of_gradients_are_right(monkeypatch):
    monkeypatch.setattr(fast, "_LARGE", 1)
    torch.manual_seed(0)
    x, lam, partner = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.rand(4), sample_partner(4)
    assert torch.autograd.gradcheck(lambda x: blend(x, partner, lam), x)
    assert torch.autograd.gradgradcheck(lambda x: blend(x**3, partner, lam), x)


def test_a_mask_that_learns_gets_its_gradient(monkeypatch):
    monkeypatch.setattr(fast, "_LARGE", 1)
    x, lam = torch.randn(4, 3), torch.rand(4, requires_grad=True)
    partner = sample_partner(4)
    blend(x, partner, lam).sum().backward()
    torch.testing.assert_close(lam.grad, (x - x[partner]).sum(1))


# Memory


@pytest.fixture
def fresh():
    """Nothing free at first."""
    fast.release()
    gc.collect()
    yield
    fast.release()


def mixed(seed=0):
    torch.manual_seed(seed)
    x = torch.randn(HUGE)
    return blend(x, sample_partner(4), torch.rand(4))


def test_memory_is_used_again_once_nobody_holds_it(fresh):
    first = mixed().data_ptr()
    assert mixed(1).data_ptr() == first


views = {
    "the tensor": lambda t: t,
    "a view": lambda t: t[1, :, 5:9],
    "a detached one": lambda t: t.detach(),
    "its storage": lambda t: t.untyped_storage(),
    "numpy": lambda t: t[0].numpy(),
    "numpy of numpy": lambda t: t.numpy()[1:, 0],
    "another dtype": lambda t: t.view(torch.int32),
    "fastai's type": lambda t: t.as_subclass(TensorImage),
    "dlpack": lambda t: torch.from_dlpack(t),
    "numpy by dlpack": lambda t: np.from_dlpack(t),
    "a parameter": lambda t: nn.Parameter(t),
    "saved for backward": lambda t: (t * torch.ones((), requires_grad=True)).sum(),
    "a list": lambda t: [t],
    "a cycle": lambda t: (lambda holder: (holder.append(holder), holder))([t])[1],
    "a closure": lambda t: lambda: t,
    "data": lambda t: t.data,
    "a memoryview": lambda t: memoryview(t.numpy()),
}


@pytest.mark.parametrize("view", views)
def test_memory_is_not_used_again_while_anybody_holds_it(fresh, view):
    result = mixed()
    expected, address, held = result.clone(), result.data_ptr(), views[view](result)
    del result
    others = [mixed(seed) for seed in range(1, 4)]
    assert address not in [t.data_ptr() for t in others]
    now = (ctypes.c_float * expected.numel()).from_address(address)
    assert torch.equal(torch.frombuffer(now, dtype=torch.float32).view(HUGE), expected)
    del held, now
    gc.collect()
    assert address in [block.ctypes.data for block in fast._free]


def test_a_second_batch_before_the_first_ones_backward_leaves_its_gradient_right(fresh):
    weight = torch.ones((), requires_grad=True)
    losses, sums = [], []
    for seed in range(4):
        x = mixed(seed)
        sums.append(x.double().sum().item())
        losses.append((x * weight).sum())
        del x
    for loss, expected in zip(losses, sums, strict=True):
        (grad,) = torch.autograd.grad(loss, weight)
        assert grad.item() == pytest.approx(expected, rel=1e-3, abs=1)


def test_memory_moved_to_other_processes_comes_back_and_is_theirs(fresh):
    result = mixed()
    expected = result.clone()
    result.share_memory_()  # which moves it
    mixed(1)
    assert torch.equal(result, expected)
    assert len(fast._free) == 1


def test_kept_memory_is_little_and_given_up_after_training(fresh):
    held = [mixed(seed) for seed in range(5)]
    del held
    assert len(fast._free) == 2
    x = torch.randn(8, 2, 512, 300)
    learn = learner(MixUp(), x=x, y=torch.randint(0, 3, (8,)), bs=4)
    learn.fit(1)
    assert not fast._free
    result = mixed()
    fast.release()
    del result
    assert not fast._free  # what was lent before does not come back after


def test_memory_of_another_size_is_not_taken(fresh):
    mixed()
    x = torch.randn(5, 2, 1024, 300)
    assert torch.equal(blend(x, sample_partner(5), torch.ones(5)), x)
    assert mixed(1).shape == HUGE


def test_threads_never_get_the_same_memory(fresh):
    wrong = []

    def work(value):
        for _ in range(30):
            x = torch.full(HUGE, float(value))
            out = blend(x, torch.tensor([1, 2, 3, 0]), torch.full((4,), 0.5))
            if not (out == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_a_training_with_kept_memory_is_the_training_without(fresh, monkeypatch):
    def losses(huge):
        monkeypatch.setattr(fast, "_HUGE", huge)
        torch.manual_seed(0)
        learn = learner(MixUp(1.0, seed=3))
        learn.fit(3)
        return torch.stack([row["loss"] for row in learn.spy.batches])

    assert torch.equal(losses(1), losses(2**40))


# Nothing waits for the device


class NoWait(TorchDispatchMode):
    """Refuses every operation for which a device has to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        copies = name in ("aten::_to_copy", "aten::copy_") and len(devices) > 1
        if copies or name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"):
            raise RuntimeError(f"{name} waits for the device: {devices}")
        return out


def test_waits_are_seen():
    with FakeTensorMode(), NoWait():
        x = torch.ones(3, device="cuda")
        for waits in (lambda: x.sum().item(), lambda: x[x > 0], x.cpu, lambda: bool((x == 1).all()), x.tolist):
            with pytest.raises(Exception, match=r"wait|DataDependent|_local_scalar_dense|nonzero"):
                waits()
        with pytest.raises(RuntimeError, match="copy"):
            torch.ones(3, device="cpu").to("cuda")


def on_device(method, device, steps):
    """Take a learner through batches on a device that is pretended, or is there."""
    numbers = method is CMixup
    with torch.device(device):
        model = cnn(1 if numbers else 3)
        x, y = torch.randn(8, 2, 5, 6), torch.rand(8, 1) if numbers else torch.randint(0, 3, (8,))
    learn = learner(method(1.0), model=model, loss=nn.MSELoss() if numbers else None)
    learn.remove_cbs([Recorder, CastToTensor, TrainEvalCallback])
    learn.dls.device, learn.dl = torch.device(device), learn.dls.train
    learn.epoch, learn.n_epoch, learn.iter, learn.n_iter, learn.pct_train, learn.training = 0, 1, 0, 3, 0.0, True
    learn.create_opt()
    for event in ("before_fit", "before_epoch", "before_train"):
        learn(event)
    steps(learn, x, y)
    return learn


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_from_the_batch_to_the_loss_nothing_waits_for_the_device(method):
    def steps(learn, x, y):
        learn._do_grad_opt = lambda: None  # torch without CUDA has no backward pass on a pretended one
        with NoWait():
            for i in range(4):
                learn.one_batch(i, (x, y))

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert on_device(method, "cuda", steps).loss.device.type == "cuda"


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_from_the_batch_to_the_step_nothing_asks_for_a_value(method):
    """The meta device has no values: whatever needs one fails."""

    def steps(learn, x, y):
        for i in range(4):
            learn.one_batch(i, (x, y))

    learn = on_device(method, "meta", steps)
    assert learn.loss.device.type == "meta"
    mixer = next(cb for cb in learn.cbs if type(cb).__module__.startswith("mixaug"))
    assert mixer.distrib.alpha.device.type == "cpu"  # not every device draws from Gamma


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_on_a_gpu_nothing_waits_for_it(method):
    def steps(learn, x, y):
        learn.one_batch(0, (x, y))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for i in range(1, 4):
                learn.one_batch(i, (x, y))
        finally:
            torch.cuda.set_sync_debug_mode("default")

    on_device(method, "cuda", steps)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pretended_tensors_of_any_size_are_mixed(device):
    with FakeTensorMode(), torch.device(device):
        x, partner, lam = torch.randn(4, 2, 1024, 1024), torch.tensor([1, 2, 3, 0]), torch.rand(4)
        for mask in (lam, box_mask(lam, x.shape[2:])):
            assert Mix(partner, mask).blend(x).shape == x.shape
            assert share(mask).shape == (4,)


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
        assert torch.equal(in_one_graph(blend, x, partner, m), blend(x, partner, m))
        assert torch.equal(in_one_graph(lambda x, p, m: Mix(p, m).blend(x), x, partner, m), Mix(partner, m).blend(x))
    assert torch.equal(in_one_graph(share, mask), share(mask))
    pred, y = torch.randn(6, 4), torch.randint(0, 4, (6,))
    for loss in (nn.CrossEntropyLoss(weight=torch.rand(4)), nn.functional.cross_entropy):
        got = in_one_graph(lambda p, a, b, w, loss=loss: mixed_loss(loss, p, (a,), (b,), w), pred, y, y[partner], lam)
        torch.testing.assert_close(got, mixed_loss(loss, pred, (y,), (y[partner],), lam))
    for draw in (
        lambda: sample_lam(SymmetricBeta(torch.tensor(0.4)), 6),
        lambda: sample_partner(6),
        lambda: box_mask(lam, (8, 8)).float(),
    ):
        torch.manual_seed(1)
        expected = draw()
        torch.manual_seed(1)
        assert torch.equal(in_one_graph(draw), expected)
