"""The report of a run: one HTML file that needs nothing else, and figures as PNG."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sparsity_search.errors import MissingMeasurementsWarning
from sparsity_search.report import steps, table
from sparsity_search.report.agreement import tell_disagreement
from sparsity_search.report.pages import (
    check_pages,
    list_provenance,
    render_page,
    tabulate_text,
)
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import RunRecord, find_shipped_name, trace_scores
from sparsity_search.runs.redact import redact
from sparsity_search.utils.files import write_bytes, write_text

if TYPE_CHECKING:
    from sparsity_search.report.charts import Chart

#: What the figures show, by file name.
CAPTIONS = {
    "steps": "Each candidate where it was ready, and the best score so far, on text that no step "
    "reads. Lower is better.",
    "profile": "The sparsity of each role in each block of the shipped profile.",
    "map": "How far each unit of the shipped profile lies from the uniform level.",
    "comparison": "Where the compared profiles prune more, and where less.",
    "score": "How the score on the search text fell; dashed, the candidates that the search "
    "began with, on the same tokens. It is measured on the supernet, so it is not comparable "
    "with the scores in the table, which are of the rebuilt model on other text.",
    "winners": "The best score of each round on the search text. Each round had its own tokens, "
    "so scores of two rounds differ by their text too.",
}


def write_report(run_dir: Path, storage: str | None = None) -> Path:
    """Write ``plots/*.png`` and ``report.html`` into a run directory; again gives equal files.

    Without the measurements, a report that is there is kept, with a warning.

    Args:
        run_dir: Directory of a run, finished or not.
        storage: URL of its database, if it has one. It is not read without.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: ``run_dir`` is no run directory, or ``storage`` cannot be read.
        RunMismatchError: A file in it is corrupt, or of another format.
        MissingExtraError: The extra ``report`` is not installed.
    """
    check_pages()
    record, directory = RunRecord.read(run_dir, storage), RunDirectory(run_dir)
    if record.missing is not None:
        kept = directory.report_file.exists()
        state = f"{directory.report_file} is kept as it was" if kept else "no measurements"
        warnings.warn(f"{state}: {record.missing}", MissingMeasurementsWarning, stacklevel=2)
        if kept:
            return directory.report_file
    for name, image in draw_figures(record).items():
        write_bytes(directory.plot_file(name), image)
    write_text(directory.report_file, render(record))
    return directory.report_file


def draw_figures(record: RunRecord) -> dict[str, bytes]:
    """Return the figures that a record has the data for, as PNG by name."""
    from sparsity_search.report import plots

    figures = _draw(record, plots, " (lower is better)")
    return {name: plots.encode_png(figure) for name, figure in figures.items()}


def draw_charts(record: RunRecord) -> dict[str, Chart]:
    """Return the charts that a record has the data for, by name, in the order of the page."""
    from sparsity_search.report import charts

    found = _draw(record, charts)
    if record.shipped is not None:
        found["map"] = charts.draw_heat_map(record.shipped, target=record.target)
    return {name: found[name] for name in CAPTIONS if name in found}


def _draw(record: RunRecord, tools: Any, suffix: str = "") -> dict[str, Any]:
    """Return what a record has the data for, by name.

    Args:
        record: The record.
        tools: The module that draws: `plots` or `charts`.
        suffix: What follows the name of the score on axes.
    """
    found: dict[str, Any] = {}
    score = str(record.config["evaluator"]["name"]).replace("_", " ") + suffix
    if record.shipped is not None:
        found["profile"] = tools.draw_profile(record.shipped, target=record.target)
    if len(record.distinct_profiles) > 1:
        found["comparison"] = tools.draw_comparison(record.distinct_profiles, target=record.target)
    if len(record.steps) > 1 and any(step.score is not None for step in record.steps):
        found["steps"] = tools.draw_steps(record.steps, score=score)
    scores = trace_scores(record.measurements, record.top_rung, fresh=record.fresh)
    if scores.scores:
        found["winners" if record.fresh else "score"] = tools.draw_scores(
            scores,
            {} if record.fresh else record.initial_scores,
            score=score,
            fresh=record.fresh,
        )
    return found


def render(record: RunRecord) -> str:
    """Return the report as HTML, with charts inside and credentials hidden."""
    charts = redact(draw_charts(record), record.secrets)
    context = redact(_build_context(record), record.secrets)
    return render_page("run.html.j2", context, charts, **CAPTIONS)


def _build_context(record: RunRecord) -> dict[str, Any]:
    run, results = record.run, record.results or {}
    return {
        "title": f"{record.model_name} at {table.describe_budget(record)}",
        "shipped": find_shipped_name(record.results),
        "warned": record.results is None or bool(table.warn_of_no_gain(record)),
        "missing": record.missing,
        "summary": table.summarise(record),
        "headline": {"header": table.list_columns(record), "rows": table.list_rows(record)},
        "roles": _build_groups(record, "role"),
        "blocks": _build_groups(record, "block"),
        "rungs": {"header": table.RUNG_HEADER, "rows": table.list_rungs(record)},
        "search": table.list_search_facts(record),
        "steps": {"header": steps.STEP_HEADER, "rows": steps.list_step_rows(record)},
        "gained": steps.summarise_steps(record),
        "disagreement": tell_disagreement(record),
        "times": table.list_times(record),
        "method": _collect_method(record),
        "provenance": list_provenance(run),
        "fingerprint": run.get("fingerprint", {}),
        "text": tabulate_text(run.get("text", {})),
        "notes": results.get("notes", []),
        "config": yaml.safe_dump(
            redact(dict(record.config), record.secrets), sort_keys=False, allow_unicode=True
        ),
    }


def _build_groups(record: RunRecord, by: Any) -> dict[str, Any]:
    return {
        "header": table.list_group_columns(record, by),
        "rows": table.list_group_rows(record, by),
    }


def _collect_method(record: RunRecord) -> dict[str, str]:
    config = record.config
    plugins = {kind: config[kind]["name"] for kind in ("pruner", "searcher", "evaluator")}
    starts = ", ".join(record.starts)
    return {**plugins, "space": str(config["space"]), "initial candidates": starts}
