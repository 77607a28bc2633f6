"""fastai's learners for each kind of data, as users write them."""

import numpy as np
import pandas as pd
import pytest
import torch.nn.functional as F
from common import METHODS
from fastai.callback.progress import ProgressCallback
from fastai.losses import CrossEntropyLossFlat
from fastai.tabular import all as ft
from fastai.text import all as fx
from fastai.vision import all as fv
from reference import Original, Spy, check_losses

NAMES = "good bad film plot actor fine poor"


def pictures(n=12, size=(32, 48)):
    return [fv.PILImage.create(np.random.randint(0, 255, (*size, 3), dtype=np.uint8)) for _ in range(n)]


def vision(block, target, **kwargs):
    x = pictures()
    block = fv.DataBlock(
        blocks=(fv.ImageBlock, *block),
        get_x=lambda i: x[i],
        get_y=target,
        n_inp=1,
        batch_tfms=ft.Normalize.from_stats(*fv.imagenet_stats),
    )
    return block.dataloaders(list(range(12)), bs=4, num_workers=0, **kwargs)


def tabular(y, **kwargs):
    df = pd.DataFrame({"a": np.random.choice(list("xyz"), 100), "b": np.random.randn(100), "c": np.random.randn(100)})
    df["y"] = y(df)
    columns = {"cat_names": ["a"], "cont_names": ["b", "c"], "y_names": "y"}
    dls = ft.TabularDataLoaders.from_df(
        df, procs=[ft.Categorify, ft.Normalize], bs=16, valid_idx=list(range(20)), **columns, **kwargs
    )
    return lambda cbs: ft.tabular_learner(dls, layers=[20, 10], cbs=cbs)


def text(n=60):
    words = [" ".join(np.random.choice(NAMES.split(), np.random.randint(3, 20))) for _ in range(n)]
    df = pd.DataFrame({"text": words, "label": np.random.choice(["p", "n"], n)})
    dls = fx.TextDataLoaders.from_df(df, bs=8, seq_len=8, num_workers=0)
    config = {**fx.awd_lstm_clas_config, "n_hid": 16, "emb_sz": 8}
    return lambda cbs: fx.text_classifier_learner(dls, fx.AWD_LSTM, config=config, pretrained=False, cbs=cbs)


def segmentation():
    masks = [fv.PILMask.create(np.random.randint(0, 3, (32, 48), dtype=np.uint8)) for _ in range(12)]
    dls = vision([fv.MaskBlock(codes=list("abc"))], lambda i: masks[i])
    return lambda cbs: fv.unet_learner(dls, fv.resnet18, pretrained=False, n_out=3, cbs=cbs)


def classifier(block, target, **kwargs):
    dls = vision(block, target)
    return lambda cbs: fv.vision_learner(dls, fv.resnet18, pretrained=False, cbs=cbs, **kwargs)


def class_and_value(pred, label, value):
    return F.cross_entropy(pred[:, :2], label) + F.mse_loss(pred[:, 2], value)


APPLICATIONS = {
    "images": lambda: classifier([fv.CategoryBlock], lambda i: "ab"[i % 2]),
    "multi-label": lambda: classifier([fv.MultiCategoryBlock], lambda i: list("abc")[: 1 + i % 3]),
    "points": lambda: classifier([fv.PointBlock], lambda i: [[float(i), 2.0 * i]], n_out=2),
    "class and value": lambda: classifier(
        [fv.CategoryBlock, fv.RegressionBlock],
        [lambda i: "ab"[i % 2], lambda i: float(i)],
        loss_func=class_and_value,
        n_out=3,
    ),
    "segmentation": segmentation,
    "tabular": lambda: tabular(lambda df: np.where(df.b > 0, "p", "n")),
    "tabular regression": lambda: tabular(lambda df: df.b * 3, y_block=fv.RegressionBlock()),
    "text": text,
}
REFUSED = {(task, method) for task in ("tabular", "tabular regression", "text") for method in ("MixUp", "CutMix")}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", APPLICATIONS)
def test_application(name, method):
    mixer = METHODS[method]()
    learn = APPLICATIONS[name]()([mixer, Spy(mixer), Original()])
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    if (name, method) == ("points", "CutMix"):
        with pytest.raises(TypeError, match=r"points.*targets="):
            learn.fit(1)
        return
    if (name, method) in REFUSED:
        with pytest.raises((TypeError, ValueError), match="ManifoldMixup"):
            learn.fit(1)
        return
    learn.fit(1, 1e-3)
    assert learn.loss_func is learn.spy.valid_loss
    if type(learn.loss_func) is CrossEntropyLossFlat and name != "segmentation":
        check_losses(learn, learn.loss_func)
    assert all(row.loss.isfinite() for row in learn.spy.batches)
    assert all(row.mix is not None and len(row.lam) > 1 for row in learn.spy.batches)
