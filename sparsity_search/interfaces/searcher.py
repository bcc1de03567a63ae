"""The interface of a searcher: what to try next is a pure function of what was measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sparsity_search.profiles.budget import Bounds
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import Candidate
from sparsity_search.trials.history import History


class Space(Protocol):
    """What studies and searchers know of a search space: of levels, or of parameters.

    `SearchSpace` and `ParametricSpace` are the two. A candidate is a tuple of integers, one for
    each gene; the methods return legal ones only. A searcher that must know more, such as what
    a level removes, refuses the other space with a `ConfigError`.
    """

    @property
    def n_genes(self) -> int:
        """Length of a candidate."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Role of each gene, or name of each parameter."""

    @property
    def levels(self) -> Bounds:
        """Least and greatest value of each gene, ``(n_genes,)`` int64 each."""

    @property
    def hints(self) -> tuple[Hint, ...]:
        """What is predicted of its levels; may be empty."""

    @property
    def uniform(self) -> Candidate:
        """Where a study starts."""

    @property
    def digest(self) -> str:
        """Identifies the space."""

    def __contains__(self, candidate: object) -> bool:
        """Return whether a candidate is legal."""

    def profile(self, candidate: Candidate) -> SparsityProfile:
        """Return the profile that a candidate means."""

    def balance(self, levels: np.ndarray) -> Candidate:
        """Return the candidate nearest to real levels, ``(n_genes,)``."""

    def sample(self, rng: np.random.Generator, spread: float = 1.0) -> Candidate:
        """Return a random candidate."""

    def switch(
        self, candidate: Candidate, rng: np.random.Generator, stride: int, genes: Sequence[int]
    ) -> Candidate | None:
        """Return a candidate after one random move among ``genes``, if there is one."""


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
