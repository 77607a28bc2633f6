"""What can be told of a learner and of functions: runs are used again only where all of it is the same."""

import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner
from torch import Tensor

from ..handler import MixHandler
from ..nests import tensors

_SIMPLE = (bool, int, float, complex, str, bytes, type(None))
_TOLD = (*_SIMPLE, list, tuple, Tensor)  # attributes of an object


def digest(parts: Iterable[Any]) -> str:
    """Return a hash of all parts, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, (bytes, memoryview)) else repr(part).encode())
        total.update(b"\0")
    return total.hexdigest()[:16]


def of_tensors(ts: Iterable[Tensor]) -> str:
    """Return a hash of tensors."""
    return digest(part for t in ts for part in (t.dtype, tuple(t.shape), _bytes(t)))


def _bytes(t: Tensor) -> bytes:
    t = t.detach().as_subclass(Tensor).cpu().contiguous()
    return t.flatten().view(torch.uint8).numpy().tobytes() if t.numel() else b""


def told(value: Any, seen: tuple = ()) -> Any:
    """Return what can be told of a value, the same in each process: the code of functions, what it refers to, data."""
    if isinstance(value, _SIMPLE):
        return value
    if any(value is one for one in seen):
        return "..."
    inside = (*seen, value)
    if isinstance(value, (list, tuple)):
        return [told(item, inside) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, dict):
        return {str(key): told(item, inside) for key, item in value.items()}
    if isinstance(value, Tensor):
        return of_tensors([value])
    if isinstance(value, np.ndarray):
        return digest([value.dtype, value.shape, value.tobytes() if value.dtype != object else value.tolist()])
    if isinstance(value, (pd.DataFrame, pd.Series)):
        return digest([list(getattr(value, "columns", [])), value.to_csv()])
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, partial):
        return ["partial", *(told(part, inside) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, MethodType):
        return [told(value.__func__, inside), told(value.__self__, inside)]
    if isinstance(value, FunctionType):
        return _function(value, inside)
    if isinstance(value, (type, BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    shown = re.sub(r" at 0x\w+", "", repr(value))
    return [type(value).__qualname__, shown, _state(value, inside)]


def _state(value: Any, seen: tuple) -> dict[str, Any]:
    """Return what can be told of the attributes of an object that are not defaults, so that a new option is not told.

    Of a loader, that is its data too. As the partners of a mixing callback it is another one each time, since what it
    draws cannot be told; a list of batches can.
    """
    try:
        defaults = {name: p.default for name, p in inspect.signature(type(value)).parameters.items()}
    except (TypeError, ValueError):  # built in
        defaults = {}
    state = {name: v for name, v in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    if isinstance(value, MixHandler):
        partners = value.partners
        state["partners"] = partners if isinstance(partners, _TOLD) else uuid4().hex
    return {
        name: told(v, seen)
        for name, v in state.items()
        if not _is(v, defaults.get(name)) and (isinstance(v, _TOLD) or callable(v) or name == "dataset")
    }


def _is(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, _SIMPLE) and type(value) is type(default) and value == default)


def _function(f: FunctionType, seen: tuple) -> Any:
    installed = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
    if f.__code__.co_filename.startswith(installed) or str(f.__module__).split(".")[0] == "mixaug":
        name = f"{f.__module__}.{f.__qualname__}"  # its version is told
        if not f.__closure__ or name.startswith("mixaug.compare."):  # which hold what is told elsewhere
            return name
        return [name, *(told(cell.cell_contents, seen) for cell in f.__closure__)]

    def code(c: CodeType) -> list:
        consts = [code(v) if isinstance(v, CodeType) else told(v) for v in c.co_consts]
        return [c.co_code.hex(), consts, list(c.co_names)]

    def names(c: CodeType) -> set[str]:
        return {*c.co_names, *(name for v in c.co_consts if isinstance(v, CodeType) for name in names(v))}

    used = [f.__globals__[name] for name in sorted(names(f.__code__)) if name in f.__globals__]
    cells = [cell.cell_contents for cell in f.__closure__ or ()]
    return [code(f.__code__), *(told(part, seen) for part in (f.__defaults__, f.__kwdefaults__, cells, used))]


def installed() -> dict[str, str]:
    """Return the versions of what runs depend on."""
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    code = digest(file.read_bytes() for file in files if file.parent.name != "compare")
    found = {name: version(name) for name in ("torch", "torchvision", "fastai", "timm") if find_spec(name)}
    return {**found, "python": ".".join(map(str, sys.version_info[:2])), "mixaug": code}


def of_learner(learn: Learner) -> dict[str, str]:
    """Return what can be told of a learner: its network, its data, its loss, its optimizer."""
    dls: Any = learn.dls
    shapes = [(name, tuple(p.shape)) for name, p in learn.model.named_parameters()]
    first = [t[:4] for t in tensors(tuple(dls.valid.one_batch())) if t.ndim]
    return {
        "model": f"{type(learn.model).__name__} {digest([shapes, re.sub(' at 0x[0-9a-f]+', '', repr(learn.model))])}",
        "data": f"{len(dls.train_ds)} + {len(dls.valid_ds)}, batches of {dls.train.bs}, {of_tensors(first)}",
        "loss": digest([told(learn.loss_func)]),
        "optimizer": digest([told([learn.opt_func, learn.lr, learn.wd, learn.moms])]),
        "callbacks": " ".join(type(cb).__name__ for cb in learn.cbs),
        "device": torch.device(dls.device or "cpu").type,
    }
