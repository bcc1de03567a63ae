from __future__ import annotations

from typing import Any

import pytest

from sparsity_search.report.rows import find_uniform, list_pruners, tell_no_gain

WANDA, ALPS = {"name": "wanda"}, {"name": "alps"}


def row(name: str, pruner: Any = None, profile: str | None = None, score: Any = 1.0) -> Any:
    return {"name": name, "pruner": pruner, "profile": profile, "score": score}


DENSE = {"name": "dense", "score": 0.0}
UNIFORM, OWL = row("uniform", WANDA, "u"), row("owl", WANDA, "o", 0.8)
REBUILT = row("owl-alps", ALPS, "o", 0.5)
UNIFORM_ALPS = row("uniform-alps", ALPS, "u", 0.6)
ROWS = [DENSE, UNIFORM, OWL, REBUILT, UNIFORM_ALPS]


def test_rows_are_compared_with_uniform_of_their_pruner() -> None:
    assert find_uniform(ROWS, OWL) is UNIFORM
    assert find_uniform(ROWS, DENSE) is UNIFORM
    assert find_uniform(ROWS, REBUILT) is UNIFORM_ALPS
    assert not find_uniform(ROWS[:-1], REBUILT)
    assert list_pruners(ROWS) == ["wanda", "alps"]


def test_rows_of_older_runs_have_no_pruner() -> None:
    old = [{"name": name, "score": 1.0} for name in ("dense", "uniform", "owl")]
    assert find_uniform(old, old[2]) is old[1]
    assert list_pruners(old) == []
    assert not find_uniform([DENSE], DENSE)


@pytest.mark.parametrize(
    ("rows", "shipped", "told"),
    [
        (ROWS, "owl", ""),
        (ROWS, "owl-alps", ""),
        (ROWS, "uniform", "No profile was better than the uniform one, which is shipped."),
        (ROWS, "uniform-alps", "No profile was better than the uniform one, which is shipped."),
        ([UNIFORM, row("owl", WANDA, "o")], "owl", "owl is not better than uniform."),
        (
            [UNIFORM, OWL, row("owl-alps", ALPS, "o", 0.7), UNIFORM_ALPS],
            "owl-alps",
            "owl-alps is not better than uniform-alps.",
        ),
        (ROWS[:-1], "owl-alps", ""),
        ([row("uniform", WANDA, "u", None)], "uniform", ""),
        ([], "searched", ""),
    ],
)
def test_a_search_without_a_gain_says_so(rows: list[Any], shipped: str, told: str) -> None:
    assert tell_no_gain(rows, shipped) == told
