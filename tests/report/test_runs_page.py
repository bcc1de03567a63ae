from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.report.runs_page import (
    HEADER,
    list_differences,
    list_run_rows,
    read_runs,
    render,
    warn_of_differences,
    write_runs,
)
from sparsity_search.report.table import NONE
from sparsity_search.testing.runs import make_run
from tests.report.test_html import Page
from tests.runs.test_record import edit


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "plain", rounds=2),
        make_run(tmp_path / "better", rounds=2, finalise="alps"),
    ]


def test_the_best_run_comes_first_and_others_are_measured_against_it(folders: list[Path]) -> None:
    rows = [dict(zip(HEADER, row, strict=True)) for row in list_run_rows(read_runs(folders))]
    assert [row["run"] for row in rows] == ["better", "plain"]
    assert [row["shipped"] for row in rows] == ["searched-alps", "searched"]
    assert [row["against the best"] for row in rows] == [NONE, "+100.00 %"]
    assert rows[1]["standard error"] != NONE
    assert [row["pruner"] for row in rows] == ["alps", "wanda"]


def test_runs_on_other_texts_are_not_compared(folders: list[Path]) -> None:
    def change(run: dict[str, dict[str, dict[str, str]]]) -> None:
        run["text"]["final"]["digest"] = "another"

    told = "their scores do not compare"
    assert told not in render(read_runs(folders))
    edit(folders[0] / "run.json", change)
    records = read_runs(folders)
    assert [row[6] for row in list_run_rows(records)] == [NONE, NONE]
    assert told in render(records)


def test_other_budgets_are_told(folders: list[Path]) -> None:
    def change(run: dict[str, dict[str, dict[str, float]]]) -> None:
        run["config"]["budget"]["sparsity"] = 0.5

    assert warn_of_differences(read_runs(folders)) == []
    edit(folders[0] / "run.json", change)
    (told,) = warn_of_differences(read_runs(folders))
    assert told.startswith("These runs have other budgets")


def test_settings_that_differ_are_listed_alone(folders: list[Path]) -> None:
    def change(run: dict[str, dict[str, dict[str, int]]]) -> None:
        run["config"]["study"]["seed"] = 7

    edit(folders[0] / "run.json", change)
    rows = {row[0]: row[1:] for row in list_differences(read_runs(folders))}
    assert rows["study.seed"] == ("7", "0")
    assert "pruner.name" not in rows


def test_the_page_is_complete(folders: list[Path], tmp_path: Path) -> None:
    out = write_runs(read_runs(folders), tmp_path / "runs.html")
    page = Page(out.read_text())
    assert page.tables[0][0] == list(HEADER)
    assert list(page.charts) == ["course", "profiles"]
    assert page.sources == []
    before = out.read_bytes()
    write_runs(read_runs(folders), out)
    assert out.read_bytes() == before


def test_credentials_stay_out(folders: list[Path]) -> None:
    def change(run: dict[str, dict[str, dict[str, str]]]) -> None:
        run["config"]["study"]["storage"] = "postgresql://me:hunter2@host/db"

    edit(folders[0] / "run.json", change)
    assert "hunter2" not in render(read_runs(folders))


def test_an_unfinished_run_has_a_row(folders: list[Path], tmp_path: Path) -> None:
    unfinished = make_run(tmp_path / "begun", rounds=1, finished=False)
    (unfinished / "steps.json").unlink(missing_ok=True)
    rows = list_run_rows(read_runs([*folders, unfinished]))
    assert rows[-1] == ("begun", *(NONE,) * (len(HEADER) - 1))


def test_one_run_is_no_comparison(folders: list[Path]) -> None:
    with pytest.raises(ConfigError, match="at least two different runs"):
        read_runs([folders[0], folders[0]])
    (folders[0] / "run.json").write_text(json.dumps({}))
    with pytest.raises(Exception, match=r"run\.json"):
        read_runs(folders)
