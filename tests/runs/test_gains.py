from __future__ import annotations

from math import exp, inf, sqrt
from statistics import mean, stdev

import pytest

from sparsity_search.runs.gains import list_gains, trace_best
from sparsity_search.runs.trail import StepRecord
from sparsity_search.testing.problems import toy_space

PROFILE = toy_space().base


def step(
    name: str, parts: list[float], *, best: bool = True, elapsed: float = 0.0, score: float = -1.0
) -> StepRecord:
    found: float | None = mean(parts) if score == -1.0 else score
    return StepRecord(
        name=name,
        key=name,
        profile=PROFILE,
        pruner={"name": "wanda"},
        row={"name": name, "score": None if found == inf else found},
        parts=parts,
        best=best,
        seconds=1.0,
        elapsed=elapsed,
    )


def test_a_candidate_is_compared_with_the_best_one_before_it() -> None:
    steps = [
        step("uniform", [1.0, 2.0, 3.0]),
        step("worse", [2.0, 2.0, 5.0], best=False),
        step("better", [0.5, 1.0, 3.0]),
        step("last", [0.5, 1.0, 1.5]),
    ]
    first, worse, better, last = list_gains(steps)
    assert (first.change, first.error) == (None, None)
    assert worse.change == pytest.approx(0.5)
    assert better.change == pytest.approx(-0.25)
    assert better.error == pytest.approx(stdev([-0.5, -1.0, 0.0]) / sqrt(3) / 2)
    assert last.change == pytest.approx(-1 / 3)


def test_the_error_of_a_score_that_is_no_mean_has_the_t_of_its_parts() -> None:
    before, after = [2.0, 3.0, 4.0], [1.9, 2.8, 3.9]
    steps = [
        step("uniform", before, score=exp(mean(before))),
        step("better", after, score=exp(mean(after))),
    ]
    found = list_gains(steps)[1]
    differences = [-0.1, -0.2, -0.1]
    t = mean(differences) / (stdev(differences) / sqrt(3))
    assert found.change == pytest.approx(exp(mean(differences)) - 1)
    assert found.change is not None
    assert found.error is not None
    assert found.change / found.error == pytest.approx(t)


def test_equal_candidates_differ_by_nothing() -> None:
    found = list_gains([step("uniform", [1.0, 2.0]), step("same", [1.0, 2.0], best=False)])[1]
    assert (found.change, found.error) == (0, 0)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [([inf, 1.0], [1.0, 1.0], False), ([1.0], [0.5], True), ([1.0, 1.0], [0.5], True)],
)
def test_what_cannot_be_compared_has_no_error(
    before: list[float], after: list[float], changed: bool
) -> None:
    found = list_gains([step("uniform", before), step("other", after)])[1]
    assert (found.change is not None, found.error) == (changed, None)


def test_the_best_score_falls_in_the_order_of_time() -> None:
    steps = [
        step("uniform", [3.0], elapsed=1.0),
        step("later", [2.0], elapsed=9.0),
        step("worse", [2.5], elapsed=3.0, best=False),
        step("of an earlier session", [1.5], elapsed=5.0),
        step("broken", [inf], elapsed=7.0),
    ]
    found = trace_best(steps)
    assert (found.elapsed, found.scores) == ((1.0, 5.0, 9.0), (3.0, 1.5, 1.5))
