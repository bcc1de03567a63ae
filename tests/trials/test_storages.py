from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from sparsity_search.errors import ConfigError
from sparsity_search.trials.storages import (
    join_journal,
    open_database,
    open_database_to_read,
    open_journal,
)
from sparsity_search.trials.store import Store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/a b%.db"


def test_two_processes_may_make_one_database(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, calls = optuna.storages.get_storage, []

    def lose_the_race(asked: str) -> Any:
        """Make the tables, as another process does, and fail at making them once more."""
        calls.append(asked)
        made = make(asked)
        if len(calls) < 3:
            raise IntegrityError("INSERT INTO alembic_version", {}, Exception("not unique"))
        return made

    monkeypatch.setattr(optuna.storages, "get_storage", lose_the_race)
    opened = open_database(url)
    assert calls == [url] * 3
    assert Store(opened, "study", {}).load() == []


def test_a_database_that_is_down_is_told_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(asked: str) -> None:
        calls.append(asked)
        raise OperationalError(None, None, Exception("connection refused"))

    monkeypatch.setattr(optuna.storages, "get_storage", fail)
    with pytest.raises(ConfigError, match=r"cannot open --storage \(sqlite\): OperationalError"):
        open_database(url)
    assert calls == [url]


def test_reading_makes_and_changes_nothing(url: str, tmp_path: Path) -> None:
    file = tmp_path / "a b%.db"
    with pytest.raises(ConfigError, match="there is no database"):
        open_database_to_read(url)
    file.touch()
    with pytest.raises(optuna.exceptions.StorageInternalError):
        open_database_to_read(url)  # it has no tables
    assert file.read_bytes() == b""
    Store(open_database(url), "study", {"seed": 3})
    before = file.read_bytes()
    study = optuna.load_study(study_name="study", storage=open_database_to_read(url))
    assert study.user_attrs["fingerprint"] == {"seed": 3}
    with pytest.raises(optuna.exceptions.StorageInternalError):
        study.set_user_attr("x", 1)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == [file.name]


def test_nobody_waits_for_a_process_that_died_in_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.log"
    storage = open_journal(path)
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os._exit(9)  # type: ignore[assignment]
        Store(join_journal(path), "one", {})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    def wait(_: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr(time, "sleep", wait)
    Store(storage, "two", {})
    assert "two" in optuna.get_all_study_names(open_journal(path))
