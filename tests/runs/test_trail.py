from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.errors import RunMismatchError
from sparsity_search.runs.trail import StepRecord, Trail
from sparsity_search.testing.problems import toy_space

SPACE = toy_space()


def record(key: str, pruner: str = "wanda", **fields: Any) -> StepRecord:
    given = {
        "name": key,
        "key": key,
        "profile": SPACE.base,
        "pruner": {"name": pruner},
        "row": {"name": key, "score": 0.1, "perplexity": None, "sparsity": 0.5, "removed": 3},
        "parts": [0.1, 1 / 3],
        "best": True,
        "seconds": 1.5,
        "elapsed": 3.25,
        "notes": ["a note"],
    }
    return StepRecord(**{**given, **fields})


def test_records_survive_a_new_session(tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    records = [record("a"), record("b", best=False), record("c", parts=[math.inf, 0.5])]
    Trail(file, SPACE.layout).keep(records, 12.0)
    again = Trail(file, SPACE.layout)
    assert (again.records, again.seconds) == (records, 12.0)


def test_a_record_is_found_by_its_key_and_pruner(tmp_path: Path) -> None:
    trail = Trail(tmp_path / "steps.json", SPACE.layout)
    trail.keep([record("a"), record("a", "alps")], 1.0)
    assert trail.find("a", {"name": "alps"}) == record("a", "alps")
    assert trail.find("a", {"name": "ria"}) is None
    assert trail.find("a") == record("a")
    assert trail.find("b") is None


def test_a_study_keeps_its_time_and_gets_what_is_added(tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    trail = Trail(file, SPACE.layout)
    assert trail.allot("s", 600.0, 250.0) == 250.0
    trail.keep([], 100.0)
    again = Trail(file, SPACE.layout)
    assert again.allot("s", 600.0, 7.0) == 250.0, "the same command gives the same time"
    assert again.allot("s", 900.0, 7.0) == 550.0, "five minutes more are the study's"
    assert again.allot("other", 900.0, 7.0) == 7.0
    assert again.allot("s", 60.0, 7.0) == 0.0, "never negative"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"format": 1, "seconds": 0}',
        '{"format": 1, "seconds": 0, "steps": [{"name": "a"}]}',
        '{"format": 2, "seconds": 0, "steps": []}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "steps.json"
    file.write_text(text)
    with pytest.raises(RunMismatchError, match=r"steps\.json"):
        Trail(file, SPACE.layout)
