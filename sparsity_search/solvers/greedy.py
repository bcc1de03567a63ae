"""Greedy steps: always the one of least loss for each weight."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from sparsity_search.solvers.decisions import Knapsack


def solve_greedy(knapsack: Knapsack, losses: Sequence[np.ndarray]) -> np.ndarray:
    """Return a level of each group, ``(n_groups,)`` int64, by marginal gain.

    Starting at the first levels, it takes the step of least loss for each weight that fits,
    until enough weights are removed. If all steps are equal and losses convex, the result is
    optimal; otherwise it need not be. Ties are broken by the groups' order.
    """
    return climb(knapsack, losses, np.zeros(len(knapsack.table.groups), dtype=np.int64))


def climb(knapsack: Knapsack, losses: Sequence[np.ndarray], start: np.ndarray) -> np.ndarray:
    """Return levels after greedy steps from ``start`` on."""
    levels = start.copy()
    removed = knapsack.table.total(levels)
    heap = [
        entry
        for g in range(len(levels))
        if (entry := _find_next_step(knapsack, losses, g, int(levels[g])))
    ]
    heapq.heapify(heap)
    while heap and removed < knapsack.least:
        _, group, size = heapq.heappop(heap)
        if removed + size > knapsack.greatest:
            continue  # later steps of the group come only after this one
        removed += size
        levels[group] += 1
        if entry := _find_next_step(knapsack, losses, group, int(levels[group])):
            heapq.heappush(heap, entry)
    return levels


def trim_steps(knapsack: Knapsack, losses: Sequence[np.ndarray], levels: np.ndarray) -> np.ndarray:
    """Return levels from which no step can be taken back without removing too little.

    The step with the most loss for each weight is taken back first.
    """
    levels, saved = levels.copy(), knapsack.table.saved
    removed = knapsack.table.total(levels)
    while True:
        back = []
        for g, at in enumerate(levels):
            size = int(saved[g][at] - saved[g][at - 1]) if at else 0
            if size and removed - size >= knapsack.least:
                back.append((-float(losses[g][at] - losses[g][at - 1]) / size, g, size))
        if not back:
            return levels
        _, group, size = min(back)
        levels[group] -= 1
        removed -= size


def _find_next_step(
    knapsack: Knapsack, losses: Sequence[np.ndarray], group: int, level: int
) -> tuple[float, int, int] | None:
    """Return the loss for each weight of a group's next step, the group, and the step's size."""
    grid, values = knapsack.table.saved[group], losses[group]
    if level + 1 == len(grid):
        return None
    size = int(grid[level + 1] - grid[level])
    return float(values[level + 1] - values[level]) / size, group, size
