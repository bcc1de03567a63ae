"""The figures of a run as rows of texts: every number is formatted here and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Literal

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report.rows import (
    ResultRow,
    describe_pruner,
    describe_settings,
    find_uniform,
    list_pruners,
    tell_no_gain,
)
from sparsity_search.runs.record import RunRecord, find_shipped_name

Row = tuple[str, ...]

#: Columns of `list_rows` without the pruner and the saving.
HEADER: Row = (
    "profile",
    "sparsity",
    "removed",
    "score",
    "÷ uniform",
    "perplexity",
    "÷ uniform",
)
#: Columns of `list_rungs`.
RUNG_HEADER: Row = ("rung", "tokens", "survivors", "evaluations", "failed", "seconds each")

NONE = "\u2013"


def list_columns(record: RunRecord) -> Row:
    """Return the columns of `list_rows`.

    There is one for the pruner if there are several, and one for the saving if the budget is one.
    """
    pruner = ("pruner",) if _has_pruners(record) else ()
    saving = () if record.saving is None else ("saving",)
    return (HEADER[0], *pruner, *saving, *HEADER[1:])


def describe_budget(record: RunRecord) -> str:
    """Return the budget in words.

    >>> from types import SimpleNamespace
    >>> describe_budget(SimpleNamespace(asked=0.6, removal="sparsity"))
    '60.00 % sparsity'
    """
    return f"{format_percent(record.asked)} {record.removal}"


def list_rows(record: RunRecord) -> list[Row]:
    """Return the comparison, one row a profile; before the end its scores are missing.

    Quotients are by the uniform profile with the same pruner.
    """
    rows = _collect_rows(record)
    return [_format_row(record, row, find_uniform(rows, row)) for row in rows]


def list_group_columns(record: RunRecord, by: Literal["block", "role"]) -> Row:
    """Return the columns of `list_group_rows`."""
    return (by, "units", "weights", *record.distinct_profiles)


def list_group_rows(record: RunRecord, by: Literal["block", "role"]) -> list[Row]:
    """Return the sparsity of each block or role under each profile."""
    units: dict[int | str, int] = {}
    sizes: dict[int | str, int] = {}
    for unit in record.layout:
        key = getattr(unit, by)
        units[key] = units.get(key, 0) + 1
        sizes[key] = sizes.get(key, 0) + unit.size
    columns = [profile.grouped(by) for profile in record.distinct_profiles.values()]
    return [
        (
            str(key),
            format_integer(units[key]),
            format_integer(sizes[key]),
            *(format_percent(c[key]) for c in columns),
        )
        for key in units
    ]


def list_rungs(record: RunRecord) -> list[Row]:
    """Return the cost of each rung of the ladder."""
    found: list[Row] = []
    for index, rung in enumerate(record.config["ladder"]["rungs"]):
        here = [m for m in record.measurements if m.rung == index]
        seconds = sum(m.seconds for m in here) / len(here) if here else None
        found.append(
            (
                str(index),
                format_integer(rung["tokens"]),
                format_integer(rung["survivors"]),
                format_integer(len(here)),
                format_integer(sum(m.failed for m in here)),
                format_number(seconds),
            )
        )
    return found


def summarise(record: RunRecord) -> str:
    """Return the result in one sentence, after one that tells if nothing was gained."""
    rows, name = _collect_rows(record), find_shipped_name(record.results)
    chosen: ResultRow = next((row for row in rows if row["name"] == name), {})
    if record.results is None or chosen.get("score") is None:
        done = (
            "" if record.missing else f": {list_search_facts(record)['evaluations']} evaluations"
        )
        return f"The search is not finished{done}."
    removed, weights = chosen["removed"], record.layout.n_weights
    warning = warn_of_no_gain(record)
    text = f"{warning} " if warning else ""
    text += f"{name} removes {format_integer(removed)} of {format_integer(weights)} weights"
    text += f" ({format_percent(removed / weights)})"
    if record.saving is not None:
        what = record.removal.partition(" of ")[2]
        text += f" and saves {_format_saving(chosen.get('saving'))}{what and ' of ' + what}"
        if record.shipped is not None and record.shipped.patterns:
            text += f" with {_describe_mixture(record.shipped)}"
    return text + _compare_with_uniform(record, rows, chosen) + "."


def warn_of_no_gain(record: RunRecord) -> str:
    """Return a sentence if the shipped profile is not better than uniform; else nothing."""
    return tell_no_gain(_collect_rows(record), find_shipped_name(record.results))


def list_search_facts(record: RunRecord) -> dict[str, str]:
    """Return rounds, evaluations and time of the search, and an allocator's settings found.

    Without the measurements, they are those that were told at the end of the search.
    """
    measured = record.measurements
    stored: Mapping[str, Any] = (record.results or {}).get("search", {})
    rounds = max((m.round for m in measured), default=stored.get("rounds", 0))
    seconds = max((m.elapsed for m in measured), default=stored.get("seconds", 0.0))
    counted = {
        "failed evaluations": sum(m.failed for m in measured),
        "distinct candidates": len({m.candidate for m in measured}),
    }
    return {
        "rounds": format_integer(rounds),
        "evaluations": format_integer(len(measured) or stored.get("measurements", 0)),
        **{key: NONE if record.missing else format_integer(n) for key, n in counted.items()},
        "search time": format_duration(seconds),
        "best top-rung score": format_number(_find_best(record)),
        **(
            {"settings found": describe_settings(found)}
            if (found := stored.get("parameters"))
            else {}
        ),
    }


def list_times(record: RunRecord) -> list[Row]:
    """Return the time that each task of the last session took."""
    seconds: Mapping[str, float] = (record.results or {}).get("seconds", {})
    return [(task, format_duration(spent)) for task, spent in seconds.items()]


def format_integer(value: int) -> str:
    """Return a count with thousands separated.

    >>> format_integer(63700992)
    '63,700,992'
    """
    return f"{value:,}"


def format_percent(fraction: float) -> str:
    """Return a fraction as a percentage.

    >>> format_percent(0.6)
    '60.00 %'
    """
    return f"{100 * fraction:.2f} %"


def format_number(value: float | None) -> str:
    """Return a measured value with four digits, or a dash if there is none.

    >>> format_number(15.6), format_number(0.51234), format_number(31234.5), format_number(None)
    ('15.60', '0.5123', '31,234', '–')
    """
    if value is None or not isfinite(value):
        return NONE
    if abs(value) < 5e-7:  # rounding of nothing
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def format_ratio(value: float | None, reference: float | None) -> str:
    """Return a quotient, or a dash if it has none."""
    if value is None or not reference:
        return NONE
    return f"{value / reference:.3f}"


def format_duration(seconds: float) -> str:
    """Return a time span in the units people use for it.

    >>> format_duration(4.25), format_duration(312.4), format_duration(7260)
    ('4.2 s', '5 min 12 s', '2 h 01 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _collect_rows(record: RunRecord) -> list[ResultRow]:
    """Return the rows of the comparison, dense first; profiles without one have counts alone."""
    known = {
        name: {"name": name, "removed": profile.n_removed}
        for name, profile in record.profiles.items()
    }
    found = known | {row["name"]: row for row in (record.results or {}).get("rows", [])}
    return sorted(found.values(), key=lambda row: row["name"] != "dense")


def _has_pruners(record: RunRecord) -> bool:
    """Whether the rows of the comparison have several pruners."""
    return len(list_pruners(_collect_rows(record))) > 1


def _format_row(record: RunRecord, row: ResultRow, uniform: ResultRow) -> Row:
    pruner = (describe_pruner(row["pruner"]) if row.get("pruner") else NONE,)
    return (
        str(row["name"]),
        *(pruner if _has_pruners(record) else ()),
        *(() if record.saving is None else (_format_saving(row.get("saving")),)),
        *_format_removed(row, record.layout.n_weights),
        format_number(row.get("score")),
        format_ratio(row.get("score"), uniform.get("score")),
        format_number(row.get("perplexity")),
        format_ratio(row.get("perplexity"), uniform.get("perplexity")),
    )


def _compare_with_uniform(record: RunRecord, rows: Sequence[ResultRow], chosen: ResultRow) -> str:
    """Return the figures of the shipped row, each beside that of the uniform profile."""
    uniform = find_uniform(rows, chosen) or find_uniform(rows, {})
    if uniform is chosen:
        return ""
    text, of = "", "uniform"
    if _has_pruners(record) and uniform.get("pruner"):
        of = f"uniform with {describe_pruner(uniform['pruner'])}"
    for measure in ("score", "perplexity"):
        mine, theirs = chosen.get(measure), uniform.get(measure)
        if mine is not None and theirs is not None:
            quotient = format_ratio(mine, theirs)
            text += f"; {measure} {format_number(mine)}, {quotient} times that of {of}"
    return text


def _describe_mixture(profile: SparsityProfile) -> str:
    """Return how many units have each pattern, dense ones first."""
    units = Counter(pattern or "dense" for _, pattern in profile.states)
    order = sorted(units, key=lambda pattern: (pattern != "dense", pattern))
    return ", ".join(f"{units[pattern]} units {pattern}" for pattern in order)


def _format_saving(fraction: float | None) -> str:
    return NONE if fraction is None else format_percent(fraction)


def _format_removed(row: Mapping[str, Any], weights: int) -> Row:
    removed = row.get("removed")
    if removed is None:
        return NONE, NONE
    return format_percent(removed / weights), format_integer(removed)


def _find_best(record: RunRecord) -> float | None:
    """Return the best top-rung score, where scores of all rounds are comparable."""
    if record.fresh:
        return None
    top = (m for m in record.measurements if m.rung == record.top_rung and not m.failed)
    return min((m.score.value for m in top), default=None)
