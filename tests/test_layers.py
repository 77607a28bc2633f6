"""Which layers of a network may be mixed: what is found, and that nothing goes around it."""

import copy
import random
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from common import BS, C, N, classes, cnn, images, learner, no_hooks, on
from fastai.callback.hook import ActivationStats, Hook
from fastai.layers import ConvLayer
from fastai.tabular.model import TabularModel
from fastai.text.models import AWD_LSTM, get_text_classifier
from fastai.vision.learner import create_timm_model, create_vision_model
from fastai.vision.models import resnet18, xresnet
from fastai.vision.models.unet import DynamicUnet
from reference import close, slow_loss
from torch import nn

from mixaug import ManifoldMixup, Mix, hidden_layers, mixable
from mixaug.exchange import Exchange
from mixaug.layers import find_places
from mixaug.nests import tensors

PICTURE = (2, 3, 64, 64)


def convnet():
    return nn.Sequential(ConvLayer(3, 4), ConvLayer(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, C))


def tv(name, **kwargs):
    return lambda: getattr(torchvision.models, name)(num_classes=C, **kwargs)


def in_timm(name, **kwargs):
    return lambda: timm.create_model(name, num_classes=C, **kwargs)


# Each network with the number and the classes of the layers to be found in it. One line adds one.
NETWORKS = {
    "convnet": (convnet, 2, {"ConvLayer"}),
    "cnn": (lambda: cnn(channels=3), 2, {"Conv2d"}),
    "xresnet18": (lambda: xresnet.xresnet18(n_out=C), 11, {"ConvLayer", "ResBlock"}),
    "vision_learner": (lambda: create_vision_model(resnet18, C, pretrained=False), 8, {"BasicBlock"}),
    "timm learner": (lambda: create_timm_model("convnext_atto", C, pretrained=False)[0], 4, {"ConvNeXtStage"}),
    "resnet18": (tv("resnet18"), 8, {"BasicBlock"}),
    "resnet50": (tv("resnet50"), 16, {"Bottleneck"}),
    "vgg11": (tv("vgg11"), 10, {"Conv2d", "Linear"}),
    "vit_b_32": (tv("vit_b_32", image_size=64), 12, {"EncoderBlock"}),
    "densenet121": (tv("densenet121"), 7, {"_DenseBlock", "_Transition"}),
    "googlenet": (tv("googlenet", aux_logits=False, init_weights=False), 12, {"BasicConv2d", "Inception"}),
    "mobilenet_v3_small": (tv("mobilenet_v3_small"), 13, {"Conv2dNormActivation", "InvertedResidual"}),
    "efficientnet": (in_timm("efficientnet_b0"), 16, {"DepthwiseSeparableConv", "InvertedResidual"}),
    "convnext": (in_timm("convnext_atto"), 4, {"ConvNeXtStage"}),
    "vit": (in_timm("vit_tiny_patch16_224", img_size=64), 13, {"Block", "PatchEmbed"}),
    "swin": (in_timm("swin_tiny_patch4_window7_224", img_size=64), 5, {"PatchEmbed", "SwinTransformerStage"}),
    "mixer": (in_timm("mixer_s16_224", img_size=64), 9, {"MixerBlock", "PatchEmbed"}),
}


@pytest.mark.parametrize(("make", "count", "kinds"), NETWORKS.values(), ids=NETWORKS)
def test_the_prediction_depends_on_the_input_through_each_layer_alone(make, count, kinds):
    """With the output of the layer cut off from the graph, nothing of the input may reach the prediction."""
    model, x = make(), torch.randn(PICTURE, requires_grad=True)
    layers = hidden_layers(model, x)
    assert len(layers) == count
    assert {type(m).__name__ for m in layers.values()} == kinds
    assert all(model.get_submodule(name) is m for name, m in layers.items())
    with pytest.warns(UserWarning, match=r"not verified.*hidden_layers\(model, x\)"):
        assert len(hidden_layers(model)) == count  # by structure alone
    model.eval()
    for layer in layers.values():
        ran = []
        hook = layer.register_forward_hook(lambda m, args, out, ran=ran: ran.append(out) or out.detach())
        pred = model(x)
        hook.remove()
        assert len(ran) == 1
        assert ran[0] is not pred
        assert ran[0].grad_fn is not None
        gone = pred.sum() + 0 * x.sum()
        assert not torch.autograd.grad(gone, x)[0].any()
    assert not any(a is not b and a in set(b.modules()) for a in layers.values() for b in layers.values())


# Networks with something that goes around some of their layers


class Flow(nn.Module):
    """A network with layers a, b, c and a head, whose forward pass is a function."""

    def __init__(self, flow, **layers):
        super().__init__()
        self.flow = flow
        for name in "abc":
            setattr(self, name, nn.Linear(6, 6))
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nn.Linear(6, C)

    def forward(self, *xb):
        return self.flow(self, *xb)


def zero(layer):
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class WithMask(nn.Linear):
    """Returns a mask beside, which cannot be mixed."""

    def forward(self, x):
        return super().forward(x), x[:, :1] > -100


def looped(net, x):
    for _ in range(2):
        x = net.b(x).tanh()
    return net.head(x)


def in_training(net, x):
    h = net.a(x)
    main = net.head(net.b(h).relu())
    return (main, net.c(h)) if net.training else main


def detached_in_training(net, x):
    h = net.a(x)
    main = net.head(net.b(h).relu())
    return (main, net.c(h.detach())) if net.training else main


def no_gradient(net, x):
    with torch.no_grad():
        side = net.b(x)
    return net.head(net.a(x).relu() + side)


class Attends(nn.Module):
    """Drops attention weights by a function, which looks at `training` itself."""

    def __init__(self):
        super().__init__()
        self.q, self.v = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        q, v = self.q(x)[:, None], self.v(x)[:, None]
        p = 0.5 if self.training else 0.0
        h = nn.functional.scaled_dot_product_attention(q, q, v, None, p)[:, 0]
        return nn.functional.dropout(h, p, self.training)


class Recurrent(nn.Module):
    """A body that may take sequences in parts."""

    def __init__(self):
        super().__init__()
        self.linear, self.rnn = nn.Linear(6, 6), nn.GRU(6, 6, batch_first=True)

    def forward(self, x):
        return self.rnn(self.linear(x)[:, None])[0][:, 0]


def padded(net, x):
    """Sentences of codes, of which those that are 0 do not count."""
    codes = (x[:, 0, None] * 10).long() > torch.arange(6)
    h = net.b(net.a(codes.long())) * codes[..., None]
    return net.head(net.c(h.sum(1) / codes.sum(1, keepdim=True)))


def asks_for_gradients(net, x):
    h = x.view(len(x), 6)
    if net.training:
        h.requires_grad = True
    return net.head(net.a(h))


class Probe(nn.Module):
    """Part of a network, with a head of its own in training, without gradients."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, C)

    def forward(self, x):
        h = self.a(x)
        return (self.b(h), self.c(h.detach())) if self.training else (self.b(h),)


def probed(net, x):
    h, *side = net.a(x)
    return net.head(h), *side


class Noisy(nn.Linear):
    """Draws noise for each sample in training."""

    def __init__(self):
        super().__init__(6, 6)
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        h = self.inner(super().forward(x))
        return h + torch.rand_like(h) if self.training else h


def heard(net, x):
    """A spectrogram, of which frames that are zero do not count."""
    return net.head(net.c(net.b(net.a(x[:, 0].mean(1))) * (x.abs().sum((1, 2)) > 0)))


class Gate(nn.Module):
    """A gate that is closed at first."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return x * self.gate


def gated(net, x):
    with torch.no_grad():
        side = net.c(x)
    return net.head(net.a(x) + net.b(side))


def stacked(net, x):
    h = net.a(x)
    return net.head(net.b(h).relu()), torch.stack([net.c(h.detach())] * 2)  # the graph does not show it


def flat(net, x):
    h = net.a((x > 0).long())
    return net.head(net.b(h.mean(1)).relu()), net.c(h.detach()).flatten(0, 1)


@dataclass
class Output:
    """A prediction of two heads."""

    main: torch.Tensor
    side: torch.Tensor


def in_a_dataclass(net, x):
    h = net.a(x)
    return Output(net.head(net.b(h).relu()), net.c(h.detach()))


LINE = lambda net, x: net.head(net.c(net.b(net.a(x).relu()).relu()).relu())  # noqa: E731
TIME = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0), 1, enable_nested_tensor=False)
FLOWS = {
    "line": (LINE, {}, ["a", "b", "c"]),
    "branches": (lambda net, x: net.head(net.c((net.a(x) + net.b(x)).relu())), {}, ["a + b", "c"]),
    "branches of two classes": (
        lambda net, x: net.head((net.a(x) + net.b(x)).relu()),
        {"b": nn.Sequential(nn.Linear(6, 6))},
        [],
    ),
    "residual": (lambda net, x: net.head(net.c((x + net.b(net.a(x).relu())).relu())), {}, ["c"]),
    "a branch that is zero at first": (
        lambda net, x: net.head(net.c(net.a(x) + net.b(x))),
        {"b": zero(nn.Linear(6, 6))},
        ["a + b", "c"],
    ),
    "a branch without gradients": (no_gradient, {}, []),
    "a head in training": (in_training, {}, ["a"]),
    "a head in training, without gradients": (detached_in_training, {}, ["a"]),
    "siamese": (lambda net, x: net.head(net.a(x).relu() - net.a(x.flip(1)).relu()), {}, ["a"]),
    "loop": (looped, {}, ["b (run 1)", "b (run 2)"]),
    "time in front": (lambda net, x: net.head(net.b(net.a(x[:, None].transpose(0, 1)))[0]), {}, []),
    "encoder with time in front": (
        lambda net, x: net.head(net.b(net.a(x[:, None].expand(-1, 4, -1).transpose(0, 1))).mean(0)),
        {"b": TIME},
        [],
    ),
    "a layer that does not run": (lambda net, x: net.head(net.a(x)), {}, ["a"]),
    "dropout by functions": (lambda net, x: net.head(net.b(net.a(x))), {"b": Attends()}, ["b"]),
    "noise": (lambda net, x: net.head(net.a(x) + torch.rand(1)), {}, ["a"]),
    "rows in sequence": (lambda net, x: net.head(net.a(x.view(-1, 2)).view(len(x), 6)), {"a": nn.Linear(2, 2)}, []),
    "a place of its own": (
        lambda net, x: net.head(x + net.here(net.a(x))),
        {"here": mixable(nn.Identity())},
        None,  # which was marked: an error
    ),
    "codes, a branch that is zero at first": (
        lambda net, x: net.head(net.b((net.a((x > 0).long()) + net.c((x > 0).long())).mean(1))),
        {"a": nn.Embedding(2, 6), "c": zero(nn.Embedding(2, 6))},
        ["a + c", "b"],
    ),
    "a mask beside": (
        lambda net, x: net.head(net.a((lambda h, mask: h * mask)(*net.b(x)))),
        {"b": WithMask(6, 6)},
        ["a"],
    ),
    "recurrent": (lambda net, x: net.head(net.b(net.a(x))), {"b": Recurrent()}, ["a"]),
    "in place": (lambda net, x: net.head(net.a(x.mul_(0.5))), {}, ["a"]),
    "heads in a stack": (stacked, {}, ["a"]),
    "flat positions": (flat, {"a": nn.Embedding(2, 6)}, ["a"]),
    "heads in a dataclass": (in_a_dataclass, {}, ["a"]),
    "a table beside, of as many rows": (
        lambda net, x: (net.head(net.b(net.a(x))), net.c.weight * 2),
        {"c": nn.Linear(6, 4)},
        ["a", "b"],
    ),
    "a nested head in training": (probed, {"a": Probe()}, ["a"]),
    "a gate that is zero at first": (gated, {"b": Gate()}, []),
    "padding": (padded, {"a": nn.Embedding(2, 6)}, ["c"]),
    "gradients of the input": (asks_for_gradients, {}, ["a"]),
    "noise of each sample": (
        lambda net, x: net.head(net.a(net.b(x))),
        {"b": nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.RReLU(), nn.Dropout(0.5)))},
        ["b.0", "a"],
    ),
    "codes": (lambda net, x: net.head(net.b(net.a((x > 0).long()).mean(1))), {"a": nn.Embedding(2, 6)}, ["a", "b"]),
    "codes and their places": (
        lambda net, x: net.head(net.b((net.a((x > 0).long()) + net.c(torch.arange(6))).mean(1))),
        {"a": nn.Embedding(2, 6), "c": nn.Embedding(6, 6)},
        ["a", "b"],
    ),
}


def swapped(model, place, x):
    """Return the prediction with the output of a place exchanged, and the partners' prediction (in training form)."""
    partner, runs = torch.arange(len(x)).roll(1), [0]

    def exchange(module, args, output):
        runs[0] += 1
        turned = tuple(t[partner] for t in output) if isinstance(output, tuple) else output[partner]
        return turned if place.run in (None, runs[0] - 1) else output

    for m in model.modules():
        m.training = m is model or isinstance(m, Probe)
    hooks = [m.register_forward_hook(exchange) for m in place.layers]
    torch.manual_seed(2)
    got = model(x.clone())
    for hook in hooks:
        hook.remove()
    torch.manual_seed(2)
    return [tensors(vars(p) if isinstance(p, Output) else p) for p in (got, model(x[partner]))]


class Padded(nn.Module):
    """Takes sentences, of which a mask leaves out what is padded: by a code, by a mask that is given, or by zeros."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.first = kind, nn.Linear(6, 6) if kind == "zeros" else nn.Embedding(100, 6)
        if kind == "own code":
            self.first.padding_idx = 7
        if kind == "code of the configuration":
            self.config = SimpleNamespace(pad_token_id=98)
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, C)
        if "zero head" in kind:
            nn.init.zeros_(self.head.weight)

    def forward(self, x, given=None):
        code = {"code 1": 1, "own code": 7, "code of the configuration": 98}.get(self.kind, 0)
        if "length" in self.kind:
            mask = torch.arange(x.shape[1]) < given.view(-1, 1)
        elif given is not None:
            mask = ~given if "padding" in self.kind else given
        else:
            mask = x != code if self.kind != "zeros" else (x != 0).any(-1)
        h = self.hidden(self.first(x))
        if "infinity" in self.kind:
            return self.head(h)[..., 0].masked_fill(~mask, -torch.inf)
        h = h * mask[..., None]
        return self.head(h.sum(1) / mask.sum(1, keepdim=True))


CODES = torch.randint(2, 7, (5, 8))
CODES[0, 0] = 8


@pytest.mark.parametrize(
    ("kind", "xb"),
    {
        "code 0": (CODES,),
        "code 1": (CODES,),
        "own code": (CODES,),
        "code of the configuration": (CODES,),
        "a mask": (CODES, torch.ones(5, 8)),
        "a mask of bools": (CODES, torch.ones(5, 8) > 0),
        "a mask of padding": (CODES, torch.ones(5, 8) < 0),
        "a mask of integers": (CODES, torch.ones(5, 8, dtype=torch.int64)),
        "lengths": (CODES, torch.full((5,), 8)),
        "lengths in a column": (CODES, torch.full((5, 1), 8)),
        "zeros": (torch.randn(5, 8, 6),),
        "a mask, zero head": (CODES, torch.ones(5, 8) > 0),
        "infinity": (CODES, torch.ones(5, 8) > 0),
    }.items(),
)
def test_a_mask_goes_around_even_if_the_first_batch_has_no_padding(kind, xb):
    model = Padded(kind)
    state = copy.deepcopy(model.state_dict())
    assert not find_places(model, xb)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    with pytest.raises(ValueError, match="verify=False"):
        find_places(model, xb, [model.hidden])


@pytest.mark.parametrize(
    "flag",
    {
        "codes of 0": torch.zeros(5, dtype=torch.int64),
        "codes of 1": torch.ones(5, dtype=torch.int64),
        "a column of codes": torch.ones(5, 1, dtype=torch.int64),
        "zeros": torch.zeros(5),
        "numbers": torch.full((5,), 0.5),
        "bools": torch.ones(5) > 0,
        "columns of bools": torch.zeros(5, 2) > 0,
    }.items(),
    ids=lambda item: item[0],
)
def test_a_flag_goes_around_even_if_all_of_the_first_batch_have_the_same(flag):
    model = Flow(lambda net, x, k: net.head(net.c(net.b(net.a(x)) + net.e(k.view(len(k), -1)[:, -1].long()))))
    model.e = nn.Embedding(3, 6)
    if flag[1].is_floating_point():
        model.flow = lambda net, x, k: net.head(net.c(net.b(net.a(x)) + (k.view(-1, 1) > 0.3).float()))
    assert [place.name for place in find_places(model, (torch.randn(5, 6), flag[1]))] == ["c"]


def test_a_head_of_a_nested_module_in_training_goes_around_too():
    model, x = Flow(probed, a=Probe()), torch.randn(5, 6)
    assert [place.name for place in find_places(model, (x,), [model.a.a])] == ["a.a"]
    with pytest.raises(ValueError, match="Something goes around"):
        find_places(model, (x,), [model.a.b])


def test_noise_that_a_nested_module_draws_for_each_sample_in_training_goes_around_nothing():
    model = Flow(lambda net, x: net.head(net.c(net.b(net.a(x)).relu())), b=Noisy())
    places = find_places(model, (torch.randn(5, 6),), [model.a, model.c])
    assert [place.name for place in places] == ["a", "c"]


def test_biases_stay_small_in_the_test_so_that_a_small_effect_of_a_mask_is_seen():
    model = Flow(lambda net, x, mask: net.head(net.c(net.b(net.a(x)) + 1e-5 * mask)))
    for name in ("a", "b", "c", "head"):
        nn.init.normal_(getattr(model, name).weight, std=0.02)
        nn.init.zeros_(getattr(model, name).bias)
    assert [place.name for place in find_places(model, (torch.randn(5, 6), torch.eye(5, 6).long()))] == ["c"]


def test_pictures_that_are_not_square_may_be_padded():
    x = torch.randn(5, 1, 4, 6)
    assert [place.name for place in find_places(Flow(heard), (x,))] == ["c"]


def test_samples_that_differ_are_tested():
    model = Flow(lambda net, x, k: net.head(net.c(net.b(net.a(x)) + net.e(k))), e=nn.Embedding(9, 6))
    flags = torch.full((16,), 8)
    flags[3] = 3
    with Exchange(model, (torch.randn(16, 6), flags)) as trial:
        assert sorted(trial.xb[1].tolist()) == [3, 8, 8, 8]
    texts = [str(i) for i in range(16)]
    with Exchange(Flow(lambda net, x, texts: net.head(net.a(x))), (torch.randn(16, 6), texts)) as trial:
        assert trial.xb[1] == ["0", "5", "10", "15"]


def test_padding_that_the_batch_has_is_seen_too():
    """Only the third of four samples is padded."""
    mask = torch.zeros(4, 8) > 0
    mask[2, 5:] = True
    assert not find_places(Padded("a mask of padding"), (CODES[:4], mask))


SCALES = {
    "logarithm": lambda x: x.log(),
    "reciprocal": lambda x: 1 / x,
    "returns": lambda x: (x[:, 1:] / x[:, :-1]).log(),
    "standardized": lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_models_that_have_no_finite_value_for_padding_are_tested_as_the_batch_is(scale):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.LazyLinear(6), nn.Linear(6, 6), nn.Linear(6, C)

        def forward(self, x):
            return self.head(self.b(self.a(scale(x).flatten(1)).tanh()).tanh())

    x = torch.rand(5, 6, 3) + 0.5
    model = Scaled()
    model(x)
    assert [place.name for place in find_places(model, (x,))] == ["a", "b"]


def test_padding_at_the_left_is_no_reason_to_leave_layers_out_that_a_mask_does_not_reach():
    def flow(net, x):
        mask = x != 0
        h = net.b((net.a(x) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return net.head(net.c(h.relu()))

    codes = torch.tensor([[0, 0, 3, 4], [0, 2, 3, 1], [0, 0, 0, 5], [1, 2, 3, 4]])
    assert [p.name for p in find_places(Flow(flow, a=nn.Embedding(9, 6)), (codes,))] == ["b", "c"]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16])
def test_inputs_of_any_dtype_are_tested(dtype):
    def flow(net, x):
        return LINE(net, x.real if x.is_complex() else x.float())

    x = torch.randn(5, 6).to(dtype) if dtype == torch.complex64 else torch.arange(30).view(5, 6).to(dtype)
    assert [place.name for place in find_places(Flow(flow), (x,))] == ["a", "b", "c"]
    assert (nn.functional.dropout(torch.ones(1000), 0.5) == 0).any()  # the trial is over


class Hoards(nn.Module):
    """Keeps state in all kinds of places, while it is in training."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, C)
        self.bank, self.steps, self.nested = deque(maxlen=3), torch.zeros(()), {"all": {"seen": [torch.zeros(2)]}}
        self.array, self.rng, self.numpys = np.zeros(2), torch.Generator(), np.random.default_rng(0)

    def forward(self, x):
        self.bank.append(1)
        self.steps += 1
        self.nested["all"]["seen"][0] += 1
        self.nested["all"]["seen"].append(1)
        self.array += 1
        torch.rand(1, generator=self.rng), self.numpys.random()
        return self.last(self.first(x).relu())


def test_no_state_of_the_model_is_touched():
    model = Hoards()

    def state():
        kept = model.bank, model.steps, model.nested, model.array, model.numpys.bit_generator.state
        return repr(kept), model.rng.get_state().tolist()

    before = state()
    assert find_places(model, (torch.randn(5, 6),))
    assert state() == before


def test_codes_that_a_table_does_not_have_are_not_tried():
    """Where a GPU would have to be restarted."""

    def flow(net, x, site):
        mask = x != 1
        return net.head((net.b(net.a(x)) * mask[..., None]).sum(1) + net.c(site).mean(1))

    layers = {"a": nn.Embedding(9, 6), "c": nn.Embedding(1, 6)}
    model, site = Flow(flow, **layers), torch.zeros(5, 2, dtype=torch.int64)
    assert not find_places(model, (CODES, site))
    model.config = SimpleNamespace(pad_token_id=8)  # of the first input
    assert not find_places(model, (CODES, site))


def test_a_model_that_takes_no_padding_is_tested_as_the_batch_is():
    def flow(net, x):
        assert (x != 0).all()
        return LINE(net, x[:, 0])

    assert [place.name for place in find_places(Flow(flow), (torch.randn(5, 2, 6),))] == ["a", "b", "c"]


@pytest.mark.parametrize(("flow", "layers", "names"), FLOWS.values(), ids=FLOWS)
def test_only_layers_that_nothing_goes_around_are_found(flow, layers, names):
    torch.manual_seed(1)
    model, x = Flow(flow, **layers).train(), torch.randn(5, 6)
    x[:, 0] = torch.tensor([0.55, 0.55, 0.55, 0.55, 0.25])  # lengths of sentences, sorted
    if names is None:
        with pytest.raises(ValueError, match=r"around it.*prediction|around it.*head.*verify=False"):
            find_places(model, (x,))
        return
    places = find_places(model, (x,))
    assert [place.name for place in places] == names
    for place in places:
        for got, wanted in zip(*swapped(model, place, x), strict=True):
            torch.testing.assert_close(got, wanted)


def test_the_skips_of_a_unet_go_around_all_but_what_is_behind_the_last_one():
    body = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
    model = DynamicUnet(body, C, (64, 64))
    places = find_places(model, (torch.rand(3, 3, 64, 64),))
    assert [place.name for place in places] == ["layers.11"]
    with pytest.raises(ValueError, match=r"'layers\.6'.*around it, which reaches 'layers\."):
        find_places(model, (torch.rand(3, 3, 64, 64),), [model.layers[6]])


def test_auxiliary_heads_and_parallel_stems():
    x = torch.rand(3, 3, 64, 64)
    model = torchvision.models.googlenet(init_weights=False, num_classes=C)
    names = [place.name for place in find_places(model, (x,))]
    assert names[:2] == ["conv1", "conv2"]
    assert "inception4a" in names  # in front of both auxiliary heads
    assert "inception4b" not in names
    assert "inception5b" not in names
    model = timm.create_model("crossvit_9_240", num_classes=C)
    names = list(hidden_layers(model, torch.rand(2, 3, 240, 240)))
    assert names == ["patch_embed.0 + patch_embed.1", "blocks.0", "blocks.1", "blocks.2"]


def test_a_tabular_model_is_mixed_in_its_hidden_layers_and_a_text_classifier_in_its_head():
    model = TabularModel([(10, 4), (5, 3)], 3, C, [20, 10])
    xb = torch.randint(0, 5, (6, 2)), torch.rand(6, 3)
    assert list(hidden_layers(model, *xb).values()) == [model.layers[0], model.layers[1]]
    codes = torch.randint(1, 90, (4, 12))
    assert list(hidden_layers(get_text_classifier(AWD_LSTM, 100, C), codes)) == ["1.layers.0"]


def test_marked_layers_come_before_all_others():
    model = convnet()
    assert mixable(model[1][0]) is model[1][0]
    assert list(hidden_layers(model, torch.rand(PICTURE))) == ["1.0"]


class TestNamed:
    @pytest.mark.parametrize(
        ("flow", "modules", "match"),
        [
            (FLOWS["residual"][0], lambda net: [net.a], "'a', but something goes around it, which reaches 'c'"),
            (FLOWS["branches"][0], lambda net: [net.a], "around it, which reaches 'b'"),
            (FLOWS["a head in training"][0], lambda net: [net.b], "around it, which reaches 'c'"),
            (FLOWS["time in front"][0], lambda net: [net.b], r"\[\[1, 4, 6\]\]"),
            (FLOWS["a layer that does not run"][0], lambda net: [net.b], "no run in a forward pass"),
            (lambda net, x: net.head(net.a(x).relu() + net.b(x).detach()), lambda net: [net.a], "samples in front"),
        ],
    )
    def test_a_layer_that_fails_is_an_error_unless_it_is_not_verified(self, flow, modules, match):
        model = Flow(flow)
        x = torch.randn(BS, 6)
        with pytest.raises(ValueError, match=match):
            find_places(model, (x,), modules(model))
        loss = lambda pred, y: nn.functional.cross_entropy(tensors(pred)[0], y)  # noqa: E731
        learn = learner(ManifoldMixup(modules=modules(model), input_mixup=False), x, model=model, loss=loss)
        with pytest.raises(ValueError, match=r"modules=.*verify=False"):
            learn.fit(1)
        assert no_hooks(model)
        if match.startswith(("'a'", "around")):
            cb = ManifoldMixup(modules=modules(model), input_mixup=False, verify=False)
            learner(cb, x, model=model, loss=loss).fit(1)
            assert list(cb.hidden_layers.values()) == modules(model)

    def test_layers_that_share_one_place_are_mixed_together(self):
        model = Flow(FLOWS["branches"][0])
        cb = ManifoldMixup(8, modules=[(model.a, model.b), model.c], input_mixup=False)
        learn = learner(cb, torch.randn(N, 6), model=model)
        learn.fit(6, 0.0)
        assert cb.hidden_layers == {"a + b": (model.a, model.b), "c": model.c}
        assert {row.mixed_layer for row in learn.spy.batches} == {"a + b", "c"}
        for row in learn.spy.batches:
            x, mix = row.x0[0], row.mix
            h = [mix.blend(m(x)) if row.mixed_layer == "a + b" else m(x) for m in (model.a, model.b)]
            h = model.c((h[0] + h[1]).relu())
            h = mix.blend(h) if row.mixed_layer == "c" else h
            torch.testing.assert_close(row.pred, model.head(h).detach())

    @pytest.mark.parametrize("modules", [[()], [("a", "b")], [nn.Linear(1, 1), (nn.Linear(1, 1), 3)]])
    def test_what_is_no_layer_raises_value_error(self, modules):
        with pytest.raises(ValueError, match="or of tuples of them"):
            ManifoldMixup(modules=modules)


@pytest.mark.parametrize(("name", "flow"), [("siamese", FLOWS["siamese"][0]), ("loop", looped)])
def test_a_layer_that_runs_twice_is_mixed_where_it_may_be(name, flow):
    model = Flow(flow)
    learn = learner(ManifoldMixup(8, input_mixup=False), torch.randn(N, 6), model=model)
    learn.fit(6, 0.0)
    for row in learn.spy.batches:
        x, mix, runs = row.x0[0], row.mix, []

        def layer(x, m=model.a if name == "siamese" else model.b, row=row, runs=runs, mix=mix):
            runs.append(m(x))
            here = name == "siamese" or row.mixed_layer == f"b (run {len(runs)})"
            return mix.blend(runs[-1]) if here else runs[-1]

        h = layer(x).relu() - layer(x.flip(1)).relu() if name == "siamese" else layer(layer(x).tanh()).tanh()
        torch.testing.assert_close(row.pred, model.head(h).detach())
    assert name == "siamese" or {row.mixed_layer for row in learn.spy.batches} == {"b (run 1)", "b (run 2)"}


def test_a_batch_in_which_the_layer_is_skipped_is_not_mixed():
    def skipping(net, x):
        h = net.a(x)
        return net.head(net.b(h) if not net.training or torch.rand(1) < 0.6 else h)

    model = Flow(skipping)
    learn = learner(ManifoldMixup(8, modules=[model.b], input_mixup=False), torch.randn(N, 6), model=model)
    learn.fit(6, 0.0)
    assert {row.mix is None for row in learn.spy.batches} == {True, False}
    for row in learn.spy.batches:
        close(row.loss, slow_loss(row.pred, row.y0, row.partners, row.lam))
        h = model.a(row.x0[0])
        close(row.pred, model.head(h if row.mix is None else row.mix.blend(model.b(h))).detach())


def test_mixed_precision_does_not_blur_the_test():
    model = Flow(lambda net, x: net.head(net.a(x).relu() + 0.3 * net.b(x).detach()))
    with torch.autocast("cpu", torch.bfloat16):
        assert find_places(model, (torch.randn(4, 6),)) == []


def test_untested_layers_must_be_named():
    with pytest.raises(ValueError, match="verify=False must come with modules"):
        ManifoldMixup(verify=False)


# The test leaves no trace


class Remembers(nn.Module):
    """Keeps what it sees in attributes, lists and buffers, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.net, self.calls, self.log = cnn(), 0, []
        self.bn = nn.BatchNorm2d(2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        self.calls += 1
        self.log.append(x.mean().item())
        self.mean.add_(x.mean((0, 2, 3)))
        self.last = x
        x = self.bn(x) + 0 * (torch.rand(1) + np.random.rand() + random.random())
        return self.net(x.add_(0))


def streams():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("interrupted", [False, True])
def test_state_gradients_data_and_random_generators_are_as_before(training, interrupted):
    model, x = Remembers().train(training), images(n=BS)
    model(x).sum().backward()
    before, state = x.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    grads, kept = [p.grad.clone() for p in model.parameters()], (model.calls, list(model.log), model.last)
    flags, calls = [m.training for m in model.modules()], []
    hook = model.net.register_forward_hook(lambda *args: calls.append(1) or 1 / (not interrupted or len(calls) < 2))
    for m, seed in ((torch, 1), (np.random, 1), (random, 1)):
        getattr(m, "manual_seed", getattr(m, "seed", None))(seed)
    expected = streams()
    for m, seed in ((torch, 1), (np.random, 1), (random, 1)):
        getattr(m, "manual_seed", getattr(m, "seed", None))(seed)
    hook.remove()
    hook = model.net.register_forward_pre_hook(lambda *args: calls.append(1) or (1 / 0 if interrupted else None))
    if interrupted:
        with pytest.raises(RuntimeError, match=r"4 samples.*ZeroDivisionError.*verify=False"):
            find_places(model, (x,))
    else:
        assert [place.name for place in find_places(model, (x,))] == ["net.0", "net.2"]
    assert calls
    hook.remove()
    assert streams() == expected
    assert torch.equal(x, before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert (model.calls, model.log, model.last) == kept
    assert [m.training for m in model.modules()] == flags
    assert no_hooks(model)


def test_a_training_is_the_same_with_and_without_the_test():
    """Batch norm, dropout, shuffling and draws go on as if the layers had not been tested."""
    x, y, start, results = images(), classes(), None, []
    for verify in (True, False):
        model = nn.Sequential(ConvLayer(2, 4), nn.Dropout(0.3), ConvLayer(4, 4), nn.Flatten(), nn.Linear(120, C))
        start = start or {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(start)
        torch.manual_seed(1)
        learner(ManifoldMixup(8, modules=[model[0], model[2]], verify=verify), x, y, model).fit(2, 0.1)
        results.append(model.state_dict())
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


def test_hooks_of_callbacks_are_silent_and_those_of_the_model_run():
    model, seen = cnn(), []
    own = Hook(model[1], lambda m, i, o: seen.append(len(o)))
    stats = ActivationStats(modules=[model[0]])
    learn = learner(ManifoldMixup(8), images(n=2 * BS), model=model, cbs=[stats])
    late = on("before_fit", lambda learn: learn.model[2].register_forward_hook(lambda m, i, o: seen.append("late")))
    learn.add_cb(late)
    learn.fit(1)
    own.remove()
    assert len(stats.stats) == 2  # one for each training batch
    assert seen.count("late") == 4  # with validation
    assert seen.count(4) > 2  # the samples of the test


def test_the_layers_are_tested_once_a_fit_for_less_than_a_training_step(monkeypatch):
    model, rows = torchvision.models.resnet18(num_classes=C), []
    hook = model.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    find_places(model, (torch.rand(16, 3, 32, 32),))
    hook.remove()
    assert max(rows) <= 4
    assert sum(rows) <= 16  # a step passes 16 samples forward, and the backward pass costs twice that
    tested = []
    monkeypatch.setattr(Exchange, "passing", lambda self, places: tested.append(places) or places)
    learn = learner(ManifoldMixup(8), images((6, 6), n=2 * BS))
    learn.fit(3)
    learn.fit(1)
    assert len(tested) == 2


def test_an_interrupt_while_hooks_are_registered_leaves_none(monkeypatch):
    register, model = nn.Module.register_forward_hook, cnn()

    def interrupt(self, hook, **kwargs):
        handle = register(self, hook, **kwargs)
        if type(hook).__name__ == "_Hook" and self is model[2]:
            raise KeyboardInterrupt
        return handle

    monkeypatch.setattr(nn.Module, "register_forward_hook", interrupt)
    learn = learner(ManifoldMixup(8), model=model)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    assert no_hooks(model)


def test_a_model_that_splits_batches_over_devices_raises_value_error():
    model = nn.DataParallel(cnn())
    model.device_ids = []
    learner(ManifoldMixup(8), model=model).fit(1)  # without devices it is the model itself
    model.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"DataParallel.*accelerate.*MixUp"):
        learner(ManifoldMixup(8), model=model).fit(1)


def test_one_sample_cannot_tell():
    with pytest.raises(ValueError, match="two samples"):
        hidden_layers(cnn(), images(n=1))


def test_weights_are_told_by_their_parameters_and_not_by_their_class():
    class Times(nn.Module):
        def __init__(self, n_in, n_out):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(n_in, n_out))

        def forward(self, x):
            return x @ self.weight

    model = nn.Sequential(Times(6, 8), nn.LayerNorm(8), nn.ReLU(), Times(8, 8), nn.ReLU(), Times(8, C))
    assert list(hidden_layers(model, torch.randn(4, 6))) == ["0", "3"]


def test_a_mix_of_all_gives_the_partners_prediction_in_a_training():
    """As a training sees it: with every lam at 0 the loss is that of the partners."""

    class Partner(ManifoldMixup):
        def draw(self, x):
            return Mix(torch.arange(len(x)).roll(1), torch.zeros(len(x)))

    model = torchvision.models.resnet18(num_classes=C, norm_layer=nn.Identity)
    x, y = torch.randn(4, 3, 32, 32), classes(n=4)
    learn = learner(cb := Partner(input_mixup=False), x, y, model, bs=4)
    learn.fit(12, 0.0)
    assert len({row.mixed_layer for row in learn.spy.batches}) > 3 <= len(cb.hidden_layers)
    for row in learn.spy.batches:
        torch.testing.assert_close(row.loss, nn.functional.cross_entropy(model(x), y).detach())
