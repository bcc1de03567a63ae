"""Levels whose steps differ: each gene has a table of them.

Moving one gene up and another down rarely meets the budget here, so further genes move too.
`level_budget.py` defines which levels meet it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.level_budget import LevelBudget
from sparsity_search.spaces.levels import Candidate, LevelLimits, SearchSpace, as_candidate


@dataclass(frozen=True, eq=False, kw_only=True)
class TableLevels(SearchSpace):
    """A space in which the levels of each gene are the rows of a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_weights:
            self.budget.check(self.layout, self.bounds)
        self._placed  # noqa: B018  raises if the budget is infeasible

    @property
    @abstractmethod
    def _whole(self) -> LevelBudget:
        """The budget over all levels, regardless of reach."""

    def _centre(self, whole: LevelBudget) -> np.ndarray:
        """Return the index of level 0 among all levels, ``(n_genes,)``: about equal shares."""
        return whole.dither(self.budget.target * self.totals(self.layout.counts))

    @cached_property
    def _placed(self) -> tuple[LevelBudget, np.ndarray]:
        """The budget over the levels within reach, and the index of level 0 in its table."""
        whole = self._whole
        return whole.around(self._centre(whole), self.reach)

    @cached_property
    def base(self) -> SparsityProfile:
        """The profile of level 0 everywhere."""
        return self.profile(self.origin)

    @cached_property
    def limits(self) -> LevelLimits:
        """Least and greatest level of each gene."""
        within, centre = self._placed
        return LevelLimits(lower=-centre, upper=within.table.top - centre)

    def meets(self, levels: np.ndarray) -> bool:
        """Whether levels save at least the target, and no step can be taken back."""
        within, centre = self._placed
        return within.legal(levels + centre)

    def nearest(self, profile: SparsityProfile) -> Candidate:
        """Return the candidate nearest to a profile (genes' totals, rounded to levels)."""
        within, centre = self._placed
        return self.balance(within.interpolate(self._totals_of(profile)) - centre)

    def balance(self, levels: np.ndarray) -> Candidate:
        """Return the candidate nearest to real levels, ``(n_genes,)``."""
        within, centre = self._placed
        return as_candidate(within.settle(np.asarray(levels, np.float64) + centre) - centre)

    def repair(
        self, levels: np.ndarray, rng: np.random.Generator, among: np.ndarray, up: int, down: int
    ) -> np.ndarray:
        """Return levels after moves of genes ``among`` that restore the budget after a switch."""
        within, centre = self._placed
        return np.asarray(within.repair(levels + centre, rng, among, up, down) - centre)

    def refined(self, centre: SparsityProfile) -> Self:
        """Raise an error; subclasses whose levels have a step override this.

        Raises:
            ConfigError: The levels have no step.
        """
        del centre
        raise ConfigError("a space of patterns has no step that could be made finer")

    def gene_counts(self, gene: int, level: int) -> np.ndarray:
        """Return the counts of a gene's units at a level within its limits, ``(n_units,)``."""
        return self._row(gene, level)

    def _row(self, gene: int, level: int) -> np.ndarray:
        """Return a level's row of the table, ``(n_units,)``."""
        within, centre = self._placed
        return np.asarray(within.table.rows[gene][level + centre[gene]])

    def _totals_of(self, profile: SparsityProfile) -> np.ndarray:
        """Return the budgeted amount of each gene in a profile, ``(n_genes,)``."""
        return self.totals(np.array(profile.removed))
