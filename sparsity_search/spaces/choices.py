"""Rows of levels of genes: counts of N:M patterns, patterns, and counts in steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.profiles.profile import count_pattern_zeros
from sparsity_search.spaces.prices import PriceCurve, Prices

#: Legal counts of each unit, increasing.
Choices = tuple[tuple[int, ...], ...]


def list_pattern_counts(layout: Layout, pattern: str) -> Choices:
    """Return the counts of each unit that an N:M pattern allows.

    Args:
        layout: Units of single weights.
        pattern: ``N:M`` (N of M weights are **kept**, or the unit stays dense) or ``*:M`` (any
            number of M). A dense unit has the zeros of the dense model.

    Raises:
        ConfigError: The pattern is not legal, or a unit is not a whole number of groups.
    """
    groups = Pattern.parse_groups(pattern)
    if groups is None or groups.keep == groups.group:
        raise ConfigError(f"pattern of a space must be N:M with N < M, or *:M, not {pattern!r}")
    for unit in layout:
        if unit.cost != 1 or not groups.fits(unit.count):
            raise ConfigError(
                f"{unit.name} has {unit.count} items of {unit.cost} weights: that is no whole "
                f"number of groups of {groups.group} weights; leave such units out with --exclude"
            )
    return tuple(
        (unit.zeros, *(count for count in groups.counts(unit.count) if count > unit.zeros))
        for unit in layout
    )


def tie_counts(
    layout: Layout, bounds: Bounds, genes: Sequence[Sequence[int]], choices: Choices
) -> list[np.ndarray]:
    """Return the levels of genes whose units have few legal counts, ``(n_levels, n_units)`` each.

    Tied units have a level for each sparsity that any of them can have; each unit takes its
    nearest count.

    Raises:
        ConfigError: A unit has no choices, or they do not increase.
        InfeasibleBudgetError: The bounds exclude all choices of a unit.
    """
    if len(choices) != len(layout) or any(list(c) != sorted(set(c)) or not c for c in choices):
        raise ConfigError("a search space needs increasing choices for every unit")
    legal = []
    for unit, counts, low, high in zip(layout, choices, bounds.lower, bounds.upper, strict=True):
        legal.append(np.array([count for count in counts if low <= count <= high]))
        if not len(legal[-1]):
            raise InfeasibleBudgetError(
                f"{unit.name}: none of its choices {list(counts)} lies within {low} to {high}"
            )

    def at(unit: int, sparsity: float) -> int:
        return int(legal[unit][np.abs(legal[unit] - sparsity * layout[unit].count).argmin()])

    rows = []
    for gene in genes:
        sparsities = sorted({count / layout[i].count for i in gene for count in legal[i]})
        rows.append(np.array([[at(i, sparsity) for i in gene] for sparsity in sparsities]))
    return rows


def option_prices(layout: Layout, savings: Mapping[str, float]) -> Prices:
    """Return the prices of patterns that save fractions of a unit; its cost is its weights.

    Args:
        layout: Units of single weights.
        savings: Fraction of a dense unit's cost that each pattern ``N:M`` saves, in (0, 1].

    Raises:
        ConfigError: A pattern is not legal, a unit is not a whole number of groups, or two
            patterns save the same.
    """
    for pattern in savings:
        list_pattern_counts(layout, pattern)
    saved = np.outer(layout.counts, [0.0, *sorted(savings.values())])
    if (np.diff(np.rint(saved)) <= 0).any() or max(savings.values()) > 1:
        raise ConfigError(
            f"options must save different fractions of a unit, in (0, 1], not {dict(savings)}"
        )
    curves = [PriceCurve((0, unit.count), (0.0, float(unit.count))) for unit in layout]
    patterns = {pattern: share * layout.counts for pattern, share in savings.items()}
    return Prices(layout, "options", curves, patterns)


@dataclass(frozen=True, eq=False)
class PatternOptions:
    """Patterns that units can have, in the order of their savings; the first, ``""``, is dense.

    Attributes:
        patterns: The patterns, ``(n_options,)``.
        zeros: Zeros of each unit in each pattern, ``(n_units, n_options)`` int64.
        saved: Saving of each unit in each pattern, ``(n_units, n_options)`` int64; see `Prices`.
    """

    patterns: tuple[str, ...]
    zeros: np.ndarray
    saved: np.ndarray

    @classmethod
    def of(cls, prices: Prices) -> PatternOptions:
        """Return the options whose savings are the prices of patterns.

        Raises:
            ConfigError: A pattern is not legal, a unit is not a whole number of groups, or the
                total saving of two options is equal.
        """
        layout = prices.layout
        for pattern in prices.patterns:
            list_pattern_counts(layout, pattern)
        dense = np.zeros(len(layout), dtype=np.int64)
        savings = {"": dense, **{p: prices.of_pattern(p) for p in prices.patterns}}
        order = sorted(savings, key=lambda pattern: int(savings[pattern].sum()))
        saved = np.stack([savings[pattern] for pattern in order], axis=1)
        if order[0] or (np.diff(saved.sum(axis=0)) <= 0).any():
            raise ConfigError(
                f"options must save different amounts of {prices.measure}, and more than nothing"
            )
        zeros = [
            [u.zeros, *(count_pattern_zeros(u, pattern) for pattern in order[1:])] for u in layout
        ]
        return cls(tuple(order), np.array(zeros), saved)

    def tie(
        self, bounds: Bounds, genes: Sequence[Sequence[int]], layout: Layout
    ) -> list[np.ndarray]:
        """Return the levels of genes as indices of options, ``(n_levels, n_units)`` each.

        Tied units have a level for each option that any of them can have; each unit takes its
        option of nearest saving.

        Raises:
            InfeasibleBudgetError: The bounds exclude all options of a unit.
        """
        low, high = bounds.lower[:, None], bounds.upper[:, None]
        legal = (low <= self.zeros) & (self.zeros <= high)
        legal[:, 1:] &= self.zeros[:, 1:] > layout.zeros[:, None]  # else it stays as it is
        if not legal.any(axis=1).all():
            unit = int(legal.any(axis=1).argmin())
            raise InfeasibleBudgetError(
                f"{layout[unit].name}: none of its options has {bounds.lower[unit]} to "
                f"{bounds.upper[unit]} zeros"
            )
        rows = []
        for units in map(list, genes):
            own, allowed = self.saved[units], legal[units]
            gaps = np.abs(own[:, :, None] - own[:, None, :])  # units, wanted option, taken option
            taken = np.where(allowed[:, None, :], gaps, np.inf).argmin(axis=2)
            rows.append(taken.T[allowed.any(axis=0)])
        return rows


def step_counts(
    layout: Layout,
    bounds: Bounds,
    genes: Sequence[Sequence[int]],
    base: np.ndarray,
    steps: Sequence[int] | np.ndarray,
) -> list[np.ndarray]:
    """Return the levels of genes in steps around counts, ``(n_levels, n_units)`` each.

    The levels of a gene start at its counts in ``base`` and lie about its entry of ``steps``, in
    weights, apart. They are rounded to whole structures, and at least one structure apart. The
    bounds are levels too.
    """
    levels = []
    for index, step in zip(map(list, genes), map(int, steps), strict=True):
        costs, start = layout.costs[index], base[index]
        rows = [start]
        for limit in (bounds.lower[index], bounds.upper[index]):
            room = limit - start
            most = int(np.abs(room) @ costs)
            rows += [start + _take_share(room, t / most, costs) for t in range(step, most, step)]
            rows.append(limit)
        levels.append(np.array(rows))
    return levels


def _take_share(room: np.ndarray, share: float, costs: np.ndarray) -> np.ndarray:
    """Return a share of ``room`` in whole structures; smaller ones absorb rounding errors."""
    result = np.zeros(len(room), dtype=np.int64)
    carry = 0.0
    for i in np.argsort(-costs, kind="stable"):
        exact = share * room[i] + carry / costs[i]
        result[i] = np.clip(round(exact), min(room[i], 0), max(room[i], 0))
        carry = (exact - result[i]) * costs[i]
    return result
