"""Evolution by level switches: EvoPress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.searchers.bases.mutation import Mutation, stride_shares
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import History


@dataclass(frozen=True, kw_only=True)
class EvolutionSearcher(Searcher):
    """Evolution with mutations that keep the budget.

    EvoPress (arXiv 2410.14649, section 3 and Algorithm 1). Offspring are parents after a few
    switches of levels, see `Mutation`. The parents are the survivors of the last round; that they
    also compete in the last rung is the study's rule (elitism by rung index). The published
    settings are the presets ``evopress`` and ``evopress_superfast``.

    Args:
        max_switches: Most switches in one mutation (3 in the paper).
        strides: Levels that a switch moves, drawn for each offspring. The paper's is ``(1,)``;
            longer strides cover ground while the parent is still far from good.
        adaptive: Draw the strides that have won rounds more often; else all equally often.
        within: Switch between any two genes (``"all"``), or two of the same ``"role"``.
        tournament: Offspring drawn for each one that is measured, by the first hint of the space;
            without a hint it means nothing.
        window: Share of the genes, next to each other in depth, that all offspring of a round
            change; where it lies is drawn each round. What lies before it is run once a round.
        random_rounds: Rounds of random candidates before the first mutations; the paper starts
            so where whole blocks are dropped.
        spread: Deviation in levels of these random candidates.
    """

    max_switches: int = 3
    strides: tuple[int, ...] = (1, 2, 4)
    adaptive: bool = False
    within: Literal["all", "role"] = "all"
    tournament: int = 4
    window: float = 1.0
    random_rounds: int = 0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if self.random_rounds < 0 or not self.spread > 0:
            raise ConfigError("random_rounds must not be negative, and spread be positive")
        if not 0 < self.window <= 1:
            raise ConfigError(f"window must lie in (0, 1], not {self.window}")
        _ = self._mutation

    @cached_property
    def _mutation(self) -> Mutation:
        return Mutation(
            max_switches=self.max_switches,
            strides=self.strides,
            within=self.within,
            tournament=self.tournament,
        )

    def ask(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Sequence[Candidate]:
        """Return up to ``n`` new offspring of the last survivors; random ones if none is left."""
        parents, seen = history.survivors, history.seen
        likely = stride_shares(self.strides, history.winners) if self.adaptive else None
        at_random = len(history.winners) <= self.random_rounds
        genes = self._genes(space.n_genes, rng)
        found: dict[Candidate, None] = {}
        for attempt in range(50 * n):
            if len(found) == n or not parents:
                break
            if at_random:
                child = space.sample(rng, self.spread)
            else:
                parent = parents[attempt % len(parents)]
                child = self._mutation.child(space, parent, rng, likely, genes)
            if child not in seen:
                found[child] = None
        if not found and parents and self.within == "all":  # mutations may not reach what is left
            drawn = (space.sample(rng, self.spread) for _ in range(20 * n))
            found = dict.fromkeys(child for child in drawn if child not in seen)
        return list(found)[:n]

    def _genes(self, n_genes: int, rng: np.random.Generator) -> range:
        """Return the genes that a round changes."""
        width = min(n_genes, max(2, round(self.window * n_genes)))
        start = int(rng.integers(n_genes - width + 1)) if width < n_genes else 0
        return range(start, start + width)
