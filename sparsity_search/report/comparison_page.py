"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report.comparison import (
    HEADER,
    LEGEND,
    list_failures,
    list_rows,
    summarise,
    write_tables,
)
from sparsity_search.report.pages import (
    check_pages,
    list_provenance,
    render_page,
    tabulate_text,
)
from sparsity_search.report.seed_range import SeedRange
from sparsity_search.report.table import NONE, format_percent
from sparsity_search.runs.comparison import ComparisonRecord
from sparsity_search.utils.files import write_bytes, write_text


def write_comparison(folder: Path) -> Path:
    """Write tables, ``plots/*.png`` and ``report.html`` into the folder of a comparison.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: ``folder`` holds no comparison.
        RunMismatchError: A file in it is corrupt, or of another format.
        MissingExtraError: The extra ``report`` is not installed.
    """
    check_pages()
    write_tables(folder)
    record = ComparisonRecord.read(folder)
    for name, image in draw_figures(record).items():
        write_bytes(record.folder.plot_file(name), image)
    write_text(record.folder.report_file, render(record))
    return record.folder.report_file


def draw_figures(record: ComparisonRecord) -> dict[str, bytes]:
    """Return figures as PNG, by file name."""
    from sparsity_search.report import plots

    figures = {}
    if curves := _list_curves(record):
        figures["perplexity"] = plots.draw_perplexity(curves)
    for name, (title, target, profiles) in _list_profiles(record).items():
        figures[name] = plots.draw_comparison(profiles, target=target, title=title)
    return {name: plots.encode_png(figure) for name, figure in figures.items()}


def render(record: ComparisonRecord) -> str:
    """Return the page as HTML, with charts inside."""
    from sparsity_search.report import charts

    found: dict[str, charts.Chart] = {}
    captions = {}
    if curves := _list_curves(record):
        found["perplexity"] = charts.draw_perplexity(curves)
        captions["perplexity"] = (
            "Mean over seeds, whiskers from the least to the greatest; logarithmic."
        )
    for name, (title, target, profiles) in _list_profiles(record).items():
        found[name] = charts.draw_comparison(profiles, target=target, title=title)
        captions[name] = "Profiles of the first seed."
    context = {
        "title": f"Allocators on {record.facts.get('model', {}).get('name', NONE)}",
        "finished": len(record.rows) == len(record.facts["rows"]),
        "summary": summarise(record),
        "legend": LEGEND,
        "result": {"header": HEADER, "rows": list_rows(record)},
        "failures": list_failures(record),
        "notes": [f"{row['key']}: {note}" for row in record.rows for note in row.get("notes", ())],
        "settings": _list_settings(record),
        "provenance": list_provenance(record.facts),
        "text": tabulate_text(record.facts.get("text", {})),
    }
    return render_page("comparison.html.j2", context, found, **captions)


def _list_curves(record: ComparisonRecord) -> dict[str, dict[str, list[SeedRange]]]:
    """Return perplexities against sparsities, by pruner and allocator."""
    curves: dict[str, dict[str, list[SeedRange]]] = {}
    for group in record.groups():
        pruner, target = group.condition
        values, mean = group.values("perplexity"), group.mean("perplexity")
        if mean is not None:
            point = SeedRange(target, mean, min(values), max(values))
            curves.setdefault(pruner, {}).setdefault(group.allocator, []).append(point)
    return curves


def _list_profiles(
    record: ComparisonRecord,
) -> dict[str, tuple[str, float, Mapping[str, SparsityProfile]]]:
    """Return title, uniform level and profiles of each condition, by the name of its figure."""
    conditions = dict.fromkeys(group.condition for group in record.groups())
    return {
        f"profiles-{index}": (
            f"Mean sparsity of each block, {pruner} at {format_percent(target)}",
            target,
            profiles,
        )
        for index, (pruner, target) in enumerate(conditions)
        if (profiles := record.profiles(pruner, target))
    }


def _list_settings(record: ComparisonRecord) -> dict[str, str]:
    return {
        row["allocator"]: row.get("fingerprint", {}).get("allocator", NONE) for row in record.rows
    }
