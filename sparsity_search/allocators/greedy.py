"""Little predicted loss, step by step: the cheapest weight goes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsity_search.allocators.bases.scored import ScoredAllocator
from sparsity_search.solvers.decisions import Knapsack
from sparsity_search.solvers.greedy import solve_greedy


@dataclass(frozen=True, kw_only=True)
class GreedyAllocator(ScoredAllocator):
    """Measured losses, solved by marginal gain: the step with the least loss a weight goes next.

    For losses that are convex in the weights removed and equal steps this is the optimum
    (Fox, Management Science 1966); otherwise see `knapsack`.
    """

    def choose(self, knapsack: Knapsack, losses: Sequence[np.ndarray]) -> np.ndarray:
        """Return levels after greedy steps, ``(n_groups,)`` int64."""
        return solve_greedy(knapsack, losses)
