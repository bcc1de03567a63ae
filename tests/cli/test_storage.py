"""Searches whose measurements are in a database, on a tiny random model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from sparsity_search.runs.record import RunRecord
from sparsity_search.runs.redact import STORAGE_VARIABLE

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def test_the_url_may_be_in_the_environment(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, url = tmp_path / "run", f"sqlite:///{tmp_path}/search.db"
    options = ("--sparsity", 0.6, "--rounds", 1, *SMALL, "--out", run)
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    outcome = cli("search", model, *options)
    assert outcome.code == 0, outcome.err
    assert not (run / "journal.log").exists()
    (study,) = optuna.get_all_study_summaries(url)
    assert study.n_trials == len(RunRecord.read(run, url).measurements) > 2
    page = (run / "report.html").read_bytes()

    monkeypatch.delenv(STORAGE_VARIABLE)
    outcome = cli("report", run)
    assert outcome.code == 0, outcome.err
    assert "report.html is kept as it was: the measurements are in sqlite" in outcome.err
    assert (run / "report.html").read_bytes() == page
    outcome = cli("search", model, *options)
    assert (outcome.code, "--storage or SPARSITY_SEARCH_STORAGE" in outcome.err) == (2, True)

    monkeypatch.setenv(STORAGE_VARIABLE, url)
    (run / "report.html").unlink()
    assert cli("report", run).code == 0
    assert (run / "report.html").read_bytes() == page
