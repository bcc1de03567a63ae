"""Evolution by level switches: EvoPress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparsity_search.history import History
from sparsity_search.searchers.base import Searcher
from sparsity_search.space import Candidate, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Evolution(Searcher):
    """Evolution with mutations that keep the budget.

    EvoPress (arXiv 2410.14649, section 3 and Algorithm 1).
    An offspring is a parent with ``f`` switches, ``f = min(U1, U2)`` and both uniform on
    ``{1..max_switches}``, so that small changes are the likelier. A switch moves the same number
    of levels from one gene to another. The parents are the survivors of the last round; that
    they also compete in the last rung is the study's rule (elitism by rung index).

    Args:
        max_switches: Most switches in one mutation (3 in the paper).
        strides: Levels that a switch moves, drawn uniformly for each offspring. The paper's is
            ``(1,)``; longer strides cover ground while the parent is still far from good.
        within: Switch between any two genes (``"all"``), or two of the same ``"role"``.
    """

    max_switches: int = 3
    strides: tuple[int, ...] = (1, 2, 4)
    within: Literal["all", "role"] = "all"

    def __post_init__(self) -> None:
        if self.max_switches < 1 or not self.strides or min(self.strides) < 1:
            raise ValueError("max_switches and every stride must be at least 1")
        if self.within not in ("all", "role"):
            raise ValueError(f"within must be 'all' or 'role', not {self.within!r}")

    def ask(
        self, space: SearchSpace, history: History, n: int, rng: np.random.Generator
    ) -> Sequence[Candidate]:
        """Return up to ``n`` new offspring of the last survivors; none if no move is left."""
        parents = history.survivors
        pools = self._pools(space)
        seen = history.seen
        found: dict[Candidate, None] = {}
        for attempt in range(50 * n):
            if len(found) == n or not parents or not pools:
                break
            child = self._mutate(space, parents[attempt % len(parents)], pools, rng)
            if child not in seen:
                found[child] = None
        return list(found)

    def _pools(self, space: SearchSpace) -> list[list[int]]:
        if self.within == "all":
            return [list(range(space.n_genes))]
        roles = dict.fromkeys(space.roles)
        pools = [[g for g, role in enumerate(space.roles) if role == name] for name in roles]
        return [pool for pool in pools if len(pool) > 1]

    def _mutate(
        self,
        space: SearchSpace,
        parent: Candidate,
        pools: Sequence[Sequence[int]],
        rng: np.random.Generator,
    ) -> Candidate:
        """Return ``parent`` after some switches; itself where the bounds allow none."""
        sizes = np.array([len(pool) for pool in pools], dtype=np.float64)
        stride = int(rng.choice(self.strides))
        n_switches = int(rng.integers(1, self.max_switches + 1, size=2).min())
        child = parent
        for _ in range(n_switches):
            pool = pools[rng.choice(len(pools), p=sizes / sizes.sum())]
            child = space.switch(child, rng, stride, pool) or child
        return child
