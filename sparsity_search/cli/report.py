"""`report`: tables, plots and HTML of a run, finished or not."""

from __future__ import annotations

from sparsity_search.cli import options


def report(run_dir: options.RunDir, storage: options.RunStorage = None) -> None:
    """Print the table of a run and write its report.html and plots anew.

    sparsity-search report runs/demo
    """
    from sparsity_search.cli import terminal
    from sparsity_search.report import RunRecord, write_report
    from sparsity_search.report.comparison_page import write_comparison
    from sparsity_search.runs.comparison import ComparisonFolder

    if ComparisonFolder(run_dir).begun:
        terminal.say(f"report: {write_comparison(run_dir)}")
        return
    record = RunRecord.read(run_dir, storage)
    terminal.show_run(record)
    terminal.say(f"report: {write_report(run_dir, storage)}")
