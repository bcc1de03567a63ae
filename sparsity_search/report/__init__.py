"""The report of a run: tables, plots and one HTML file, made from its record."""

from sparsity_search.report.html import write_report
from sparsity_search.runs.record import RunRecord, load_measurements

__all__ = ["RunRecord", "load_measurements", "write_report"]
