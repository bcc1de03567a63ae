from __future__ import annotations

import numpy as np
import pytest

from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.searchers.random import RandomSearcher
from sparsity_search.study.study import Limits, Study
from sparsity_search.testing.problems import (
    TOY_LADDER,
    MemoryStore,
    SeparableProblem,
    build_uneven_spaces,
)

SPACES = build_uneven_spaces()


def found(searcher: Searcher, problem: SeparableProblem, seed: int) -> float:
    """Return the exact score of what 15 rounds find."""
    study = Study(
        space=problem.space,
        searcher=searcher,
        objective=problem,
        ladder=TOY_LADDER,
        store=MemoryStore(),
        seed=seed,
    )
    return problem.exact(problem.space.profile(study.run(Limits(rounds=15)).survivors[0]))


@pytest.mark.parametrize("name", SPACES)
def test_beats_random_where_steps_differ(name: str) -> None:
    problem = SeparableProblem(SPACES[name])
    start, (_, best) = problem.exact(problem.space.base), problem.optimum()
    evolution, random = (
        np.mean([found(searcher, problem, seed) for seed in range(2)])
        for searcher in (EvolutionSearcher(), RandomSearcher())
    )
    assert best <= evolution + 1e-9
    assert evolution < random < start
    assert evolution - best < 0.3 * (start - best)


@pytest.mark.parametrize("name", ["2:4", "*:8", "width", "sublayers"])
def test_within_roles_where_steps_differ(name: str) -> None:
    problem = SeparableProblem(SPACES[name])
    score = found(EvolutionSearcher(within="role"), problem, 0)
    assert score < problem.exact(problem.space.base)
