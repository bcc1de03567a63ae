from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel  # type: ignore[import-untyped]

from sparsity_search.errors import ConfigError
from sparsity_search.trials.history import Fidelity, Measurement, Score
from sparsity_search.trials.ladder import Generation, Ladder, Rung

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


@pytest.mark.parametrize("fresh", [False, True])
def test_rungs_that_do_not_nest_have_draws_of_their_own(fresh: bool) -> None:
    ladder = replace(LADDER, nested=False, fresh=fresh)
    draws = {
        (rung, round_): ladder.fidelity(rung, round_).subset
        for rung, round_ in itertools.product(range(3), range(4))
    }
    # one for each rung, and with fresh tokens one for each rung of each round
    assert len(set(draws.values())) == (12 if fresh else 3)
    assert len({draws[rung, 0] for rung in range(3)}) == 3


@pytest.mark.parametrize(
    ("sequences", "length", "legal"),
    [(4, 10, True), (40, 1, True), (3, 10, False), (100, 20, False), (4, 9, False)],
)
def test_rungs_are_whole_sequences_that_there_are(
    sequences: int, length: int, legal: bool
) -> None:
    with contextlib.nullcontext() if legal else pytest.raises(ConfigError, match="a rung of"):
        LADDER.check(sequences, length)


def test_rungs_of_the_first_generation_are_checked_too() -> None:
    ladder = replace(LADDER, first=Generation(candidates=4, rungs=(Rung(50, 1),)))
    LADDER.check(4, 10)
    with pytest.raises(ConfigError, match="a rung of 50 tokens"):
        ladder.check(4, 10)


def test_the_first_generation() -> None:
    first = Generation(candidates=64, rungs=(Rung(20, 1, parents=False),))
    ladder = replace(LADDER, first=first, fresh=True, nested=False)
    assert [ladder.in_round(r) is ladder for r in range(4)] == [True, False, True, True]
    own = ladder.in_round(1)
    assert (own.candidates, own.rungs, own.top) == (64, first.rungs, 0)
    assert (own.fresh, own.nested) == (True, False)
    assert [ladder.joined(rung) for rung in range(3)] == [False, False, True]
    assert not own.joined(0)
    assert ladder.generations == (own, ladder)
    assert LADDER.generations == (LADDER,)
    assert (LADDER.round_tokens, own.round_tokens) == (8 * 10 + 4 * 20 + 2 * 40, 64 * 20)
    with pytest.raises(ConfigError, match="20 tokens keeps 3 of 2"):
        replace(LADDER, first=Generation(candidates=2, rungs=(Rung(20, 3),)))


def test_fingerprints_hold_what_is_set() -> None:
    """Searches without the later settings keep their fingerprint, which holds this text."""
    assert repr(Ladder()) == (
        "Ladder(candidates=12, rungs=(Rung(tokens=512, survivors=2), "
        "Rung(tokens=2048, survivors=1)), fresh=False, confidence=None)"
    )
    assert repr(Rung(8, 1, parents=False)) == "Rung(tokens=8, survivors=1, parents=False)"
    first = Generation(candidates=3, rungs=(Rung(8, 1),))
    for changed in ({"nested": False}, {"first": first}, {"rungs": (Rung(512, 1, parents=True),)}):
        assert repr(replace(LADDER, **changed)) != repr(LADDER)
    assert "nested=False" in repr(replace(LADDER, nested=False))


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


def raced(values: list[list[float]], confidence: float | None = 0.95) -> list[tuple[int, ...]]:
    found = [
        Measurement(
            round=1,
            rung=0,
            candidate=(i,),
            fidelity=Fidelity(40),
            score=Score(sum(parts) / len(parts), tuple(parts)),
        )
        for i, parts in enumerate(values)
    ]
    ladder = Ladder(candidates=8, rungs=(Rung(40, 4), Rung(80, 1)), confidence=confidence)
    return ladder.survivors(0, found)


def test_a_race_drops_what_is_worse_on_equal_sequences() -> None:
    """Sequences differ far more than candidates: only pairs can tell."""
    base = [1.0, 5.0, 2.0, 9.0]
    slightly = [value + gap for value, gap in zip(base, (0.1, 0.12, 0.09, 0.11), strict=True)]
    unclear = [value + gap for value, gap in zip(base, (0.9, -0.5, 0.4, -0.3), strict=True)]
    assert raced([slightly, base, unclear]) == [(1,), (2,)]
    assert raced([slightly, base, unclear], confidence=None) == [(1,), (0,), (2,)]


@given(st.lists(st.lists(st.floats(0, 9), min_size=5, max_size=5), min_size=2, max_size=6))
def test_a_race_is_the_paired_test(values: list[list[float]]) -> None:
    means = [sum(parts) / 5 for parts in values]
    best = means.index(min(means))
    survivors = {candidate[0] for candidate in raced(values, 0.9)}
    assert best in survivors
    for i, parts in enumerate(values):
        if i == best or parts == values[best]:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ttest_rel(parts, values[best], alternative="greater").pvalue
        if len(values) <= 4 and abs(found - 0.1) > 1e-6 and not math.isnan(found):
            assert (i in survivors) == (found > 0.1)


def test_one_sequence_tells_nothing() -> None:
    assert raced([[2.0], [1.0]]) == [(1,), (0,)]
    assert raced([[1.0, 2.0], [1.0, 2.0]]) == [(0,), (1,)]


@pytest.mark.parametrize("confidence", [0.5, 1.0, -1.0, math.nan])
def test_confidence_that_is_none(confidence: float) -> None:
    with pytest.raises(ConfigError, match="confidence"):
        Ladder(confidence=confidence)
