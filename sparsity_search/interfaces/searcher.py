"""The interface of a searcher: what to try next is a pure function of what was measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import History


class Searcher(ABC):
    """Proposes candidates. Plugins are frozen keyword-only dataclasses of hyper-parameters.

    A searcher has no state: the history is the state. Equal arguments give equal candidates, so
    a resumed study goes on exactly as an uninterrupted one (the Designer of Vizier,
    arXiv 2408.11527).
    """

    @abstractmethod
    def ask(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Sequence[Candidate]:
        """Return up to ``n`` distinct candidates of ``space`` for the next round.

        Args:
            space: Where to search.
            history: Everything measured in completed rounds; `History.survivors` are the
                parents. Never empty: round 0 measures the initial candidates.
            n: How many are wanted.
            rng: The only source of randomness.

        Returns:
            Candidates; an empty sequence ends the study.
        """

    def data_digest(self) -> str | None:
        """Return what identifies the contents of the files that it reads; by default none.

        A search goes on only with the same: the settings hold a file's path alone.
        """
        return None

    def notes(self, space: Space, history: History) -> tuple[str, ...]:
        """Return lines on how the search went, for its record; by default none."""
        del space, history
        return ()
