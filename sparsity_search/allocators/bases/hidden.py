"""What allocators share that compare activations of the dense model block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.layout import Layout
from sparsity_search.utils.random import generator


def check_divisible(layout: Layout, name: str) -> None:
    """Check that units have more than one item: then a block can lose a fraction of itself.

    Args:
        layout: The units.
        name: Of the allocator, for the message.

    Raises:
        ConfigError: Every unit goes as a whole or stays.
    """
    if layout.counts.max() == 1:
        raise ConfigError(
            f"{name} gives blocks a fraction to remove: choose --units weights, width or heads"
        )


def block_sizes(layout: Layout) -> dict[int, int]:
    """Return the weights of each block that has a unit, by index, in forward order."""
    sizes: dict[int, int] = {}
    for unit in layout:
        sizes[unit.block] = sizes.get(unit.block, 0) + unit.size
    return sizes


@torch.inference_mode()
def mean_angle(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the mean angle between hidden states over pi, token by token: 0 to 1.

    By ``2 atan2(|u - v|, |u + v|)`` of unit vectors, which unlike an arc cosine is exact for
    small angles in float32. A zero vector is at a right angle to every other, and at none to
    another zero.

    Args:
        before: Batches of hidden states, ``(batch, length, hidden)`` each.
        after: The same number of them, of the same shapes.
    """
    total, count = 0.0, 0
    for old, new in zip(before, after, strict=True):
        u, v = (torch.nn.functional.normalize(x.float(), dim=-1, eps=1e-30) for x in (old, new))
        halves = torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
        total += float(halves.double().sum())
        count += halves.numel()
    return 2 * total / (torch.pi * count)


def sampled_rows(sizes: Sequence[int], samples: int, seed: int) -> list[Tensor]:
    """Return which tokens of each batch are in a random sample of all, without repetition.

    Args:
        sizes: Tokens of each batch.
        samples: Tokens to draw at most.
        seed: Of the draw.

    Returns:
        Positions within each batch, rising, ``(n,)`` int64 each.
    """
    drawn = np.sort(generator(seed, "tokens").permutation(sum(sizes))[:samples])
    ends = np.cumsum(sizes)
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    starts = ends - np.asarray(sizes)
    return [torch.from_numpy(part - start) for part, start in zip(parts, starts, strict=True)]
