"""The learner for a table: fastai's `tabular_learner`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, RegressionBlock
from fastai.learner import Learner
from fastai.metrics import rmse
from fastai.tabular.core import Categorify, FillMissing, Normalize, cont_cat_split
from fastai.tabular.data import TabularDataLoaders
from fastai.tabular.learner import tabular_learner

from .learners import BadInputError, Task, class_metrics, split


def table_task(path: Path, target: str | None, bs: int) -> Task:
    """Return the task of a table: categories and numbers as fastai finds them, 20 % of the rows for validation.

    Args:
        path: A CSV file.
        target: Column to predict: classes if it has texts, bools or at most 20 different whole numbers, else a number.
        bs: Batch size.

    Raises:
        BadInputError: If the file or the column cannot be used.
    """
    if not path.is_file():
        raise BadInputError(f"csv must be a file that exists, got {str(path)!r}")
    try:
        frame = pd.read_csv(path)
    except ValueError as error:  # pandas' parser errors are of this kind
        raise BadInputError(f"csv must be a table, got {path} ({error})") from None
    if target not in frame:
        raise BadInputError(f"target must be a column of {list(frame)}, got {target!r}")
    frame = frame.dropna(subset=[target]).reset_index(drop=True)
    y: Any = frame[target]
    is_number = pd.api.types.is_numeric_dtype(y) and not pd.api.types.is_bool_dtype(y)
    is_class = not is_number or (y.nunique() <= 20 and bool((y % 1 == 0).all()))
    if y.nunique() < 2 or len(y) < 10:
        raise BadInputError(f"target must have two values and ten rows or more, got {y.nunique()} in {len(y)} rows")
    conts, cats = cont_cat_split(frame, dep_var=target)
    if not is_class:
        frame[target] = y.astype(np.float32)
    valid = split(y.tolist() if is_class else [0] * len(y), 0.2)[1].tolist()

    def new_learner(seed: int) -> Learner:
        dls: Any = TabularDataLoaders.from_df(
            frame, procs=[Categorify, FillMissing, Normalize], cat_names=list(cats), cont_names=list(conts),
            y_names=[target], y_block=CategoryBlock() if is_class else RegressionBlock(), valid_idx=valid,
            bs=min(bs, len(frame) - len(valid)),
        )  # fmt: skip
        return tabular_learner(dls, metrics=class_metrics() if is_class else rmse)

    what = f"{y.nunique()} classes" if is_class else "a number"
    words = (
        f"{path}: {len(frame) - len(valid)} rows for training, {len(valid)} for validation; {target}: {what}; "
        f"categories: {len(cats)}, numbers: {len(conts)}"
    )
    return Task(new_learner, words, {"table": frame})
