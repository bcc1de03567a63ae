"""ALPS as its paper writes it, in float64: an oracle of its tests."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(weight: Tensor, count: int, group: int) -> Tensor:
    """Which entries stay if the smallest magnitudes go; ``group`` 0 means all compete."""
    sets = weight.abs().reshape(-1, group or weight.numel())
    return (sets.argsort(1).argsort(1) >= count // len(sets)).view(weight.shape)


def naive(
    weight: Tensor,
    hessian: Tensor,
    count: int,
    group: int,
    rho: float,
    most: int = 300,
    every: int = 3,
) -> tuple[Tensor, int]:
    """What stays, and after how many iterations; algorithm 1 of the paper as it is written.

    Float64, with the multiplier ``V`` itself, and explicit inverses.
    """
    unit = hessian.diagonal().sqrt()
    h = hessian / (unit[:, None] * unit)
    dense = weight.double() * unit
    start = seen = largest(dense, count, group)
    d, v, ready = dense * start, torch.zeros_like(dense), False
    for t in range(1, most + 1):
        inverse = torch.linalg.inv(h + rho * torch.eye(len(h)))
        w = (dense @ h - v + rho * d) @ inverse
        keep = largest(w + v / rho, count, group)
        d = (w + v / rho) * keep
        v = v + rho * (w - d)
        if t % every:
            continue
        changed, k = int((keep != seen).sum()), weight.numel() - count
        seen = keep
        if t > 30 and changed < 3e-4 * k:
            break
        ready = ready or changed >= 0.005 * k
        if not ready:
            rho /= 5
            if changed:
                d, v = dense * start, torch.zeros_like(dense)
        elif changed == 0:
            break
        else:
            rho *= 1.3 if changed >= 0.1 * k else 1.2 if changed >= 0.005 * k else 1.1
    return largest(w, count, group), t
