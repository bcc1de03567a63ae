"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
    encode_image,
    list_provenance,
    render_page,
    tabulate_text,
)
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
    images = draw_figures(record)
    for name, (_, image) in images.items():
        write_bytes(record.folder.plot_file(name), image)
    write_text(record.folder.report_file, render(record, images))
    return record.folder.report_file


def draw_figures(record: ComparisonRecord) -> dict[str, tuple[str, bytes]]:
    """Return captions and figures as PNG, by file name."""
    from sparsity_search.report import plots

    curves: dict[str, dict[str, list[plots.SeedRange]]] = {}
    figures = {}
    for group in record.groups():
        pruner, target = group.condition
        values, mean = group.values("perplexity"), group.mean("perplexity")
        if mean is not None:
            point = plots.SeedRange(target, mean, min(values), max(values))
            curves.setdefault(pruner, {}).setdefault(group.allocator, []).append(point)
    if curves:
        caption = "Mean over seeds, whiskers from the least to the greatest; logarithmic."
        figures["perplexity"] = (caption, plots.encode_png(plots.draw_perplexity(curves)))
    conditions = dict.fromkeys(group.condition for group in record.groups())
    for index, (pruner, target) in enumerate(conditions):
        if profiles := record.profiles(pruner, target):
            title = f"Mean sparsity of each block, {pruner} at {format_percent(target)}"
            figure = plots.draw_comparison(profiles, target=target, title=title)
            figures[f"profiles-{index}"] = (
                "Profiles of the first seed.",
                plots.encode_png(figure),
            )
    return figures


def render(record: ComparisonRecord, images: Mapping[str, tuple[str, bytes]]) -> str:
    """Return the page as HTML, with images embedded."""
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
        "images": [(n, caption, encode_image(image)) for n, (caption, image) in images.items()],
    }
    return render_page("comparison.html.j2", context)


def _list_settings(record: ComparisonRecord) -> dict[str, str]:
    return {
        row["allocator"]: row.get("fingerprint", {}).get("allocator", NONE) for row in record.rows
    }
