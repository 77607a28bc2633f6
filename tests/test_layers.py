"""Which layers of a network may be mixed."""

import pytest
import timm
import torch
import torchvision
from common import C, cnn
from fastai.layers import ConvLayer
from fastai.tabular.model import TabularModel
from fastai.text.models import AWD_LSTM, get_text_classifier
from fastai.vision.learner import create_timm_model, create_vision_model
from fastai.vision.models import resnet18, xresnet
from fastai.vision.models.unet import DynamicUnet
from torch import nn

from mixaug import hidden_layers, mixable

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


def test_a_tabular_model_is_mixed_in_its_hidden_layers_and_a_text_classifier_in_its_head():
    model = TabularModel([(10, 4), (5, 3)], 3, C, [20, 10])
    assert list(hidden_layers(model).values()) == [model.layers[0], model.layers[1]]
    assert list(hidden_layers(get_text_classifier(AWD_LSTM, 100, C))) == ["1.layers.0"]


def test_layers_along_time_are_left_out():
    recurrent = nn.GRU(4, 4, batch_first=True)
    recurrent.out = nn.Linear(4, 4)
    encoders = [
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=first), 2, enable_nested_tensor=False)
        for first in (True, False)
    ]
    expected = ["0", "1"], ["1.layers.0", "1.layers.1"], ["0"], ["0"]
    for body, names in zip([nn.Linear(4, 4), *encoders, recurrent], expected, strict=True):
        model = nn.Sequential(nn.Linear(4, 4), body, nn.Flatten(), nn.Linear(12, C))
        assert list(hidden_layers(model)) == names


def test_marked_layers_come_before_all_others():
    model = convnet()
    assert mixable(model[1][0]) is model[1][0]
    assert list(hidden_layers(model)) == ["1.0"]
