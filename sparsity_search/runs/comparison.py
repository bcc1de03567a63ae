"""The folder of a comparison: its files, and the record that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from pydantic import Field

from sparsity_search.errors import ConfigError, RunMismatchError
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.utils.shapes import Shape
from sparsity_search.utils.versioned import VersionedJson


class _ComparisonShape(Shape):
    """The record of a comparison."""

    rows: list[str]
    layout: list[Any]
    fingerprint: dict[str, Any] = Field({})
    identity: dict[str, Any] = Field({})


class _RowShape(Shape):
    """A row of a comparison."""

    allocator: str
    pruner: str
    target: float
    seed: int
    fingerprint: dict[str, Any] = Field({})
    allocation: dict[str, float | None] | None = None
    pruning: dict[str, float | None] | None = None
    perplexity: float | None = None
    ratio: float | None = None
    error: str | None = None


#: The file that says how a comparison was made, and which rows were asked for.
COMPARISON_JSON = VersionedJson(
    "the record of a comparison", 1, _ComparisonShape, RunMismatchError
)
#: The file of one row.
ROW_JSON = VersionedJson("a row of a comparison", 1, _RowShape, RunMismatchError)


@dataclass(frozen=True)
class ComparisonFolder:
    """The files of one comparison.

    Attributes:
        path: The folder, which need not exist.
    """

    path: Path

    @property
    def facts_file(self) -> Path:
        """How the comparison was made, and which rows were asked for."""
        return self.path / "compare.json"

    @property
    def report_file(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def table_file(self, suffix: str) -> Path:
        """Return the file of the table in a format: ``csv`` or ``md``."""
        return self.path / f"table.{suffix}"

    def plot_file(self, name: str) -> Path:
        """Return the file of a figure."""
        return self.path / "plots" / f"{name}.png"

    def row_file(self, key: str) -> Path:
        """Return the file of a row."""
        return self.path / "rows" / f"{key}.json"

    def profile_file(self, key: str) -> Path:
        """Return the file of a profile, which several rows may share."""
        return self.path / "profiles" / f"{key}.json"

    @property
    def begun(self) -> bool:
        """Whether a comparison was begun here."""
        return self.facts_file.exists()

    def read_facts(self) -> dict[str, Any]:
        """Return ``compare.json``.

        Raises:
            ConfigError: There is none.
            RunMismatchError: It is corrupt, or of another format.
        """
        if not self.begun:
            raise ConfigError(f"{self.path} holds no comparison: it has no {self.facts_file.name}")
        return COMPARISON_JSON.read(self.facts_file)

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write ``compare.json``."""
        COMPARISON_JSON.write(self.facts_file, facts)

    def read_row(self, key: str) -> dict[str, Any]:
        """Return a row.

        Raises:
            ConfigError: There is none.
            RunMismatchError: It is corrupt, or of another format.
        """
        return ROW_JSON.read(self.row_file(key))

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Write a row to the file of its key."""
        ROW_JSON.write(self.row_file(row["key"]), row)

    def read_profile(self, key: str) -> dict[str, Any]:
        """Return a profile's file: counts, and how they were allocated.

        Raises:
            ConfigError: There is none.
            ProfileError: It is corrupt, or of another format.
        """
        return PROFILE_JSON.read(self.profile_file(key))


@dataclass(frozen=True)
class Group:
    """The rows of one allocator with one pruner at one sparsity, one for each seed."""

    rows: Sequence[Mapping[str, Any]]

    @property
    def allocator(self) -> str:
        """Its label."""
        return str(self.rows[0]["allocator"])

    @property
    def condition(self) -> tuple[str, float]:
        """Pruner and sparsity."""
        return str(self.rows[0]["pruner"]), float(self.rows[0]["target"])

    def values(self, key: str, part: str | None = None) -> list[float]:
        """Return the values of all seeds that have one."""
        found = [row.get(key) for row in self.rows]
        if part is not None:
            found = [value and value[part] for value in found]
        return [float(value) for value in found if value is not None]

    def mean(self, key: str, part: str | None = None) -> float | None:
        """Return the mean over seeds; None if a seed is without, so that it is no fair one."""
        values = self.values(key, part)
        return sum(values) / len(values) if len(values) == len(self.rows) else None


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord:
    """Everything that the folder of a comparison holds.

    Attributes:
        folder: The folder.
        facts: ``compare.json``: how it was made, and which rows were asked for.
        rows: Those that are done, in the order they were asked for.
    """

    folder: ComparisonFolder
    facts: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, folder: Path) -> ComparisonRecord:
        """Return the record of a comparison, finished or not.

        Raises:
            ConfigError: ``folder`` holds no comparison.
            RunMismatchError: A file in it is corrupt, or of another format.
        """
        files = ComparisonFolder(folder)
        facts = files.read_facts()
        rows = [files.read_row(key) for key in facts["rows"] if files.row_file(key).exists()]
        return cls(folder=files, facts=facts, rows=tuple(rows))

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Rows whose method refused the case."""
        return [row for row in self.rows if row.get("error")]

    def groups(self) -> list[Group]:
        """Return the rows by allocator: pruners as given, sparsities rising, the best first."""
        found: dict[tuple[str, float, str], list[Mapping[str, Any]]] = {}
        for row in self.rows:
            found.setdefault((row["pruner"], row["target"], row["allocator"]), []).append(row)
        pruners = list(dict.fromkeys(pruner for pruner, _, _ in found))

        def order(group: Group) -> tuple[int, float, float]:
            pruner, target = group.condition
            mean = group.mean("perplexity")
            return pruners.index(pruner), target, inf if mean is None else mean

        return sorted(map(Group, found.values()), key=order)

    def profiles(self, pruner: str, target: float) -> dict[str, SparsityProfile]:
        """Return the profiles of the first seed of each allocator under one condition."""
        layout = Layout.from_json(self.facts["layout"])
        found: dict[str, SparsityProfile] = {}
        for group in self.groups():
            row = group.rows[0]
            if group.condition == (pruner, target) and not row.get("error"):
                stored = self.folder.read_profile(row["profile"])
                found[group.allocator] = SparsityProfile.from_json(layout, stored)
        return found
