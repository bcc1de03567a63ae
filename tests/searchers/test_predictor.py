"""The online predictor: when it is asked, what it picks, and that it helps."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.searchers.bases.training import build_pairs, correlate_ranks
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.searchers.predictor import PredictorSearcher
from sparsity_search.study.study import Limits, Objective, Study
from sparsity_search.testing.problems import TOY_LADDER, MemoryStore, toy_space
from sparsity_search.trials.history import Fidelity, History, Measurement, Score
from sparsity_search.utils.random import create_generator
from tests.helpers.pairwise import PairwiseProblem, noise_only

SPACE = toy_space(*(100,) * 12, step=5, reach=4)
#: Never learns.
PLAIN = PredictorSearcher(startup=10**9)
SMALL = PredictorSearcher(pool=8)


def run(searcher: Searcher, objective: Objective, rounds: int) -> History:
    return Study(
        space=SPACE,
        searcher=searcher,
        objective=objective,
        ladder=TOY_LADDER,
        store=MemoryStore(),
    ).run(Limits(rounds=rounds))


@pytest.fixture(scope="module")
def history() -> History:
    return run(PLAIN, PairwiseProblem(SPACE, 0, noise=0.0), 8)


def test_plain_until_startup(history: History) -> None:
    n = len(history.measurements)
    for startup, equal in ((n + 1, True), (n, False)):
        asked = PredictorSearcher(startup=startup, threshold=-1).ask(
            SPACE, history, 8, create_generator(0)
        )
        assert (asked == PLAIN.ask(SPACE, history, 8, create_generator(0))) is equal


def test_plain_rounds_are_those_of_evolution(history: History) -> None:
    asked = PLAIN.ask(SPACE, history, 8, create_generator(0))
    assert asked == EvolutionSearcher().ask(SPACE, history, 8, create_generator(0))


def test_falls_back_when_scores_are_noise() -> None:
    history = run(SMALL, noise_only, 14)
    report = SMALL.report(SPACE, history)
    assert abs(np.mean([entry.tau for entry in report])) < 0.2
    strict = replace(SMALL, threshold=0.5)
    asked = strict.ask(SPACE, history, 8, create_generator(0))
    assert asked == PLAIN.ask(SPACE, history, 8, create_generator(0))
    trusting = replace(SMALL, threshold=-1.0).ask(SPACE, history, 8, create_generator(0))
    assert asked != trusting


def test_trusts_what_ranks(history: History) -> None:
    report = SMALL.report(SPACE, history)
    assert np.mean([entry.tau for entry in report[-4:]]) > SMALL.threshold
    asked = SMALL.ask(SPACE, history, 8, create_generator(0))
    assert asked != PLAIN.ask(SPACE, history, 8, create_generator(0))


def test_the_window_decides(history: History) -> None:
    """The threshold is compared with the mean over the last rounds only."""
    last = [entry.tau for entry in SMALL.report(SPACE, history)][-2:]
    plain = PLAIN.ask(SPACE, history, 8, create_generator(0))
    for shift, equal in ((-1e-9, False), (1e-9, True)):
        searcher = replace(SMALL, window=2, threshold=float(np.mean(last)) + shift)
        assert (searcher.ask(SPACE, history, 8, create_generator(0)) == plain) is equal


def test_report_is_prequential(history: History) -> None:
    rounds = [m.round for m in history.measurements]
    pairs = build_pairs(SPACE, history.measurements)
    expected = correlate_ranks(pairs, rounds, SMALL._model, startup=24)
    assert SMALL.report(SPACE, history) == expected
    assert expected[-1].round == 8
    assert expected[-1].n == 8


def test_notes_are_the_report(history: History) -> None:
    (line,) = SMALL.notes(SPACE, history)
    last = SMALL.report(SPACE, history)[-1]
    assert line.endswith(f"8: {last.tau:.2f}")
    assert PLAIN.notes(SPACE, history) == ()


def test_picks_are_better_than_offspring(history: History) -> None:
    problem = PairwiseProblem(SPACE, 0)
    picked = replace(SMALL, random_share=0.0, explore=0.0, threshold=-1.0)

    def mean(searcher: PredictorSearcher) -> float:
        asked = searcher.ask(SPACE, history, 12, create_generator(1))
        return float(np.mean([problem.exact(c) for c in asked]))

    assert mean(picked) < mean(PLAIN)


def test_a_share_of_the_round_is_plain(history: History) -> None:
    """What is picked by the model is as many fewer, and the same."""
    all_picked = replace(SMALL, random_share=0.0, threshold=-1.0)
    some = replace(all_picked, random_share=0.25)
    first = all_picked.ask(SPACE, history, 8, create_generator(0))
    second = some.ask(SPACE, history, 8, create_generator(0))
    assert len(second) == len(set(second)) == 8
    assert first[:6] == second[:6]
    assert first != second


def test_explore_prefers_the_unknown(history: History) -> None:
    greedy, curious = (
        replace(SMALL, random_share=0.0, threshold=-1.0, explore=e) for e in (0.0, 50.0)
    )
    seen = np.array(list(history.seen))

    def distance(searcher: PredictorSearcher) -> float:
        asked = np.array(searcher.ask(SPACE, history, 8, create_generator(0)))
        return float(np.mean([np.abs(seen - c).sum(axis=1).min() for c in asked]))

    assert distance(curious) > distance(greedy)


def test_elite_is_of_the_highest_fidelity_measured_last() -> None:
    def measured(first: int, tokens: int, subset: int, score: float) -> Measurement:
        fidelity = Fidelity(tokens, subset)
        candidate = (first, *(0,) * 11)
        return Measurement(
            round=0, rung=0, candidate=candidate, fidelity=fidelity, score=Score(score, ())
        )

    facts = [(256, 0, 0.1), (64, 1, 0.2), (256, 1, 0.5), (256, 1, 0.4), (256, 1, 0.6), (64, 1, 0)]
    found = [measured(first, *fact) for first, fact in enumerate(facts, start=1)]
    elite = PredictorSearcher(elite=2)._select_elite(History(found))
    assert [candidate[0] for candidate in elite] == [4, 3]


@pytest.mark.parametrize("model", ["xgboost", "sklearn"])
def test_trees_pick_too(model: str, history: History) -> None:
    searcher = PredictorSearcher(model=model, members=2, trees=5, pool=4, threshold=-1.0, window=1)
    asked = searcher.ask(SPACE, history, 4, create_generator(0))
    assert len(set(asked)) == 4
    assert asked == searcher.ask(SPACE, history, 4, create_generator(0))


def test_a_resumed_study_equals_an_uninterrupted_one() -> None:
    store = MemoryStore()
    study = Study(
        space=SPACE, searcher=SMALL, objective=PairwiseProblem(SPACE, 1),
        ladder=TOY_LADDER, store=store,
    )  # fmt: skip
    study.run(Limits(rounds=4))
    resumed = study.run(Limits(rounds=7))
    whole = replace(study, store=MemoryStore()).run(Limits(rounds=7))
    assert resumed.winners == whole.winners


def evaluations(searcher: Searcher, problem: PairwiseProblem, goal: float, seed: int) -> int:
    """Return how many measurements it takes to meet a candidate as good as ``goal``."""
    problem.best = float("inf")
    study = Study(
        space=SPACE,
        searcher=searcher,
        objective=problem,
        ladder=TOY_LADDER,
        store=MemoryStore(),
        seed=seed,
    )
    history = study.run(Limits(rounds=40, stop=lambda: problem.best <= goal))
    return len(history.measurements)


def test_needs_fewer_evaluations_than_evolution() -> None:
    """The full comparison (16 genes, 20 seeds) is told in docs/predictor.md."""
    needed: dict[str, list[int]] = {"evolution": [], "predictor": []}
    for seed in range(3):
        problem = PairwiseProblem(SPACE, seed)
        start, best = problem.exact(SPACE.origin), problem.optimum()
        goal = start - 0.95 * (start - best)
        needed["evolution"].append(evaluations(EvolutionSearcher(), problem, goal, seed))
        needed["predictor"].append(evaluations(SMALL, problem, goal, seed))
    assert median(needed["predictor"]) < 0.8 * median(needed["evolution"])


@pytest.mark.parametrize(
    "bad",
    [{"pool": 0}, {"window": 0}, {"elite": -1}, {"startup": 1}, {"random_share": 1.5},
     {"explore": -1.0}, {"threshold": 2.0}, {"model": "cnn"}, {"members": 0},
     {"strides": ()}, {"within": "block"}],
)  # fmt: skip
def test_bad_settings(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad)).replace("strides", "stride")):
        PredictorSearcher(**bad)
