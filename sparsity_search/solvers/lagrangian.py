"""Lagrangian solver: one price of a weight for all groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsity_search.solvers.decisions import Knapsack
from sparsity_search.solvers.greedy import climb


@dataclass(frozen=True, eq=False)
class PricedSolution:
    """The solution at one price of a weight.

    Attributes:
        price: Loss that one weight is worth.
        levels: A level of each group, ``(n_groups,)`` int64; together they meet the budget.
        reduced: Cost of each level beyond the best of its group at this price, ``(n_levels,)``
            each, not negative.
        bound: Lower bound of the loss of any choice that meets the budget.
    """

    price: float
    levels: np.ndarray
    reduced: tuple[np.ndarray, ...]
    bound: float


def solve_lagrangian(knapsack: Knapsack, losses: Sequence[np.ndarray]) -> PricedSolution:
    """Return the choice at the price of a weight that meets the budget.

    At a price, each group takes the level that minimises loss minus price times weights: a
    corner of its lower convex hull (Everett, Operations Research 1963; Shoham and Gersho, IEEE
    Trans. ASSP 1988). The price is searched among the slopes of the hulls, and greedy steps
    close the gap to the budget. If the losses are convex and all steps equal, the result is
    optimal.
    """
    saved = knapsack.table.saved
    hulls = [find_hull(w, loss) for w, loss in zip(saved, losses, strict=True)]
    price = _find_price(knapsack, losses, hulls)
    levels = np.zeros(len(hulls), dtype=np.int64)
    reduced, bound = [], price * knapsack.least
    for g, corners in enumerate(hulls):
        values = losses[g] - price * saved[g]
        reduced.append(values - values.min())
        bound += float(values.min())
        slopes = np.diff(losses[g][corners]) / np.diff(saved[g][corners])
        levels[g] = corners[np.searchsorted(slopes, price)]  # slopes below the price
    return PricedSolution(price, climb(knapsack, losses, levels), tuple(reduced), bound)


def find_hull(weights: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the positions of the corners of the lower convex hull of points.

    Args:
        weights: ``(n,)``, increasing.
        losses: ``(n,)``.

    >>> find_hull(np.array([0, 1, 2, 3]), np.array([0.0, 2.0, 2.0, 9.0])).tolist()
    [0, 2, 3]
    """
    corners: list[int] = []
    x, y = weights.tolist(), losses.tolist()
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(i)
    return np.array(corners)


def _find_price(
    knapsack: Knapsack, losses: Sequence[np.ndarray], hulls: Sequence[np.ndarray]
) -> float:
    """Return the slope of the hulls, taken in rising order, that reaches the budget."""
    sizes, slopes = [np.zeros(0)], [np.zeros(0)]
    for weights, values, corners in zip(knapsack.table.saved, losses, hulls, strict=True):
        sizes.append(np.diff(weights[corners]))
        slopes.append(np.diff(values[corners]) / sizes[-1])
    size, slope = np.concatenate(sizes), np.concatenate(slopes)
    if not len(slope):
        return 0.0
    order = np.argsort(slope, kind="stable")
    least, _ = knapsack.table.range
    at = np.searchsorted(np.cumsum(size[order]), knapsack.least - least)
    return float(slope[order][min(int(at), len(order) - 1)])
