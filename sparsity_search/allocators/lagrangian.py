"""Little predicted loss at one price for each weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsity_search.allocators.bases.scored import ScoredAllocator
from sparsity_search.solvers.decisions import Knapsack
from sparsity_search.solvers.lagrangian import solve_lagrangian


@dataclass(frozen=True, kw_only=True)
class LagrangianAllocator(ScoredAllocator):
    """Measured losses, solved by one multiplier: units are cut where their curves are as steep.

    At a multiplier each unit takes the count that minimises ``loss - λ · weights``, a corner of
    its curve's lower convex hull; λ is bisected until the budget is met (Everett, Operations
    Research 1963; Shoham and Gersho, IEEE Trans. ASSP 1988). For convex losses and equal steps
    this is the optimum; otherwise see `knapsack`.
    """

    def choose(self, knapsack: Knapsack, losses: Sequence[np.ndarray]) -> np.ndarray:
        """Return the levels at the multiplier that meets the budget, ``(n_groups,)`` int64."""
        return solve_lagrangian(knapsack, losses).levels
