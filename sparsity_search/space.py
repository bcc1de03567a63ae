"""The search space: a candidate is a vector of levels, and every one returned meets the budget.

A gene is one unit, or several tied together. Level 0 is its share of the uniform profile; each
level up removes one more step of weights. The step is equal for all genes, whatever their size,
so moving one gene up and another down keeps the budget exactly (EvoPress, arXiv 2410.14649,
section 3): a candidate is legal when its levels sum to zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sparsity_search.artefacts import digest
from sparsity_search.budget import Bounds, Budget, fill, water_fill
from sparsity_search.errors import ConfigError
from sparsity_search.layout import Layout
from sparsity_search.profile import SparsityProfile, from_counts

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
        step: Weights that one level moves.
        reach: A gene's level lies in ``[-reach, reach]``, or less where the bounds bind.

    Raises:
        ConfigError: ``genes`` do not partition the units, or ``step`` is not a whole number of
            items of some unit.
        InfeasibleBudgetError: No profile within the bounds meets the budget.
    """

    layout: Layout
    budget: Budget
    bounds: Bounds
    genes: tuple[tuple[int, ...], ...]
    step: int
    reach: int
    _counts: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if sorted(i for gene in self.genes for i in gene) != list(range(len(self.layout))):
            raise ConfigError("the genes of a search space must hold every unit exactly once")
        if self.step < 1 or self.reach < 1:
            raise ConfigError("step and reach of a search space must be at least 1")
        if (self.step % self.layout.costs).any():
            raise ConfigError(f"a step of {self.step} weights is not a whole number of items")
        self.budget.check(self.layout, self.bounds)

    @property
    def n_genes(self) -> int:
        """Genes of the space."""
        return len(self.genes)

    @cached_property
    def base(self) -> SparsityProfile:
        """The profile of level 0 everywhere: uniform, as far as the bounds allow."""
        return self.budget.uniform(self.layout, self.bounds)

    @cached_property
    def levels(self) -> Bounds:
        """Least and greatest level of each gene, ``(n_genes,)`` each."""
        down = (self._totals(np.array(self.base.removed)) - self._totals(self.bounds.lower)) // (
            self.step
        )
        up = (self._totals(self.bounds.upper) - self._totals(np.array(self.base.removed))) // (
            self.step
        )
        return Bounds(lower=-np.minimum(down, self.reach), upper=np.minimum(up, self.reach))

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Role of each gene; tied units of several roles join theirs with ``+``."""
        return tuple(
            "+".join(dict.fromkeys(self.layout[i].role for i in gene)) for gene in self.genes
        )

    @cached_property
    def digest(self) -> str:
        """Identifies the space: 16 hexadecimal digits."""
        return digest(
            {
                "layout": self.layout.digest,
                "target": self.budget.target,
                "lower": self.bounds.lower.tolist(),
                "upper": self.bounds.upper.tolist(),
                "genes": self.genes,
                "step": self.step,
                "reach": self.reach,
            }
        )

    @property
    def uniform(self) -> Candidate:
        """The candidate with level 0 everywhere."""
        return (0,) * self.n_genes

    def __contains__(self, candidate: object) -> bool:
        if not isinstance(candidate, tuple) or len(candidate) != self.n_genes:
            return False
        levels = np.array(candidate)
        inside = (levels >= self.levels.lower) & (levels <= self.levels.upper)
        return bool(inside.all()) and int(levels.sum()) == 0

    def profile(self, candidate: Candidate) -> SparsityProfile:
        """Return the profile that a candidate means.

        Raises:
            ConfigError: The candidate is not in the space.
        """
        if candidate not in self:
            raise ConfigError("the candidate is not in this search space")
        removed = np.zeros(len(self.layout), dtype=np.int64)
        for gene, level in enumerate(candidate):
            removed[list(self.genes[gene])] = self._gene_counts(gene, level)
        return from_counts(self.layout, removed)

    def nearest(self, profile: SparsityProfile) -> Candidate:
        """Return the candidate nearest to a profile (genes' totals, rounded to levels)."""
        change = np.array(profile.removed) - np.array(self.base.removed)
        return self.balance(self._totals(change) / self.step)

    def balance(self, levels: np.ndarray) -> Candidate:
        """Return the candidate nearest to any real levels, ``(n_genes,)``."""
        ones = np.ones(self.n_genes, dtype=np.int64)
        result = water_fill(np.asarray(levels, dtype=np.float64), ones, self.levels, ones, 0)
        return tuple(int(level) for level in result)

    def sample(self, rng: np.random.Generator, spread: float = 1.0) -> Candidate:
        """Return a random candidate: normal levels with deviation ``spread``, balanced."""
        return self.balance(rng.normal(0.0, spread, self.n_genes))

    def switch(
        self, candidate: Candidate, rng: np.random.Generator, stride: int, genes: Sequence[int]
    ) -> Candidate | None:
        """Move ``stride`` levels from one of ``genes`` to another, drawn at random.

        Returns:
            The new candidate, or None where the bounds allow no such move.
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
        return tuple(int(level) for level in levels)

    def tables(self) -> list[tuple[int, ...]]:
        """Return for each unit the counts that its levels use, increasing."""
        used: list[set[int]] = [set() for _ in self.layout]
        for gene, units in enumerate(self.genes):
            for level in range(self.levels.lower[gene], self.levels.upper[gene] + 1):
                for unit, count in zip(units, self._gene_counts(gene, level), strict=True):
                    used[unit].add(int(count))
        return [tuple(sorted(counts)) for counts in used]

    def _totals(self, removed: np.ndarray) -> np.ndarray:
        weights = removed * self.layout.costs
        return np.array([weights[list(gene)].sum() for gene in self.genes])

    def _gene_counts(self, gene: int, level: int) -> np.ndarray:
        key = (gene, level)
        if key not in self._counts:
            self._counts[key] = self._spread(self.genes[gene], level * self.step)
        return self._counts[key]

    def _spread(self, units: Iterable[int], change: int) -> np.ndarray:
        """Return the counts of a gene's units after it moves by ``change`` weights."""
        index = list(units)
        base = np.array(self.base.removed)[index]
        if not change:
            return base
        part = Layout([self.layout[i] for i in index])
        bounds = Bounds(lower=self.bounds.lower[index], upper=self.bounds.upper[index])
        return fill(part, base / part.counts, bounds, int(base @ part.costs) + change)
