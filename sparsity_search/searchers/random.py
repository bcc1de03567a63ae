"""Random search: the baseline that every searcher must beat."""

from __future__ import annotations

from collections.abc import Iterator
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

    def propose(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield random candidates without end."""
        del history, n
        while True:
            yield space.sample(rng, self.spread)
