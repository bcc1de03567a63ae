"""Toy search problems with a known optimum, and a store in memory. Numbers only, no torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsity_search.budget import Bounds, Budget
from sparsity_search.choices import n_of_m, options_of
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

#: What units of a toy space of options save.
SAVINGS = {"2:4": 0.5, "4:8": 0.25}

TOY_LADDER = Ladder(candidates=8, rungs=(Rung(ROW, 3), Rung(4 * ROW, 1)))


def toy_layout(*counts: int, cost: int | Sequence[int] = 1, zeros: int = 0) -> Layout:
    """Return a layout of units with these counts: roles in turn, four units a block."""
    costs = [cost] * len(counts) if isinstance(cost, int) else cost
    return Layout(
        [
            Unit(
                name=f"layers.{i // 4}.{ROLES[i % 4]}",
                block=i // 4,
                role=ROLES[i % 4],
                count=count,
                cost=costs[i],
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
    cost: int | Sequence[int] = 1,
    pattern: str | None = None,
    options: Mapping[str, float] | None = None,
    zeros: int = 0,
) -> SearchSpace:
    """Return a space over `toy_layout`, six units of 100 unless told; one gene for each unit."""
    layout = toy_layout(*(counts or (100,) * 6), cost=cost, zeros=zeros)
    return SearchSpace(
        layout=layout,
        budget=Budget(target),
        bounds=Bounds.of(layout, lower, upper),
        genes=genes or tuple((i,) for i in range(len(layout))),
        step=step,
        reach=reach,
        choices=n_of_m(layout, pattern) if pattern else None,
        options=options_of(layout, options) if options else None,
    )


def uneven_spaces() -> dict[str, SearchSpace]:
    """Return spaces whose genes have unequal steps, by what is removed."""
    linears = (144, 48, 144, 384) * 4
    return {
        "2:4": toy_space(*linears, pattern="2:4", target=0.25, reach=1),
        "*:8": toy_space(*linears, pattern="*:8", target=0.4, reach=8, zeros=5),
        "options": toy_space(*linears, options=SAVINGS, target=0.3, reach=2),
        "width": toy_space(*(3, 48) * 6, cost=(96, 9) * 6, target=0.3, step=72, reach=5),
        "sublayers": toy_space(*(1,) * 20, cost=(30, 79) * 10, target=0.3),
        "blocks": toy_space(*(1,) * 16, cost=100, target=0.3),
    }


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

    Among options it is what a unit saves that counts, in place of its sparsity.

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
        return float(self._unit_scores(self.space.saved(profile)).sum())

    def optimum(self) -> tuple[Candidate, float]:
        """Return the best candidate of the space and its score, by dynamic programming.

        A gene's score depends on its own level only, and what is legal on the weights removed and
        on the least that one level less gives back: the best candidate is the cheapest path over
        these two.
        """
        best: dict[tuple[int, int], tuple[float, Candidate]] = {(0, sys.maxsize): (0.0, ())}
        for gene in range(self.space.n_genes):
            extended: dict[tuple[int, int], tuple[float, Candidate]] = {}
            for level, (score, removed, back) in self._gene_levels(gene).items():
                for (total, least), (so_far, path) in best.items():
                    state = total + removed, min(least, back)
                    option = (so_far + score, (*path, level))
                    if option < extended.get(state, (math.inf, ())):
                        extended[state] = option
            best = extended
        score, candidate = min(option for option in best.values() if option[1] in self.space)
        return candidate, score

    def _gene_levels(self, gene: int) -> dict[int, tuple[float, int, int]]:
        """Return for each level its score, its weights, and how many less the level below has."""
        space, units = self.space, list(self.space.genes[gene])
        found: dict[int, tuple[float, int, int]] = {}
        back = sys.maxsize
        for level in range(int(space.levels.lower[gene]), int(space.levels.upper[gene]) + 1):
            saved = np.zeros(len(space.layout))
            saved[units] = space.gene_saved(gene, level)
            weights = int(saved.sum())
            if found:
                back = weights - found[level - 1][1]
            found[level] = (float(self._unit_scores(saved)[units].sum()), weights, back)
        return found

    def _unit_scores(self, saved: np.ndarray) -> np.ndarray:
        """Return the score of each unit from the weights that it loses or saves."""
        weights, layout = self.weights or range(1, len(saved) + 1), self.space.layout
        scores = np.array(weights) * np.exp(3 * (saved / (layout.counts * layout.costs)))
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
