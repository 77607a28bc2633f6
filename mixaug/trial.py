"""Runs of a model that leave no trace: its state, its gradients and all random generators are as before."""

import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from .nests import is_equal, map_tensors, tensors
from .torch_private import force_eager, forward_hooks, no_subclass


class _NoDropout(TorchFunctionMode):
    """Switches off dropout by functions, which some modules call while they are in training.

    Some models ask for gradients of their inputs, which have them already in a trial.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.requires_grad.__set__ and not args[0].is_leaf:  # pyright: ignore[reportAttributeAccessIssue]
            return None
        if "dropout" in getattr(func, "__name__", ""):
            return (args[0] if args else kwargs["input"]).clone()
        if func is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, {**kwargs}
            kwargs |= {} if len(args) > 4 else {"dropout_p": 0.0}
        return func(*args, **kwargs)


def keep(stack: ExitStack, value: Any, seen: set[int]) -> None:
    """Have a value of a module's state, and what is in it, restored in place at the end of `stack`."""
    if id(value) in seen or isinstance(value, nn.Parameter):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        stack.callback(_set_tensor, value, value.detach().clone())
    elif isinstance(value, np.ndarray):
        stack.callback(value.__setitem__, ..., value.copy())
    elif isinstance(value, torch.Generator):
        stack.callback(value.set_state, value.get_state())
    elif isinstance(value, np.random.Generator):
        stack.callback(setattr, value.bit_generator, "state", value.bit_generator.state)
    elif isinstance(value, (dict, list, set, deque)):
        stack.callback(_refill, value, value.copy())
        for item in value.values() if isinstance(value, dict) else value:
            keep(stack, item, seen)


def _set_tensor(now: Tensor, before: Tensor) -> None:
    if now.shape != before.shape:
        now.data = before
    elif not is_equal(now, before):  # a graph may hold what did not change
        with torch.no_grad():
            now.copy_(before)


def _refill(now: Any, before: Any) -> None:
    now.clear()
    (now.update if isinstance(now, (dict, set)) else now.extend)(before)


class Trial:
    """A model and a few samples to run it on, in training form: auxiliary heads run, dropout and batch norm do not act.

    Args:
        model: The network.
        xb: Inputs of two samples or more, of which up to four are used.
        is_own: Whether a hook, given its key and itself, belongs to the model; others are silent.
    """

    def __init__(self, model: nn.Module, xb: tuple, is_own: Callable[[int, Any], bool] = lambda key, hook: True):
        parallel = nn.parallel.DistributedDataParallel, nn.DataParallel
        self.model: nn.Module = model.module if isinstance(model, parallel) else model
        total = len(next(t for t in tensors(xb) if t.ndim))
        if total < 2:
            raise ValueError("Expected two samples or more to test hidden layers with, got one")
        self.n, self.is_own = min(total, 4), is_own
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)

        rows = _differing([i * (total - 1) // (self.n - 1) for i in range(self.n)], xb, total)

        def some(t: Tensor) -> Tensor:
            t = t[rows] if t.ndim and len(t) == total else t
            return t.detach().clone().to(dtype if t.is_floating_point() else t.dtype)

        def some_of(x: Any) -> Any:  # texts may stand beside tensors
            is_list = isinstance(x, (tuple, list)) and len(x) == total and not tensors(x)
            return [x[i] for i in rows] if is_list else map_tensors(some, x)

        with no_subclass():
            self.xb = tuple(map(some_of, xb))

    def __enter__(self) -> Any:
        modules = list(self.model.modules())
        before = random.getstate(), np.random.get_state()
        with ExitStack() as stack:
            stack.callback(lambda: (random.setstate(before[0]), np.random.set_state(before[1])))
            seen: set[int] = set()
            for m in modules:
                keep(stack, vars(m), seen)
            for hooks in (hooks for m in modules for hooks in forward_hooks(m)):
                for key in [key for key, hook in hooks.items() if not self.is_own(key, hook)]:
                    del hooks[key]
            training = self.model.training
            for m in modules:
                m.training = (m.training or not training) and bool(list(m.children()))
            devices = {t.get_device() for t in tensors(self.xb) if t.is_cuda}
            for context in (torch.random.fork_rng(devices), no_subclass(), force_eager(), _NoDropout()):
                stack.enter_context(context)
            for kind in {t.device.type for t in tensors(self.xb)} & {"cpu", "cuda"}:
                stack.enter_context(torch.autocast(kind, enabled=False))  # too coarse to compare predictions
            # Weights and gates that are zero at first hide what depends on what; biases do not
            for name, p in self.model.named_parameters():
                if p.is_floating_point() and not name.endswith("bias") and not p.detach().any():
                    stack.callback(setattr, p, "data", p.data)
                    p.data = torch.randn_like(p)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # the training will repeat them
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def run(self, xb: tuple, seed: int = 0) -> list[Tensor]:
        """Return the tensors that the model predicts, of floats."""
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        pred = self.model(*map_tensors(Tensor.clone, xb))
        text = sys.modules.get("fastai.text.models.core")
        if text and isinstance(self.model, text.SequentialRNN):
            pred = pred[0]  # all that RNNCallback leaves to the loss
        return [t for t in tensors(_opened(pred)) if t.is_floating_point() and t.ndim and t.numel()]

    def has_rows(self, t: Tensor) -> bool:
        """Return whether a tensor has floats, with a row for each sample."""
        return t.is_floating_point() and t.ndim > 0 and len(t) == self.n


def _differing(rows: list[int], xb: tuple, total: int) -> list[int]:
    """Return numbers of samples that differ in their flags, codes and lengths, if the batch has such.

    Args:
        rows: The numbers to begin with, from first to last: batches that are sorted by length differ most in these.
        xb: The inputs.
        total: Number of samples.
    """
    rows, free = list(rows), len(rows) - 1
    for t in tensors(xb):
        if t.ndim and len(t) == total:
            for column in t.detach().reshape(total, -1)[:, :64].cpu().T:
                others = (column != column[rows[0]]).nonzero().flatten().tolist()
                if free and others and not set(others) & set(rows):
                    rows[free], free = others[0], free - 1
    return rows


def _opened(value: Any) -> Any:
    """Return a nest with what is inside of dataclasses and distributions."""
    if isinstance(value, (tuple, list)):
        return [_opened(item) for item in value]
    if isinstance(value, Mapping):
        return [_opened(item) for item in value.values()]
    return _opened(vars(value)) if is_dataclass(value) or isinstance(value, Distribution) else value


def padded(model: nn.Module, xb: tuple) -> tuple:
    """Return inputs of which some samples are cut short, as padding does it, or have another flag or length.

    A batch without padding hides that a mask goes around layers. Codes that a model does not have would end a GPU's
    process: those that it names are put where its largest codes are, 0 and 1 where codes are as large.

    Args:
        model: The network.
        xb: Inputs of two to four samples.
    """
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    named = [getattr(m, "padding_idx", None) for m in embeddings]
    named += [getattr(getattr(m, "config", None), "pad_token_id", None) for m in model.modules()]
    named = [code for code in named if isinstance(code, int) and code >= 0]
    codes = [t for t in tensors(xb) if t.ndim > 1 and t.dtype in (torch.int32, torch.int64) and t.numel()]
    largest = max(codes, key=Tensor.max, default=None)
    least = 0 if any(m.num_embeddings < 2 for m in embeddings) else 1  # the largest code that every embedding has
    n = len(next(t for t in tensors(xb) if t.ndim))

    def pad(t: Tensor) -> Tensor:
        if not t.ndim or len(t) != n or not t.numel():
            return t
        own, t, half = t, t.clone(), (t.shape[-1] + 1) // 2
        is_float, of_sample = t.is_floating_point() or t.is_complex(), t.shape[1:].numel() == 1
        if t.dtype == torch.bool:
            (t[1] if of_sample else t[1, ..., half:]).logical_not_()
        elif of_sample:
            t[1] = torch.where(t[1] != 0, t[1] / 2, 1) if is_float else torch.where(t[1] > 0, t[1] // 2, least)
        elif is_float:
            t[1, ..., half:] = 0
            if n > 3 and t.ndim > 2:
                t[3, (t.shape[1] + 1) // 2 :] = 0  # steps in front of features
        else:
            for row, code in zip(range(1, n), dict.fromkeys([*(named if own is largest else ()), 0, 1]), strict=False):
                known = (own.max(0).values >= code) | (code in named) | (code <= least)
                t[row] = torch.where(known & (torch.arange(t.shape[-1], device=t.device) >= half), code, own[row])
        return t

    with no_subclass():
        return map_tensors(pad, xb)
