"""The smallest of sort keys: of all of a matrix, or of each group of columns."""

from __future__ import annotations

import torch
from torch import Tensor

#: Bits of a key below those that the histogram tells apart: a float's exponent and 7 more bits.
_SHIFT = 46


def select_smallest(keys: Tensor, number: int) -> Tensor:
    """Return a mask of the ``number`` smallest of distinct ``keys``, see `build_sort_keys`."""
    if number == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    return keys <= _find_smallest(keys.flatten(), number)


def select_smallest_of_groups(keys: Tensor, group: int, number: int) -> Tensor:
    """Return a mask of the ``number`` smallest of each ``group`` consecutive columns."""
    if number == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    groups = keys.reshape(-1, group)
    return (groups <= groups.kthvalue(number, dim=1, keepdim=True).values).view(keys.shape)


def _find_smallest(keys: Tensor, number: int) -> Tensor:
    """Return the key with ``number - 1`` smaller ones.

    `torch.kthvalue` takes one core and several passes. A histogram leaves few keys to it.
    """
    bins = keys >> _SHIFT
    reached = torch.bincount(bins).cumsum(dim=0)
    found = int((reached < number).sum())
    before = int(reached[found - 1]) if found else 0
    return keys[bins == found].kthvalue(number - before).values
