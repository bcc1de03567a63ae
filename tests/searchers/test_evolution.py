from __future__ import annotations

import numpy as np
import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.searchers.random import RandomSearcher
from sparsity_search.study.study import Limits, Study
from sparsity_search.testing.problems import (
    TOY_LADDER,
    MemoryStore,
    SeparableProblem,
    toy_space,
    uneven_spaces,
)
from sparsity_search.trials.history import History
from sparsity_search.utils.random import generator

SPACES = uneven_spaces()


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


@pytest.mark.parametrize(("window", "width"), [(1.0, 24), (0.5, 12), (0.26, 6), (0.01, 2)])
def test_a_round_changes_genes_next_to_each_other(window: float, width: int) -> None:
    space = toy_space(*[100] * 24)
    history, starts = History(), set()
    history.close_round([space.origin])
    searcher = EvolutionSearcher(window=window)
    for seed in range(60):
        changed = np.nonzero(np.array(searcher.ask(space, history, 40, generator(seed))))[1]
        assert changed.max() - changed.min() < width
        starts.add(int(changed.min()))
    assert len(starts) > (1 if width < 24 else 0)
    assert set(range(24 - width, 24)) & starts or width == 24


@pytest.mark.parametrize("window", [0.0, -0.1, 1.1])
def test_windows_that_are_none(window: float) -> None:
    with pytest.raises(ConfigError, match=r"window must lie in \(0, 1\]"):
        EvolutionSearcher(window=window)
