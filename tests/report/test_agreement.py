from __future__ import annotations

from dataclasses import replace

import pytest
from scipy.stats import kendalltau

from sparsity_search.report.agreement import RankAgreement, measure_agreement, tell_disagreement
from sparsity_search.report.html import render
from sparsity_search.runs.record import RunRecord


def with_score(record: RunRecord, name: str, score: float | None) -> RunRecord:
    """Return a record with another final score of a candidate."""
    steps = [
        replace(step, row={**step.row, "score": score}) if step.name == name else step
        for step in record.steps
    ]
    return replace(record, steps=tuple(steps))


def test_profiles_are_ranked_by_search_and_comparison(record: RunRecord) -> None:
    found = measure_agreement(record)
    assert found == RankAgreement(("owl", "uniform"), (0.8, 0.9), (0.84, 0.96))
    assert found.tau == 1
    assert tell_disagreement(record) == ""


def test_a_reversed_order_is_told(record: RunRecord) -> None:
    other = with_score(record, "owl", 1.2)
    told = tell_disagreement(other)
    assert told.startswith("The search ranks owl before uniform, the rebuilt models the other way")
    assert "Kendall tau -1.00 over 2 profiles" in told
    assert told in render(other)
    assert tell_disagreement(with_score(record, "owl", None)) == ""


@pytest.mark.parametrize(
    ("searched", "shipped"),
    [((1, 2, 3, 4), (2, 1, 3, 4)), ((1, 2, 3, 4), (4, 3, 1, 2)), ((1, 2, 3), (1, 2, 3))],
)
def test_the_correlation_is_kendalls(
    searched: tuple[float, ...], shipped: tuple[float, ...]
) -> None:
    found = RankAgreement(tuple("abcd"[: len(searched)]), searched, shipped)
    assert found.tau == pytest.approx(kendalltau(searched, shipped).statistic)


def test_the_pair_furthest_apart_is_named() -> None:
    found = RankAgreement(("a", "b", "c"), (1.0, 2.0, 3.0), (5.0, 4.0, 1.0))
    assert found.reversed_pair == ("a", "c")
    assert RankAgreement(("a", "b"), (1.0, 1.0), (5.0, 4.0)).reversed_pair is None
