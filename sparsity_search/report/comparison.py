"""A comparison of allocators as tables: one row a case in CSV, one row for all seeds elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsity_search.report.markdown import escape, format_table
from sparsity_search.report.table import (
    NONE,
    Row,
    format_duration,
    format_integer,
    format_number,
    format_percent,
)
from sparsity_search.runs.comparison import ComparisonRecord, Group
from sparsity_search.utils.files import write_text

#: Columns of `list_rows`; the first three are text.
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
    "same seed, followed by their range: differences within it are noise. Allocation is the "
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


def list_rows(record: ComparisonRecord) -> list[Row]:
    """Return one row for each allocator, pruner and sparsity, over all seeds."""
    return [_format_row(group) for group in record.groups()]


def write_tables(folder: Path) -> None:
    """Write ``table.csv`` and ``table.md`` from the rows that are done."""
    record = ComparisonRecord.read(folder)
    write_text(record.folder.table_file("csv"), format_csv(record))
    write_text(record.folder.table_file("md"), format_markdown(record))


def format_csv(record: ComparisonRecord) -> str:
    """Return one line for each row that is done, in the table's order."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV)
    for group in record.groups():
        writer.writerows(_format_line(row) for row in group.rows)
    return buffer.getvalue()


def format_markdown(record: ComparisonRecord) -> str:
    """Return the table in Markdown, with a legend and the refused cases."""
    rows = [list(map(escape, row)) for row in list_rows(record)]
    lines = [format_table(HEADER, rows, left=3), "", summarise(record), "", LEGEND]
    if failures := list_failures(record):
        lines += ["", "Not measured:", "", *(f"- {escape(line)}" for line in failures)]
    return "\n".join(lines) + "\n"


def list_failures(record: ComparisonRecord) -> list[str]:
    """Return a line for each refused case: its key, and why."""
    return [f"{row['key']}: {row['error']}" for row in record.failed]


def summarise(record: ComparisonRecord) -> str:
    """Return the state of the comparison in one sentence or two."""
    asked, done, failed = len(record.facts["rows"]), len(record.rows), len(record.failed)
    text = f"{format_integer(done)} of {format_integer(asked)} rows"
    text += f", {format_integer(failed)} of them refused" if failed else ""
    paid = [row["allocation"] for row in record.rows if _is_paid(row)]
    spent = format_duration(sum(cost["seconds"] for cost in paid))
    dense = format_number(record.facts.get("dense"))
    return f"{text}; dense perplexity {dense}; {spent} of allocation."


def _format_row(group: Group) -> Row:
    pruner, target = group.condition
    ratios, mean = group.values("ratio"), group.mean("ratio")
    shared = SHARED if any(row.get("shared_with") for row in group.rows) else ""
    done, refused = len(group.values("perplexity")), any(row.get("error") for row in group.rows)
    return (
        pruner,
        format_percent(target),
        group.allocator,
        "refused" if refused else format_number(group.mean("perplexity")),
        NONE if mean is None else f"{mean:.3f}",
        f"{min(ratios):.3f} … {max(ratios):.3f}" if len(ratios) > 1 else NONE,
        f"{done}" if done == len(group.rows) else f"{done} of {len(group.rows)}",
        *(_format_time(group.mean("allocation", part), shared) for part in _COSTS[:2]),
        *(_format_passes(group.mean("allocation", part)) for part in _COSTS[2:]),
        _format_time(group.mean("pruning", "seconds")),
    )


def _format_time(seconds: float | None, mark: str = "") -> str:
    return NONE if seconds is None else format_duration(seconds) + mark


def _format_passes(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _format_line(row: Mapping[str, Any]) -> list[Any]:
    costs = {f"allocation_{k}": v for k, v in (row.get("allocation") or {}).items()}
    costs |= {f"pruning_{k}": v for k, v in (row.get("pruning") or {}).items()}
    texts = {key: "; ".join(row.get(key, ())) for key in ("notes", "pruning_notes")}
    flat = {**row, **costs, **texts, "settings": row.get("fingerprint", {}).get("allocator")}
    return [flat.get(column) for column in _CSV]


def _is_paid(row: Mapping[str, Any]) -> bool:
    return bool(row.get("allocation")) and not row.get("shared_with")
