"""Mutation by switches: the move that searchers over levels share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Literal

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """Makes a child of a parent by a few switches.

    A switch moves the same number of levels from one gene to another. The number of switches is
    ``min(U1, U2)`` with both uniform on ``{1..max_switches}``, so small changes are more likely
    (EvoPress, arXiv 2410.14649, section 3).

    Args:
        max_switches: Most switches in one mutation.
        strides: Levels that a switch moves; one is drawn for each child.
        within: Switch between any two genes (``"all"``), or two of the same ``"role"``.
        tournament: Children drawn for each one that is returned, the one of least loss by the
            first hint of the space. 1 uses no hint.
    """

    max_switches: int = 3
    strides: tuple[int, ...] = (1, 2, 4)
    within: Literal["all", "role"] = "all"
    tournament: int = 1

    def __post_init__(self) -> None:
        if self.max_switches < 1 or not self.strides or min(self.strides) < 1:
            raise ConfigError("max_switches and every stride must be at least 1")
        if self.within not in ("all", "role"):
            raise ConfigError(f"within must be 'all' or 'role', not {self.within!r}")
        if self.tournament < 1:
            raise ConfigError(f"tournament must be at least 1, not {self.tournament}")

    def pools(self, space: Space) -> list[list[int]]:
        """Return the groups of genes that may switch with each other."""
        if self.within == "all":
            return [list(range(space.n_genes))]
        roles = dict.fromkeys(space.roles)
        pools = [[g for g, role in enumerate(space.roles) if role == name] for name in roles]
        return [pool for pool in pools if len(pool) > 1]

    def children(
        self,
        space: Space,
        parents: Sequence[Candidate],
        rng: np.random.Generator,
        likely: np.ndarray | None = None,
    ) -> Iterator[Candidate]:
        """Yield children of the parents in turn without end; none if there are no parents.

        See `child` for the arguments.
        """
        return (self.child(space, parent, rng, likely) for parent in cycle(parents))

    def child(
        self,
        space: Space,
        parent: Candidate,
        rng: np.random.Generator,
        likely: np.ndarray | None = None,
    ) -> Candidate:
        """Return a child; the parent itself where the bounds allow no move.

        Args:
            space: The space of both.
            parent: The candidate to change.
            rng: The only source of randomness.
            likely: Probability of each stride, ``(n_strides,)``; by default all are equal.
        """
        pools = self.pools(space)
        if not pools:
            return parent
        children = self.tournament if space.hints else 1
        drawn = [self._switch(space, parent, pools, rng, likely) for _ in range(children)]
        if len(drawn) == 1:
            return drawn[0]
        moved = [child for child in drawn if child != parent]
        return min(moved, key=space.hints[0].loss, default=parent)

    def _switch(
        self,
        space: Space,
        parent: Candidate,
        pools: Sequence[Sequence[int]],
        rng: np.random.Generator,
        likely: np.ndarray | None,
    ) -> Candidate:
        sizes = np.array([len(pool) for pool in pools], dtype=np.float64)
        stride = int(rng.choice(self.strides, p=likely))
        n_switches = int(rng.integers(1, self.max_switches + 1, size=2).min())
        child = parent
        for _ in range(n_switches):
            pool = pools[rng.choice(len(pools), p=sizes / sizes.sum())]
            child = space.switch(child, rng, stride, pool) or child
        return child


def compute_stride_shares(
    strides: Sequence[int], winners: Sequence[Sequence[Candidate]]
) -> np.ndarray:
    """Return the probability of each stride from the changes that won so far, ``(n_strides,)``.

    Each round, a point goes to the stride nearest to the largest change of level between this
    winner and the last. Earlier points fade by a tenth a round. Every stride keeps the share of
    one point (probability matching).
    """
    points = np.ones(len(strides))
    known = np.array(strides)
    for before, after in pairwise(winners):
        points = 1 + 0.9 * (points - 1)
        if before and after and before[0] != after[0]:
            change = np.abs(np.array(after[0]) - np.array(before[0])).max()
            points[np.abs(known - change).argmin()] += 1
    return np.asarray(points / points.sum())
