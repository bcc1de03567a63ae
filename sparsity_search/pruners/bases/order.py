"""In which order weights are removed: exact counts, zeros first, ties broken by seed."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsity_search.profiles.patterns import BLOCK, Pattern
from sparsity_search.utils.random import derive_seed


def draw_tie_breaks(shape: torch.Size, seed: int, device: torch.device) -> Tensor:
    """Return a permutation of ``0 … n-1`` in ``shape``, a function of the seed alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "ties"))
    return torch.randperm(shape.numel(), generator=generator).view(shape).to(device)


def build_sort_keys(score: Tensor, first: Tensor, ties: Tensor) -> Tensor:
    """Return distinct int64 keys that sort by ``first``, then score, then tie break.

    Args:
        score: Finite, not negative, float32.
        first: bool, entries that go before all others whatever their score.
        ties: Distinct integers below 2³¹.
    """
    # The bits of non-negative floats, read as integers, have the order of the floats. Adding
    # zero makes -0.0 positive.
    bits = (score + 0.0).view(torch.int32).long().add_(1)
    return bits.mul_(~first).bitwise_left_shift_(31).bitwise_or_(ties)


def compute_removal_order(score: Tensor, zero: Tensor, pattern: Pattern, seed: int) -> Tensor:
    """Return flat indices of a weight matrix in the order in which its entries are removed.

    ``layer`` scope sorts by score. In the others entries go in rounds: the lowest of every row,
    block or group, then the second lowest, …, and within a round by score: so ``count`` entries
    are ``count // rows`` of each row, and one more where that costs least (blocks of unequal
    size: in proportion). Zeros are the lowest entries. They go before all others, whatever their
    round, but for ``group``: there each group loses as many entries as any other.

    Args:
        score: ``(rows, columns)``, finite, not negative, float32.
        zero: bool, of the same shape.
        pattern: Which entries compete.
        seed: Decides between equal scores.
    """
    keys = build_sort_keys(score, zero, draw_tie_breaks(score.shape, seed, score.device))
    order = keys.flatten().argsort()
    if pattern.scope == "layer":
        return order
    rounds = _compute_rounds(keys, pattern).flatten()
    order = order[rounds[order].argsort(stable=True)]
    if pattern.is_grouped:
        return order
    is_zero = zero.flatten()[order]
    return torch.cat([order[is_zero], order[~is_zero]])


def _compute_rounds(keys: Tensor, pattern: Pattern) -> Tensor:
    """Return when an entry goes among those that it competes with; of the shape of ``keys``."""
    if pattern.scope == "row":
        return _compute_ranks(keys)
    if pattern.is_grouped:
        return _compute_ranks(keys.reshape(-1, pattern.group)).view(keys.shape)
    blocks = torch.split(keys, BLOCK, dim=1)
    shares = [(_compute_ranks(b.reshape(1, -1)).view(b.shape) + 0.5) / b.numel() for b in blocks]
    return torch.cat(shares, dim=1)


def _compute_ranks(keys: Tensor) -> Tensor:
    return keys.argsort(dim=1).argsort(dim=1)
