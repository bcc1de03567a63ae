"""Searchers of the full space on a problem of pairs whose optimum is known: nine seeds each."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest

from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.searchers.gbdt import GbdtSearcher
from sparsity_search.searchers.optuna import OptunaSearcher
from sparsity_search.searchers.predictor import PredictorSearcher
from sparsity_search.searchers.random import RandomSearcher
from sparsity_search.study.study import Limits, Study
from sparsity_search.testing.problems import TOY_LADDER, MemoryStore, toy_space
from tests.helpers.pairwise import PairwiseProblem

SPACE = toy_space(*(100,) * 8, reach=4)
SEEDS = range(9)
#: Measurements within which nine tenths of the possible gain are found, in the median.
STATED: dict[str, tuple[Searcher, int]] = {
    "evolution": (EvolutionSearcher(), 200),
    "predictor": (PredictorSearcher(startup=16, pool=16), 160),
    "tpe": (OptunaSearcher(sampler="tpe"), 240),
}
#: The published protocol measures once and predicts once; it is not made to find an optimum.
PROTOCOL = GbdtSearcher(pairs=60, tied=2, tied_share=0.3, finalists=16, samples=500, trees=40)


def measured(
    searcher: Searcher, seed: int, enough: Callable[[float, int], bool]
) -> tuple[float, int]:
    """Return what share of the possible gain a search found, and its number of measurements."""
    problem, store = PairwiseProblem(SPACE, seed), MemoryStore()
    start, best = problem.exact(SPACE.origin), problem.optimum()
    problem.best = start

    def gain() -> float:
        return (start - problem.best) / (start - best)

    study = Study(
        space=SPACE,
        searcher=searcher,
        objective=problem,
        ladder=TOY_LADDER,
        store=store,
        seed=seed,
    )
    study.run(Limits(rounds=100, stop=lambda: enough(gain(), len(store.measurements))))
    return gain(), len(store.measurements)


def test_random_search_does_not_near_the_optimum() -> None:
    most = 2 * max(stated for _, stated in STATED.values())
    runs = [measured(RandomSearcher(), seed, lambda g, n: g >= 0.9 or n >= most) for seed in SEEDS]
    assert median([gain for gain, _ in runs]) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", STATED)
def test_nears_the_optimum(name: str) -> None:
    searcher, stated = STATED[name]
    runs = [measured(searcher, seed, lambda g, n: g >= 0.9 or n >= stated) for seed in SEEDS]
    assert median([gain for gain, _ in runs]) >= 0.9


@pytest.mark.slow
def test_the_published_protocol_gains_more_than_random_search() -> None:
    """At equal numbers of measurements."""
    runs = [measured(PROTOCOL, seed, lambda *_: False) for seed in SEEDS]
    (number,) = {n for _, n in runs}
    blind = [measured(RandomSearcher(), seed, lambda _, n: n >= number) for seed in SEEDS]
    assert median([gain for gain, _ in runs]) > 1.1 * median([gain for gain, _ in blind])
