"""One line a unit, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import ClassVar

from sparsity_search.errors import ProfileError
from sparsity_search.formats.bases.layers import parse_number
from sparsity_search.interfaces.format import Format, ProfileDocument
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile

_COLUMNS = ("name", "block", "role", "removed", "of", "weights_each", "sparsity")
#: Columns without which counts are not known; ``weights_each`` is 1 and ``sparsity`` follows.
_NEEDED = _COLUMNS[:5]
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class CsvFormat(Format):
    """A table with a line for each unit: its name, block, role, counts and sparsity."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv",)
    sized: ClassVar[bool] = True

    def read(self, text: str, layout: Layout | None = None) -> ProfileDocument:
        """Return the counts of the table; its order is the units' order."""
        del layout
        rows = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
        units, removed = [], []
        try:
            missing = [column for column in _NEEDED if column not in (rows.fieldnames or [])]
            if missing:
                raise ProfileError(f"the table lacks the column {missing[0]!r}")
            for row in rows:
                unit, count = _parse_unit(row, f"line {rows.line_num}")
                units.append(unit)
                removed.append(count)
        except csv.Error as error:
            raise ProfileError(f"not a CSV table: {error}") from error
        return ProfileDocument(SparsityProfile(Layout(units), tuple(removed)))

    def write(self, document: ProfileDocument) -> str:
        """Return the table, with a header."""
        profile, text = document.profile, io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for unit, count in zip(profile.layout, profile.removed, strict=True):
            sizes = (count, unit.count, unit.cost, count / unit.count)
            writer.writerow((unit.name, unit.block, unit.role, *sizes))
        return text.getvalue()


def _parse_unit(row: dict[str, str | None], where: str) -> tuple[Unit, int]:
    """Return a line's unit, and what is removed from it.

    Raises:
        ProfileError: A number is missing or not legal, or sparsity and counts disagree.
    """
    unit = Unit(
        name=row["name"] or "",
        block=_parse_integer(row, "block", where, least=0),
        role=row["role"] or "",
        count=_parse_integer(row, "of", where, least=1),
        cost=_parse_integer(row, "weights_each", where, least=1) if row.get("weights_each") else 1,
    )
    removed = _parse_integer(row, "removed", where, least=0)
    if row.get("sparsity"):
        stated = parse_number(row["sparsity"], where)
        if abs(stated - removed / unit.count) > _TOLERANCE:
            raise ProfileError(
                f"{where}: {removed} of {unit.count} is not sparsity {stated}; counts hold, so "
                f"leave the column 'sparsity' out or make them agree"
            )
    return unit, removed


def _parse_integer(row: dict[str, str | None], column: str, where: str, *, least: int) -> int:
    text = (row[column] or "").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 16) or int(text) < least:
        raise ProfileError(f"{where}: {column} must be an integer from {least}, not {text!r}")
    return int(text)
