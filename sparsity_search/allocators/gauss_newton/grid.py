"""Grids: the possible counts of units in a descent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.spaces.choices import list_pattern_counts, tie_counts
from sparsity_search.spaces.level_budget import LevelBudget
from sparsity_search.spaces.tables import DecisionTable, build_table


@dataclass(frozen=True, eq=False)
class Grid:
    """The possible counts of each unit.

    Attributes:
        table: Counts of each unit, increasing; each unit is a group of its own.
        start: Levels of the first profile, ``(n_units,)`` int64.
        final: Whether counts must not be changed further, since a pattern prescribes them.
    """

    table: DecisionTable
    start: np.ndarray
    final: bool = False

    @property
    def counts(self) -> list[tuple[int, ...]]:
        """Counts of each unit, increasing."""
        return [tuple(rows[:, 0].tolist()) for rows in self.table.rows]

    def profile(self, levels: np.ndarray) -> SparsityProfile:
        """Return the profile of levels, ``(n_units,)``."""
        return from_counts(self.table.layout, self.table.at(levels))

    def states(self, unit: int, level: int) -> list[tuple[str, tuple[int, str]]]:
        """Return the name, count and pattern of a unit at a level, as a list of one entry."""
        count = int(self.table.rows[unit][level, 0])
        return [(self.table.layout[unit].name, (count, ""))]

    def reach(self, sparsity: float) -> np.ndarray:
        """Return the levels of each unit in a change of its sparsity, at least 1."""
        pairs = zip(self.counts, self.table.layout.counts, strict=True)
        apart = [(own[-1] - own[0]) / max(1, len(own) - 1) / count for own, count in pairs]
        levels = np.rint(sparsity / np.maximum(apart, 1e-9))
        return np.asarray(np.clip(levels, 1, self.table.top.max() + 1), dtype=np.int64)

    def levels_within(self, sparsity: float) -> np.ndarray:
        """Return how many levels of each unit are no further from the start, at least 1."""
        found = []
        for own, at, count in zip(self.counts, self.start, self.table.layout.counts, strict=True):
            away = np.abs(np.array(own) - own[at])
            near = away <= sparsity * count + 1  # counts are whole numbers
            # a side that lies within it as a whole sets no limit
            sides = [int(side.sum()) for side in (near[:at], near[at + 1 :]) if not side.all()]
            found.append(max(1, min(sides, default=len(own))))
        return np.array(found, dtype=np.int64)

    def within(self, far: np.ndarray) -> Grid:
        """Return the part of the grid at most ``far`` levels, ``(n_units,)``, from the start."""
        table, start = self.table.around(self.start, far)
        return replace(self, table=table, start=start)


def step_grid(start: SparsityProfile, bounds: Bounds, spacing: float) -> Grid:
    """Return a grid of equally spaced counts that contains a profile.

    Args:
        start: The profile.
        bounds: Least and greatest counts.
        spacing: Sparsity between two levels of a unit.
    """
    layout = start.layout
    rows = [counts[:, None] for counts in space_counts(layout, bounds, start, spacing)]
    table = build_table(layout, _alone(layout), rows)
    pairs = zip(table.rows, start.removed, strict=True)
    return Grid(table, np.array([int(np.searchsorted(row[:, 0], at)) for row, at in pairs]))


def pattern_grid(start: SparsityProfile, bounds: Bounds, budget: Budget, pattern: str) -> Grid:
    """Return the grid of counts that a pattern allows, started nearest to a profile.

    Raises:
        ConfigError: A unit is not a whole number of groups.
        InfeasibleBudgetError: No profile of such counts within the bounds meets the budget.
    """
    layout = start.layout
    rows = tie_counts(layout, bounds, _alone(layout), list_pattern_counts(layout, pattern))
    legal = LevelBudget.of(build_table(layout, _alone(layout), rows), budget)
    nearest = legal.dither(np.array(start.removed) * layout.costs)
    return Grid(legal.table, nearest, final=True)


def space_counts(
    layout: Layout, bounds: Bounds, centre: SparsityProfile, spacing: float
) -> list[np.ndarray]:
    """Return counts of each unit, ``(n_levels,)`` int64 and increasing.

    They are its bounds, and steps of ``spacing`` of its size from the centre.
    """
    counts = []
    limits = zip(layout, bounds.lower, bounds.upper, centre.removed, strict=True)
    for unit, low, high, middle in limits:
        step = max(1.0, spacing * unit.count)
        below, above = (middle - low) // step, (high - middle) // step
        points = np.rint(middle + step * np.arange(-below, above + 1)).astype(np.int64)
        counts.append(np.unique(np.concatenate([[low], points, [high]])))
    return counts


def _alone(layout: Layout) -> list[tuple[int, ...]]:
    """Return each unit as a group of its own."""
    return [(i,) for i in range(len(layout))]
