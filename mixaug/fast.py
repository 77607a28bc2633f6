"""Mixing in as few passes over memory as there can be; `formula` is what all of it computes, bit for bit."""

import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingModuleSource]

# From here on (bytes) visiting samples one by one, each within a cache's reach, costs less than one more pass over all
_LARGE = 2**17
# From here on (bytes) fresh memory costs more to map than to fill
_HUGE = 2**23
_PART = 2**21  # bytes that are made at a time where no more than a sixteenth of the batch is wanted
_free: deque[np.ndarray] = deque(maxlen=2)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def formula(x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return `x` where the mask is True and `other` elsewhere, or their average for a mask of floats."""
    return torch.where(mask, x, other) if mask.dtype == torch.bool else torch.lerp(other, x, mask)


def mix(x: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
    """Return `formula(x, x[partner], mask)` in new memory; the mask has all axes of `x`, and a float one its dtype."""
    if torch.compiler.is_compiling() or peek_interpreter_stack() or mask.requires_grad:
        return formula(x, x[partner], mask)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _mix(x, partner, mask)
    if mask.dtype == torch.bool or x.nbytes < 4 * _LARGE:  # where a backward pass of our own would cost more
        return formula(x, x.index_select(0, partner), mask)
    return _Average.apply(x, partner, mask)


def _mix(x: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
    chooses, out = mask.dtype == torch.bool, empty_like(x)
    # On an accelerator a loop, or a number brought here, would wait for the device
    one_by_one = x.nbytes >= _LARGE * len(mask) and _is_memory(x)
    if chooses and (x.is_contiguous() or _is_channels_last(x, mask)) and _is_memory(x) and not x.is_complex():
        return _choose(x, partner, mask, out, one_by_one)
    if one_by_one and not chooses:
        for i, j in enumerate(partner.tolist()):
            torch.lerp(x[j], x[i], mask[i], out=out[i])
        return out
    torch.index_select(x, 0, partner, out=out)
    return torch.where(mask, x, out, out=out) if chooses else out.lerp_(x, mask)


def _is_channels_last(x: Tensor, mask: Tensor) -> bool:
    """Whether the channels of a position, for which the mask has one value, are side by side."""
    return x.ndim > 2 and mask.shape[1] == 1 and x.movedim(1, -1).is_contiguous()


def _choose(x: Tensor, partner: Tensor, mask: Tensor, out: Tensor, one_by_one: bool) -> Tensor:
    """Choose by numpy, which copies whatever is in a row at once where torch looks at each position."""
    own, mixed = (t.detach().view(_BITS[t.element_size()]).numpy() for t in (x, out))
    kept = mask.numpy()
    if not x.is_contiguous():  # then the channels of a position are one item
        own, mixed, kept = (np.moveaxis(array, 1, -1) for array in (own, mixed, kept))
        own, mixed = (array.view(f"V{x.shape[1] * x.element_size()}") for array in (own, mixed))
    if one_by_one:
        np.copyto(mixed, own)
        for i, (j, taken) in enumerate(zip(partner.tolist(), ~kept, strict=True)):
            np.copyto(mixed[i], own[j], where=taken)
    else:
        torch.index_select(x, 0, partner, out=out)
        np.copyto(mixed, own, where=kept)
    return out


class _Average(torch.autograd.Function):
    """The average of large activations: its gradient adds what comes by the partners in place, sample by sample."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(partner, mask)
        return _mix(x, partner, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,), (partner, mask) = grads, ctx.saved_tensors
        plain = torch.is_grad_enabled() or not _is_memory(grad)
        own = grad * mask if plain else torch.mul(grad, mask, out=empty_like(grad))
        n = max(1, len(grad) // 16, _PART * len(grad) // grad.nbytes)
        for j, g, rest in zip(partner.split(n), grad.split(n), (1 - mask).split(n), strict=True):
            own.index_add_(0, j, g * rest)
        return own, None, None


def empty_like(x: Tensor) -> Tensor:
    """Return memory for a result like `x`: used again, on the CPU, once nobody holds what was there.

    A storage keeps the array alive that its memory was lent as, and whoever can read the memory, views and autograd
    included, keeps the storage alive: so memory comes back when the array dies, and never before. Such a storage cannot
    be resized.
    """
    if x.nbytes < _HUGE or not _is_memory(x):
        return torch.empty_like(x)
    block = _take(x.nbytes)
    lent = block[:]
    weakref.finalize(lent, _free.append, block).atexit = False
    strides = x.stride() if x.is_contiguous() else torch.empty_like(x, device="meta").stride()
    return torch.from_numpy(lent).view(x.dtype).as_strided(x.shape, strides).detach()  # no view, so free to be changed


def count(mask: Tensor) -> Tensor:
    """Return how many positions of each sample's mask of shape (B, *size) are True, (B,) integers."""
    bits = mask.view(torch.uint8).flatten(1)  # torch is slow on bools, and numpy faster on bytes
    if _is_memory(mask):
        return torch.from_numpy(bits.numpy().sum(1, dtype=np.int32))
    return bits.sum(1, dtype=torch.int32)


def release() -> None:
    """Give up the memory that is kept; what is lent now will not be kept either."""
    global _free
    _free = deque(maxlen=_free.maxlen)


def _is_memory(x: Tensor) -> bool:
    """Whether numpy may read the memory of `x`: it is here, it is its own, and nobody follows what is done to it."""
    own: Any = type(x)
    followed = torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._len_torch_dispatch_stack()
    if followed or not x.is_cpu:
        return False
    # functorch's tensors have none, FakeTensor's is none
    return torch._C._has_storage(x) and own.__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl


def _take(nbytes: int) -> np.ndarray:
    """Take free memory of the size out of the queue, or get new. Each step is atomic: other threads may do the same."""
    for _ in range(len(_free)):
        try:
            block = _free.popleft()
        except IndexError:
            break
        if block.nbytes == nbytes:
            return block
        _free.append(block)
    block = np.empty(nbytes + 64, np.uint8)
    return block[-block.ctypes.data % 64 :][:nbytes]  # torch's own alignment
