"""The Python of the README and of the site's pages runs as it stands, on stand-ins for data, weights and trainings.

The blocks of a page run one after the other. A new block needs nothing here but the names that it takes for granted,
in `names`, if it has any new ones. A block for several processes runs in one.
"""

import copy
import re
from pathlib import Path

import fastai.tabular.all as tabular
import fastai.text.all as text
import fastai.vision.all as vision
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model
from torchvision.models._api import WeightsEnum

import mixaug

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # fastai's, as images are shown
ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("nbs/**/*.md")]
}
BLOCKS = {name: re.findall(r"```python\n(.+?)```", text, re.S) for name, text in PAGES.items()}
OTHERS = re.compile(r"```.*?```", re.S)
FOREIGN = "nbs/coming_from.md"  # has calls of other libraries
SPANS = {
    span for name, text in PAGES.items() if name != FOREIGN for span in re.findall(r"`([^`\n]+)`", OTHERS.sub("", text))
}
CALLS = sorted(
    span for span in SPANS if re.match(r"(mx\.)?(\w*)", span)[2] in {*mixaug.__all__, "learn"} and "..." not in span
)
FEW = {"bs": 4, "num_workers": 0}


def picture(path, *size, high=255):
    Image.fromarray(np.random.randint(0, high, size, dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Loaders of ten small samples of each kind, and the names that go with the images."""
    path = tmp_path_factory.mktemp("data")
    (path / "masks").mkdir()
    (path / "images").mkdir()
    files = [picture(path / "images" / f"{'dog' if i % 2 else 'Cat'}_{i}.png", 32, 48, 3) for i in range(10)]
    for file in files:
        picture(path / "masks" / file.name, 32, 48, high=3)
    words = ["a good film", "a bad plot", "fine actors in it", "poor", "a film"] * 2
    table = pd.DataFrame({"a": list("xyzxy") * 2, "b": np.arange(10.0), "text": words, "label": list("pn") * 5})
    columns = {"cat_names": ["a"], "cont_names": ["b"], "y_names": "b", "procs": [tabular.Categorify]}
    few = {"path": path, "valid_pct": 0.2, **FEW}

    def label(name):
        return name.split("_")[0]

    def mask(file):
        return path / "masks" / file.name

    frame = table.assign(income=["low", "high"] * 5)
    return {
        **{"path": path, "files": files, "label": label, "df": frame, "cats": ["a"], "conts": ["b"]},
        "dls": vision.ImageDataLoaders.from_name_func(fnames=files, label_func=label, **few),
        "maps": vision.SegmentationDataLoaders.from_label_func(fnames=files, label_func=mask, codes=list("abc"), **few),
        "rows": tabular.TabularDataLoaders.from_df(table, valid_idx=[0, 1], **columns, path=path, **FEW),
        "texts": text.TextDataLoaders.from_df(table, text_col="text", label_col="label", seq_len=8, **few),
    }


@pytest.fixture
def names(data, tmp_path, monkeypatch):
    """What a reader has when a block begins; fastai's functions for other data get their own loaders."""
    modules = tabular, text, vision, mixaug
    functions = ("unet_learner", "maps", vision), ("tabular_learner", "rows", tabular)
    for function, kind, module in (*functions, ("text_classifier_learner", "texts", text)):
        make = getattr(module, function)
        monkeypatch.setattr(module, function, lambda dls, *a, _make=make, _kind=kind, **k: _make(data[_kind], *a, **k))
    untrained = {}  # weights in the place of pretrained ones

    def state(self, *args, **kwargs):
        name = type(self).__name__.removesuffix("_Weights").lower()
        return untrained.setdefault(name, get_model(name).state_dict())

    monkeypatch.setattr(WeightsEnum, "get_state_dict", state)
    for suffix in ("pth", "pkl"):
        (tmp_path / f"weights.{suffix}").touch()
    monkeypatch.setattr("fastai.text.learner.untar_data", lambda *args, **kwargs: tmp_path)
    for module in modules[:3]:
        monkeypatch.setattr(module, "untar_data", lambda url: data["path"])
    monkeypatch.setattr(text.TextLearner, "load_pretrained", lambda self, *args, **kwargs: self)
    fit, load = vision.Learner.fit, vision.TfmdDL.__init__
    monkeypatch.setattr(vision.Learner, "fit", lambda self, n_epoch, *args, **kwargs: fit(self, 1, *args, **kwargs))
    monkeypatch.setattr(vision.TfmdDL, "__init__", lambda self, dataset, **k: load(self, dataset, **{**k, **FEW}))
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    learn = vision.Learner(data["dls"], model, path=tmp_path).mixup()
    given = {name: thing for module in modules for name, thing in vars(module).items() if name[:2] != "__"}
    return {
        **given,
        **data,
        "learn": learn,
        "mx": mixaug,
        "loader": torch.utils.data.DataLoader([(torch.rand(3, 8, 8), i % 2) for i in range(8)], 4),
        "opt": torch.optim.SGD(model.parameters(), 0.01),
        "new_learner": lambda seed: vision.Learner(data["dls"], copy.deepcopy(model), metrics=vision.accuracy),
        "model": model,
        "x": torch.rand(2, 3, 8, 8),
        "layer": model[0],
        "counts": [5, 5],
        "backgrounds": [torch.rand(4, 3, 8, 8)],
        "balanced": [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))],
        "guessed": [(torch.rand(4, 3, 8, 8), torch.rand(4, 2))],
        "torch": torch,
    }


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks])
def test_the_code_of_a_page_runs(page, names):
    for code in BLOCKS[page]:
        exec(code, names)


@pytest.mark.parametrize("code", CALLS)
def test_a_call_in_the_text_runs(code, names):
    exec(code, names)


def test_all_blocks_and_calls_are_found():
    assert all(len(BLOCKS[name]) == text.count("```python") for name, text in PAGES.items())
    assert {"MixUp", "learn"} <= {re.match(r"\w*", call)[0] for call in CALLS}


def test_the_readme_is_short():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 135
    assert len(PAGES["README.md"].encode()) <= 8000
    assert not [line for line in lines if len(line) > 100 and not line.startswith("|")]
