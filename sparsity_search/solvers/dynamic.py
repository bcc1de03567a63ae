"""The multiple-choice knapsack over equal steps, solved exactly by a dynamic programme."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsity_search.solvers.decisions import Knapsack
from sparsity_search.solvers.lagrangian import solve_lagrangian

#: Totals processed at once, so that they stay in a core's cache.
CHUNK = 2**14


def solve_dynamic(knapsack: Knapsack, losses: Sequence[np.ndarray]) -> np.ndarray:
    """Return the levels of least loss, ``(n_groups,)`` int64.

    ``f_g(j) = min_k f_{g-1}(j - k) + loss_g(k)`` over steps ``k`` of group ``g``: the least
    loss of the first groups that remove ``j`` steps (as in Xu et al., ICCV 2023, there over
    single weights). Two prunings that cannot change the result keep it small: it skips levels
    that a Lagrangian bound proves too costly, and totals from which the budget cannot be met.

    Args:
        knapsack: A knapsack of equal steps.
        losses: Loss of each level, ``(n_levels,)`` for each group.
    """
    kept = _find_useful_levels(knapsack, losses)
    low = np.array([levels[0] for levels in kept])
    high = np.array([levels[-1] for levels in kept])
    total = _count_steps(knapsack)
    # totals after each group that the groups before it reach and those after it can complete
    before, after = np.cumsum(low), np.cumsum(low[::-1])[::-1] - low
    before_most, after_most = np.cumsum(high), np.cumsum(high[::-1])[::-1] - high
    first = np.maximum(before, total - after_most)
    last = np.minimum(before_most, total - after)
    best, start = np.zeros(1), 0
    picks = []
    for g, levels in enumerate(kept):
        best, pick = _add_group(best, start, (int(first[g]), int(last[g])), levels, losses[g])
        start = int(first[g])
        picks.append(pick)
    found, at = np.zeros(len(kept), dtype=np.int64), total
    for g in range(len(kept) - 1, -1, -1):
        found[g] = kept[g][picks[g][at - first[g]]]
        at -= found[g]
    return found


def _add_group(
    best: np.ndarray,
    start: int,
    window: tuple[int, int],
    levels: np.ndarray,
    losses: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least loss at each total of a window with one more group, and its level there.

    Args:
        best: Least losses without the group, at totals from ``start`` on.
        start: Total of the first entry of ``best``.
        window: First and last total to fill.
        levels: Allowed levels of the group.
        losses: Loss of each of its levels.
    """
    first, last = window
    result = np.full(last - first + 1, np.inf)
    pick = np.zeros(len(result), dtype=np.min_scalar_type(len(levels)))
    for chunk in range(0, len(result), CHUNK):
        there, where = result[chunk : chunk + CHUNK], pick[chunk : chunk + CHUNK]
        low, high = first + chunk, first + chunk + len(there)  # totals of the chunk
        for k, level in enumerate(levels.tolist()):
            begin, end = max(low, start + level), min(high, start + level + len(best))
            if begin >= end:
                continue
            candidate = best[begin - start - level : end - start - level] + losses[level]
            part = slice(begin - low, end - low)
            better = candidate < there[part]
            np.copyto(there[part], candidate, where=better)
            np.copyto(where[part], k, where=better)
    return result, pick


def _find_useful_levels(knapsack: Knapsack, losses: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the levels of each group that an optimal choice may contain.

    A choice that contains a level loses at least the Lagrangian bound plus the level's reduced
    cost. If a known choice loses less, the level is in no optimal choice.
    """
    priced = solve_lagrangian(knapsack, losses)
    known = sum(float(loss[at]) for loss, at in zip(losses, priced.levels, strict=True))
    scale = sum(float(np.abs(loss).max()) for loss in losses)
    gap = max(known - priced.bound, 0.0) + 1e-12 * scale  # the bound is rounded, too
    return [np.flatnonzero(cost <= gap) for cost in priced.reduced]


def _count_steps(knapsack: Knapsack) -> int:
    """Return the number of steps to remove beyond the first levels."""
    least, _ = knapsack.table.range
    return (knapsack.least - least) // knapsack.steps[0]
