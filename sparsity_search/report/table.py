"""The figures of a run as rows of texts: every number is formatted here and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs.record import RunRecord, find_shipped_name

Row = tuple[str, ...]

#: Columns of `list_rows` without the saving.
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
    """Return the columns of `list_rows`, with one for the saving if the budget is one."""
    return HEADER if record.saving is None else ("profile", "saving", *HEADER[1:])


def describe_budget(record: RunRecord) -> str:
    """Return the budget in words.

    >>> from types import SimpleNamespace
    >>> describe_budget(SimpleNamespace(asked=0.6, removal="sparsity"))
    '60.00 % sparsity'
    """
    return f"{format_percent(record.asked)} {record.removal}"


def list_rows(record: RunRecord) -> list[Row]:
    """Return the comparison, one row a profile; before the end its scores are missing."""
    results = [row for _, row in sorted(_collect_results(record).items(), key=_get_sort_key)]
    uniform = _collect_results(record).get("uniform", {})
    return [
        (
            str(row["name"]),
            *(() if record.saving is None else (_format_saving(row.get("saving")),)),
            *_format_removed(row, record.layout.n_weights),
            format_number(row.get("score")),
            format_ratio(row.get("score"), uniform.get("score")),
            format_number(row.get("perplexity")),
            format_ratio(row.get("perplexity"), uniform.get("perplexity")),
        )
        for row in results
    ]


def list_group_columns(record: RunRecord, by: Literal["block", "role"]) -> Row:
    """Return the columns of `list_group_rows`."""
    return (by, "units", "weights", *record.profiles)


def list_group_rows(record: RunRecord, by: Literal["block", "role"]) -> list[Row]:
    """Return the sparsity of each block or role under each profile."""
    units: dict[int | str, int] = {}
    sizes: dict[int | str, int] = {}
    for unit in record.layout:
        key = getattr(unit, by)
        units[key] = units.get(key, 0) + 1
        sizes[key] = sizes.get(key, 0) + unit.size
    columns = [profile.grouped(by) for profile in record.profiles.values()]
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
    """Return the result in one sentence."""
    found = _collect_results(record)
    name = find_shipped_name(record.results)
    chosen, uniform = found.get(name, {}), found.get("uniform", {})
    if record.results is None or chosen.get("score") is None:
        done = (
            "" if record.missing else f": {list_search_facts(record)['evaluations']} evaluations"
        )
        return f"The search is not finished{done}."
    removed, weights = chosen["removed"], record.layout.n_weights
    text = f"{name} removes {format_integer(removed)} of {format_integer(weights)} weights"
    text += f" ({format_percent(removed / weights)})"
    if record.saving is not None:
        what = record.removal.partition(" of ")[2]
        text += f" and saves {_format_saving(chosen.get('saving'))}{what and ' of ' + what}"
        if record.shipped is not None and record.shipped.patterns:
            text += f" with {_describe_mixture(record.shipped)}"
    for measure in ("score", "perplexity"):
        mine, theirs = chosen.get(measure), uniform.get(measure)
        if name != "uniform" and mine is not None and theirs is not None:
            quotient = format_ratio(mine, theirs)
            text += f"; {measure} {format_number(mine)}, {quotient} times that of uniform"
    return text + "."


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
            {"settings found": _describe_settings(found)}
            if (found := stored.get("parameters"))
            else {}
        ),
    }


def list_steps(record: RunRecord) -> list[Row]:
    """Return the time that each step of the last session took."""
    seconds: Mapping[str, float] = (record.results or {}).get("seconds", {})
    return [(step, format_duration(spent)) for step, spent in seconds.items()]


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


def _collect_results(record: RunRecord) -> dict[str, Mapping[str, Any]]:
    """Return the rows of the comparison by name; profiles without one have counts alone."""
    known = {
        name: {"name": name, "removed": profile.n_removed}
        for name, profile in record.profiles.items()
    }
    return known | {row["name"]: row for row in (record.results or {}).get("rows", [])}


def _describe_mixture(profile: SparsityProfile) -> str:
    """Return how many units have each pattern, dense ones first."""
    units = Counter(pattern or "dense" for _, pattern in profile.states)
    order = sorted(units, key=lambda pattern: (pattern != "dense", pattern))
    return ", ".join(f"{units[pattern]} units {pattern}" for pattern in order)


def _describe_settings(parameters: Mapping[str, Any]) -> str:
    """Return an allocator's settings in words."""
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())


def _format_saving(fraction: float | None) -> str:
    return NONE if fraction is None else format_percent(fraction)


def _get_sort_key(item: tuple[str, Mapping[str, Any]]) -> bool:
    return item[0] != "dense"


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
