from __future__ import annotations

import math

import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.history import Fidelity, Measurement, Score
from sparsity_search.ladder import Ladder, Rung

LADDER = Ladder(candidates=8, rungs=(Rung(10, 4), Rung(20, 2), Rung(40, 1)))


def measured(values: list[float]) -> list[Measurement]:
    return [
        Measurement(round=1, rung=0, candidate=(i,), fidelity=Fidelity(10), score=Score(v, ()))
        for i, v in enumerate(values)
    ]


def test_survivors_are_the_best() -> None:
    found = measured([5.0, 1.0, 4.0, 2.0, 3.0])
    assert LADDER.survivors(0, found) == [(1,), (3,), (4,), (2,)]
    assert LADDER.survivors(1, found) == [(1,), (3,)]
    assert LADDER.survivors(2, found) == [(1,)]


def test_failed_candidates_never_survive() -> None:
    found = measured([math.nan, 7.0, math.inf, -math.inf])
    assert LADDER.survivors(0, found) == [(1,)]
    assert LADDER.survivors(0, measured([math.nan])) == []
    assert LADDER.survivors(0, []) == []


def test_fidelity() -> None:
    assert LADDER.top == 2
    assert LADDER.fidelity(1, 7) == LADDER.fidelity(1, 8) == Fidelity(20, 0)
    fresh = Ladder(candidates=8, rungs=LADDER.rungs, fresh=True)
    assert [fresh.fidelity(0, r) for r in (0, 3)] == [Fidelity(10, 0), Fidelity(10, 3)]


@pytest.mark.parametrize(
    ("candidates", "rungs", "message"),
    [
        (8, [], "at least one rung"),
        (0, [(10, 1)], "at least one rung and one candidate"),
        (8, [(10, 4), (10, 1)], r"must rise, not \[10, 10\]"),
        (8, [(20, 4), (10, 1)], "must rise"),
        (8, [(0, 4)], "must rise"),
        (8, [(10, 9)], "10 tokens keeps 9 of 8"),
        (8, [(10, 4), (20, 5)], "20 tokens keeps 5 of 4"),
        (8, [(10, 0)], "keeps 0 of 8"),
    ],
)
def test_faults(candidates: int, rungs: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ladder(candidates=candidates, rungs=tuple(Rung(*rung) for rung in rungs))
