"""In which order weights are removed: exact counts, zeros first, ties broken by seed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sparsity_search.rng import derive_seed

Scope = Literal["layer", "row"]


def tie_breaks(shape: torch.Size, seed: int, device: torch.device) -> Tensor:
    """Return a permutation of ``0 … n-1`` in ``shape``, a function of the seed alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "ties"))
    return torch.randperm(shape.numel(), generator=generator).view(shape).to(device)


def sort_keys(score: Tensor, first: Tensor, ties: Tensor) -> Tensor:
    """Return distinct int64 keys that sort by ``first``, then score, then tie break.

    Args:
        score: Finite, not negative, float32.
        first: bool, entries that go before all others whatever their score.
        ties: Distinct integers below 2³¹.
    """
    # The bits of non-negative floats, read as integers, have the order of the floats. Adding
    # zero makes -0.0 positive.
    bits = (score + 0.0).view(torch.int32).long() + 1
    return (bits.masked_fill_(first, 0) << 31) | ties


def removal_order(score: Tensor, zero: Tensor, scope: Scope, seed: int) -> Tensor:
    """Return flat indices of a weight matrix in the order in which its entries are removed.

    Zeros go first. Then ``layer`` scope sorts by score. ``row`` scope takes the lowest entry of
    each row, then the second lowest, …, and within such a round sorts by score: so ``count``
    entries are ``count // rows`` of each row, and one more where that costs least. A row's zeros
    count as its lowest entries.

    Args:
        score: ``(rows, columns)``, finite, not negative, float32.
        zero: bool, of the same shape.
        scope: Which entries compete.
        seed: Decides between equal scores.
    """
    keys = sort_keys(score, zero, tie_breaks(score.shape, seed, score.device))
    if scope == "layer":
        return keys.flatten().argsort()
    columns = keys.shape[1]
    ranked, column = keys.sort(dim=1)
    row = ranked.T.argsort(dim=1)  # (columns, rows): one round a line
    order = (row * columns + column.T.gather(1, row)).flatten()
    is_zero = zero.flatten()[order]
    return torch.cat([order[is_zero], order[~is_zero]])
