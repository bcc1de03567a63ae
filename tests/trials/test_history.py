from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sparsity_search.trials.history import Fidelity, History, Measurement, Score, rank

LOW, HIGH = Fidelity(512), Fidelity(4096)


def measured(value: float, candidate: tuple[int, ...] = (0,), at: Fidelity = LOW) -> Measurement:
    return Measurement(round=0, rung=0, candidate=candidate, fidelity=at, score=Score(value, ()))


def test_rank() -> None:
    values = [2.0, math.nan, -1.0, math.inf, 2.0, -math.inf, 0.5]
    ranked = rank([measured(value, (i,)) for i, value in enumerate(values)])
    assert [m.candidate[0] for m in ranked] == [2, 6, 0, 4, 1, 3, 5]


@pytest.mark.parametrize(
    ("value", "failed"), [(0.0, False), (math.nan, True), (math.inf, True), (-math.inf, True)]
)
def test_failed(value: float, failed: bool) -> None:
    assert measured(value).failed is failed


def test_known_is_of_exactly_these_tokens() -> None:
    history = History()
    history.add(measured(1.0, (1, -1)))
    assert history.known(LOW, (1, -1)) is history.measurements[0]
    for fidelity, candidate in [(HIGH, (1, -1)), (Fidelity(512, 1), (1, -1)), (LOW, (0, 0))]:
        assert history.known(fidelity, candidate) is None


def test_of_two_equals_the_first_counts() -> None:
    first, second = measured(1.0), measured(2.0)
    added = History()
    added.add(first)
    added.add(second)
    for history in (added, History([first, second])):
        assert history.known(LOW, (0,)) is first
        assert history.measurements == [first, second]


def test_seen_and_survivors() -> None:
    history = History([measured(1.0, (1,)), measured(1.0, (2,), HIGH), measured(2.0, (1,), HIGH)])
    assert history.seen == {(1,), (2,)}
    assert history.survivors == ()
    history.close_round([(1,), (2,)])
    history.close_round([(2,)])
    assert history.survivors == ((2,),)
    assert history.winners == [((1,), (2,)), ((2,),)]


def test_excluded() -> None:
    """With fresh tokens a candidate that lost may come again: it lost on other tokens."""
    found = [measured(1.0, (1,)), measured(2.0, (2,)), measured(3.0, (3,))]
    fixed, fresh = History(found, [((1,),)]), History(found, [((1,),)], fresh=True)
    assert fixed.excluded == {(1,), (2,), (3,)}
    assert fresh.excluded == {(1,)}
    assert fresh.seen == fixed.seen
    assert History(found, fresh=True).excluded == frozenset()


def test_histories_are_values() -> None:
    one = measured(1.0)
    assert History([one]) == History([replace(one)])
    assert History([one]) != History([one], [((0,),)])
    assert History().measurements is not History().measurements


def test_what_is_known_of_the_first_tokens() -> None:
    def made(tokens: int, value: float, subset: int = 0, candidate: int = 0) -> Measurement:
        return Measurement(
            round=0,
            rung=0,
            candidate=(candidate,),
            fidelity=Fidelity(tokens, subset),
            score=Score(value, (value,)),
        )

    history = History([made(16, 1.0), made(64, math.inf), made(16, 2.0, 1), made(8, 5.0, 0, 3)])
    history.add(made(32, 3.0))
    found = history.within(Fidelity(128), (0,))
    assert found is not None
    assert found.score.value == 3.0
    assert history.within(Fidelity(32), (0,)) == history.measurements[0]
    assert history.within(Fidelity(128, 1), (0,)) == history.measurements[2]
    assert history.within(Fidelity(16), (0,)) is None
    assert history.within(Fidelity(128), (7,)) is None


def test_a_table_of_pandas_has_a_row_for_each_measurement() -> None:
    history = History([measured(1.5, (0, 1)), measured(math.inf, (1, 0), HIGH)])
    frame = history.to_frame()
    assert list(frame["candidate"]) == [(0, 1), (1, 0)]
    assert list(frame["tokens"]) == [512, 4096]
    assert list(frame["failed"]) == [False, True]
    assert list(frame["score"]) == [1.5, math.inf]
    assert len(History().to_frame()) == 0
