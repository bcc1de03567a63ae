"""Text files that a user gives: UTF-8, with or without a byte-order mark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsity_search.errors import DataError, told_of
from sparsity_search.utils import reading

#: Some editors write it at the start of a file; joined files have it anywhere. It is never text.
BYTE_ORDER_MARK = "\ufeff"


def read_text(path: Path) -> str:
    """Return the text of a file, without byte-order marks.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    return reading.read_text(path, error=DataError).replace(BYTE_ORDER_MARK, "")


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield file and line number for people, and the value of each line; None for an empty line.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or a line is not JSON.
    """
    for number, line in reading.read_lines(path, error=DataError):
        place, text = f"{path.name}, line {number}", line.strip(BYTE_ORDER_MARK).strip()
        with told_of(f"{place} is not JSON (write one object a line)", DataError):
            value = reading.parse_json(text) if text else None
        yield place, value
