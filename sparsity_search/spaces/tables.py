"""Decision tables: the levels of groups of tied units, and the budgeted amount of each level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sparsity_search.profiles.layout import Layout

#: Units of each group.
Groups = Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class DecisionTable:
    """The levels of each group of tied units.

    A vector of levels is ``(n_groups,)`` int64, each from 0 to the group's `top`.

    Attributes:
        layout: The units.
        groups: Positions of the units of each group.
        rows: Counts, or indices of patterns, of each group's units at each level,
            ``(n_levels, n_units)`` each. Solvers of equal steps use fractional counts.
        saved: Budgeted amount of each level, ``(n_levels,)`` int64 and increasing: weights
            removed, or savings.
    """

    layout: Layout
    groups: tuple[tuple[int, ...], ...]
    rows: tuple[np.ndarray, ...]
    saved: tuple[np.ndarray, ...]

    @cached_property
    def top(self) -> np.ndarray:
        """The greatest level of each group, ``(n_groups,)`` int64."""
        return np.array([len(saved) - 1 for saved in self.saved], dtype=np.int64)

    @property
    def range(self) -> tuple[int, int]:
        """Total budgeted amount of the least and of the greatest levels."""
        return self.total(np.zeros_like(self.top)), self.total(self.top)

    def total(self, levels: Sequence[int] | np.ndarray) -> int:
        """Return the total budgeted amount of levels."""
        return sum(int(saved[level]) for saved, level in zip(self.saved, levels, strict=True))

    def at(self, levels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the row entry of each unit at levels, ``(n_units,)``."""
        taken = np.zeros(len(self.layout), dtype=np.result_type(*self.rows))
        for group, rows, level in zip(self.groups, self.rows, levels, strict=True):
            taken[list(group)] = rows[level]
        return taken

    def around(
        self, centre: np.ndarray, reach: int | np.ndarray
    ) -> tuple[DecisionTable, np.ndarray]:
        """Return the table of the levels around ``centre``, and the levels of ``centre`` in it.

        Args:
            centre: Levels, ``(n_groups,)``.
            reach: Most levels up or down, one for all groups or ``(n_groups,)``.
        """
        low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach, self.top) + 1
        cut = [slice(int(a), int(b)) for a, b in zip(low, high, strict=True)]
        rows = tuple(rows[part] for rows, part in zip(self.rows, cut, strict=True))
        saved = tuple(saved[part] for saved, part in zip(self.saved, cut, strict=True))
        return replace(self, rows=rows, saved=saved), centre - low


def build_table(
    layout: Layout,
    groups: Groups,
    rows: Sequence[np.ndarray],
    saved: Sequence[np.ndarray] | None = None,
) -> DecisionTable:
    """Return the table of the groups' rows, sorted by budgeted amount without duplicates.

    Args:
        layout: The units.
        groups: Positions of the units of each group.
        rows: Counts or indices of patterns of each group's units, ``(n_levels, n_units)`` each.
        saved: Budgeted amount of each row, ``(n_levels,)`` each; by default the weights that
            its counts remove. The first of several rows of equal amount is kept.
    """
    if saved is None:
        pairs = zip(groups, rows, strict=True)
        saved = [counts @ layout.costs[list(group)] for group, counts in pairs]
    totals, kept = [], []
    for entries, each in zip(rows, saved, strict=True):
        total, first = np.unique(each, return_index=True)
        totals.append(total.astype(np.int64))
        kept.append(entries[first])
    return DecisionTable(layout, tuple(map(tuple, groups)), tuple(kept), tuple(totals))
