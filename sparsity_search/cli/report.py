"""`report`: tables, plots and HTML of a run, finished or not; several runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options
from sparsity_search.errors import ConfigError


def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories; several to compare.")
    ],
    storage: options.RunStorage = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page that compares several runs; by default runs.html.",
            callback=options.check_file,
        ),
    ] = None,
) -> options.Result:
    """Print the table of a run and write its report.html and plots anew, or compare runs.

    sparsity-search report runs/demo

    sparsity-search report runs/a runs/b --out compared.html
    """
    if len(run_dirs) > 1:
        return _compare(run_dirs, out or Path("runs.html"), storage)
    if out is not None:
        raise ConfigError("--out is for several runs; the report of one is in its folder")
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
    from sparsity_search.report.runs_page import (
        HEADER,
        list_run_rows,
        read_runs,
        warn_of_differences,
        write_runs,
    )

    records = read_runs(run_dirs, storage)
    page = write_runs(records, out)
    terminal.show_table(HEADER, list_run_rows(records), align="lll")
    for line in [*warn_of_differences(records), f"report: {page}"]:
        terminal.say(line)
    runs = {name: terminal.describe_run(record) for name, record in records.items()}
    return {"report": page, "runs": runs}
