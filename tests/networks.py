"""Which layers are found in some 160 networks, of whichever of torchvision, timm, smp and transformers are installed.

    python tests/networks.py [--threads 1] [WORD ...]

A row is a network; words select those whose names contain one. "layers": what is found. "by hand": whether each, with
its output alone exchanged for the partners', gives the partners' predictions. "left out": what is found by structure,
but not with inputs. "rows", "time": the cost of the test, relative to a training step of 16 samples.
"""

import argparse
import inspect
import sys
import time
import warnings
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn

from mixaug.layers import find_places

N, C = 16, 5  # samples of a training step, classes
PARTNER = torch.arange(3).roll(1)

# Names, of a library's each; @: the size of the images, if not 64; #: the model is told
TIMM = """resnet10t resnetv2_50 resnest14d legacy_seresnet18 skresnet18 res2net50_14w_8s tresnet_m gernet_s
nf_resnet50 regnetx_002 regnety_002 efficientnet_b0 efficientnetv2_rw_t mobilenetv3_small_050 mobilenetv4_conv_small
ghostnet_050 tf_mixnet_s rexnet_100 densenet121 dla34 dpn68 ese_vovnet19b_dw cspresnet50 darknet53 selecsls42 hgnet_tiny
xception41 vgg11 repvgg_a0 mobileone_s0 repvit_m0_9 starnet_s1 rdnet_tiny hardcorenas_a hrnet_w18_small nasnetalarge@128
pnasnet5large@128 inception_v3@96 inception_v4@96 inception_resnet_v2@96 convnext_atto convnextv2_atto
inception_next_tiny convmixer_768_32 focalnet_tiny_srf mambaout_femto edgenext_xx_small poolformer_s12 caformer_s18
mobilevit_xxs mobilevitv2_050 fastvit_t8 efficientvit_b0 swiftformer_xs pvt_v2_b0 nextvit_small twins_svt_small@224
davit_tiny@224 botnet26t_256@256 halonet26t@256 lambda_resnet26rpt_256@256 levit_128s@224 convit_tiny@224 pit_ti_224@224
coat_tiny@224 visformer_tiny@224 coatnet_nano_rw_224@224 nest_tiny@224 maxvit_rmlp_pico_rw_256@256 gcvit_xxtiny@224
hiera_tiny_224@224 efficientformer_l1@224 efficientformerv2_s0@224 efficientvit_m0@224 sequencer2d_s@224
crossvit_9_240@240 xcit_nano_12_p16_224@64 vit_tiny_patch16_224@64# deit_tiny_distilled_patch16_224@64#
deit3_small_patch16_224@64# beit_base_patch16_224@64# eva02_tiny_patch14_224@56# cait_xxs24_224@64#
tnt_s_patch16_224@64# volo_d1_224@64# swin_tiny_patch4_window7_224@64# swinv2_tiny_window8_256@64# tiny_vit_5m_224@224
mixer_s16_224@64# gmlp_s16_224@64# resmlp_12_224@64# samvit_base_patch16_224@64# vit_base_patch16_siglip_224@64#
vit_medium_patch16_reg4_gap_256@64#"""
TORCHVISION = """alexnet vgg11_bn resnet18 resnet50 squeezenet1_1 densenet121 mobilenet_v2 mobilenet_v3_small
shufflenet_v2_x0_5 mnasnet0_5 regnet_y_400mf efficientnet_b0 convnext_tiny swin_t swin_v2_t vit_b_32@64# maxvit_t@224
googlenet inception_v3@299 fcn_resnet50 deeplabv3_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large"""
SMP = """Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN@128 UPerNet Segformer DPT
Unet,classes"""
FASTAI = """xresnet18 unet tabular awd_lstm resnet18 densenet121 vgg11_bn regnetx_002 resnet10t convnext_atto
pit_ti_224@224"""
TRANSFORMERS = """Bert Bert,padded GPT2 GPT2,padded DistilBert Roberta Albert Electra DebertaV2 ModernBert XLNet Llama
T5 T5ForTokenClassification Bart Wav2Vec2 Hubert ViTForImageClassification SwinForImageClassification
ConvNextForImageClassification SegformerForSemanticSegmentation"""
CODES = torch.cat([torch.randint(5, 90, (N, 11)), torch.full((N, 1), 2)], 1)
PADDED = CODES.where(torch.arange(12) < torch.arange(N)[:, None] % 8 + 4, 0)
SIZES = {  # of a small model, by all names that they have
    3: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers",
    4: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads",
    8: "d_kv num_conv_pos_embeddings num_conv_pos_embedding_groups",
    32: "hidden_size d_model dim n_embd embedding_size",
    64: "intermediate_size hidden_dim d_inner d_ff encoder_ffn_dim decoder_ffn_dim",
}
SMALL = {"vocab_size": 100, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
SMALL |= {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
SMALL |= {name: size for size, names in SIZES.items() for name in names.split()}


# The makers of a model and its inputs


def in_timm(name, size=64, **told):
    import timm

    told = {"img_size": size} if told else {}
    return timm.create_model(name, num_classes=C, **told), torch.randn(N, 3, size, size)


def in_torchvision(name, size=64, **told):
    from torchvision import models

    options = {"image_size": size} if told else {"init_weights": False} if "ception" in name or "goog" in name else {}
    if kind := vars(models.segmentation).get(name):
        options = {"weights_backbone": None} | ({} if name.startswith("lraspp") else {"aux_loss": True})
    return (kind or getattr(models, name))(num_classes=C, **options), torch.randn(N, 3, size, size)


def in_smp(name, size=64):
    import segmentation_models_pytorch as smp

    name, _, classes = name.partition(",")
    options = {"encoder_name": "resnet18"} | ({"aux_params": {"classes": C}} if classes else {})
    if name == "DPT":
        options = {"encoder_name": "tu-vit_tiny_patch16_224", "dynamic_img_size": True}
    return getattr(smp, name)(encoder_weights=None, classes=C, **options), torch.randn(N, 3, size, size)


def in_fastai(name, size=64):
    import torchvision
    from fastai.tabular.model import TabularModel
    from fastai.text.models import AWD_LSTM, get_text_classifier
    from fastai.vision.learner import create_timm_model, create_vision_model
    from fastai.vision.models import unet, xresnet

    if name == "tabular":
        return TabularModel([(10, 4), (5, 3)], 3, C, [20, 10]), torch.randint(0, 5, (N, 2)), torch.randn(N, 3)
    if name == "awd_lstm":
        return get_text_classifier(AWD_LSTM, 100, C, seq_len=8), CODES
    if name == "unet":
        body = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
        model = unet.DynamicUnet(body, C, (size, size))
    elif name.startswith("xresnet"):
        model = getattr(xresnet, name)(n_out=C)
    elif kind := getattr(torchvision.models, name, None):
        model = create_vision_model(kind, C, pretrained=False)
    else:
        model = create_timm_model(name, C, pretrained=False)[0]
    return model, torch.randn(N, 3, size, size)


def in_transformers(name, size=64):
    import transformers

    name, _, padded = name.partition(",")
    kind = getattr(transformers, name if "For" in name else f"{name}ForSequenceClassification")
    options = {"image_size": size, "window_size": 2} if "Image" in name or "Semantic" in name else SMALL
    xb = [torch.randn(N, 3, size, size) if options is not SMALL else PADDED if padded else CODES]
    if name in ("Wav2Vec2", "Hubert"):
        xb = [torch.randn(N, 1600)]
    elif padded and name == "Bert":
        xb.append((PADDED > 0).long())
    return kind(kind.config_class(num_labels=C, **options)), *xb


NETWORKS = {}
for library in ("timm", "torchvision", "smp", "fastai", "transformers"):
    for name, _, size in (spec.partition("@") for spec in globals()[library.upper()].split()):
        options = {"told": True} if "#" in size else {}
        make = partial(globals()[f"in_{library}"], name, int(size.strip("#") or 64), **options)
        NETWORKS[f"{library} {name}"] = make


# The columns


def kinds(places):
    """Number and kinds of layers."""
    single = sum(place.run is not None for place in places)
    of = dict.fromkeys(" + ".join(type(m).__name__ for m in place.layers) for place in places)
    return f"{len(places)}: {', '.join(of)}" + (f", {single} in a single run" if single else "")


def by_hand(model, xb, places):
    """Say which places fail alone, in training form without dropout and batch norm."""
    for m in model.modules():
        code = inspect.getsource(type(m).forward) if list(m.children()) else ""
        m.training = m is model or ("if self.training" in code and "dropout" not in code)
    failed = {}
    with torch.no_grad(), patch.object(nn.functional, "dropout", lambda x, *args, **kwargs: x):
        for p in model.parameters():  # branches that begin at zero
            if p.numel() > 1 and (p == p.flatten()[0]).all():
                p += 0.1 * torch.randn_like(p)
        plain = outputs(model, xb)
        for place in places:
            for got, own in zip(outputs(model, xb, place), plain, strict=True):
                error, size = (got - own[PARTNER]).abs().max(), (own - own[PARTNER]).abs().max()
                if not error <= 1e-2 * size or not size > 0:
                    failed[place.name] = f"{place.name} ({error / size:.2g})"
    return f"FAILS: {', '.join(failed.values())}" if failed else "ok"


def outputs(model, xb, place=None):
    """Return the outputs for three samples, once a place is exchanged."""
    runs = 0

    def exchange(nest):
        if isinstance(nest, dict):
            return type(nest)(**{key: exchange(value) for key, value in nest.items()})
        if isinstance(nest, (tuple, list)):
            return type(nest)(map(exchange, nest))
        return nest[PARTNER] if has_rows(nest) else nest

    def hook(module, args, output):
        nonlocal runs
        runs += 1
        return exchange(output) if place.run in (None, runs - 1) else output

    handles = [m.register_forward_hook(hook) for m in (place.layers if place else ())]
    torch.manual_seed(0)
    pred = model(*(x[:3].clone() for x in xb))
    for handle in handles:
        handle.remove()
    return list(filter(has_rows, flat(pred[:1] if type(model).__name__ == "SequentialRNN" else pred)))


def has_rows(t):
    return isinstance(t, Tensor) and t.is_floating_point() and t.ndim > 0 and len(t) == 3


def flat(nest):
    nest = list(nest.values()) if isinstance(nest, dict) else nest
    return [t for value in nest for t in flat(value)] if isinstance(nest, (tuple, list)) else [nest]


def left_out(model, places):
    """Number, kinds and first names of what is found by structure alone."""
    found = {m for place in places for m in place.layers}
    left = [place for place in find_places(model) if not set(place.layers) & found]
    return f"{kinds(left)} ({', '.join(p.name for p in left[:3])})" if left else ""


def step(model, xb):
    for m in model.train().modules():
        if isinstance(m, nn.modules.batchnorm._NormBase):
            m.momentum = 1.0  # so that activations neither vanish nor explode by hand
    sum(t.float().sum() for t in flat(model(*xb)) if isinstance(t, Tensor) and t.requires_grad).backward()


def seconds(f):
    start = time.perf_counter()
    result = f()
    return time.perf_counter() - start, result


def cells(make):
    """Return a row of the table."""
    torch.manual_seed(0)
    passed = []
    model, *xb = make()
    with torch.no_grad():
        model.eval()(*(x[:4] for x in xb))  # the first pass is slower
    count = model.register_forward_pre_hook(lambda m, args: passed.append(len(args[0])))
    test, places = seconds(lambda: find_places(model.train(), tuple(xb)))
    count.remove()
    cost = f"{sum(passed) / (3 * N):.2f}", f"{test / seconds(lambda: step(model, xb))[0]:.2f}"
    left = left_out(model, places)
    return kinds(places), by_hand(model, xb, places), left, *cost


def main(*args):
    parser = argparse.ArgumentParser(description="Find the hidden layers of many networks, and test them by hand.")
    parser.add_argument("words", nargs="*", help="parts of the names of networks; none: all")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    print("| network | layers | by hand | left out | rows | time |", "|---|---|---|---|---|---|", sep="\n")
    for name in [n for n in NETWORKS if not options.words or any(word in n for word in options.words)]:
        try:
            row = cells(NETWORKS[name])
        except ModuleNotFoundError:
            row = "not installed", *[""] * 4
        except Exception as error:
            row = f"ERROR {type(error).__name__}: {' '.join(str(error).split())[:200]}", *[""] * 4
        print(f"| {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(*sys.argv[1:])
