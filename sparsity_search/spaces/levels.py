"""The search space: a candidate is a vector of levels, and every one returned meets the budget.

A gene is one unit, or several tied together. Level 0 is its share of the uniform profile; each
level up removes more. For single weights the step is equal for all genes, whatever their size,
so moving one gene up and another down keeps the budget exactly (EvoPress, arXiv 2410.14649,
section 3): a candidate is legal when its levels sum to zero. Where steps differ (N:M choices,
structures of different size), a move is compound, and `levels.py` says what is legal.

Where units choose among options, a level is an option, and the budget is in what options save:
2:4 and 4:8 remove equally many weights, and 4:8 is never worse, so that no budget in weights
could decide between them. Structures may have prices in place of their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.budget import Bounds, Budget, fill, water_fill
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.spaces.choices import (
    Choices,
    Options,
    chosen_rows,
    option_tables,
    stepped_rows,
    structure_tables,
    tables_of,
    uniform_structures,
)
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.prices import Prices
from sparsity_search.spaces.tables import LevelTables
from sparsity_search.utils.files import digest

#: One level for each gene.
Candidate = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Levels of genes over a layout, under one budget.

    Args:
        layout: The prunable units.
        budget: The global budget.
        bounds: Fewest and most items to remove from each unit.
        genes: Unit indices that share one level, for each gene; each unit in exactly one gene.
        step: Weights that one level moves; where structures differ in size, about so many.
        reach: A gene's level lies in ``[-reach, reach]``, or less where the bounds bind.
        choices: The counts that each unit may have, increasing; by default any. They are the
            levels then, and ``step`` means nothing.
        options: The patterns that units may have; they are the levels then, and the budget is
            the fraction to save of what all dense units cost.
        share: Fraction of its own weights that a level moves each gene, in place of ``step``.
        centre: The profile of level 0, from which a search starts, or which it has found before
            with longer steps; by default the uniform one. It meets the budget.
        prices: What structures save; the budget is the fraction to save of it.
        hints: What sensitivities predict for its levels; advice to searchers, and no part of
            what is legal.

    Raises:
        ConfigError: ``genes`` do not partition the units, ``step`` is not a whole number of
            items, or ``choices`` do not increase.
        InfeasibleBudgetError: No profile within the bounds and choices meets the budget.
    """

    layout: Layout
    budget: Budget
    bounds: Bounds
    genes: tuple[tuple[int, ...], ...]
    step: int
    reach: int
    choices: Choices | None = None
    options: Options | None = None
    share: float | None = None
    centre: SparsityProfile | None = None
    prices: Prices | None = None
    hints: tuple[Hint, ...] = ()
    _counts: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if sorted(i for gene in self.genes for i in gene) != list(range(len(self.layout))):
            raise ConfigError("the genes of a search space must hold every unit exactly once")
        if self.step < 1 or self.reach < 1:
            raise ConfigError("step and reach of a search space must be at least 1")
        if self.even and (self.step % self.layout.costs).any():
            raise ConfigError(f"a step of {self.step} weights is not a whole number of items")
        if self.centre is not None and (self.choices or self.options):
            raise ConfigError("a space of patterns has no step that could be made finer")
        if self.in_weights:
            self.budget.check(self.layout, self.bounds)
        if not self.even:
            _ = self._uneven  # finds out what is not feasible

    @property
    def n_genes(self) -> int:
        """Genes of the space."""
        return len(self.genes)

    @property
    def in_weights(self) -> bool:
        """Whether the budget is in weights to remove, and not in something to save."""
        return self.options is None and self.prices is None

    @cached_property
    def even(self) -> bool:
        """Whether one level moves equally many weights in every gene."""
        plain = self.choices is None and self.share is None and self.in_weights
        return plain and self.layout.divisible

    @cached_property
    def base(self) -> SparsityProfile:
        """The profile of level 0 everywhere: the centre, or uniform as far as the space allows."""
        if not self.even:
            return self.profile(self.uniform)
        if self.centre is not None:
            return self.centre
        item = int(self.layout.costs[0])
        total = -(-self.budget.n_removed(self.layout) // item) * item
        wanted = np.full(len(self.layout), self.budget.target)
        return from_counts(self.layout, fill(self.layout, wanted, self.bounds, total))

    @cached_property
    def levels(self) -> Bounds:
        """Least and greatest level of each gene, ``(n_genes,)`` each."""
        if not self.even:
            tables, centre = self._uneven
            return Bounds(lower=-centre, upper=tables.top - centre)
        base = self._totals(np.array(self.base.removed))
        down = (base - self._totals(self.bounds.lower)) // self.step
        up = (self._totals(self.bounds.upper) - base) // self.step
        return Bounds(lower=-np.minimum(down, self.reach), upper=np.minimum(up, self.reach))

    @cached_property
    def _uneven(self) -> tuple[LevelTables, np.ndarray]:
        """What the levels of genes of unequal steps remove, and where in the tables level 0 is."""
        layout, bounds, genes, budget = self.layout, self.bounds, self.genes, self.budget
        if self.options is not None:
            tables = option_tables(layout, bounds, genes, self.options, budget)
        elif self.choices is not None:
            rows = chosen_rows(layout, bounds, genes, self.choices)
            tables = tables_of(layout, genes, rows, budget)
        else:
            if self.centre is None:
                base = uniform_structures(layout, bounds, budget, self.prices)
            else:
                base = np.array(self.centre.removed)
            rows = stepped_rows(layout, bounds, genes, base, self._steps)
            tables = structure_tables(layout, genes, rows, budget, self.prices)
            return tables.around(tables.settle(tables.real(self._totals(base))), self.reach)
        centre = tables.uniform(budget.target * self._totals(layout.counts))
        return tables.around(centre, self.reach)

    @property
    def _steps(self) -> np.ndarray:
        """Weights that one level moves each gene, ``(n_genes,)`` int64."""
        if self.share is None:
            return np.full(self.n_genes, self.step)
        sizes = self.layout.counts * self.layout.costs
        own = np.array([sizes[list(gene)].sum() for gene in self.genes])
        return np.maximum(1, np.rint(self.share * own)).astype(int)

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Role of each gene; tied units of several roles join theirs with ``+``."""
        return tuple(
            "+".join(dict.fromkeys(self.layout[i].role for i in gene)) for gene in self.genes
        )

    @cached_property
    def digest(self) -> str:
        """Identifies the space: 16 hexadecimal digits."""
        facts = {
            "layout": self.layout.digest,
            "target": self.budget.target,
            "lower": self.bounds.lower.tolist(),
            "upper": self.bounds.upper.tolist(),
            "genes": self.genes,
            "step": self.step,
            "reach": self.reach,
        }
        if self.choices is not None:
            facts["choices"] = self.choices
        if self.share is not None:
            facts["share"] = self.share
        if self.centre is not None:
            facts["centre"] = self.centre.removed
        if self.prices is not None:
            facts["prices"] = self.prices.digest
        if self.options is not None:
            facts["options"] = [self.options.patterns, self.options.saved.tolist()]
        return digest(facts)

    @property
    def uniform(self) -> Candidate:
        """The candidate with level 0 everywhere."""
        return (0,) * self.n_genes

    def __contains__(self, candidate: object) -> bool:
        if not isinstance(candidate, tuple) or len(candidate) != self.n_genes:
            return False
        levels = np.array(candidate)
        inside = (levels >= self.levels.lower) & (levels <= self.levels.upper)
        return bool(inside.all()) and self._meets(levels)

    def _meets(self, levels: np.ndarray) -> bool:
        """Whether levels within their limits meet the budget."""
        if self.even:
            return int(levels.sum()) == 0
        tables, centre = self._uneven
        return tables.legal(levels + centre)

    def profile(self, candidate: Candidate) -> SparsityProfile:
        """Return the profile that a candidate means.

        Raises:
            ConfigError: The candidate is not in the space.
        """
        if candidate not in self:
            raise ConfigError("the candidate is not in this search space")
        removed = np.zeros(len(self.layout), dtype=np.int64)
        patterns = [""] * len(self.layout)
        for gene, level in enumerate(candidate):
            removed[list(self.genes[gene])] = self.gene_counts(gene, level)
            for unit, pattern in zip(self.genes[gene], self._patterns(gene, level), strict=True):
                patterns[unit] = pattern
        return from_counts(self.layout, removed, patterns)

    def saved(self, profile: SparsityProfile) -> np.ndarray:
        """Return what each unit counts for in the budget, ``(n_units,)`` int64.

        That is the weights it loses or their prices, or, among options, what its pattern saves.

        Raises:
            ConfigError: A pattern is none of the options.
        """
        if self.options is None:
            return self._counted(range(len(self.layout)), np.array(profile.removed))
        known = self.options.patterns
        if not set(profile.patterns) <= set(known):
            raise ConfigError(f"the space has the options {known}, not {profile.patterns}")
        chosen = [known.index(pattern) for _, pattern in profile.states]
        return np.asarray(self.options.saved[range(len(chosen)), chosen])

    def nearest(self, profile: SparsityProfile) -> Candidate:
        """Return the candidate nearest to a profile (genes' totals, rounded to levels).

        Among options a profile without patterns is one of wanted savings: an allocator's.
        """
        if profile.patterns:
            totals = np.array([self.saved(profile)[list(gene)].sum() for gene in self.genes])
        else:
            totals = self._totals(np.array(profile.removed))
        if not self.even:
            tables, centre = self._uneven
            return self.balance(tables.real(totals) - centre)
        return self.balance((totals - self._totals(np.array(self.base.removed))) / self.step)

    def project(self, profile: SparsityProfile) -> SparsityProfile:
        """Return a profile that can be realised: itself, or its nearest where steps differ."""
        return profile if self.even else self.profile(self.nearest(profile))

    def balance(self, levels: np.ndarray) -> Candidate:
        """Return the candidate nearest to any real levels, ``(n_genes,)``."""
        wanted = np.asarray(levels, dtype=np.float64)
        if self.even:
            ones = np.ones(self.n_genes, dtype=np.int64)
            return _candidate(water_fill(wanted, ones, self.levels, ones, 0))
        tables, centre = self._uneven
        return _candidate(tables.settle(wanted + centre) - centre)

    def sample(self, rng: np.random.Generator, spread: float = 1.0) -> Candidate:
        """Return a random candidate: normal levels with deviation ``spread``, balanced."""
        return self.balance(rng.normal(0.0, spread, self.n_genes))

    def switch(
        self, candidate: Candidate, rng: np.random.Generator, stride: int, genes: Sequence[int]
    ) -> Candidate | None:
        """Move ``stride`` levels from one of ``genes`` to another, drawn at random.

        Where steps differ, others of ``genes`` move by single levels, at random too, until the
        budget is met again.

        Returns:
            The new candidate, or None where the bounds allow no such move, or it meets the
            budget by no other moves of ``genes``.
        """
        levels = np.array(candidate)
        among = np.asarray(genes, dtype=np.int64)
        up = among[levels[among] + stride <= self.levels.upper[among]]
        down = among[levels[among] - stride >= self.levels.lower[among]]
        pairs = len(up) * len(down) - len(np.intersect1d(up, down))
        if pairs <= 0:
            return None
        first = int(rng.choice(up if len(down) > 1 else up[up != down[0]]))
        second = int(rng.choice(down[down != first]))
        levels[first] += stride
        levels[second] -= stride
        if not self.even:
            tables, centre = self._uneven
            levels = tables.repair(levels + centre, rng, among, first, second) - centre
        moved = _candidate(levels)
        return moved if self._meets(levels) and moved != candidate else None

    def refined(self, centre: SparsityProfile) -> SearchSpace:
        """Return the space around a profile of this one with half the step: coarse to fine.

        Raises:
            ConfigError: The levels are patterns, which have no step.
        """
        item = int(self.layout.costs.min())
        step = max(item, self.step // 2 // item * item)
        share = self.share and self.share / 2
        return replace(self, centre=centre, step=step, share=share, hints=(), _counts={})

    def tables(self) -> list[tuple[int, ...]]:
        """Return for each unit the counts that its levels use, increasing."""
        used = self._used(self.gene_counts)
        return [tuple(sorted(map(int, counts))) for counts in used]

    def patterns(self) -> list[tuple[str, ...]]:
        """Return for each unit the patterns that its levels use, in the order of options."""
        if self.options is None:
            return [()] * len(self.layout)
        return [tuple(filter(None, patterns)) for patterns in self._used(self._patterns)]

    def _used(self, at: Callable[[int, int], Iterable[Any]]) -> list[dict[Any, None]]:
        """Return what each unit has at any level, from what a gene's units have at one."""
        used: list[dict[Any, None]] = [{} for _ in self.layout]
        for gene, units in enumerate(self.genes):
            for level in range(self.levels.lower[gene], self.levels.upper[gene] + 1):
                for unit, found in zip(units, at(gene, level), strict=True):
                    used[unit][found] = None
        return used

    def states(self, gene: int, level: int) -> list[tuple[str, tuple[int, str]]]:
        """Return name, count and pattern of a gene's units at a level within its limits."""
        counts, patterns = self.gene_counts(gene, level), self._patterns(gene, level)
        names = [self.layout[unit].name for unit in self.genes[gene]]
        states = zip(map(int, counts), patterns, strict=True)
        return list(zip(names, states, strict=True))

    def gene_saved(self, gene: int, level: int) -> np.ndarray:
        """Return what a gene's units count for in the budget at a level, ``(n_units,)``."""
        if self.options is not None:
            return np.asarray(self.options.saved[list(self.genes[gene]), self._row(gene, level)])
        return self._counted(self.genes[gene], self.gene_counts(gene, level))

    def gene_counts(self, gene: int, level: int) -> np.ndarray:
        """Return the counts of a gene's units at a level within its limits, ``(n_units,)``."""
        if self.options is not None:
            return np.asarray(self.options.zeros[list(self.genes[gene]), self._row(gene, level)])
        if not self.even:
            return self._row(gene, level)
        key = (gene, level)
        if key not in self._counts:
            self._counts[key] = self._spread(self.genes[gene], level * self.step)
        return self._counts[key]

    def _row(self, gene: int, level: int) -> np.ndarray:
        """Return a level's row in the tables of unequal steps, ``(n_units,)``."""
        tables, centre = self._uneven
        return np.asarray(tables.rows[gene][level + centre[gene]])

    def _patterns(self, gene: int, level: int) -> list[str]:
        """Return the patterns of a gene's units at a level."""
        if self.options is None:
            return [""] * len(self.genes[gene])
        return [self.options.patterns[option] for option in self._row(gene, level)]

    def _totals(self, removed: np.ndarray) -> np.ndarray:
        counted = self._counted(range(len(self.layout)), removed)
        return np.array([counted[list(gene)].sum() for gene in self.genes])

    def _counted(self, units: Sequence[int], removed: np.ndarray) -> np.ndarray:
        """Return what items removed from units count for, ``(n_units,)``."""
        if self.prices is not None:
            return self.prices.at(units, removed)
        return np.asarray(removed * self.layout.costs[list(units)])

    def _spread(self, units: Iterable[int], change: int) -> np.ndarray:
        """Return the counts of a gene's units after it moves by ``change`` weights."""
        index = list(units)
        base = np.array(self.base.removed)[index]
        if not change:
            return base
        part = Layout([self.layout[i] for i in index])
        bounds = Bounds(lower=self.bounds.lower[index], upper=self.bounds.upper[index])
        return fill(part, base / part.counts, bounds, int(base @ part.costs) + change)


def _candidate(levels: np.ndarray) -> Candidate:
    return tuple(int(level) for level in levels)
