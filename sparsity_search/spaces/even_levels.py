"""Levels of equal steps: a candidate meets the budget when its levels sum to zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.budget import Bounds, round_to_budget, water_fill
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.spaces.levels import Candidate, LevelLimits, SearchSpace, as_candidate


@dataclass(frozen=True, eq=False, kw_only=True)
class EvenLevels(SearchSpace):
    """A space whose levels move equally many weights in every gene.

    So moving one gene up and another down keeps the budget exactly (EvoPress, arXiv 2410.14649,
    section 3). Units must be divisible and alike: single weights, or structures of one size.

    Args:
        step: Weights that one level moves.
        centre: The profile of level 0, which must meet the budget; by default the uniform
            profile.

    Raises:
        ConfigError: ``step`` is not a whole number of items, or units have prices or differ.
    """

    step: int
    centre: SparsityProfile | None = None
    _counts: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step < 1:
            raise ConfigError("step and reach of a search space must be at least 1")
        if self.prices is not None or not self.layout.divisible:
            raise ConfigError("levels have equal steps in weights, and over units alike, only")
        if (self.step % self.layout.costs).any():
            raise ConfigError(f"a step of {self.step} weights is not a whole number of items")
        self.budget.check(self.layout, self.bounds)

    @property
    def facts(self) -> Mapping[str, Any]:
        """The step, and the centre if there is one."""
        centre = {} if self.centre is None else {"centre": self.centre.removed}
        return {"step": self.step, **centre}

    @cached_property
    def base(self) -> SparsityProfile:
        """The profile of level 0 everywhere: the centre, or the uniform one."""
        if self.centre is not None:
            return self.centre
        item = int(self.layout.costs[0])
        total = -(-self.budget.n_removed(self.layout) // item) * item
        sparsities = np.full(len(self.layout), self.budget.target)
        return from_counts(
            self.layout, round_to_budget(self.layout, sparsities, self.bounds, total)
        )

    @cached_property
    def limits(self) -> LevelLimits:
        """Least and greatest level of each gene."""
        base = self.totals(np.array(self.base.removed))
        down = (base - self.totals(self.bounds.lower)) // self.step
        up = (self.totals(self.bounds.upper) - base) // self.step
        return LevelLimits(lower=-np.minimum(down, self.reach), upper=np.minimum(up, self.reach))

    def meets(self, levels: np.ndarray) -> bool:
        """Whether levels sum to zero."""
        return int(levels.sum()) == 0

    def nearest(self, profile: SparsityProfile) -> Candidate:
        """Return the candidate nearest to a profile (genes' totals, rounded to levels)."""
        totals = self.totals(np.array(profile.removed))
        return self.balance((totals - self.totals(np.array(self.base.removed))) / self.step)

    def project(self, profile: SparsityProfile) -> SparsityProfile:
        """Return the profile itself: the space can realise profiles between levels."""
        return profile

    def balance(self, levels: np.ndarray) -> Candidate:
        """Return the candidate nearest to real levels, ``(n_genes,)``."""
        ones = np.ones(self.n_genes, dtype=np.int64)
        within = Bounds(lower=self.limits.lower, upper=self.limits.upper)
        return as_candidate(water_fill(np.asarray(levels, np.float64), ones, within, ones, 0))

    @property
    def movable(self) -> bool:
        """Whether units are single weights, and none is tied."""
        untied = all(len(gene) == 1 for gene in self.genes)
        return untied and bool((self.layout.costs == 1).all())

    def around(self, centre: SparsityProfile) -> Self:
        """Return the space of equal steps with a profile at level 0."""
        return replace(self, centre=centre, _counts={})

    def refined(self, centre: SparsityProfile) -> Self:
        """Return the space around a profile of this space, with half the step."""
        item = int(self.layout.costs[0])
        step = max(item, self.step // 2 // item * item)
        return replace(self, centre=centre, step=step, hints=(), _counts={})

    def gene_counts(self, gene: int, level: int) -> np.ndarray:
        """Return the counts of a gene's units at a level within its limits, ``(n_units,)``."""
        key = (gene, level)
        if key not in self._counts:
            self._counts[key] = self._moved(list(self.genes[gene]), level * self.step)
        return self._counts[key]

    def _moved(self, units: list[int], change: int) -> np.ndarray:
        """Return the counts of a gene's units after it moves by ``change`` weights."""
        base = np.array(self.base.removed)[units]
        if not change:
            return base
        part = Layout([self.layout[i] for i in units])
        bounds = Bounds(lower=self.bounds.lower[units], upper=self.bounds.upper[units])
        return round_to_budget(part, base / part.counts, bounds, int(base @ part.costs) + change)
