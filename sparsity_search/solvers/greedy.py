"""Step after step, the one that costs the least loss for each weight."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from sparsity_search.solvers.decisions import Options


def greedy(options: Options, losses: Sequence[np.ndarray]) -> np.ndarray:
    """Return an option of each group, ``(n_groups,)`` int64, by marginal gain.

    From the first options on, the next step with the least loss for each weight is taken, as
    long as it fits, until enough weights are removed. If all steps are equal and losses convex,
    the result is optimal; otherwise it need not be. Equal steps are taken in the groups' order.
    """
    return climb(options, losses, np.zeros(len(options.groups), dtype=np.int64))


def climb(options: Options, losses: Sequence[np.ndarray], start: np.ndarray) -> np.ndarray:
    """Return options after greedy steps from ``start`` on."""
    levels = start.copy()
    removed = sum(int(grid[at]) for grid, at in zip(options.weights, levels, strict=True))
    heap = [
        entry for g in range(len(levels)) if (entry := _next(options, losses, g, int(levels[g])))
    ]
    heapq.heapify(heap)
    while heap and removed < options.least:
        _, group, size = heapq.heappop(heap)
        if removed + size > options.greatest:
            continue  # later steps of the group come only after this one
        removed += size
        levels[group] += 1
        if entry := _next(options, losses, group, int(levels[group])):
            heapq.heappush(heap, entry)
    return levels


def trimmed(options: Options, losses: Sequence[np.ndarray], levels: np.ndarray) -> np.ndarray:
    """Return options of which no step can be taken back without removing too little.

    The step that relieves the most loss for each weight goes back first.
    """
    levels = levels.copy()
    removed = sum(int(grid[at]) for grid, at in zip(options.weights, levels, strict=True))
    while True:
        back = []
        for g, at in enumerate(levels):
            size = int(options.weights[g][at] - options.weights[g][at - 1]) if at else 0
            if size and removed - size >= options.least:
                back.append((-float(losses[g][at] - losses[g][at - 1]) / size, g, size))
        if not back:
            return levels
        _, group, size = min(back)
        levels[group] -= 1
        removed -= size


def _next(
    options: Options, losses: Sequence[np.ndarray], group: int, level: int
) -> tuple[float, int, int] | None:
    """Return the loss for each weight of a group's next step, the group, and the step's size."""
    grid, values = options.weights[group], losses[group]
    if level + 1 == len(grid):
        return None
    size = int(grid[level + 1] - grid[level])
    return float(values[level + 1] - values[level]) / size, group, size
