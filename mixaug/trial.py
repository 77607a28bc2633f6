"""Runs of a model that leave no trace: its state, its gradients and all random generators are as before."""

import random
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .mix import map_tensors, tensors
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

        # From first to last: batches that are sorted by length differ most in these
        rows = [i * (total - 1) // (self.n - 1) for i in range(self.n)]

        def some(t: Tensor) -> Tensor:
            t = t[rows] if t.ndim and len(t) == total else t
            return t.detach().clone().to(dtype if t.is_floating_point() else t.dtype)

        with no_subclass():
            self.xb = map_tensors(some, tuple(xb))

    def __enter__(self) -> Any:
        modules = list(self.model.modules())
        self.state: list[Any] = [(vars(m), vars(m).copy()) for m in modules]
        inside = [v for m in modules for v in vars(m).values() if isinstance(v, (dict, list, set))]
        self.state += [(v, v.copy()) for v in inside]
        self.values = [(b, b.detach().clone()) for b in self.model.buffers()]
        self.generators = random.getstate(), np.random.get_state()
        with ExitStack() as stack:
            stack.callback(self._restore)
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
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # the training will repeat them
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def _restore(self) -> None:
        random.setstate(self.generators[0])
        np.random.set_state(self.generators[1])
        for now, before in self.state:
            now.clear()
            (now.extend if isinstance(now, list) else now.update)(before)
        with torch.no_grad():
            for now, before in self.values:
                now.copy_(before)

    def run(self, xb: tuple) -> list[Tensor]:
        """Return the tensors that the model predicts, of floats with a row for each sample."""
        return [t for t in tensors(self.predict(xb)) if self.has_rows(t)]

    def predict(self, xb: tuple) -> Any:
        """Return what the model predicts."""
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        pred = self.model(*map_tensors(Tensor.clone, xb))
        text = sys.modules.get("fastai.text.models.core")
        if text and isinstance(self.model, text.SequentialRNN):
            pred = pred[0]  # all that RNNCallback leaves to the loss
        return pred

    def has_rows(self, t: Tensor) -> bool:
        """Return whether a tensor has floats, with a row for each sample."""
        return t.is_floating_point() and t.ndim > 0 and len(t) == self.n
