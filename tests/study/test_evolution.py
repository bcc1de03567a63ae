"""Whole searches by evolution, on problems whose optimum is known."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.searchers.random import RandomSearcher
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.study.study import Limits
from sparsity_search.testing.problems import SeparableProblem, toy_space

from .test_study import SPACE, best, make


def budgeted(searcher: Searcher, problem: SeparableProblem, calls: int, seed: int) -> float:
    """Return the exact score of the winner after so many measurements."""
    stop = lambda: len(problem.calls) >= calls  # noqa: E731
    study = make(problem, space=problem.space, searcher=searcher, initial=(), seed=seed)
    return problem.exact(problem.space.profile(study.run(Limits(stop=stop)).survivors[0]))


@pytest.mark.parametrize(
    "space",
    [
        SPACE,
        toy_space(*(100,) * 8, reach=5, upper=0.75),
        toy_space(100, 200, 50, 100, 300, 80, genes=((0, 5), (1,), (2, 4), (3,)), step=5, reach=8),
    ],
    ids=["equal", "bounds", "tied"],
)
def test_evolution_finds_the_known_optimum(space: SearchSpace) -> None:
    problem = SeparableProblem(space)
    candidate, score = problem.optimum()
    history = make(problem, space=space, initial=()).run(Limits(rounds=60))
    assert history.survivors == (candidate,)
    assert best(history) == pytest.approx(score)


def test_evolution_beats_random_at_equal_evaluations() -> None:
    space = toy_space(*(100,) * 12, reach=4)
    scores = {
        searcher: [budgeted(searcher, SeparableProblem(space), 150, seed) for seed in range(5)]
        for searcher in (EvolutionSearcher(), RandomSearcher())
    }
    evolution, random = scores.values()
    assert all(e < r for e, r in zip(evolution, random, strict=True))


def test_evolution_within_roles() -> None:
    searcher = EvolutionSearcher(within="role", strides=(1,))
    history = make(searcher=searcher, initial=()).run(Limits(rounds=4))
    levels = np.array([m.candidate for m in history.measurements])
    for role in set(SPACE.roles):
        pool = [gene for gene, name in enumerate(SPACE.roles) if name == role]
        assert (levels[:, pool].sum(axis=1) == 0).all()
    assert len({tuple(row) for row in levels}) > 5


def test_evolution_within_roles_of_one_gene_each() -> None:
    space = toy_space(100, 100, 100)
    problem = SeparableProblem(space)
    study = make(problem, space=space, searcher=EvolutionSearcher(within="role"), initial=())
    assert study.run(Limits()).winners == [(space.origin,)]
