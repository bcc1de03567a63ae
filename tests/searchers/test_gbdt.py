"""The published protocol: its phases, its ties and its ranges."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.searchers.gbdt import GbdtSearcher, _select_first
from sparsity_search.study.study import Limits, Study
from sparsity_search.testing.problems import MemoryStore, SeparableProblem, toy_space
from sparsity_search.trials.history import History
from sparsity_search.trials.ladder import Ladder, Rung
from sparsity_search.utils.random import create_generator

SPACE = toy_space(*(100,) * 16, reach=4)
SMALL = GbdtSearcher(pairs=40, tied=2, finalists=10, samples=300, trees=20, spread=2.0)
LADDER = Ladder(candidates=8, rungs=(Rung(64, 2), Rung(256, 1)))


def run(searcher: GbdtSearcher = SMALL, noise: float = 0.0) -> History:
    return Study(
        space=SPACE,
        searcher=searcher,
        objective=SeparableProblem(SPACE, noise=noise),
        ladder=LADDER,
        store=MemoryStore(),
    ).run(Limits())


@pytest.fixture(scope="module")
def history() -> History:
    return run()


def new(history: History, round_: int) -> list[tuple[int, ...]]:
    """Return the candidates that a round brought."""
    return [m.candidate for m in history.measurements if m.round == round_ and m.rung == 0]


def test_phases(history: History) -> None:
    """Five rounds of pairs, two of finalists, and the study is over."""
    assert [len(new(history, r)) for r in range(1, 10)] == [8, 8, 8, 8, 8, 8, 2, 0, 0]
    assert len(history.winners) == 8
    assert len(SMALL.ask(SPACE, history, 8, create_generator(0))) == 0


def test_only_so_many_pairs() -> None:
    found = run(GbdtSearcher(pairs=12, finalists=3, samples=20, trees=2))
    assert [len(new(found, r)) for r in range(1, 5)] == [8, 4, 3, 0]


def spread_in_runs(candidate: tuple[int, ...], tied: int) -> int:
    roles = [[g for g in range(16) if g % 4 == role] for role in range(4)]
    runs = [genes[i : i + tied] for genes in roles for i in range(0, 4, tied)]
    return max(int(np.ptp([candidate[g] for g in run])) for run in runs)


def test_the_first_pairs_are_tied(history: History) -> None:
    asked = [c for r in range(1, 6) for c in new(history, r)]
    n_tied = round(400 / 525 * 40)
    tied = [spread_in_runs(c, 2) <= 1 for c in asked]
    assert sum(tied) == n_tied
    assert all(tied[:24])  # of the whole rounds before
    assert not any(tied[32:])
    assert any(spread_in_runs(c, 4) > 1 for c in asked[:24])


def test_the_predicted_best_are_better_than_the_predicted_worst(history: History) -> None:
    problem = SeparableProblem(SPACE)
    ranked = SMALL._rank(SPACE, _select_first(history)[:40], history.seen)
    exact = [problem.exact(SPACE.profile(c)) for c in ranked]
    assert len(exact) > 200
    assert np.mean(exact[:50]) < np.mean(exact[-50:])


def test_two_rounds_of_finalists_are_one_ranking(history: History) -> None:
    measured = len([m for m in history.measurements if m.round <= 5])
    before = History(history.measurements[:measured], history.winners[:6])
    at_once = SMALL.ask(SPACE, before, 10, create_generator(5))
    assert sorted(at_once[:8]) == sorted(new(history, 6))
    assert sorted(at_once[8:]) == sorted(new(history, 7))


def test_ranges_are_the_papers() -> None:
    """Rates of 0.1 to 0.5 about 0.3 become 0.1 to 0.3 and 0.2 to 0.7."""
    searcher = GbdtSearcher(important_share=0.2, unimportant_share=0.4)
    low, high = searcher.ranges(np.array([0.1, 5.0, 0.0, 3.0, 1.0]))
    rates = 0.3 + 0.2 * np.stack([low, high], axis=1)
    expected = [(0.2, 0.7), (0.1, 0.3), (0.2, 0.7), (0.1, 0.5), (0.1, 0.5)]
    assert rates == pytest.approx(np.array(expected))


def test_no_gene_is_special_where_shares_are_zero() -> None:
    low, high = GbdtSearcher(important_share=0.0, unimportant_share=0.0).ranges(np.arange(3.0))
    assert (low.tolist(), high.tolist()) == ([-1.0] * 3, [1.0] * 3)


def test_report_of_the_held_out(history: History) -> None:
    found = SMALL.report(SPACE, history)
    assert found is not None
    assert found.n == 12
    assert -1 <= found.tau <= 1
    assert found.mae > 0
    early = History(history.measurements[:20], history.winners[:2])
    assert SMALL.report(SPACE, early) is None
    assert f"{found.n} held-out pairs" in SMALL.notes(SPACE, history)[0]
    assert SMALL.notes(SPACE, early) == ()


def test_survivors_count_once(history: History) -> None:
    """A candidate that climbs the ladder is one pair, of the lowest rung."""
    asked = [c for r in range(1, 6) for c in new(history, r)]
    assert len(asked) == len(set(asked)) == 40
    assert any(m.rung == 1 and m.round > 0 for m in history.measurements)


def test_failures_leave_nothing_to_fit() -> None:
    study = Study(
        space=SPACE,
        searcher=SMALL,
        objective=SeparableProblem(SPACE, fails=lambda _: True),
        ladder=LADDER,
        store=MemoryStore(),
    )
    history = study.run(Limits(rounds=9))
    assert len(history.seen) == 41
    assert SMALL.report(SPACE, history) is None


@pytest.mark.parametrize(
    "bad",
    [{"pairs": 3}, {"tied": 0}, {"tied_share": 1.1}, {"samples": 0}, {"finalists": -1},
     {"spread": 0.0}, {"train_share": 0.0}, {"important": (1.0, 1.0)}, {"unimportant": (0.0,)},
     {"important_share": 0.8}, {"trees": 0}, {"rate": 2.0}],
)  # fmt: skip
def test_bad_settings(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        GbdtSearcher(**bad)
