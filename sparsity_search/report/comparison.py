"""A comparison of allocators as tables: one row a case in CSV, one row for all seeds elsewhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from sparsity_search.errors import ConfigError, RunMismatchError
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report.table import NONE, Row, duration, integer, number, percent
from sparsity_search.utils.files import write_text

FORMAT = 1
COMPARISON = "compare.json"

#: Columns of `table_rows`; the first three are text.
HEADER: Row = (
    "pruner",
    "sparsity",
    "allocator",
    "perplexity",
    "÷ uniform",
    "over seeds",
    "seeds",
    "allocation",
    "CPU",
    "passes",
    "with gradient",
    "pruning",
)
#: Marks a cost that was paid once, in the row of another pruner.
SHARED = "*"

#: What the columns mean, for people.
LEGEND = (
    "Perplexity is the mean over seeds; ÷ uniform the mean of the quotients by uniform of the "
    "same seed, and beside it their range: differences within it are noise. Allocation is the "
    "time to find the profile, CPU that of all threads, passes those of the calibration text "
    f"through the model. {SHARED}: paid once, in the row of another pruner."
)

_COSTS = ("seconds", "cpu_seconds", "passes", "gradient_passes")
_CSV = (
    *("pruner", "target", "allocator", "seed", "perplexity", "ratio", "sparsity", "removed"),
    *(f"allocation_{name}" for name in _COSTS),
    *("shared_with", "pruning_seconds", "pruning_cpu_seconds"),
    *("settings", "notes", "pruning_notes", "error"),
)


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
        """Return what the seeds gave, without those that gave nothing."""
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

    folder: Path
    facts: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, folder: Path) -> ComparisonRecord:
        """Return the record of a comparison, finished or not.

        Raises:
            ConfigError: ``folder`` holds no comparison.
            RunMismatchError: A file in it is corrupt, or of another format.
        """
        if not (folder / COMPARISON).exists():
            raise ConfigError(f"{folder} holds no comparison: it has no {COMPARISON}")
        facts = _read(folder / COMPARISON, "rows", "layout")
        files = [folder / "rows" / f"{key}.json" for key in facts["rows"]]
        rows = tuple(
            _read(f, "allocator", "pruner", "target", "seed") for f in files if f.exists()
        )
        return cls(folder=folder, facts=facts, rows=rows)

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
                stored = _read(self.folder / "profiles" / f"{row['profile']}.json")
                found[group.allocator] = SparsityProfile.from_json(layout, stored)
        return found


def table_rows(record: ComparisonRecord) -> list[Row]:
    """Return one row for each allocator, pruner and sparsity, over all seeds."""
    return [_row(group) for group in record.groups()]


def write_tables(folder: Path) -> None:
    """Write ``table.csv`` and ``table.md`` from the rows that are done."""
    record = ComparisonRecord.read(folder)
    write_text(folder / "table.csv", csv_text(record))
    write_text(folder / "table.md", markdown(record))


def csv_text(record: ComparisonRecord) -> str:
    """Return one line for each row that is done, in the table's order."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV)
    for group in record.groups():
        writer.writerows(_line(row) for row in group.rows)
    return buffer.getvalue()


def markdown(record: ComparisonRecord) -> str:
    """Return the table in Markdown, with what it means and what failed."""
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * 3 + "---:|" * (len(HEADER) - 3)]
    lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in table_rows(record)]
    lines += ["", summary(record), "", LEGEND]
    if failures := failure_lines(record):
        lines += ["", "Not measured:", "", *(f"- {line}" for line in failures)]
    return "\n".join(lines) + "\n"


def failure_lines(record: ComparisonRecord) -> list[str]:
    """Return what was refused, and why."""
    return [f"{row['key']}: {row['error']}" for row in record.failed]


def summary(record: ComparisonRecord) -> str:
    """Return the state of the comparison in one sentence or two."""
    asked, done, failed = len(record.facts["rows"]), len(record.rows), len(record.failed)
    text = f"{integer(done)} of {integer(asked)} rows"
    text += f", {integer(failed)} of them refused" if failed else ""
    paid = [row["allocation"] for row in record.rows if _paid(row)]
    spent = duration(sum(cost["seconds"] for cost in paid))
    return f"{text}; dense perplexity {number(record.facts.get('dense'))}; {spent} of allocation."


def _row(group: Group) -> Row:
    pruner, target = group.condition
    ratios, mean = group.values("ratio"), group.mean("ratio")
    shared = SHARED if any(row.get("shared_with") for row in group.rows) else ""
    done, refused = len(group.values("perplexity")), any(row.get("error") for row in group.rows)
    return (
        pruner,
        percent(target),
        group.allocator,
        "refused" if refused else number(group.mean("perplexity")),
        NONE if mean is None else f"{mean:.3f}",
        f"{min(ratios):.3f} … {max(ratios):.3f}" if len(ratios) > 1 else NONE,
        f"{done}" if done == len(group.rows) else f"{done} of {len(group.rows)}",
        *(_time(group.mean("allocation", part), shared) for part in _COSTS[:2]),
        *(_passes(group.mean("allocation", part)) for part in _COSTS[2:]),
        _time(group.mean("pruning", "seconds")),
    )


def _time(seconds: float | None, mark: str = "") -> str:
    return NONE if seconds is None else duration(seconds) + mark


def _passes(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _line(row: Mapping[str, Any]) -> list[Any]:
    costs = {f"allocation_{k}": v for k, v in (row.get("allocation") or {}).items()}
    costs |= {f"pruning_{k}": v for k, v in (row.get("pruning") or {}).items()}
    texts = {key: "; ".join(row.get(key, ())) for key in ("notes", "pruning_notes")}
    flat = {**row, **costs, **texts, "settings": row.get("fingerprint", {}).get("allocator")}
    return [flat.get(column) for column in _CSV]


def _paid(row: Mapping[str, Any]) -> bool:
    return bool(row.get("allocation")) and not row.get("shared_with")


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """Return the JSON object in a file that must hold some keys."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunMismatchError(f"{path} is missing or corrupt: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise RunMismatchError(f"{path} is not of format {FORMAT}, which this version reads")
    missing = [key for key in keys if key not in value]
    if missing:
        raise RunMismatchError(f"{path} is corrupt: no {missing[0]!r} in it")
    return value
