"""Several runs side by side, as one page: what differs, how they went, what they found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sparsity_search.config.schema import flatten
from sparsity_search.errors import ConfigError
from sparsity_search.report.pages import check_pages, render_page
from sparsity_search.report.rows import describe_pruner
from sparsity_search.report.table import (
    NONE,
    Row,
    format_duration,
    format_number,
    format_percent,
)
from sparsity_search.runs.gains import list_gains
from sparsity_search.runs.record import RunRecord, find_shipped_name
from sparsity_search.runs.redact import redact
from sparsity_search.runs.trail import StepRecord
from sparsity_search.utils.files import write_text

#: Columns of `list_run_rows`; the first three are text.
HEADER: Row = (
    *("run", "shipped", "pruner", "sparsity", "score", "perplexity"),
    *("against the best", "standard error", "time"),
)


def write_runs(records: Mapping[str, RunRecord], out: Path) -> Path:
    """Write a page that compares runs.

    Args:
        records: Runs by label, see `read_runs`.
        out: The HTML file.

    Returns:
        ``out``.

    Raises:
        MissingExtraError: The extra ``report`` is not installed.
    """
    check_pages()
    write_text(out, render(records))
    return out


def read_runs(run_dirs: Sequence[Path], storage: str | None = None) -> dict[str, RunRecord]:
    """Return the records of runs by label: the part of their paths that differs.

    Args:
        run_dirs: Directories of at least two runs.
        storage: URL of their database, if they have one. It is not read without.

    Raises:
        ConfigError: One is no run directory, or there are fewer than two.
        RunMismatchError: A file in one is corrupt.
    """
    paths = list(dict.fromkeys(path.resolve() for path in run_dirs))
    if len(paths) < 2:
        raise ConfigError("a comparison needs at least two different runs")
    shared = Path(os.path.commonpath(paths))
    return {str(path.relative_to(shared)): RunRecord.read(path, storage) for path in paths}


def render(records: Mapping[str, RunRecord]) -> str:
    """Return the page as HTML, with charts inside and credentials hidden."""
    from sparsity_search.report import charts

    trails = {name: record.steps for name, record in records.items() if record.steps}
    shipped = {name: record.shipped for name, record in records.items()}
    profiles = {name: profile for name, profile in shipped.items() if profile is not None}
    found: dict[str, charts.Chart] = {}
    if trails:
        found["course"] = charts.draw_trails(trails)
    if len({profile.layout for profile in profiles.values()}) == 1:
        found["profiles"] = charts.draw_comparison(
            profiles, target=None, title="Mean sparsity of each block, shipped profiles"
        )
    captions = {
        "course": "The best score so far over the time of each job. Scores compare only on the "
        "same final text.",
        "profiles": "Weighted by size.",
    }
    secrets = tuple(secret for record in records.values() for secret in record.secrets)
    context = {
        "title": f"{len(records)} runs",
        "result": {"header": HEADER, "rows": list_run_rows(records)},
        "warnings": warn_of_differences(records),
        "settings": {"header": ("setting", *records), "rows": list_differences(records)},
    }
    context = redact(context, secrets)
    return render_page("runs.html.j2", context, found, **captions)


def warn_of_differences(records: Mapping[str, RunRecord]) -> list[str]:
    """Return sentences about what makes the scores of runs incomparable."""
    found = []
    if not _have_same_text(list(records.values())):
        found.append(
            "These runs have other final texts or evaluators: their scores do not compare."
        )
    if len({(record.removal, record.asked) for record in records.values()}) > 1:
        found.append("These runs have other budgets: the one that removes less has it easier.")
    return found


def list_run_rows(records: Mapping[str, RunRecord]) -> list[Row]:
    """Return a row for each run, the best score first.

    The change against the best run has its standard error from the differences of equal
    sequences, where both have the same final text.
    """
    steps = {name: _find_shipped(record) for name, record in records.items()}
    scored = {n: step for n, step in steps.items() if step is not None and step.score is not None}
    order = sorted(records, key=lambda name: (name not in scored, _get_score(scored.get(name))))
    best = scored.get(order[0])
    same = _have_same_text(list(records.values()))
    return [
        _format_row(name, records[name], steps[name], best if same else None) for name in order
    ]


def list_differences(records: Mapping[str, RunRecord]) -> list[Row]:
    """Return the settings that differ: a row each, with their values in each run."""
    flat = {name: flatten(record.config) for name, record in records.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    rows = [(key, *(str(values.get(key, NONE)) for values in flat.values())) for key in keys]
    return [row for row in rows if len({*row[1:]}) > 1]


def _find_shipped(record: RunRecord) -> StepRecord | None:
    name = find_shipped_name(record.results)
    found = [step for step in record.steps if step.name == name]
    return found[-1] if found else next((s for s in reversed(record.steps) if s.best), None)


def _format_row(
    name: str, record: RunRecord, step: StepRecord | None, best: StepRecord | None
) -> Row:
    if step is None:
        return (name, *(NONE,) * (len(HEADER) - 1))
    gain = None
    if best is not None and step is not best:
        _, gain = list_gains([replace(best, best=True), step])
    change, error = (gain.change, gain.error) if gain else (None, None)
    return (
        name,
        step.name,
        describe_pruner(step.pruner),
        format_percent(step.profile.sparsity),
        format_number(step.score),
        format_number(step.row.get("perplexity")),
        NONE if change is None else f"{100 * change:+.2f} %",
        NONE if error is None else format_percent(error),
        format_duration(record.seconds),
    )


def _get_score(step: StepRecord | None) -> float:
    return float("inf") if step is None or step.score is None else step.score


def _have_same_text(records: Sequence[RunRecord]) -> bool:
    """Whether runs have the same final text and evaluator, so that their scores compare."""
    digests = {record.run.get("text", {}).get("final", {}).get("digest") for record in records}
    evaluators = {str(record.config["evaluator"]) for record in records}
    return len(digests) == 1 and None not in digests and len(evaluators) == 1
