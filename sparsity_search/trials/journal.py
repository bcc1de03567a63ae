"""The journal of a study, read with care: a damaged line is an error that names file and line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from sparsity_search.errors import RunMismatchError, SparsitySearchError
from sparsity_search.utils.files import told_of_machine


class Journal(JournalStorage):
    """The journal storage in a file.

    Args:
        path: The file; it is made if need be.

    Raises:
        RunMismatchError: A line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = _Lines(path)
        with _told_of_damage(lines):
            super().__init__(lines)


def repair_end(path: Path) -> None:
    """Cut the last line of a journal if it has no end: its writer was killed.

    Raises:
        RunMismatchError: The last line has an end, but is damaged.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    if whole:  # Optuna takes the last line for one that another process is still writing
        try:
            json.loads(content[content.rfind(b"\n", 0, whole - 1) + 1 : whole])
        except ValueError as error:
            raise _describe_damage(path, content.count(b"\n"), error) from error


class _Lines(JournalFileBackend):
    """The lines of a journal.

    Attributes:
        path: The file.
        line: Number of the line that was read last, from 1.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Lock(path))
        self.path = path
        self.line = 0

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records.

        Raises:
            MachineError: The disk is full, or the file cannot be written.
        """
        with told_of_machine(self.path):
            super().append_logs(logs)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the records from a line on, numbered from 0."""
        self.line = log_number_from
        try:
            for log in super().read_logs(log_number_from):
                self.line += 1
                yield log
        except ValueError as error:  # no JSON, or not in UTF-8
            raise _describe_damage(self.path, self.line + 1, error) from error


class _Lock(JournalFileOpenLock):
    """A lock that the system frees when its owner dies.

    With Optuna's own locks, other processes wait 30 seconds for a dead owner.
    """

    def __init__(self, journal: Path) -> None:
        self._lock = FileLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire(poll_interval=0.001)
        return True

    def release(self) -> None:
        self._lock.release()


@contextmanager
def _told_of_damage(lines: _Lines) -> Iterator[None]:
    """Raise an error that names file and line for a record that Optuna cannot replay."""
    try:
        yield
    except (OSError, SparsitySearchError):
        raise
    except Exception as error:  # whatever a record of another shape leads to
        raise _describe_damage(lines.path, lines.line, error) from error


def _describe_damage(path: Path, line: int, error: Exception) -> RunMismatchError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return RunMismatchError(
        f"{path} is damaged in line {line} ({reason}): restore it, or delete this line and all "
        "after it; what they held is measured again"
    )
