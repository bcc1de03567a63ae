"""Random search: the baseline that every searcher must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import History


@dataclass(frozen=True, kw_only=True)
class RandomSearcher(Searcher):
    """Independent normal levels around the uniform profile, balanced to the budget.

    Args:
        spread: Standard deviation in levels.
    """

    spread: float = 1.0

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise ValueError(f"spread must be positive, not {self.spread}")

    def ask(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Sequence[Candidate]:
        """Return ``n`` candidates, fewer where the space has hardly any that are new."""
        seen = history.seen
        found: dict[Candidate, None] = {}
        for _ in range(20 * n):
            if len(found) == n:
                break
            candidate = space.sample(rng, self.spread)
            if candidate not in seen:
                found[candidate] = None
        return list(found)
