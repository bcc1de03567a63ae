"""Evolution by level switches: EvoPress."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.searchers.bases.mutation import Mutation, compute_stride_shares
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import History


@dataclass(frozen=True, kw_only=True)
class EvolutionSearcher(Searcher):
    """Evolution with mutations that keep the budget.

    EvoPress (arXiv 2410.14649, section 3 and Algorithm 1). Offspring are parents after a few
    switches of levels, see `Mutation`. The parents are the survivors of the last round. The
    ladder says where they compete with their offspring, by default in the last rung. The
    published settings are the presets ``evopress``, ``evopress_superfast`` and ``evopress_drop``.

    Args:
        max_switches: Most switches in one mutation (3 in the paper).
        strides: Levels that a switch moves; one is drawn for each offspring. The paper has
            ``(1,)``; longer strides save rounds while the parent is far from the optimum.
        adaptive: Draw strides that have won rounds more often; by default all equally often.
        within: Switch between any two genes (``"all"``), or two of the same ``"role"``.
        tournament: Offspring drawn for each one that is measured, by the first hint of the space.
            It has no effect without a hint.
        random_rounds: Rounds of random candidates before the first mutations, as in the paper's
            search for blocks to drop. They are any of the space, whatever ``within`` says.
        spread: Deviation in levels of these random candidates from the start. A large one, such
            as 1000, makes them independent of it.
    """

    max_switches: int = 3
    strides: tuple[int, ...] = (1, 2, 4)
    adaptive: bool = False
    within: Literal["all", "role"] = "all"
    tournament: int = 4
    random_rounds: int = 0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if self.random_rounds < 0 or not self.spread > 0:
            raise ConfigError("random_rounds must not be negative, and spread be positive")
        _ = self._mutation

    @cached_property
    def _mutation(self) -> Mutation:
        return Mutation(
            max_switches=self.max_switches,
            strides=self.strides,
            within=self.within,
            tournament=self.tournament,
        )

    def propose(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield offspring of the last survivors; random candidates in the first rounds."""
        del n
        if len(history.winners) <= self.random_rounds:
            return self._sample(space, rng)
        shares = compute_stride_shares(self.strides, history.winners) if self.adaptive else None
        return self._mutation.children(space, history.survivors, rng, shares)

    def fallback(self, space: Space, rng: np.random.Generator) -> Iterator[Candidate]:
        """Yield random candidates; none within roles, whose totals stay."""
        return super().fallback(space, rng) if self.within == "all" else iter(())

    def _sample(self, space: Space, rng: np.random.Generator) -> Iterator[Candidate]:
        while True:
            yield space.sample(rng, self.spread)
