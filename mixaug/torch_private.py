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


def forward_hooks(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Return the hooks and the pre-hooks of a module's forward pass by their keys. Fallback: none."""
    return getattr(module, "_forward_hooks", {}), getattr(module, "_forward_pre_hooks", {})


def is_compiled_in_place(model: nn.Module) -> bool:
    """Return whether `model.compile()` was called, whose graphs hold the hooks of the model. Fallback: False."""
    return getattr(model, "_compiled_call_impl", None) is not None


def forget_compiled() -> None:
    """Force recompilation of compiled models. Fallback: load the compiler for that, even if nothing was compiled."""
    if "torch._dynamo" in sys.modules or find_spec("torch._dynamo") is None:
        torch.compiler.reset()


def force_eager() -> Any:
    """Return a context in which compiled models run uncompiled. Fallback: they run compiled."""
    set_stance = getattr(torch.compiler, "set_stance", None)
    if "torch._dynamo" not in sys.modules or set_stance is None:
        return nullcontext()
    return set_stance("force_eager")
