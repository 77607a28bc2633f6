"""All private names of torch that mixaug uses. Without any of them it still works, as each fallback says."""

import sys
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

# Tensor-subclass dispatch slows every operation on fastai's tensors; this context disables it.
# Fallback: the same operations, with dispatch.
no_subclass: Any = getattr(torch._C, "DisableTorchFunctionSubclass", nullcontext)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrapper of `torch.compile`. Fallback: the wrapper, which prefixes all names."""
    return getattr(model, "_orig_mod", model)


def forget_compiled() -> None:
    """Force recompilation of compiled models. Fallback: load the compiler for that, even if nothing was compiled."""
    if "torch._dynamo" in sys.modules or find_spec("torch._dynamo") is None:
        torch.compiler.reset()
