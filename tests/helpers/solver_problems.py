"""Small problems, and their solution by looking at every choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.scores import Scores
from sparsity_search.solvers.decisions import Knapsack
from sparsity_search.spaces.tables import DecisionTable

LEVELS = (0.25, 0.5, 0.75, 1.0)


def layout_of(
    counts: Sequence[int],
    *,
    costs: Sequence[int] | None = None,
    zeros: Sequence[int] | None = None,
    roles: str = "qvud",
) -> Layout:
    n = len(counts)
    return Layout(
        [
            Unit(
                name=f"{i // len(roles)}.{roles[i % len(roles)]}",
                block=i // len(roles),
                role=roles[i % len(roles)],
                count=counts[i],
                cost=costs[i] if costs else 1,
                zeros=zeros[i] if zeros else 0,
            )
            for i in range(n)
        ]
    )


def scores_of(layout: Layout, loss: Callable[[int, np.ndarray], np.ndarray]) -> Scores:
    """Return scores whose unit ``i`` loses ``loss(i, s)`` at sparsities ``s``."""
    counts = []
    for unit in layout:
        found = sorted({round(level * unit.count) for level in LEVELS} - {0})
        counts.append(np.array([c for c in found if c > unit.zeros] or [unit.count]))
    losses = [
        np.asarray(loss(i, c / unit.count), dtype=np.float64)
        for i, (unit, c) in enumerate(zip(layout, counts, strict=True))
    ]
    return Scores(layout, tuple(counts), tuple(losses))


def random_scores(layout: Layout, seed: int, *, convex: bool = False) -> Scores:
    rng = np.random.default_rng(seed)
    scale = rng.lognormal(size=len(layout)) * layout.counts
    power = rng.uniform(2, 4, size=len(layout))
    if convex:
        return scores_of(layout, lambda i, s: scale[i] * s ** power[i])
    rise = rng.exponential(size=(len(layout), len(LEVELS))) ** 2
    return scores_of(layout, lambda i, s: scale[i] * np.cumsum(rise[i])[-len(s) :])


def knapsack_of(
    weights: Sequence[Sequence[int]], least: int, greatest: int | None = None, equal: bool = False
) -> Knapsack:
    """Return the knapsack of one unit a group whose counts are the weights."""
    grids = tuple(np.array(w, dtype=np.int64) for w in weights)
    layout = layout_of([max(int(w[-1]), 1) for w in grids])
    table = DecisionTable(
        layout,
        tuple((i,) for i in range(len(grids))),
        tuple(w[:, None].astype(np.float64) for w in grids),
        grids,
    )
    return Knapsack(table, least, least if greatest is None else greatest, equal)


def total(values: Sequence[np.ndarray], levels: Sequence[int] | np.ndarray) -> float:
    return float(sum(v[k] for v, k in zip(values, levels, strict=True)))


def brute_force(knapsack: Knapsack, losses: Sequence[np.ndarray]) -> float:
    """Return the least loss of all legal choices; infinity if there is none."""
    return min(
        (
            total(losses, levels)
            for levels in product(*(range(len(w)) for w in knapsack.table.saved))
            if knapsack.least <= total(knapsack.table.saved, levels) <= knapsack.greatest
        ),
        default=np.inf,
    )
