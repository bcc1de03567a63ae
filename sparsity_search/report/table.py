"""The figures of a run as rows of texts: every number is formatted here and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs.record import RunRecord, find_shipped_name

Row = tuple[str, ...]

#: Columns of `rows`, but for what is saved.
HEADER: Row = (
    "profile",
    "sparsity",
    "removed",
    "score",
    "÷ uniform",
    "perplexity",
    "÷ uniform",
)
#: Columns of `rung_rows`.
RUNG_HEADER: Row = ("rung", "tokens", "survivors", "evaluations", "failed", "seconds each")

NONE = "\u2013"


def header(record: RunRecord) -> Row:
    """Return the columns of `rows`; among options there is one more, of what is saved."""
    return HEADER if record.saving is None else ("profile", "saving", *HEADER[1:])


def asked(record: RunRecord) -> str:
    """Return the budget in words.

    >>> from types import SimpleNamespace
    >>> asked(SimpleNamespace(asked=0.6, removal="sparsity"))
    '60.00 % sparsity'
    """
    return f"{percent(record.asked)} {record.removal}"


def rows(record: RunRecord) -> list[Row]:
    """Return the comparison, one row a profile; before the end its scores are missing."""
    results = [row for _, row in sorted(_results(record).items(), key=_dense_first)]
    uniform = _results(record).get("uniform", {})
    return [
        (
            str(row["name"]),
            *(() if record.saving is None else (_percent(row.get("saving")),)),
            *_removed(row, record.layout.n_weights),
            number(row.get("score")),
            ratio(row.get("score"), uniform.get("score")),
            number(row.get("perplexity")),
            ratio(row.get("perplexity"), uniform.get("perplexity")),
        )
        for row in results
    ]


def group_header(record: RunRecord, by: Literal["block", "role"]) -> Row:
    """Return the columns of `group_rows`."""
    return (by, "units", "weights", *record.profiles)


def group_rows(record: RunRecord, by: Literal["block", "role"]) -> list[Row]:
    """Return the sparsity of each block or role under each profile."""
    units: dict[int | str, int] = {}
    sizes: dict[int | str, int] = {}
    for unit in record.layout:
        key = getattr(unit, by)
        units[key] = units.get(key, 0) + 1
        sizes[key] = sizes.get(key, 0) + unit.size
    columns = [profile.grouped(by) for profile in record.profiles.values()]
    return [
        (str(key), integer(units[key]), integer(sizes[key]), *(percent(c[key]) for c in columns))
        for key in units
    ]


def rung_rows(record: RunRecord) -> list[Row]:
    """Return what each rung of the ladder cost."""
    found: list[Row] = []
    for index, rung in enumerate(record.config["ladder"]["rungs"]):
        here = [m for m in record.measurements if m.rung == index]
        seconds = sum(m.seconds for m in here) / len(here) if here else None
        found.append(
            (
                str(index),
                integer(rung["tokens"]),
                integer(rung["survivors"]),
                integer(len(here)),
                integer(sum(m.failed for m in here)),
                number(seconds),
            )
        )
    return found


def summary(record: RunRecord) -> str:
    """Return the result in one sentence."""
    found = _results(record)
    name = find_shipped_name(record.results)
    chosen, uniform = found.get(name, {}), found.get("uniform", {})
    if record.results is None or chosen.get("score") is None:
        return f"The search is not finished: {search_facts(record)['evaluations']} evaluations."
    removed, weights = chosen["removed"], record.layout.n_weights
    text = f"{name} removes {integer(removed)} of {integer(weights)} weights"
    text += f" ({percent(removed / weights)})"
    if record.saving is not None:
        what = record.removal.partition(" of ")[2]
        text += f" and saves {_percent(chosen.get('saving'))}{what and ' of ' + what}"
        if record.shipped is not None and record.shipped.patterns:
            text += f" with {_mixture(record.shipped)}"
    for measure in ("score", "perplexity"):
        mine, theirs = chosen.get(measure), uniform.get(measure)
        if name != "uniform" and mine is not None and theirs is not None:
            text += f"; {measure} {number(mine)}, {ratio(mine, theirs)} times that of uniform"
    return text + "."


def search_facts(record: RunRecord) -> dict[str, str]:
    """Return rounds, evaluations and time of the search, and an allocator's settings found."""
    measured = record.measurements
    stored: Mapping[str, Any] = (record.results or {}).get("search", {})
    rounds = max((m.round for m in measured), default=stored.get("rounds", 0))
    seconds = max((m.elapsed for m in measured), default=stored.get("seconds", 0.0))
    return {
        "rounds": integer(rounds),
        "evaluations": integer(len(measured) or stored.get("measurements", 0)),
        "failed evaluations": integer(sum(m.failed for m in measured)),
        "distinct candidates": integer(len({m.candidate for m in measured})),
        "search time": duration(seconds),
        "best top-rung score": number(_best(record)),
        **({"settings found": _settings(found)} if (found := stored.get("parameters")) else {}),
    }


def stage_rows(record: RunRecord) -> list[Row]:
    """Return the time that each stage of the last session took."""
    seconds: Mapping[str, float] = (record.results or {}).get("seconds", {})
    return [(stage, duration(spent)) for stage, spent in seconds.items()]


def integer(value: int) -> str:
    """Return a count with thousands separated.

    >>> integer(63700992)
    '63,700,992'
    """
    return f"{value:,}"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage.

    >>> percent(0.6)
    '60.00 %'
    """
    return f"{100 * fraction:.2f} %"


def number(value: float | None) -> str:
    """Return a measured value with four digits, or a dash if there is none.

    >>> number(15.6), number(0.51234), number(31234.5), number(None)
    ('15.60', '0.5123', '31,234', '–')
    """
    if value is None or not isfinite(value):
        return NONE
    if abs(value) < 5e-7:  # rounding of nothing
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def ratio(value: float | None, reference: float | None) -> str:
    """Return a quotient, or a dash if it has none."""
    if value is None or not reference:
        return NONE
    return f"{value / reference:.3f}"


def duration(seconds: float) -> str:
    """Return a time span in the units people use for it.

    >>> duration(4.25), duration(312.4), duration(7260)
    ('4.2 s', '5 min 12 s', '2 h 01 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _results(record: RunRecord) -> dict[str, Mapping[str, Any]]:
    """Return the rows of the comparison by name; profiles without one have counts alone."""
    known = {
        name: {"name": name, "removed": profile.n_removed}
        for name, profile in record.profiles.items()
    }
    return known | {row["name"]: row for row in (record.results or {}).get("rows", [])}


def _mixture(profile: SparsityProfile) -> str:
    """Return how many units have each pattern, dense ones first."""
    units = Counter(pattern or "dense" for _, pattern in profile.states)
    order = sorted(units, key=lambda pattern: (pattern != "dense", pattern))
    return ", ".join(f"{units[pattern]} units {pattern}" for pattern in order)


def _settings(parameters: Mapping[str, Any]) -> str:
    """Return an allocator's settings in words."""
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())


def _percent(fraction: float | None) -> str:
    return NONE if fraction is None else percent(fraction)


def _dense_first(item: tuple[str, Mapping[str, Any]]) -> bool:
    return item[0] != "dense"


def _removed(row: Mapping[str, Any], weights: int) -> Row:
    removed = row.get("removed")
    if removed is None:
        return NONE, NONE
    return percent(removed / weights), integer(removed)


def _best(record: RunRecord) -> float | None:
    """Return the best top-rung score, where scores of all rounds are comparable."""
    if record.fresh:
        return None
    top = (m for m in record.measurements if m.rung == record.top_rung and not m.failed)
    return min((m.score.value for m in top), default=None)
