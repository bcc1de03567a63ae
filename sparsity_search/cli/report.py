"""`report`: tables, plots and HTML of a run, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    storage: Annotated[
        str | None, typer.Option(help="URL of the run's storage, if it has a password.")
    ] = None,
) -> None:
    """Print the table of a run and write its report.html and plots anew.

    sparsity-search report runs/demo
    """
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.cli.terminal import table as text_table
    from sparsity_search.report import RunRecord, write_report
    from sparsity_search.report.comparison import COMPARISON
    from sparsity_search.report.comparison_page import write_comparison
    from sparsity_search.report.table import header, rows, summary

    if (run_dir / COMPARISON).exists():
        console.print(f"report: {write_comparison(run_dir)}")
        return
    record = RunRecord.read(run_dir, storage)
    console.print(text_table(header(record), rows(record)))
    console.print(summary(record))
    console.print(f"report: {write_report(run_dir, storage)}")
