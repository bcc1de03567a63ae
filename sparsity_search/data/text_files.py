"""Text files that a user gives: UTF-8, with or without a byte-order mark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsity_search.errors import DataError

#: Some editors write it at the start of a file; joined files have it anywhere. It is never text.
BYTE_ORDER_MARK = "\ufeff"


def read_text(path: Path) -> str:
    """Return the text of a file, without byte-order marks.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    with _named_errors(path):
        return path.read_text(encoding="utf-8").replace(BYTE_ORDER_MARK, "")


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield file and line number for people, and the value of each line; None for an empty line.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or a line is not JSON.
    """
    with _named_errors(path), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path.name}, line {number}"
            yield place, _parse(line.strip(BYTE_ORDER_MARK).strip(), place)


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line) if line else None
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: write one object a line") from error


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text: convert it first") from error
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror or error}") from error
