"""Optuna storages: a database, or a journal in a file."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from sparsity_search.errors import ConfigError
from sparsity_search.trials.journal import Journal, repair_end

#: Seconds before each new attempt to make the tables of a database.
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


def open_database(url: str) -> BaseStorage:
    """Return the Optuna storage of a database; its tables are made if need be.

    Raises:
        ConfigError: The database or its driver is missing, or it does not answer.
    """
    pauses = iter(_PAUSES)
    while True:
        try:
            return optuna.storages.get_storage(url)
        except Exception as error:  # each database driver has errors of its own
            pause = next(pauses, None)
            if pause is None or not _is_about_statement(error):
                kind = url.partition(":")[0]
                raise ConfigError(
                    f"cannot open --storage ({kind}): {type(error).__name__}; give the URL of "
                    "an Optuna storage, e.g. postgresql+psycopg://..., and its driver"
                ) from error
        time.sleep(pause)  # another process makes the same tables


def _is_about_statement(error: Exception) -> bool:
    """Whether a database answers, but refuses a statement."""
    cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
    return getattr(cause, "statement", None) is not None


def open_database_to_read(url: str) -> BaseStorage:
    """Return the storage of a database that has one; nothing is made or changed.

    Raises:
        ConfigError: It is a file that does not exist.
    """
    location = make_url(url)
    if location.get_backend_name() != "sqlite":
        return RDBStorage(url, skip_table_creation=True)
    file = Path((location.database or "").removeprefix("file:").partition("?")[0]).absolute()
    if not file.is_file():
        raise ConfigError(f"there is no database {file}")
    source = f"{file.as_uri()}?mode=ro"
    reading = {"creator": lambda: sqlite3.connect(source, uri=True)}
    return RDBStorage(url, reading, skip_table_creation=True)


def open_journal(path: Path) -> Journal:
    """Return the journal storage in a file, without the torn last line of a crash.

    Only the owner of the file may call it: another process may be writing the last line.

    Raises:
        RunMismatchError: A line is damaged; names file and line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    repair_end(path)
    return Journal(path)


def join_journal(path: Path) -> Journal:
    """Return the journal storage in a file that other processes also write.

    Raises:
        RunMismatchError: A line is damaged; names file and line.
    """
    return Journal(path)
