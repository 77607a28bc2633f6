"""Which layers may be mixed, and what happens when one of them is."""

from collections import UserDict, namedtuple

import pytest
import timm
import torch
import torchvision
from common import BS, C, cnn, images, learner, no_hooks
from fastai.layers import ConvLayer
from fastai.tabular.model import TabularModel
from fastai.text.models import AWD_LSTM, get_text_classifier
from fastai.vision.learner import create_timm_model, create_vision_model
from fastai.vision.models import resnet18, xresnet
from fastai.vision.models.unet import DynamicUnet
from fastcore.basics import fastuple
from torch import nn

from mixaug import ManifoldMixup, Mix, OutputMixup, hidden_layers, mixable, sample_partner
from mixaug.manifold import blend_all

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
def test_everything_behind_a_layer_found_comes_through_it(make, count, kinds):
    """With the output of the layer cut off from the graph, nothing of the input may reach the prediction."""
    model = make().eval()
    layers = hidden_layers(model)
    assert len(layers) == count
    assert {type(m).__name__ for m in layers.values()} == kinds
    assert all(model.get_submodule(name) is m for name, m in layers.items())
    x = torch.randn(PICTURE, requires_grad=True)
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


def test_a_unet_is_mixed_in_its_decoder():
    body = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
    layers = hidden_layers(DynamicUnet(body, C, (64, 64)))
    assert [type(m).__name__ for m in layers.values()] == ["UnetBlock"] * 4


def test_a_tabular_model_is_mixed_in_its_hidden_layers():
    model = TabularModel([(10, 4), (5, 3)], 3, C, [20, 10])
    assert list(hidden_layers(model).values()) == [model.layers[0], model.layers[1]]


def test_a_text_classifier_is_mixed_in_its_head():
    model = get_text_classifier(AWD_LSTM, 100, C)
    assert list(hidden_layers(model)) == ["1.layers.0"]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def test_nothing_recurrent_is_mixed():
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.Sequential(block, Recurrent(), nn.Flatten(), nn.Linear(12, C))
    assert list(hidden_layers(model)) == ["0.0"]


def test_nothing_that_has_the_time_in_front_is_mixed():
    for batch_first in (False, True):
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=batch_first)
        body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        found = list(hidden_layers(nn.Sequential(nn.Linear(4, 4), body, nn.Flatten(), nn.Linear(12, C))))
        assert any(name.startswith("1") for name in found) == batch_first


def test_marked_layers_come_before_all_others():
    model = convnet()
    assert mixable(model[1][0]) is model[1][0]
    assert list(hidden_layers(model)) == ["1.0"]


def test_modules_given_are_the_ones_chosen():
    model = cnn()
    learn = learner(ManifoldMixup(modules=[model[3], model[1]], input_mixup=False), model=model)
    learn.fit(6)
    assert list(learn.manifold_mixup_cb.hidden_layers) == ["3", "1"]
    assert {row["mixed_layer"] for row in learn.spy.batches} == {"1", "3"}


def test_modules_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"modules came with \['Conv2d'\], which Sequential does not contain"):
        learner(ManifoldMixup(modules=[nn.Conv2d(1, 1, 1)])).fit(1)


def test_a_model_without_hidden_layers_is_refused():
    with pytest.raises(ValueError, match=r"no layer of Linear was found.*mixable"):
        learner(ManifoldMixup(), images().flatten(1), model=nn.Linear(60, C)).fit(1)


class Net(nn.Module):
    """Runs its first layer `runs` times."""

    def __init__(self, runs):
        super().__init__()
        self.runs, self.first, self.last = runs, nn.Linear(60, 60), nn.Linear(60, C)

    def forward(self, x):
        for _ in range(self.runs):
            x = self.first(x)
        return self.last(x)


@pytest.mark.parametrize("runs", [0, 2])
def test_a_layer_that_does_not_run_once_is_an_error(runs):
    mixer, model = ManifoldMixup(input_mixup=False), Net(runs)
    learn = learner(mixer, images().flatten(1), model=model)
    with pytest.raises(RuntimeError, match=rf"run once in a forward pass.*'first': {runs}.*choose from others"):
        learn.fit(1)
    learn.validate()
    assert no_hooks(model)


def test_integer_inputs_are_left_to_the_hidden_layers():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, C))
    learn = learner(ManifoldMixup(), torch.randint(0, 10, (22, 3)), model=model)
    learn.fit(6)
    assert {row["mixed_layer"] for row in learn.spy.batches} == {"2"}


Pair = namedtuple("Pair", "left right")


class Output(dict):
    """As some libraries return."""

    def update(self, *args):
        raise RuntimeError("as Hugging Face's do")


@pytest.mark.parametrize(
    "nest",
    [
        lambda a, b, i: (a, [b, i]),
        lambda a, b, i: [a, {"b": b, "i": i, "none": None}],
        lambda a, b, i: Pair(a, fastuple(b, i)),
        lambda a, b, i: Output(a=a, b=UserDict(b=b, i=i)),
    ],
)
def test_every_floating_point_tensor_with_the_batch_in_front_is_mixed(nest):
    a, b, i, odd = torch.randn(4, 3), torch.randn(4, 2, 2).double(), torch.arange(4), torch.randn(3)
    mix = Mix(sample_partner(4), torch.rand(4))
    given = odd, nest(a, b, i)
    got = blend_all(mix, given)
    assert str(got) == str((odd, nest(mix.blend(a), mix.blend(b), i)))
    assert type(got[1]) is type(given[1])


def test_an_output_without_such_a_tensor_is_an_error():
    mix = Mix(sample_partner(4), torch.rand(4))
    with pytest.raises(
        ValueError, match=r"4 samples in front were wanted of a layer to be mixed, shapes \[\(2, 3\)\] came"
    ):
        blend_all(mix, [torch.randn(2, 3)])


def test_output_mixup_mixes_whatever_the_model_returns():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn()

        def forward(self, x):
            pred = self.net(x)
            return pred, pred.exp()

    x, model = images(n=BS), Two()
    learn = learner(OutputMixup(), x, model=model, loss=lambda pred, y: nn.functional.cross_entropy(pred[0], y))
    learn.spy.after_loss = lambda: None
    seen = []
    learn.spy.after_pred = lambda: seen.append(learn.pred)
    learn.fit(1, 0.0)
    mix = learn.spy.batches[0]["mix"]
    for got, own in zip(seen[0], model(x), strict=True):
        torch.testing.assert_close(got, mix.blend(own))
