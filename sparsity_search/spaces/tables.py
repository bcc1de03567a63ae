"""Decision tables: the levels that groups of tied units can take, and what each counts for."""

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
    """What each group of tied units can take.

    A vector of levels is ``(n_groups,)`` int64, each from 0 to the group's `top`.

    Attributes:
        layout: The units.
        groups: Positions of the units of each group.
        rows: What its units take at each level, ``(n_levels, n_units)`` each: counts, or numbers
            of patterns. Solvers of equal steps have counts between integers.
        saved: What each level counts for in the budget, ``(n_levels,)`` int64 and increasing:
            weights removed, or savings.
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
        """What the least and the greatest levels count for in all."""
        return self.total(np.zeros_like(self.top)), self.total(self.top)

    def total(self, levels: Sequence[int] | np.ndarray) -> int:
        """Return what levels count for in all."""
        return sum(int(saved[level]) for saved, level in zip(self.saved, levels, strict=True))

    def at(self, levels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return what each unit takes at levels, ``(n_units,)``."""
        taken = np.zeros(len(self.layout), dtype=np.result_type(*self.rows))
        for group, rows, level in zip(self.groups, self.rows, levels, strict=True):
            taken[list(group)] = rows[level]
        return taken

    def around(
        self, centre: np.ndarray, reach: int | np.ndarray
    ) -> tuple[DecisionTable, np.ndarray]:
        """Return the table of at most ``reach`` levels around ``centre``, and its place there.

        Args:
            centre: Levels.
            reach: Of all groups, or of each, ``(n_groups,)``.
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
    """Return the table of groups' rows: sorted by what they count for, each total once.

    Args:
        layout: The units.
        groups: Positions of the units of each group.
        rows: What its units take, ``(n_levels, n_units)`` each.
        saved: What each row counts for, ``(n_levels,)`` each; by default its weights, where rows
            are counts. Of rows that count for equally much the first stays.
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
