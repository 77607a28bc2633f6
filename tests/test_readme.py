"""The README's Python runs as it stands, on stand-ins for data, pretrained weights and long trainings.

A new block needs nothing here but the names that it takes for granted, in `names`, if it has any new ones. What only
a launcher can run is `LAUNCHED`: there every name has to be there.
"""

import ast
import builtins
import re
from itertools import cycle, islice
from pathlib import Path

import fastai.tabular.all
import fastai.text.all
import fastai.vision.all
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import TfmdDL
from fastai.learner import Learner
from fastai.tabular.all import TabularDataLoaders
from fastai.text.all import TextDataLoaders, TextLearner
from fastai.vision.all import ImageDataLoaders, SegmentationDataLoaders
from PIL import Image
from torch import nn
from torchvision.models import get_model
from torchvision.models._api import WeightsEnum

import mixaug

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # fastai's, as images are shown
README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.+?)```", README, re.S)
LAUNCHED = "distrib_ctx"  # a name that is only in blocks which want several processes
OTHERS = r"(?s)\n## Coming from.*?(?=\n## |\Z)"  # other libraries' calls
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", re.sub(OTHERS, "", re.sub(r"(?s)```.*?```", "", README)))))
CALLS = [span for span in SPANS if re.match(r"\w*", span)[0] in {*mixaug.__all__, "learn"}]  # of ours


def picture(path, high):
    Image.fromarray(np.random.randint(0, high, (32, 48) if high < 9 else (32, 48, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Loaders of ten small samples of each kind, and the names that go with the images."""
    path = tmp_path_factory.mktemp("data")
    (path / "masks").mkdir()
    files = [picture(path / f"{name}_{i}.png", 255) for i, name in enumerate(islice(cycle(["cat", "dog"]), 10))]
    for file in files:
        picture(path / "masks" / file.name, 3)
    words = ["a good film", "a bad plot", "fine actors in it", "poor", "a film"] * 2
    table = pd.DataFrame({"a": list("xyzxy") * 2, "b": np.arange(10.0), "text": words, "label": list("pn") * 5})
    few = {"path": path, "bs": 4, "num_workers": 0}

    def label(name):
        return name.split("_")[0]

    images = ImageDataLoaders.from_name_func(path, files, label, valid_pct=0.2, bs=4, num_workers=0)
    maps = SegmentationDataLoaders.from_label_func(
        path, files, lambda file: path / "masks" / file.name, codes=list("abc"), valid_pct=0.2, bs=4, num_workers=0
    )
    columns = {"cat_names": ["a"], "cont_names": ["b"], "y_names": "b", "procs": [fastai.tabular.all.Categorify]}
    rows = TabularDataLoaders.from_df(table, valid_idx=[0, 1], **columns, **few)
    texts = TextDataLoaders.from_df(table, text_col="text", label_col="label", seq_len=8, **few)
    return {"path": path, "files": files, "label": label, "dls": images, "maps": maps, "rows": rows, "texts": texts}


@pytest.fixture
def names(data, tmp_path, monkeypatch):
    """What a reader has when a block begins; fastai's functions for other data get their own loaders."""
    for module, function, kind in (
        (fastai.vision.all, "unet_learner", "maps"),
        (fastai.tabular.all, "tabular_learner", "rows"),
        (fastai.text.all, "text_classifier_learner", "texts"),
    ):
        make = getattr(module, function)
        monkeypatch.setattr(module, function, lambda dls, *a, _make=make, _kind=kind, **k: _make(data[_kind], *a, **k))
    no_weights(tmp_path, monkeypatch)
    fit, load = Learner.fit, TfmdDL.__init__
    few = {"bs": 4, "num_workers": 0}
    monkeypatch.setattr(Learner, "fit", lambda self, n_epoch, *args, **kwargs: fit(self, 1, *args, **kwargs))
    monkeypatch.setattr(TfmdDL, "__init__", lambda self, dataset, **kwargs: load(self, dataset, **{**kwargs, **few}))
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    learn = Learner(data["dls"], model, path=tmp_path).mixup()
    modules = fastai.tabular.all, fastai.text.all, fastai.vision.all, mixaug
    given = {name: thing for module in modules for name, thing in vars(module).items() if name[:2] != "__"}
    return {**given, **data, "learn": learn, "model": model, "layer": model[0], "torch": torch}


def no_weights(folder, monkeypatch):
    """Give pretrained models the weights of untrained ones."""
    untrained = {}

    def state(self, *args, **kwargs):
        name = type(self).__name__.removesuffix("_Weights").lower()
        return untrained.setdefault(name, get_model(name).state_dict())

    monkeypatch.setattr(WeightsEnum, "get_state_dict", state)
    for suffix in ("pth", "pkl"):
        (folder / f"weights.{suffix}").touch()
    monkeypatch.setattr(fastai.text.learner, "untar_data", lambda *args, **kwargs: folder)
    monkeypatch.setattr(TextLearner, "load_pretrained", lambda self, *args, **kwargs: self)


def resolve(code, names):
    """Run the imports of a block, and look up each of its other names and their attributes."""
    tree, own = ast.parse(code), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(ast.unparse(node), names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            assert node.id in own or node.id in names or hasattr(builtins, node.id), node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in own:
            assert hasattr(names[node.value.id], node.attr), ast.unparse(node)


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.strip().splitlines()[-1])
def test_a_block_runs(code, names):
    (resolve if LAUNCHED in code else exec)(code, names)


@pytest.mark.parametrize("code", CALLS)
def test_a_call_in_the_text_is_one(code, names):
    exec(code, names)


def test_the_blocks_and_calls_are_found():
    assert len(BLOCKS) == README.count("```python")
    assert {"MixUp", "learn"} <= {re.match(r"\w*", call)[0] for call in CALLS}


@pytest.mark.parametrize("code", ["learn.mixup(alfa=1)", "MixUp(.4, probability=1)", "MixUpp()", "learn.mix_it()"])
def test_what_is_not_there_is_seen_in_running(code, names):
    with pytest.raises((TypeError, NameError, AttributeError)):
        exec(code, names)


@pytest.mark.parametrize("code", ["MixUpp()", "learn.mix_it()", "for i in many: learn.fit(i)"])
def test_what_is_not_there_is_seen_without_running(code, names):
    with pytest.raises(AssertionError):
        resolve(code, names)
