"""Search spaces of levels: a candidate is a vector of levels, and every one meets the budget.

A gene is one unit, or several tied together. Level 0 is its share of the base profile; each level
up removes, or saves, more. `EvenLevels` and `TableLevels` define the levels and which vectors
meet the budget. This module holds their common part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.parameters import Parameter, Value
from sparsity_search.spaces.prices import Prices
from sparsity_search.utils.files import compute_digest

#: One level, or index of a value, for each gene.
Candidate = tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class LevelLimits:
    """Least and greatest level of each gene, ``(n_genes,)`` int64 each."""

    lower: np.ndarray
    upper: np.ndarray

    def of(self, gene: int) -> range:
        """Return the levels of one gene, increasing."""
        return range(int(self.lower[gene]), int(self.upper[gene]) + 1)

    def hold(self, levels: Sequence[int] | np.ndarray) -> bool:
        """Whether every level, ``(n_genes,)``, lies within its limits."""
        return bool(((self.lower <= levels) & (levels <= self.upper)).all())


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchSpace(ABC):
    """Levels of genes over a layout, under one budget.

    Args:
        layout: The prunable units.
        budget: The global budget.
        bounds: Fewest and most items to remove from each unit.
        genes: Unit indices that share one level, for each gene; each unit in exactly one gene.
        reach: A gene's level lies in ``[-reach, reach]``, or less where the bounds bind.
        prices: Savings of the units in their states. The budget is then the fraction of the
            total cost to save. By default it is the fraction of weights to remove.
        hints: Losses that sensitivities predict for the levels. Searchers may use them; they
            do not affect which candidates are legal.

    Raises:
        ConfigError: ``genes`` do not partition the units, or ``reach`` is less than 1.
        InfeasibleBudgetError: No profile of the space within the bounds meets the budget.
    """

    layout: Layout
    budget: Budget
    bounds: Bounds
    genes: tuple[tuple[int, ...], ...]
    reach: int
    prices: Prices | None = None
    hints: tuple[Hint, ...] = ()

    def __post_init__(self) -> None:
        if sorted(i for gene in self.genes for i in gene) != list(range(len(self.layout))):
            raise ConfigError("the genes of a search space must hold every unit exactly once")
        if self.reach < 1:
            raise ConfigError("step and reach of a search space must be at least 1")

    @property
    @abstractmethod
    def base(self) -> SparsityProfile:
        """The profile of level 0 everywhere."""

    @property
    @abstractmethod
    def limits(self) -> LevelLimits:
        """Least and greatest level of each gene."""

    @abstractmethod
    def gene_counts(self, gene: int, level: int) -> np.ndarray:
        """Return the counts of a gene's units at a level within its limits, ``(n_units,)``."""

    @abstractmethod
    def nearest(self, profile: SparsityProfile) -> Candidate:
        """Return the candidate nearest to a profile (genes' totals, rounded to levels)."""

    @abstractmethod
    def balance(self, levels: np.ndarray) -> Candidate:
        """Return the candidate nearest to real levels, ``(n_genes,)``."""

    @abstractmethod
    def refined(self, centre: SparsityProfile) -> SearchSpace:
        """Return the space around a profile of this space, with half the step.

        Raises:
            ConfigError: The levels are patterns, which have no step.
        """

    @property
    def movable(self) -> bool:
        """Whether the space can be centred on any profile with `around`; by default False."""
        return False

    def around(self, centre: SparsityProfile) -> SearchSpace:
        """Return the space with a profile at level 0.

        Raises:
            ConfigError: The space is not `movable`.
        """
        raise ConfigError(f"no space of this kind lies around {centre.digest}")

    @abstractmethod
    def meets(self, levels: np.ndarray) -> bool:
        """Whether levels within their limits, ``(n_genes,)``, meet the budget."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Facts that identify the levels, besides layout, budget, bounds, genes and reach."""

    @property
    def of_levels(self) -> SearchSpace:
        """The space of levels: itself."""
        return self

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters: none, since genes have levels."""
        return ()

    @property
    def unordered(self) -> frozenset[int]:
        """The genes without an order: none, since levels have one."""
        return frozenset()

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @property
    def in_weights(self) -> bool:
        """Whether the budget counts removed weights, not savings."""
        return self.prices is None

    @property
    def origin(self) -> Candidate:
        """The candidate with level 0 everywhere."""
        return (0,) * self.n_genes

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Role of each gene; tied units of several roles join theirs with ``+``."""
        return tuple(
            "+".join(dict.fromkeys(self.layout[i].role for i in gene)) for gene in self.genes
        )

    @cached_property
    def digest(self) -> str:
        """Identifier of the space, 16 hexadecimal digits."""
        facts = {
            "layout": self.layout.digest,
            "target": self.budget.target,
            "lower": self.bounds.lower.tolist(),
            "upper": self.bounds.upper.tolist(),
            "genes": self.genes,
            "reach": self.reach,
        }
        return compute_digest({**facts, **self.facts})

    def __contains__(self, candidate: object) -> bool:
        if not isinstance(candidate, tuple) or len(candidate) != self.n_genes:
            return False
        levels = np.array(candidate)
        return self.limits.hold(levels) and self.meets(levels)

    def profile(self, candidate: Candidate) -> SparsityProfile:
        """Return the profile of a candidate.

        Raises:
            ConfigError: The candidate is not in the space.
        """
        if candidate not in self:
            raise ConfigError("the candidate is not in this search space")
        removed = np.zeros(len(self.layout), dtype=np.int64)
        patterns = [""] * len(self.layout)
        for gene, level in enumerate(candidate):
            removed[list(self.genes[gene])] = self.gene_counts(gene, level)
            for unit, pattern in zip(
                self.genes[gene], self.gene_patterns(gene, level), strict=True
            ):
                patterns[unit] = pattern
        return from_counts(self.layout, removed, patterns)

    def project(self, profile: SparsityProfile) -> SparsityProfile:
        """Return the nearest profile that the space can realise."""
        return self.profile(self.nearest(profile))

    def sample(self, rng: np.random.Generator, spread: float = 1.0) -> Candidate:
        """Return a random candidate: balanced normal levels with deviation ``spread``."""
        return self.balance(rng.normal(0.0, spread, self.n_genes))

    def switch(
        self, candidate: Candidate, rng: np.random.Generator, stride: int, genes: Sequence[int]
    ) -> Candidate | None:
        """Move ``stride`` levels from one of ``genes`` to another, drawn at random.

        Where steps differ, more of ``genes``, drawn at random too, move by single levels until
        the budget is met again.

        Returns:
            The new candidate, or None if the bounds allow no such move or no moves of ``genes``
            restore the budget.
        """
        levels = np.array(candidate)
        among = np.asarray(genes, dtype=np.int64)
        up = among[levels[among] + stride <= self.limits.upper[among]]
        down = among[levels[among] - stride >= self.limits.lower[among]]
        pairs = len(up) * len(down) - len(np.intersect1d(up, down))
        if pairs <= 0:
            return None
        first = int(rng.choice(up if len(down) > 1 else up[up != down[0]]))
        second = int(rng.choice(down[down != first]))
        levels[first] += stride
        levels[second] -= stride
        levels = self.repair(levels, rng, among, first, second)
        moved = as_candidate(levels)
        return moved if self.meets(levels) and moved != candidate else None

    def repair(
        self, levels: np.ndarray, rng: np.random.Generator, among: np.ndarray, up: int, down: int
    ) -> np.ndarray:
        """Return levels after moves of genes ``among`` that restore the budget after a switch.

        By default the levels are returned unchanged, since every switch meets the budget.

        Args:
            levels: Levels after gene ``up`` rose and gene ``down`` fell, ``(n_genes,)``.
            rng: Generator that draws the moves.
            among: The genes that may move.
            up: The gene that rose.
            down: The gene that fell.
        """
        del rng, among, up, down
        return levels

    def values(self, candidate: Candidate) -> dict[str, Value]:
        """Return an empty mapping: there are no parameters."""
        del candidate
        return {}

    def starts(self, profiles: Sequence[SparsityProfile]) -> tuple[Candidate, ...]:
        """Return the candidates nearest to profiles."""
        return tuple(map(self.nearest, profiles))

    def random_range(self, spread: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the real levels ``spread`` below and above the origin, ``(n_genes,)`` each."""
        half = np.full(self.n_genes, spread)
        return -half, half

    def real_levels(self, profiles: Sequence[SparsityProfile]) -> np.ndarray:
        """Return the real levels of profiles, ``(n, n_genes)``.

        The profile of a candidate has the candidate's levels. Between levels, the amount that
        counts towards the budget is interpolated; beyond the last level it is extrapolated.

        Raises:
            ConfigError: Levels are patterns that the profiles do not have.
        """
        saved = np.array([self.saved(profile) for profile in profiles], dtype=np.float64)
        saved = saved.reshape(len(profiles), len(self.layout))
        real = np.empty((len(profiles), self.n_genes))
        for gene, units in enumerate(self.genes):
            levels = np.array(self.limits.of(gene))
            known = np.array([self.gene_saved(gene, int(level)).sum() for level in levels], float)
            real[:, gene] = _extend(saved[:, list(units)].sum(axis=1), known, levels)
        return real

    def with_hints(self, hints: Sequence[Hint]) -> Self:
        """Return the space with hints in place of its own."""
        return replace(self, hints=tuple(hints))

    def saved(self, profile: SparsityProfile) -> np.ndarray:
        """Return the amount of each unit that counts towards the budget, ``(n_units,)`` int64.

        It is the number of weights that the unit loses, or the saving of its state.

        Raises:
            ConfigError: A unit has a pattern without a price.
        """
        return self.counted(range(len(self.layout)), np.array(profile.removed))

    def gene_saved(self, gene: int, level: int) -> np.ndarray:
        """Return the budgeted amount of each of a gene's units at a level, ``(n_units,)``."""
        return self.counted(self.genes[gene], self.gene_counts(gene, level))

    def gene_patterns(self, gene: int, level: int) -> Sequence[str]:
        """Return the patterns of a gene's units at a level; ``""`` for units without one."""
        del level
        return [""] * len(self.genes[gene])

    def states(self, gene: int, level: int) -> list[tuple[str, tuple[int, str]]]:
        """Return the name, count and pattern of a gene's units at a level within its limits."""
        counts, patterns = self.gene_counts(gene, level), self.gene_patterns(gene, level)
        names = [self.layout[unit].name for unit in self.genes[gene]]
        states = zip(map(int, counts), patterns, strict=True)
        return list(zip(names, states, strict=True))

    def tables(self) -> list[tuple[int, ...]]:
        """Return for each unit the counts that its levels use, increasing."""
        return [tuple(sorted(map(int, counts))) for counts in self._used(self.gene_counts)]

    def patterns(self) -> list[tuple[str, ...]]:
        """Return for each unit the patterns that its levels use, in the order of their savings."""
        return [tuple(filter(None, found)) for found in self._used(self.gene_patterns)]

    def _used(self, at: Callable[[int, int], Iterable[Any]]) -> list[dict[Any, None]]:
        """Return the entries of each unit over all levels; ``at`` gives those of one level."""
        used: list[dict[Any, None]] = [{} for _ in self.layout]
        for gene, units in enumerate(self.genes):
            for level in self.limits.of(gene):
                for unit, entry in zip(units, at(gene, level), strict=True):
                    used[unit][entry] = None
        return used

    def totals(self, removed: np.ndarray) -> np.ndarray:
        """Return the budgeted amount of each gene, ``(n_genes,)``, from counts ``(n_units,)``."""
        counted = self.counted(range(len(self.layout)), removed)
        return np.array([counted[list(gene)].sum() for gene in self.genes])

    def counted(self, units: Sequence[int], removed: np.ndarray) -> np.ndarray:
        """Return the budgeted amount of the items removed from units, ``(n_units,)``."""
        if self.prices is not None:
            return self.prices.at(units, removed)
        return np.asarray(removed * self.layout.costs[list(units)])


def _extend(x: np.ndarray, known: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return ``levels`` at ``x``: interpolated between increasing ``known``, linear beyond."""
    if len(known) < 2:
        return np.full(len(x), float(levels[0]))
    real = np.interp(x, known, levels)
    below, above = x < known[0], x > known[-1]
    real[below] = levels[0] + (x[below] - known[0]) / (known[1] - known[0])
    real[above] = levels[-1] + (x[above] - known[-1]) / (known[-1] - known[-2])
    return np.asarray(real)


def as_candidate(levels: np.ndarray) -> Candidate:
    """Return levels, ``(n_genes,)``, as a tuple of plain integers."""
    return tuple(int(level) for level in levels)
