"""`report`: tables, plots and HTML of a run, finished or not; several runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options


def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories; several to compare.")
    ],
    storage: options.RunStorage = None,
    out: Annotated[
        Path,
        typer.Option(help="The page that compares several runs.", callback=options.check_file),
    ] = Path("runs.html"),
) -> options.Result:
    """Print the table of a run and write its report.html and plots anew, or compare runs.

    sparsity-search report runs/demo

    sparsity-search report runs/a runs/b --out compared.html
    """
    if len(run_dirs) > 1:
        return _compare(run_dirs, out, storage)
    from sparsity_search.cli import terminal
    from sparsity_search.report import RunRecord, write_report
    from sparsity_search.report.comparison_page import write_comparison
    from sparsity_search.runs.comparison import ComparisonFolder

    (run_dir,) = run_dirs
    if ComparisonFolder(run_dir).begun:
        page = write_comparison(run_dir)
        terminal.say(f"report: {page}")
        return {"report": page}
    record = RunRecord.read(run_dir, storage)
    terminal.show_run(record)
    page = write_report(run_dir, storage)
    terminal.say(f"report: {page}")
    return {"report": page, **terminal.describe_run(record)}


def _compare(run_dirs: list[Path], out: Path, storage: str | None) -> options.Result:
    """Print the table of several runs, and write their page."""
    from sparsity_search.cli import terminal
    from sparsity_search.report.runs_page import HEADER, list_run_rows, read_runs, write_runs

    page = write_runs(run_dirs, out, storage)
    rows = list_run_rows(read_runs(run_dirs, storage))
    terminal.show_table(HEADER, rows, align="lll")
    terminal.say(f"report: {page}")
    return {"report": page, "rows": [dict(zip(HEADER, row, strict=True)) for row in rows]}
