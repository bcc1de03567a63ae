"""How many weights each block of columns loses."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_block_quotas(count: int, zero: Tensor, dead: Tensor, block_size: int) -> list[int]:
    """Return how many weights each block of columns loses; they sum to ``count``.

    Zeros are used up first, then weights on dead inputs, then the others; each kind is spread
    over the blocks in proportion, by cumulative rounding.

    Args:
        count: Weights to remove, at most all.
        zero: ``(rows, columns)`` bool.
        dead: ``(columns,)`` bool.
        block_size: Columns of a block.
    """
    zeros = zero.sum(dim=0)
    others = len(zero) - zeros
    last = torch.arange(block_size, zeros.numel() + block_size, block_size) - 1
    reached = torch.zeros(len(last), dtype=torch.long)
    for kind in (zeros, others * dead, others * ~dead):
        sizes = kind.cpu().cumsum(dim=0)
        taken = min(count, int(sizes[-1]))
        reached += sizes[last.clamp(max=len(sizes) - 1)] * taken // sizes[-1].clamp(min=1)
        count -= taken
    return [int(quota) for quota in reached.diff(prepend=reached.new_zeros(1))]
