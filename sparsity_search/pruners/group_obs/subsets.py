"""Which weights of an N:M group are removed together: all the choices compared."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor


def compute_subset_losses(weights: Tensor, inverse: Tensor, subsets: Tensor) -> Tensor:
    """Return ``w_P (A_PP)⁻¹ w_Pᵀ`` of each row and each subset ``P``, ``(rows, n_subsets)``.

    Args:
        weights: ``(rows, group)``.
        inverse: ``A``, ``(group, group)``, positive definite.
        subsets: ``(n_subsets, size)`` indices.
    """
    systems = inverse[subsets[:, :, None], subsets[:, None, :]]
    removed = weights.to(inverse.dtype)[:, subsets]
    pulled = torch.einsum("rsi,sij->rsj", removed, torch.linalg.inv_ex(systems).inverse)
    return (pulled * removed).sum(dim=2)


def choose_cheapest_subset(
    weights: Tensor, inverse: Tensor, number: int, zero: Tensor, ties: Tensor
) -> Tensor:
    """Return which ``number`` weights of one group each row removes, ``(rows, group)`` bool.

    Those that hold the most zeros go before others, then those of least joint error.

    Args:
        weights: ``(rows, group)``.
        inverse: ``(group, group)``, the group's part of the inverse Hessian.
        number: Weights to remove, at least 1.
        zero: ``(rows, group)`` bool, the zeros of the dense weight.
        ties: ``(rows, group)`` distinct integers that decide between equal errors.
    """
    indices = list(combinations(range(weights.shape[1]), number))
    subsets = torch.tensor(indices, device=weights.device)
    members = torch.zeros(len(subsets), weights.shape[1], device=weights.device)
    members.scatter_(1, subsets, 1)
    losses = compute_subset_losses(weights, inverse, subsets)
    zeros = zero.float() @ members.T
    losses.masked_fill_(zeros < zeros.amax(dim=1, keepdim=True), torch.inf)
    # Distinct sums: subsets of equal loss compare like numbers in base two.
    order = (2.0 ** ties.argsort(dim=1).argsort(dim=1)) @ members.T
    order.masked_fill_(losses > losses.amin(dim=1, keepdim=True), torch.inf)
    return members[order.argmin(dim=1)].bool()
