"""Sizes of blocks, for allocators that give each block one sparsity."""

from __future__ import annotations

from sparsity_search.profiles.layout import Layout


def block_sizes(layout: Layout) -> dict[int, int]:
    """Return the weights of each block that has a unit, by index, in forward order."""
    sizes: dict[int, int] = {}
    for unit in layout:
        sizes[unit.block] = sizes.get(unit.block, 0) + unit.size
    return sizes
