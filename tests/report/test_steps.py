from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sparsity_search.report.steps import STEP_HEADER, list_step_rows, summarise_steps
from sparsity_search.report.table import NONE
from sparsity_search.runs.record import RunRecord
from sparsity_search.testing.runs import make_run


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return RunRecord.read(make_run(tmp_path_factory.mktemp("runs"), rounds=3, finalise="alps"))


def spend(record: RunRecord, *minutes: float, best: str, job: float = 30.0) -> RunRecord:
    """Return a record whose steps end after some minutes, some of which are the best so far."""
    pairs = zip(record.steps, minutes, best, strict=False)
    steps = [replace(s, elapsed=60 * m, best=b == "b", seconds=60.0) for s, m, b in pairs]
    return replace(record, steps=tuple(steps), seconds=60 * job)


def test_rows_of_steps(rebuilt: RunRecord) -> None:
    rows = list_step_rows(rebuilt)
    assert [row[:6] for row in rows] == [
        ("uniform", "wanda", "10.0 s", "40.0 s", "0.9600", "40.00"),
        ("owl", "wanda", "10.0 s", "50.0 s", "0.8400", "35.00"),
        ("searched", "wanda", "1 min 02 s", "1 min 52 s", "0.5760", "27.00"),
        ("searched-alps", "alps", "10.0 s", "2 min 02 s", "0.2880", "13.50"),
        ("uniform-alps", "alps", "10.0 s", "2 min 12 s", "0.4800", "20.00"),
    ]
    assert [row[6] for row in rows] == [NONE, "-12.50 %", "-31.43 %", "-50.00 %", "+66.67 %"]
    assert [row[8] for row in rows] == ["yes", "yes", "yes", "yes", "no"]
    assert all(len(row) == len(STEP_HEADER) for row in rows)


@pytest.mark.parametrize(
    ("minutes", "best", "told"),
    [
        (
            (1, 16, 30),
            "bbb",
            "The last 14 min 00 s of 30 min 00 s lowered the score by 31.43 % (searched).",
        ),
        (
            (1, 16, 30),
            "bb-",
            "The last 14 min 00 s of 30 min 00 s did not lower the score; the gain before was "
            "12.50 % (owl).",
        ),
        (
            (1, 16, 30),
            "b--",
            "The last 29 min 00 s of 30 min 00 s did not lower the score of uniform.",
        ),
        (
            (1, 16, 27, 28, 29),
            "bbbb-",
            "The last 12 min 00 s before alps, of 30 min 00 s in all, lowered the score by "
            "31.43 % (searched); alps lowered it by 50.00 % in 1 min 00 s.",
        ),
        (
            (1, 16, 27, 28, 29),
            "bb---",
            "The last 12 min 00 s before alps, of 30 min 00 s in all, did not lower the score; "
            "the gain before was 12.50 % (owl); alps did not lower it in 1 min 00 s.",
        ),
    ],
)
def test_the_last_gain_is_told(rebuilt: RunRecord, minutes: Any, best: str, told: str) -> None:
    assert summarise_steps(spend(rebuilt, *minutes, best=best)) == told


def test_one_candidate_has_no_gain(rebuilt: RunRecord) -> None:
    assert summarise_steps(spend(rebuilt, 1, best="b")) == ""
    assert summarise_steps(replace(rebuilt, steps=())) == ""


def test_candidates_without_a_score(rebuilt: RunRecord) -> None:
    first, *rest = rebuilt.steps
    broken = replace(first, row={**first.row, "score": None}, parts=[float("inf")] * 8)
    record = replace(rebuilt, steps=(broken, *rest))
    assert list_step_rows(record)[0][4:8] == (NONE, "40.00", NONE, NONE)
    assert list_step_rows(record)[1][6:] == (NONE, NONE, "yes")
    assert "The last" in summarise_steps(record)
