"""Results of a benchmark as one file in `benchmarks/results`: JSON with one row a line.

While a benchmark runs, it keeps each case in a file of its own in ``--out``, and resumes from
there. ``--table`` writes the table of all cases in that folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.utils.files import write_text

RESULTS = Path(__file__).parent / "results"


def slug(name: str) -> str:
    """Return a case's name as a file name: letters, digits, dots, underscores and hyphens."""
    return "-".join(re.findall(r"[\w.]+", name))


def write_table(file: Path, table: Mapping[str, Any]) -> None:
    """Write a table; each item of its lists and mappings is a line."""
    sections = [f"{json.dumps(key)}: {_section(value)}" for key, value in table.items()]
    write_text(file, "{\n" + ",\n".join(sections) + "\n}\n")


def read_table(file: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(file.read_text())
    return table


def merge_rows(file: Path, rows: Sequence[Mapping[str, Any]], *keys: str) -> None:
    """Add rows to a table; they replace rows that have equal values of the keys."""

    def case(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in keys)

    new = {case(row) for row in rows}
    known = read_table(file)["rows"] if file.exists() else []
    write_table(file, {"rows": [*(row for row in known if case(row) not in new), *rows]})


def counts_in(folder: Path) -> dict[str, list[int]]:
    """Return the counts of the profiles in a folder, by file name without its end."""
    profiles = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    return {
        name: [unit["removed"] for unit in profile["units"].values()]
        for name, profile in profiles.items()
    }


def known_layout() -> Layout:
    """Return the units of SmolLM2-135M, from the comparison of allocators."""
    return Layout.from_json(read_table(RESULTS / "allocators.json")["layout"])


def known_profile(name: str) -> SparsityProfile:
    """Return a profile that the comparison of allocators found."""
    counts = read_table(RESULTS / "allocators.json")["profiles"][name]
    return SparsityProfile(known_layout(), tuple(counts))


def _section(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f" {json.dumps(item)}" for item in value) + "\n]"
    if isinstance(value, dict) and value:
        lines = [f" {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    return json.dumps(value)
