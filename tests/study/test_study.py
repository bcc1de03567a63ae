from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sparsity_search.study.study as study_module
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.registry import SEARCHERS
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.study.claims import Claims
from sparsity_search.study.study import Limits, Study
from sparsity_search.testing.problems import (
    ROW,
    TOY_LADDER,
    MemoryStore,
    SeparableProblem,
    toy_space,
)
from sparsity_search.trials.history import Fidelity, History, Measurement
from sparsity_search.trials.ladder import Ladder, Rung
from sparsity_search.trials.storages import join_journal
from sparsity_search.trials.store import Store

ROUNDS = 3
SPACE = toy_space()
FRESH = replace(TOY_LADDER, fresh=True)
INITIAL = [(1, -1, 0, 0, 0, 0), (0, 0, 2, -2, 0, 0)]


@dataclass(frozen=True)
class Scripted(Searcher):
    """Asks for given candidates, one tuple a round, then for none."""

    rounds: tuple[tuple[Candidate, ...], ...]

    def propose(
        self, space: SearchSpace, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        done = len(history.winners) - 1
        return iter(self.rounds[done] if done < len(self.rounds) else ())

    def fallback(self, space: SearchSpace, rng: np.random.Generator) -> Iterator[Candidate]:
        return iter(())


def make(objective: SeparableProblem | None = None, **changes: Any) -> Study:
    fields: dict[str, Any] = {
        "space": SPACE,
        "searcher": EvolutionSearcher(),
        "objective": objective or SeparableProblem(SPACE, noise=0.5),
        "ladder": TOY_LADDER,
        "store": MemoryStore(),
        "initial": INITIAL,
    }
    return Study(**{**fields, **changes})


def plain(history: History) -> tuple[list[Measurement], list[tuple[Candidate, ...]]]:
    """Return what a history holds, without times."""
    untimed = [replace(m, seconds=0.0, elapsed=0.0) for m in history.measurements]
    return untimed, history.winners


def after(k: int, store: MemoryStore) -> Callable[[], bool]:
    return lambda: len(store.measurements) >= k


def best(history: History) -> float:
    scores = [m.score.value for m in history.measurements if m.candidate == history.survivors[0]]
    return scores[-1]


@pytest.mark.parametrize("ladder", [TOY_LADDER, FRESH], ids=["fixed", "fresh"])
@pytest.mark.parametrize("searcher", SEARCHERS.names())
def test_stopped_anywhere_and_resumed_equals_uninterrupted(searcher: str, ladder: Ladder) -> None:
    changes = {"searcher": SEARCHERS.create(searcher), "ladder": ladder}
    expected = plain(make(**changes).run(Limits(rounds=ROUNDS)))
    n = len(expected[0])
    assert n > 30
    for k in range(n):
        store = MemoryStore()
        stopped = make(store=store, **changes).run(Limits(rounds=ROUNDS, stop=after(k, store)))
        assert plain(stopped)[0] == expected[0][:k]
        assert stopped.winners == expected[1][: len(stopped.winners)]
        resumed = make(store=store, **changes).run(Limits(rounds=ROUNDS))
        assert plain(resumed) == expected


def test_stopped_often_equals_uninterrupted() -> None:
    expected = plain(make().run(Limits(rounds=ROUNDS)))
    store = MemoryStore()
    for k in range(0, len(expected[0]), 4):
        make(store=store).run(Limits(rounds=ROUNDS, stop=after(k, store)))
    assert plain(make(store=store).run(Limits(rounds=ROUNDS))) == expected


@pytest.mark.parametrize("k", [0, 2, 3, 7, 11, 20])
def test_a_crash_loses_nothing_that_was_measured(k: int) -> None:
    class Crashing(SeparableProblem):
        def _score(self, *args: Any) -> Any:
            if len(self.calls) > k:
                raise KeyboardInterrupt
            return super()._score(*args)

    store = MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        make(Crashing(SPACE, noise=0.5), store=store).run(Limits(rounds=ROUNDS))
    assert len(store.measurements) == k
    problem = SeparableProblem(SPACE, noise=0.5)
    resumed = make(problem, store=store).run(Limits(rounds=ROUNDS))
    assert plain(resumed) == plain(make().run(Limits(rounds=ROUNDS)))
    assert len(problem.calls) == len(resumed.measurements) - k


@pytest.mark.parametrize("ladder", [TOY_LADDER, FRESH], ids=["fixed", "fresh"])
def test_an_extended_run_equals_a_longer_one(ladder: Ladder) -> None:
    store = MemoryStore()
    short = make(store=store, ladder=ladder).run(Limits(rounds=1))
    assert len(short.winners) == 2
    extended = make(store=store, ladder=ladder).run(Limits(rounds=4))
    assert plain(extended) == plain(make(ladder=ladder).run(Limits(rounds=4)))


def test_a_finished_run_is_replayed_without_measuring() -> None:
    store, problem = MemoryStore(), SeparableProblem(SPACE, noise=0.5)
    first = make(store=store).run(Limits(rounds=2))
    again = make(problem, store=store).run(Limits(rounds=2))
    assert (problem.calls, again) == ([], first)


@pytest.mark.parametrize("searcher", SEARCHERS.names())
def test_nothing_is_measured_twice_on_the_same_tokens(searcher: str) -> None:
    problem = SeparableProblem(SPACE)
    history = make(problem, searcher=SEARCHERS.create(searcher)).run(Limits(rounds=6))
    assert len(problem.calls) == len(set(problem.calls)) == len(history.measurements)


def test_fresh_tokens_measure_the_parent_each_round() -> None:
    problem = SeparableProblem(SPACE, noise=0.1)
    history = make(problem, ladder=FRESH).run(Limits(rounds=4))
    assert len(problem.calls) == len(set(problem.calls))
    for round_ in range(1, 5):
        (parent,) = history.winners[round_ - 1]
        call = (SPACE.profile(parent), Fidelity(4 * ROW, subset=round_))
        assert call in problem.calls


def test_round_zero_measures_uniform_and_initial_at_the_top() -> None:
    problem = SeparableProblem(SPACE)
    history = make(problem, initial=[*INITIAL, SPACE.origin, INITIAL[0]]).run(Limits(rounds=0))
    assert [m.candidate for m in history.measurements] == [SPACE.origin, *INITIAL]
    assert {(m.round, m.rung, m.fidelity) for m in history.measurements} == {
        (0, 1, Fidelity(4 * ROW))
    }
    assert history.survivors == (min(history.measurements, key=lambda m: m.score.value).candidate,)


def test_an_initial_candidate_outside_the_space_is_an_error() -> None:
    with pytest.raises(ConfigError, match="not in this search space"):
        make(initial=[(9, -9, 0, 0, 0, 0)]).run(Limits(rounds=0))


def test_the_climb() -> None:
    # later units matter more: taking from the last for the first is good, the reverse is bad
    good = [(i, 0, 0, 0, 0, -i) for i in (1, 2, 3)]
    bad = [(-i, 0, 0, 0, 0, i) for i in (1, 2)]
    searcher = Scripted(((bad[0], good[1], bad[1], good[0]), (good[2], bad[0])))
    history = make(SeparableProblem(SPACE), searcher=searcher, initial=()).run(Limits(rounds=9))
    by_round = [
        [(m.rung, m.candidate) for m in history.measurements if m.round == r] for r in (0, 1, 2)
    ]
    assert by_round[0] == [(1, SPACE.origin)]
    low, high = by_round[1][:4], by_round[1][4:]
    assert low == [(0, c) for c in sorted(searcher.rounds[0])]  # by how they begin
    # three survive the first rung, best first; the parent's score at the second is known
    assert high == [(1, c) for c in (good[1], good[0], bad[0])]
    # all that is known is not measured again
    assert by_round[2] == [(0, good[2]), (1, good[2])]
    assert history.winners == [(SPACE.origin,), (good[1],), (good[2],)]


def test_one_rung() -> None:
    ladder = Ladder(candidates=4, rungs=(Rung(ROW, 2),))
    history = make(ladder=ladder, initial=()).run(Limits(rounds=3))
    assert {m.rung for m in history.measurements} == {0}
    assert [len(winners) for winners in history.winners] == [1, 2, 2, 2]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("searcher", SEARCHERS.names())
def test_the_best_never_gets_worse(searcher: str, seed: int) -> None:
    problem = SeparableProblem(SPACE, noise=5.0)
    study = make(problem, searcher=SEARCHERS.create(searcher), seed=seed)
    history = study.run(Limits(rounds=8))
    top = {m.candidate: m.score.value for m in history.measurements if m.rung == 1}
    winners = [top[winner] for (winner,) in history.winners]
    assert winners == sorted(winners, reverse=True)
    assert winners[-1] == min(top.values())
    assert winners[-1] < winners[0]


def test_failures_never_survive() -> None:
    problem = SeparableProblem(SPACE, fails=lambda p: p.removed[5] < 50 or p.removed[0] < 40)
    history = make(problem).run(Limits(rounds=8))
    failed = {m.candidate for m in history.measurements if m.failed}
    assert len(failed) > 3
    assert not failed & set(itertools.chain(*history.winners))
    assert len(history.winners) == 9


def test_all_fail() -> None:
    history = make(SeparableProblem(SPACE, fails=lambda _: True)).run(Limits(rounds=3))
    assert history.winners == [()] * 4
    assert len(history.measurements) == 3 + 3 * TOY_LADDER.candidates  # without parents, at random


def test_the_searcher_ends_the_study() -> None:
    history = make(searcher=Scripted((((2, -2, 0, 0, 0, 0),),))).run(Limits())
    assert len(history.winners) == 2


def test_the_stop_callback_is_asked_before_every_measurement() -> None:
    store = MemoryStore()
    history = make(store=store).run(Limits(stop=after(17, store)))
    assert len(history.measurements) == len(store.measurements) == 17
    assert make().run(Limits(stop=lambda: True)) == History()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measurement takes one second."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(study_module, "time", clock)


@pytest.mark.usefixtures("clock")
def test_time_limit() -> None:
    store = MemoryStore()
    assert len(make(store=store).run(Limits(seconds=5.5)).measurements) == 6
    assert [m.seconds for m in store.measurements] == [1.0] * 6
    assert [m.elapsed for m in store.measurements] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    # it counts over sessions
    assert len(make(store=store).run(Limits(seconds=6)).measurements) == 6
    assert len(make(store=store).run(Limits(seconds=8)).measurements) == 8
    assert make().run(Limits(seconds=0)).measurements == []


@pytest.mark.usefixtures("clock")
def test_time_limits_do_not_change_what_is_found() -> None:
    store = MemoryStore()
    for seconds in range(1, 60, 7):
        history = make(store=store).run(Limits(rounds=ROUNDS, seconds=seconds))
    assert plain(history) == plain(make().run(Limits(rounds=ROUNDS)))


def together(
    path: Path, n: int, searcher: Searcher, problems: Sequence[SeparableProblem]
) -> list[History | BaseException]:
    """Return what workers on one journal find, each in a thread of its own."""
    studies = [
        make(
            problem,
            searcher=searcher,
            store=Store(join_journal(path / "journal"), "study", {}),
            claims=Claims(path / "claims"),
        )
        for problem in problems
    ]
    with ThreadPoolExecutor(n) as pool:
        futures = [pool.submit(study.run, Limits(rounds=ROUNDS)) for study in studies]
        return [future.exception() or future.result() for future in futures]


class Slow(SeparableProblem):
    """Takes long enough for others to come to something."""

    def _score(self, *args: Any) -> Any:
        time.sleep(0.005)
        return super()._score(*args)


class Dying(Slow):
    """Ends its worker at the fourth measurement."""

    def _score(self, *args: Any) -> Any:
        if len(self.calls) > 3:
            raise KeyboardInterrupt
        return super()._score(*args)


def unowned(history: History) -> tuple[list[Measurement], list[tuple[Candidate, ...]]]:
    measurements, winners = plain(history)
    return [replace(m, worker=0) for m in measurements], winners


@pytest.mark.parametrize("searcher", SEARCHERS.names())
def test_workers_find_together_what_one_finds(tmp_path: Path, searcher: str) -> None:
    of = SEARCHERS.create(searcher)
    problems = [Slow(SPACE, noise=0.5) for _ in range(3)]
    found = together(tmp_path, 3, of, problems)
    expected = plain(make(searcher=of).run(Limits(rounds=ROUNDS)))
    assert [unowned(history) for history in found] == [expected] * 3
    # the work is shared, and none of it is done twice
    assert sum(len(problem.calls) for problem in problems) == len(expected[0])
    assert sum(bool(problem.calls) for problem in problems) > 1


def test_a_worker_that_dies_is_not_waited_for(tmp_path: Path) -> None:
    problems = [Dying(SPACE, noise=0.5), Slow(SPACE, noise=0.5)]
    dead, history = together(tmp_path, 2, EvolutionSearcher(), problems)
    assert isinstance(dead, KeyboardInterrupt)
    assert unowned(history) == plain(make().run(Limits(rounds=ROUNDS)))


def test_a_worker_that_waits_can_be_stopped(tmp_path: Path) -> None:
    """Somebody else holds all places, and never ends."""
    other, mine = Claims(tmp_path), Claims(tmp_path)
    asked = iter([False] * 3 + [True] * 99)
    with ExitStack() as held:
        for place in range(TOY_LADDER.candidates):
            held.enter_context(other.claim(place))
        history = make(claims=mine).run(Limits(stop=lambda: next(asked)))
    assert history == History()


def test_on_measured_hears_of_new_and_replayed_ones() -> None:
    store, heard = MemoryStore(), []
    make(store=store, on_measured=heard.append).run(Limits(rounds=1))
    assert heard == store.measurements
    again: list[Measurement] = []
    history = make(store=store, on_measured=again.append).run(Limits(rounds=2))
    assert again == history.measurements
    assert again[: len(heard)] == heard


def test_seeds_matter_and_nothing_else() -> None:
    first, twin, other = (plain(make(seed=s).run(Limits(rounds=2))) for s in (1, 1, 2))
    assert first == twin
    assert first != other
