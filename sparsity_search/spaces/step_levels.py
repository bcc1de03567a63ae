"""Levels a step apart: structures of any size, and shares of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.choices import step_counts
from sparsity_search.spaces.level_budget import LevelBudget, check_saving
from sparsity_search.spaces.prices import Prices
from sparsity_search.spaces.table_levels import TableLevels
from sparsity_search.spaces.tables import Groups, build_table

#: Steps between the bounds of a unit of single weights where prices decide its share.
_POINTS = 1024


@dataclass(frozen=True, eq=False, kw_only=True)
class StepLevels(TableLevels):
    """A space whose levels lie a step apart, as near as whole structures allow.

    Args:
        step: Weights that one level moves; approximate if structures differ in size.
        centre: The profile around which levels lie, which must meet the budget; by default the
            uniform profile.
    """

    step: int
    centre: SparsityProfile | None = None

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ConfigError("step and reach of a search space must be at least 1")
        super().__post_init__()

    @property
    def facts(self) -> Mapping[str, Any]:
        """The step, and the centre and prices if there are any."""
        centre = {} if self.centre is None else {"centre": self.centre.removed}
        prices = {} if self.prices is None else {"prices": self.prices.digest}
        return {"step": self.step, **centre, **prices}

    @property
    def steps(self) -> np.ndarray:
        """Weights that one level moves each gene, ``(n_genes,)`` int64."""
        return np.full(self.n_genes, self.step)

    @cached_property
    def _middle(self) -> np.ndarray:
        """Counts around which levels lie, ``(n_units,)``."""
        if self.centre is not None:
            return np.array(self.centre.removed)
        return share_equally(self.layout, self.bounds, self.budget, self.prices)

    @property
    def _whole(self) -> LevelBudget:
        rows = step_counts(self.layout, self.bounds, self.genes, self._middle, self.steps)
        return structure_budget(self.layout, self.genes, rows, self.budget, self.prices)

    def _centre(self, whole: LevelBudget) -> np.ndarray:
        return whole.settle(whole.interpolate(self.totals(self._middle)))

    def refined(self, centre: SparsityProfile) -> Self:
        """Return the space around a profile of this space, with half the step."""
        item = int(self.layout.costs.min())
        return replace(
            self, centre=centre, step=max(item, self.step // 2 // item * item), hints=()
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class ShareLevels(StepLevels):
    """A space whose levels move each gene by a fraction of its own weights.

    Args:
        share: The fraction.
        step: Unused; kept because digests of stored studies include it.
    """

    share: float
    step: int = 1

    @property
    def facts(self) -> Mapping[str, Any]:
        """The share, and the centre and prices if there are any."""
        return {**super().facts, "share": self.share}

    @property
    def steps(self) -> np.ndarray:
        """Weights that one level moves each gene, ``(n_genes,)`` int64."""
        sizes = self.layout.counts * self.layout.costs
        own = np.array([sizes[list(gene)].sum() for gene in self.genes])
        return np.maximum(1, np.rint(self.share * own)).astype(int)

    def refined(self, centre: SparsityProfile) -> Self:
        """Return the space around a profile of this space, with half the share."""
        return replace(super().refined(centre), share=self.share / 2)


def share_equally(
    layout: Layout, bounds: Bounds, budget: Budget, prices: Prices | None = None
) -> np.ndarray:
    """Return the counts nearest to equal sparsity that meet the budget, ``(n_units,)`` int64.

    With prices, the savings of units are about equal instead, and units of single weights take
    one of about `_POINTS` counts.
    """
    rows = []
    for unit, low, high in zip(layout, bounds.lower, bounds.upper, strict=True):
        coarse = prices is not None and unit.cost == 1
        step = max(1, (high - low) // _POINTS) if coarse else 1
        rows.append(np.append(np.arange(low, high, step), high)[:, None])
    genes = [(i,) for i in range(len(layout))]
    whole = structure_budget(layout, genes, rows, budget, prices)
    if prices is None:
        shares = budget.target * layout.counts * layout.costs
    else:
        shares = budget.target * prices.costs
    return whole.table.at(whole.dither(shares))


def structure_budget(
    layout: Layout,
    genes: Groups,
    rows: Sequence[np.ndarray],
    budget: Budget,
    prices: Prices | None,
) -> LevelBudget:
    """Return the budget over counts of structures, by their weights or their prices.

    Among levels of equal price, the one that removes the fewest structures is kept.

    Raises:
        InfeasibleBudgetError: No levels meet the budget.
    """
    if prices is None:
        return LevelBudget.of(build_table(layout, genes, rows), budget)
    sizes = [row @ layout.costs[list(gene)] for gene, row in zip(genes, rows, strict=True)]
    rising = [row[np.argsort(size)] for row, size in zip(rows, sizes, strict=True)]
    saved = [prices.at(gene, row).sum(axis=1) for gene, row in zip(genes, rising, strict=True)]
    table = build_table(layout, genes, rising, saved)
    check_saving(table, budget, "bounds")
    return LevelBudget.of(table, budget)
