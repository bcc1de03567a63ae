"""Toy search problems with a known optimum, and a store in memory. Numbers only, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsity_search.budget import Bounds, Budget
from sparsity_search.history import Fidelity, History, Measurement, Score
from sparsity_search.ladder import Ladder, Rung
from sparsity_search.layout import Layout, Unit
from sparsity_search.profile import SparsityProfile
from sparsity_search.rng import generator
from sparsity_search.searchers.base import Searcher
from sparsity_search.space import Candidate, SearchSpace
from sparsity_search.study import Limits, Study

#: Tokens that one part of a toy score stands for.
ROW = 64
ROLES = ("q", "k", "up", "down")

TOY_LADDER = Ladder(candidates=8, rungs=(Rung(ROW, 3), Rung(4 * ROW, 1)))


def toy_layout(*counts: int, cost: int = 1, zeros: int = 0) -> Layout:
    """Return a layout of units with these counts: roles in turn, four units a block."""
    return Layout(
        [
            Unit(
                name=f"layers.{i // 4}.{ROLES[i % 4]}",
                block=i // 4,
                role=ROLES[i % 4],
                count=count,
                cost=cost,
                zeros=zeros,
            )
            for i, count in enumerate(counts)
        ]
    )


def toy_space(
    *counts: int,
    target: float = 0.5,
    step: int = 10,
    reach: int = 4,
    genes: tuple[tuple[int, ...], ...] | None = None,
    lower: np.ndarray | float = 0.0,
    upper: np.ndarray | float = 1.0,
) -> SearchSpace:
    """Return a space over `toy_layout`, six units of 100 unless told; one gene for each unit."""
    layout = toy_layout(*(counts or (100,) * 6))
    return SearchSpace(
        layout=layout,
        budget=Budget(target),
        bounds=Bounds.of(layout, lower, upper),
        genes=genes or tuple((i,) for i in range(len(layout))),
        step=step,
        reach=reach,
    )


class MemoryStore:
    """Keeps measurements in a list.

    Args:
        measurements: Those recorded before.
    """

    def __init__(self, measurements: Sequence[Measurement] = ()) -> None:
        self.measurements = list(measurements)

    def load(self) -> list[Measurement]:
        """Return what was recorded, oldest first."""
        return list(self.measurements)

    def add(self, measurement: Measurement) -> None:
        """Record one measurement."""
        self.measurements.append(measurement)


@dataclass
class SeparableProblem:
    """An objective that is a sum over units: ``Σ w_u · exp(3 · sparsity_u)``.

    Args:
        space: Where the optimum is sought.
        weights: How much each unit matters, ``(n_units,)``; by default rising from 1 by 1.
        noise: Deviation of a part of a score, equal for equal profile, subset and row.
        fails: Profiles whose score is not finite.
    """

    space: SearchSpace
    weights: Sequence[float] | None = None
    noise: float = 0.0
    fails: Callable[[SparsityProfile], bool] = lambda _: False
    calls: list[tuple[SparsityProfile, Fidelity]] = field(default_factory=list)

    def __call__(self, profiles: Sequence[SparsityProfile], fidelity: Fidelity) -> Iterator[Score]:
        """Yield the score of each profile; every call is noted in `calls`."""
        for profile in profiles:
            self.calls.append((profile, fidelity))
            yield self._score(profile, fidelity)

    def exact(self, profile: SparsityProfile) -> float:
        """Return the score of a profile without noise."""
        return float(self._unit_scores(np.array(profile.removed)).sum())

    def optimum(self) -> tuple[Candidate, float]:
        """Return the best candidate of the space and its score, by dynamic programming.

        A gene's score depends on its own level only, and legal levels sum to zero: the best
        candidate is the cheapest path over the running sum of levels.
        """
        best: dict[int, tuple[float, Candidate]] = {0: (0.0, ())}
        for gene in range(self.space.n_genes):
            extended: dict[int, tuple[float, Candidate]] = {}
            for level, score in self._gene_scores(gene).items():
                for total, (so_far, path) in best.items():
                    option = (so_far + score, (*path, level))
                    if option < extended.get(total + level, (math.inf, ())):
                        extended[total + level] = option
            best = extended
        score, candidate = best[0]
        return candidate, score

    def _gene_scores(self, gene: int) -> dict[int, float]:
        """Return the score of a gene's units at each of its levels, by differences of profiles."""
        low, high = self.space.levels.lower[gene], self.space.levels.upper[gene]
        units = list(self.space.genes[gene])
        return {
            level: float(self._unit_scores(self._counts(gene, level))[units].sum())
            for level in range(int(low), int(high) + 1)
        }

    def _counts(self, gene: int, level: int) -> np.ndarray:
        """Return the counts of some candidate in which a gene has a level."""
        wanted = np.zeros(self.space.n_genes)
        bounds = self.space.levels
        others = [g for g in range(self.space.n_genes) if g != gene]
        wanted[gene], left = level, -level
        for other in others:
            wanted[other] = np.clip(left, bounds.lower[other], bounds.upper[other])
            left -= int(wanted[other])
        if left:
            return np.full(len(self.space.layout), np.inf)  # no candidate has this level
        candidate = tuple(int(x) for x in wanted)
        return np.array(self.space.profile(candidate).removed)

    def _unit_scores(self, removed: np.ndarray) -> np.ndarray:
        weights = self.weights or range(1, len(removed) + 1)
        scores = np.array(weights) * np.exp(3 * (removed / self.space.layout.counts))
        return np.asarray(scores)

    def _score(self, profile: SparsityProfile, fidelity: Fidelity) -> Score:
        if self.fails(profile):
            return Score(math.nan, (math.nan,))
        rng = generator(fidelity.subset, "toy", profile.digest)
        noise = self.noise * rng.normal(size=max(1, fidelity.tokens // ROW))
        parts = self.exact(profile) + noise
        return Score(float(parts.mean()), tuple(parts.tolist()))


def toy_history(searcher: Searcher, problem: SeparableProblem, rounds: int = 2) -> History:
    """Return what a study of a toy problem finds with a searcher in some rounds."""
    study = Study(
        space=problem.space,
        searcher=searcher,
        objective=problem,
        ladder=TOY_LADDER,
        store=MemoryStore(),
    )
    return study.run(Limits(rounds=rounds))
