"""The interface of a search space, for studies and searchers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import Candidate, LevelLimits, SearchSpace
from sparsity_search.spaces.parameters import Parameter, Value


class Space(Protocol):
    """A set of candidates, each of which has a profile.

    A candidate is a tuple of integers, one for each gene: a level in a space of levels
    (`SearchSpace`), the index of a value in a space of parameters (`ParametricSpace`). The
    methods return legal candidates only. A searcher that needs more, such as the weights that a
    level removes, uses `of_levels`, or refuses a space that has `parameters` with a
    `ConfigError`.
    """

    @property
    def layout(self) -> Layout:
        """The units of its profiles."""

    @property
    def n_genes(self) -> int:
        """Length of a candidate."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Role of each gene, or name of each parameter."""

    @property
    def limits(self) -> LevelLimits:
        """Least and greatest value of each gene."""

    @property
    def unordered(self) -> frozenset[int]:
        """Genes whose values have no order: neighbours are no more similar than others."""

    @property
    def origin(self) -> Candidate:
        """The candidate that a study starts from: level 0 everywhere, or default settings."""

    @property
    def hints(self) -> tuple[Hint, ...]:
        """Predicted losses of the levels; may be empty."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameter of each gene; empty if genes have levels."""

    @property
    def of_levels(self) -> SearchSpace:
        """The space of levels that profiles are rounded to: itself if its genes have levels."""

    @property
    def digest(self) -> str:
        """Identifier of the space, 16 hexadecimal digits."""

    def __contains__(self, candidate: object) -> bool:
        """Return whether a candidate is legal."""

    def profile(self, candidate: Candidate) -> SparsityProfile:
        """Return the profile of a candidate.

        Raises:
            ConfigError: The candidate is not in the space.
            RefusedSettingError: The allocator refuses these parameters.
        """

    def values(self, candidate: Candidate) -> dict[str, Value]:
        """Return the value of each parameter by name; empty if genes have levels.

        Raises:
            ConfigError: The candidate is not in the space.
        """

    def starts(self, profiles: Sequence[SparsityProfile]) -> tuple[Candidate, ...]:
        """Return the candidates nearest to profiles; none in a space of parameters."""

    def real_levels(self, profiles: Sequence[SparsityProfile]) -> np.ndarray:
        """Return the real levels of profiles, ``(n, n_genes)``.

        The profile of a candidate has the candidate's levels.

        Raises:
            ConfigError: Genes have no levels, or levels are patterns that the profiles lack.
        """

    def random_range(self, spread: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the range of random real values, ``(n_genes,)`` each.

        Levels lie up to ``spread`` from the origin; parameters range over all their values.
        """

    def balance(self, levels: np.ndarray) -> Candidate:
        """Return the candidate nearest to real levels, ``(n_genes,)``."""

    def sample(self, rng: np.random.Generator, spread: float = 1.0) -> Candidate:
        """Return a random candidate; levels have deviation ``spread`` from the origin."""

    def switch(
        self, candidate: Candidate, rng: np.random.Generator, stride: int, genes: Sequence[int]
    ) -> Candidate | None:
        """Return a candidate after one random move among ``genes``, if there is one."""

    def with_hints(self, hints: Sequence[Hint]) -> Self:
        """Return the space with hints; unchanged if hints do not apply to its genes."""
