"""Which counts units can have, as levels of genes: N:M choices, and structures of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.profiles.profile import zeros_of
from sparsity_search.spaces.prices import Prices
from sparsity_search.spaces.tables import LevelTables

#: Legal counts of each unit, increasing.
Choices = tuple[tuple[int, ...], ...]

#: Steps, by depth and by role, of a sequence that covers the unit interval evenly: inverses of
#: the golden ratio and of the plastic number.
_EVEN = (0.6180339887498949, 0.7548776662466927)


def n_of_m(layout: Layout, pattern: str) -> Choices:
    """Return the counts of each unit that an N:M pattern allows.

    Args:
        layout: Units of single weights.
        pattern: ``N:M`` (N of M weights are **kept**, or the unit stays dense) or ``*:M`` (any
            number of M). A dense unit has as many zeros as the dense model.

    Raises:
        ConfigError: No such pattern, or a unit is no whole number of groups.
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


def chosen_rows(
    layout: Layout, bounds: Bounds, genes: Sequence[Sequence[int]], choices: Choices
) -> list[np.ndarray]:
    """Return the levels of genes whose units have few legal counts, ``(n_levels, n_units)`` each.

    Tied units go through all sparsities that any of them can have, each at its nearest count.

    Raises:
        ConfigError: A unit has no choices, or they do not increase.
        InfeasibleBudgetError: The bounds leave a unit none of its choices.
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

    found = []
    for gene in genes:
        sparsities = sorted({count / layout[i].count for i in gene for count in legal[i]})
        found.append(np.array([[at(i, sparsity) for i in gene] for sparsity in sparsities]))
    return found


@dataclass(frozen=True, eq=False)
class Options:
    """Patterns that units can have, in order of what they save; the first, ``""``, is dense.

    What is saved is counted in weights of a dense unit: a unit that saves 0.5 of its cost saves
    half as much as it has weights.

    Attributes:
        patterns: ``(n_options,)``.
        zeros: Zeros of each unit in each, ``(n_units, n_options)`` int64.
        saved: What each unit saves in each, ``(n_units, n_options)`` int64, increasing.
    """

    patterns: tuple[str, ...]
    zeros: np.ndarray
    saved: np.ndarray


def options_of(layout: Layout, savings: Mapping[str, float]) -> Options:
    """Return the options that patterns with their savings are.

    Args:
        layout: Units of single weights.
        savings: What a unit with the pattern ``N:M`` saves of the cost of the dense unit, in
            (0, 1].

    Raises:
        ConfigError: Not a pattern, a unit is no whole number of groups, or two options save the
            same.
    """
    patterns = tuple(sorted(savings, key=lambda pattern: savings[pattern]))
    for pattern in patterns:
        n_of_m(layout, pattern)
    shares = [0.0, *(savings[pattern] for pattern in patterns)]
    saved = np.rint(np.outer(layout.counts, shares)).astype(np.int64)
    if (np.diff(saved) <= 0).any() or shares[-1] > 1:
        raise ConfigError(
            f"options must save different fractions of a unit, in (0, 1], not {dict(savings)}"
        )
    zeros = [[unit.zeros, *(zeros_of(unit, pattern) for pattern in patterns)] for unit in layout]
    return Options(("", *patterns), np.array(zeros), saved)


def option_tables(
    layout: Layout,
    bounds: Bounds,
    genes: Sequence[Sequence[int]],
    options: Options,
    budget: Budget,
) -> LevelTables:
    """Return the tables of genes that choose among options.

    Rows hold the units' options by number, weights what they save. Tied units go through all
    options that any of them can have, each at the one nearest by what it saves.

    Raises:
        InfeasibleBudgetError: The bounds leave a unit no option, or no choice saves enough.
    """
    low, high = bounds.lower[:, None], bounds.upper[:, None]
    legal = (low <= options.zeros) & (options.zeros <= high)
    legal[:, 1:] &= options.zeros[:, 1:] > layout.zeros[:, None]  # else it stays as it is
    if not legal.any(axis=1).all():
        unit = int(legal.any(axis=1).argmin())
        raise InfeasibleBudgetError(
            f"{layout[unit].name}: none of its options has {bounds.lower[unit]} to "
            f"{bounds.upper[unit]} zeros"
        )
    rows = []
    for units in map(list, genes):
        own, allowed = options.saved[units], legal[units]
        gaps = np.abs(own[:, :, None] - own[:, None, :])  # units, wanted option, taken option
        taken = np.where(allowed[:, None, :], gaps, np.inf).argmin(axis=2)
        rows.append(taken.T[allowed.any(axis=0)])
    saved = [options.saved[list(g), row].sum(axis=1) for g, row in zip(genes, rows, strict=True)]
    _check_saving(layout, budget, saved, "options")
    return tables_of(layout, genes, rows, budget, saved)


def _check_saving(
    layout: Layout, budget: Budget, saved: Sequence[np.ndarray], choice: str
) -> None:
    """Check that some levels save enough, and none too much."""
    least, most = sum(int(s.min()) for s in saved), sum(int(s.max()) for s in saved)
    if not least <= budget.n_removed(layout) <= most:
        total = layout.n_weights
        raise InfeasibleBudgetError(
            f"saving {budget.target} is out of reach: the {choice} allow "
            f"{least / total:.6g} to {most / total:.6g}"
        )


def uniform_structures(
    layout: Layout, bounds: Bounds, budget: Budget, prices: Prices | None = None
) -> np.ndarray:
    """Return the counts nearest to equal sparsity that meet the budget, ``(n_units,)`` int64.

    With prices it is each unit's saving that is about equal.
    """
    limits = zip(bounds.lower, bounds.upper, strict=True)
    rows = [np.arange(low, high + 1)[:, None] for low, high in limits]
    genes = [(i,) for i in range(len(layout))]
    tables = structure_tables(layout, genes, rows, budget, prices)
    if prices is None:
        wanted = budget.target * layout.counts * layout.costs
    else:
        wanted = budget.target * np.array([each[-1] for each in prices.saved])
    levels = tables.uniform(wanted)
    return np.array([row[level, 0] for row, level in zip(tables.rows, levels, strict=True)])


def structure_tables(
    layout: Layout,
    genes: Sequence[Sequence[int]],
    rows: Sequence[np.ndarray],
    budget: Budget,
    prices: Prices | None,
) -> LevelTables:
    """Return the tables of genes of structures: what levels remove, or save by their prices.

    Of levels of equal price the one that removes the fewest stays.

    Raises:
        InfeasibleBudgetError: No levels meet the budget.
    """
    if prices is None:
        return tables_of(layout, genes, rows, budget)
    sizes = [row @ layout.costs[list(gene)] for gene, row in zip(genes, rows, strict=True)]
    rising = [row[np.argsort(size)] for row, size in zip(rows, sizes, strict=True)]
    saved = [prices.at(gene, row).sum(axis=1) for gene, row in zip(genes, rising, strict=True)]
    _check_saving(layout, budget, saved, "bounds")
    return tables_of(layout, genes, rising, budget, saved)


def stepped_rows(
    layout: Layout,
    bounds: Bounds,
    genes: Sequence[Sequence[int]],
    base: np.ndarray,
    steps: Sequence[int] | np.ndarray,
) -> list[np.ndarray]:
    """Return the levels of genes of structures, ``(n_levels, n_units)`` each.

    A gene's levels lie about its one of ``steps``, in weights, apart from its counts in ``base``,
    rounded to whole structures; where a structure holds more, one structure apart. The bounds are
    levels too.
    """
    found = []
    for index, step in zip(map(list, genes), map(int, steps), strict=True):
        costs, start = layout.costs[index], base[index]
        rows = [start]
        for limit in (bounds.lower[index], bounds.upper[index]):
            room = limit - start
            most = int(np.abs(room) @ costs)
            rows += [start + _part(room, t / most, costs) for t in range(step, most, step)]
            rows.append(limit)
        found.append(np.array(rows))
    return found


def _part(room: np.ndarray, share: float, costs: np.ndarray) -> np.ndarray:
    """Return a share of ``room`` in whole structures; smaller ones make up for what is rounded."""
    result = np.zeros(len(room), dtype=np.int64)
    carry = 0.0
    for i in np.argsort(-costs, kind="stable"):
        wanted = share * room[i] + carry / costs[i]
        result[i] = np.clip(round(wanted), min(room[i], 0), max(room[i], 0))
        carry = (wanted - result[i]) * costs[i]
    return result


def tables_of(
    layout: Layout,
    genes: Sequence[Sequence[int]],
    rows: Sequence[np.ndarray],
    budget: Budget,
    removed: Sequence[np.ndarray] | None = None,
) -> LevelTables:
    """Return the tables of genes' rows: sorted by weights, each total once.

    Genes are ranked so that those taken first are spread evenly over roles and over depth.

    Args:
        layout: The units.
        genes: Units of each gene.
        rows: Counts of its units, ``(n_levels, n_units)`` each.
        budget: The budget.
        removed: What each row counts for, ``(n_levels,)`` each; by default its weights.

    Raises:
        InfeasibleBudgetError: No levels meet the budget.
    """
    kept, weights = [], []
    if removed is None:
        pairs = zip(genes, rows, strict=True)
        removed = [counts @ layout.costs[list(gene)] for gene, counts in pairs]
    for counts, each in zip(rows, removed, strict=True):
        totals, first = np.unique(each, return_index=True)
        kept.append(counts[first])
        weights.append(totals)
    roles = [layout[gene[0]].role for gene in genes]
    names = list(dict.fromkeys(roles))
    places = [(roles[:i].count(role), names.index(role)) for i, role in enumerate(roles)]
    order = (np.array(places) + 0.5) @ np.array(_EVEN) % 1.0
    tables = LevelTables(tuple(kept), tuple(weights), budget.n_removed(layout), order)
    tables.check()
    return tables
