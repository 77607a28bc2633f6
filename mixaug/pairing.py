"""Partners chosen by their targets."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draw import new_rng, send


def sample_partner_by(weights: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
    """Draw the partner of each sample with a probability in proportion to its row of `weights`.

    No sample is its own partner unless all others have weight 0; it then stays unmixed.

    Args:
        weights: Weights ``(B, B)``, >= 0.
        rng: Random generator; None: one that is seeded from torch's global generator.

    Returns:
        Indices ``(B,)``, int64, on the device of `weights`.

    Raises:
        ValueError: If `weights` has another shape or a value that is negative or not finite (not checked on a GPU,
            where it would synchronize with the device).

    >>> y = torch.tensor([0, 0, 1])
    >>> sample_partner_by(y[:, None] == y)  # of the same class
    tensor([1, 0, 2])
    """
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"Expected weights of shape (B, B), got {tuple(weights.shape)}")
    if weights.is_cpu and not torch.compiler.is_compiling() and not ((weights >= 0) & weights.isfinite()).all():
        raise ValueError(f"weights must be >= 0 and finite, got {weights.min().item()} to {weights.max().item()}")
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    others = weights.masked_fill(torch.eye(len(weights), dtype=torch.bool, device=weights.device), 0)
    rates = others + (others.amax(1) == 0).to(others.dtype).diag()
    rates = rates / rates.amax(1, keepdim=True)  # or the smallest and the largest weights would under- and overflow
    # The smallest of exponential variables with the weights as rates is a draw in proportion to the weights
    waiting = (rng or new_rng()).exponential(size=weights.shape).astype(np.float32)
    return (rates / send(torch.from_numpy(waiting), weights.device)).argmax(1)


def target_similarity(y: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Return weights that fall with the distance of targets like a Gaussian density (https://arxiv.org/abs/2210.05775).

    Args:
        y: Targets ``(B, ...)``.
        bandwidth: Standard deviation of the density, in standard deviations of the targets; > 0.

    Returns:
        Weights ``(B, B)``, each row with sum 1.

    >>> target_similarity(torch.tensor([0.0, 1.0, 9.0])).argmax(1)
    tensor([1, 0, 1])
    """
    y = y.to(torch.promote_types(y.dtype, torch.float32) if y.is_floating_point() else torch.int64).reshape(len(y), -1)
    y = (y - y[:1]).float()  # subtract before casting: large values such as timestamps lose precision in float32
    y = y / y.abs().amax().clamp(min=torch.finfo(y.dtype).tiny)
    distance = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    distance = distance / (2 * bandwidth**2 * y.var(0).sum().clamp(min=1e-12))
    return distance.fill_diagonal_(torch.inf).neg().softmax(1)


def sample_partner_by_targets(
    pair: str | Callable[[Tensor], Tensor], yb: tuple[Any, ...], n: int, rng: np.random.Generator
) -> Tensor:
    """Draw the partners of `n` samples with first target ``yb[0]`` by the rule `pair` of a method."""
    if not yb:
        raise ValueError(f"Expected targets to choose partners by pair={pair!r}, got none. Use mix_batch, or pair=None")
    y = yb[0]
    if not callable(pair) and y.shape[1:] == (1,):  # of a table
        y = y.flatten()
    if not callable(pair) and (y.ndim != 1 or y.is_floating_point()):
        raise ValueError(
            f"Expected class indices (B,) or (B, 1) as targets for pair={pair!r}, got {y.dtype} of shape "
            f"{tuple(y.shape)}. Use a function of the targets to weights (B, B) as pair"
        )
    weights = pair(y) if callable(pair) else (y[:, None] == y) == (pair == "same")
    if not isinstance(weights, Tensor) or weights.shape != (n, n):
        raise ValueError(f"Expected a tensor of shape {(n, n)} from pair, got {getattr(weights, 'shape', weights)}")
    return sample_partner_by(weights, rng=rng)
