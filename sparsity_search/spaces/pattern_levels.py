"""Levels of units that choose among N:M patterns, by their counts or by their savings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.choices import Choices, PatternOptions, tie_counts
from sparsity_search.spaces.level_budget import LevelBudget, check_saving
from sparsity_search.spaces.prices import Prices
from sparsity_search.spaces.table_levels import TableLevels
from sparsity_search.spaces.tables import build_table


@dataclass(frozen=True, eq=False, kw_only=True)
class CountLevels(TableLevels):
    """Levels are the counts that units may have, e.g. those of an N:M pattern.

    Args:
        choices: Legal counts of each unit, increasing.

    Raises:
        ConfigError: ``choices`` do not increase.
    """

    choices: Choices

    @property
    def facts(self) -> Mapping[str, Any]:
        """The choices."""
        return {"step": 1, "choices": self.choices}

    @property
    def _whole(self) -> LevelBudget:
        rows = tie_counts(self.layout, self.bounds, self.genes, self.choices)
        return LevelBudget.of(build_table(self.layout, self.genes, rows), self.budget)


@dataclass(frozen=True, eq=False, kw_only=True)
class PatternLevels(TableLevels):
    """Levels are N:M patterns, in the order of their savings; the first is dense.

    The budget is the fraction to save of the cost of all dense units. A budget in weights could
    not decide between 2:4 and 4:8: both remove equally many, and 4:8 is never worse.

    Args:
        prices: Saving of each unit in each pattern.
    """

    prices: Prices = field()  # no default, unlike other spaces'

    @cached_property
    def options(self) -> PatternOptions:
        """The patterns, with zeros and savings of each unit."""
        return PatternOptions.of(self.prices)

    @property
    def facts(self) -> Mapping[str, Any]:
        """The patterns and their savings."""
        options = self.options
        return {"step": 1, "options": [options.patterns, options.saved.tolist()]}

    @property
    def _whole(self) -> LevelBudget:
        rows = self.options.tie(self.bounds, self.genes, self.layout)
        pairs = zip(self.genes, rows, strict=True)
        saved = [self.options.saved[list(gene), row].sum(axis=1) for gene, row in pairs]
        table = build_table(self.layout, self.genes, rows, saved)
        check_saving(table, self.budget, "options")
        return LevelBudget.of(table, self.budget)

    def saved(self, profile: SparsityProfile) -> np.ndarray:
        """Return the saving of each unit's pattern, ``(n_units,)`` int64.

        Raises:
            ConfigError: A pattern is none of the options.
        """
        known = self.options.patterns
        if not set(profile.patterns) <= set(known):
            raise ConfigError(f"the space has the options {known}, not {profile.patterns}")
        options = [known.index(pattern) for _, pattern in profile.states]
        return np.asarray(self.options.saved[range(len(options)), options])

    def real_levels(self, profiles: Sequence[SparsityProfile]) -> np.ndarray:
        """Return the real levels of profiles with patterns, ``(n, n_genes)``.

        Raises:
            ConfigError: A profile has no patterns.
        """
        if not all(profile.patterns for profile in profiles):
            raise ConfigError("the space has options, and the data set's profiles no patterns")
        return super().real_levels(profiles)

    def gene_saved(self, gene: int, level: int) -> np.ndarray:
        """Return the savings of the patterns of a gene's units at a level, ``(n_units,)``."""
        return np.asarray(self.options.saved[list(self.genes[gene]), self._row(gene, level)])

    def gene_counts(self, gene: int, level: int) -> np.ndarray:
        """Return the zeros of a gene's units at a level within its limits, ``(n_units,)``."""
        return np.asarray(self.options.zeros[list(self.genes[gene]), self._row(gene, level)])

    def gene_patterns(self, gene: int, level: int) -> list[str]:
        """Return the patterns of a gene's units at a level."""
        return [self.options.patterns[option] for option in self._row(gene, level)]

    def _totals_of(self, profile: SparsityProfile) -> np.ndarray:
        """Return the saving of each gene in a profile; counts of an allocator are savings."""
        if not profile.patterns:
            return self.totals(np.array(profile.removed))
        saved = self.saved(profile)
        return np.array([saved[list(gene)].sum() for gene in self.genes])
