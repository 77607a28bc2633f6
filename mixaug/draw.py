"""Draws of partners and coefficients: on the host, so that a seed gives the same mixes on every device."""

import numpy as np
import torch
from torch import Tensor


def new_rng(*seed: int) -> np.random.Generator:
    """Return a random generator that starts at `seed`, or where torch's global generator is if there is no seed."""
    return np.random.default_rng(seed or int(torch.randint(2**63 - 1, (), device="cpu")))


def send(t: Tensor, device: torch.device | str | None) -> Tensor:
    """Return `t` on `device` (None: where it is), without synchronizing with it."""
    if device is None or t.device == (device := torch.device(device)):
        return t
    if device.type == "cuda" and torch.cuda.is_available():
        t = t.pin_memory()  # or the copy would be synchronous
    return t.to(device, non_blocking=True)


def sample_partner(
    n: int, device: torch.device | str | None = None, *, rng: np.random.Generator | None = None
) -> Tensor:
    """Draw the partner of each of `n` samples: a random cycle, so that for n > 1 no sample is its own partner.

    Args:
        n: Number of samples.
        device: Device of the result.
        rng: Random generator; None: one that is seeded from torch's global generator.

    Returns:
        Indices ``(n,)``, int64.

    >>> partner = sample_partner(5)
    >>> bool((partner == torch.arange(5)).any())
    False
    """
    order = (rng or new_rng()).permutation(n)
    partner = np.empty(n, np.int64)
    partner[order] = order[np.arange(n) - 1]
    return send(torch.from_numpy(partner), device)


def sample_lam(
    alpha: float,
    n: int,
    fold: bool = True,
    device: torch.device | str | None = None,
    *,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Draw `n` mixing coefficients from Beta(alpha, alpha).

    Accurate for tiny alpha, where ``torch.distributions.Beta`` is biased towards 0.5.

    Args:
        alpha: Parameter of the distribution, > 0.
        n: Number of samples.
        fold: Use max(lam, 1 - lam), so that the original dominates and no two mixed samples are duplicates.
        device: Device of the result.
        rng: Random generator; None: one that is seeded from torch's global generator.

    Returns:
        Coefficients ``(n,)`` in [0, 1], float32.

    >>> bool((sample_lam(0.4, 100) >= 0.5).all())
    True
    """
    lam = (rng or new_rng()).beta(alpha, alpha, n)
    lam = (np.maximum(lam, 1 - lam) if fold else lam).astype(np.float32)
    return send(torch.from_numpy(lam), device)
