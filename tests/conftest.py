"""What every test runs with: a fixed seed, and no deadlines, as the machine may be busy."""

import pytest
import torch
from fastai.torch_core import set_seed
from hypothesis import settings

torch.set_num_threads(1)  # the models are small: threads would only wait for one another
settings.register_profile("tests", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seed():
    set_seed(42)


QUICK = {"test_mix", "test_batch", "test_cut", "test_loss", "test_pairing", "test_options", "test_metrics", "test_docs"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in QUICK:
            item.add_marker("quick")
